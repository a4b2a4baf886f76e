"""A finished mask on edges, run at the cost of its few ablated or few kept edges.

With few ablated edges the model runs as it is, and their readers read less of it:

    read[r, t] = C stream[t] - sum over ablated w of x[w, t],   x = C (h - a)

With few kept edges only writers that reach the logits through kept edges run:

    read[r, t] = x0[t] + sum over kept w of x[w, t]

Both give what the whole stack gives. Symbols: docs/edge_engine.md, section 8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcut.masks.edges.attention import attend, attend_given
from circuitcut.masks.edges.products import mix, products_into, squares_of
from circuitcut.masks.edges.read_groups import GroupedReads
from circuitcut.masks.edges.reads import centred, complete, project_into, scale_of
from circuitcut.masks.edges.run import EdgeRun
from circuitcut.models.residual.edge_slices import (
    attention_gates,
    mlp_gates,
    output_gates,
    with_always,
    writers_of,
)
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.residual.graph import ResidualGraph

Form = Literal["ablated", "kept", "all"]


@dataclass(frozen=True)
class SparsePlan:
    """What a finished mask makes it necessary to run.

    Attributes:
        form: Run the `ablated` edges beside the model, the `kept` ones alone, or all.
        rows: Place of every needed writer among the stored ones.
        readers: Of every layer, attention readers that are run by themselves.
        heads: Of every layer, heads whose output is stored.
        mlps: Layers whose MLP runs (`kept`) or reads less than the stream (`ablated`).
        cost: Multiplications a token of each form.
    """

    form: Form
    rows: dict[int, int]
    readers: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...], ...]
    mlps: frozenset[int]
    cost: dict[Form, int]


def plan_of(model: ResidualModel, keep: Bool[Tensor, "edge"]) -> SparsePlan:
    """The cheapest way to run a finished mask, by counting multiplications."""
    graph = model.graph
    plans = [_all_plan(model)]
    grouped = not graph.separate_qkv and graph.n_kv_heads != graph.n_heads
    if model.is_post_norm:
        plans.append(_beside_plan(model, keep.cpu()))
    elif not grouped:
        plans.append(_ablated_plan(model, keep.cpu()))
        if model.parts.norm_attention is None:  # which needs all heads of a layer
            plans.append(_kept_plan(model, keep.cpu()))
    cost = {plan.form: plan.cost[plan.form] for plan in plans}
    best = min(plans, key=lambda plan: plan.cost[plan.form])
    return SparsePlan(best.form, best.rows, best.readers, best.heads, best.mlps, cost)


def _all_plan(model: ResidualModel) -> SparsePlan:
    """Every edge: the plain model, and E d for the reads."""
    cost = block_cost(model) + model.graph.n_edges * model.d_model
    return SparsePlan("all", {}, (), (), frozenset(), {"all": cost})


def _ablated_plan(model: ResidualModel, keep: Tensor) -> SparsePlan:
    """The plain model, and beside it the writers and readers of ablated edges."""
    graph, d_model = model.graph, model.d_model
    is_ablated = ~keep
    sources = writers_of(graph, is_ablated)
    rows = {writer: place for place, writer in enumerate(sources)}
    readers, heads, mlps = [], [], set()
    for layer in range(graph.n_layers):
        first = graph.n_before(layer)
        reads_less = attention_gates(graph, layer, is_ablated).any(1)  # (reader,)
        readers.append(tuple(reads_less.nonzero()[:, 0].tolist()))
        of_layer = range(first, first + graph.n_heads)
        heads.append(tuple(w - first for w in of_layer if w in rows))
        if bool(mlp_gates(graph, layer, is_ablated).any()):
            mlps.add(layer)
    n_projected, n_written = sum(map(len, readers)), sum(map(len, heads))
    # sums of rows: d an edge; projections: d width a reader; rows of heads: d_head d
    cost = block_cost(model) + int(is_ablated.sum()) * d_model
    cost += n_projected * d_model * _width(graph, model.d_head)
    cost += n_written * model.d_head * d_model
    return SparsePlan(
        "ablated", rows, tuple(readers), tuple(heads), frozenset(mlps),
        {"ablated": cost},
    )  # fmt: skip


def _beside_plan(model: ResidualModel, keep: Tensor) -> SparsePlan:
    """Of an encoder, which runs as it is (`masks/edges/encoder_beside.py`)."""
    graph, d_model = model.graph, model.d_model
    is_ablated = ~keep
    n_sources = len(writers_of(graph, is_ablated))
    # two norms a layer for every source, then reads, projections and rows of heads
    cost = block_cost(model) + graph.n_layers * 2 * n_sources * d_model
    for layer in range(graph.n_layers):
        n_read = int(attention_gates(graph, layer, is_ablated).any(1).sum())
        cost += n_read * d_model * (n_sources + _width(graph, model.d_head))
    cost += n_sources * model.d_head * d_model
    return SparsePlan("ablated", {}, (), (), frozenset(), {"ablated": cost})


def _kept_plan(model: ResidualModel, keep: Tensor) -> SparsePlan:
    """Only what reaches the logits through kept edges, found from the logits down."""
    graph = model.graph
    needed = set(output_gates(graph, keep).nonzero()[:, 0].tolist())  # writers
    readers: list[tuple[int, ...]] = []
    heads: list[tuple[int, ...]] = []
    mlps = set()
    for layer in reversed(range(graph.n_layers)):
        first = graph.n_before(layer)
        if first + graph.n_heads in needed:
            mlps.add(layer)
            needed |= set(mlp_gates(graph, layer, keep).nonzero()[:, 0].tolist())
        of_layer = [head for head in range(graph.n_heads) if first + head in needed]
        read = sorted({r for head in of_layer for r in _readers_of(graph, head)})
        if read:
            is_read = attention_gates(graph, layer, keep)[read].any(0)  # (writer,)
            needed |= set(is_read.nonzero()[:, 0].tolist())
        heads.insert(0, tuple(of_layer))
        readers.insert(0, tuple(read))
    rows = {writer: place for place, writer in enumerate(sorted(needed))}
    return SparsePlan(
        "kept", rows, tuple(readers), tuple(heads), frozenset(mlps),
        {"kept": _kept_cost(model, rows, readers, heads, mlps)},
    )  # fmt: skip


def _kept_cost(
    model: ResidualModel,
    rows: dict[int, int],
    readers: Sequence[Sequence[int]],
    heads: Sequence[Sequence[int]],
    mlps: set[int],
) -> int:
    """Multiplications a token of the stored rows, readers, heads and MLPs."""
    graph, d_model = model.graph, model.d_model
    cost = len(mlps) * _mlp_cost(model)
    for layer in range(graph.n_layers):
        # a reader: d a stored row before it, d width to project; a head: d_head d
        before = sum(writer < graph.n_before(layer) for writer in rows)
        projected = before + _width(graph, model.d_head)
        cost += len(readers[layer]) * d_model * projected
        cost += len(heads[layer]) * model.d_head * d_model
        cost += (layer in mlps) * before * d_model
    return cost


def block_cost(model: ResidualModel) -> int:
    """Multiplications a token of all blocks' weights, as the model itself runs them."""
    graph, d_model = model.graph, model.d_model
    attention = (graph.n_heads * 2 + 2 * graph.n_kv_heads) * model.d_head * d_model
    return graph.n_layers * (attention + _mlp_cost(model))


def _mlp_cost(model: ResidualModel) -> int:
    """Multiplications a token of one MLP's weights."""
    return sum(w.numel() for w in model.mlp_weights(0) if w.dim() == 2)


def _width(graph: ResidualGraph, d_head: int) -> int:
    """Numbers that a reader projects a token to."""
    return d_head if graph.separate_qkv else 3 * d_head


def _readers_of(graph: ResidualGraph, head: int) -> list[int]:
    """The attention readers that a head uses."""
    if not graph.separate_qkv:
        return [head]
    group = head // (graph.n_heads // graph.n_kv_heads)
    key = graph.n_heads + group
    return [head, key, key + graph.n_kv_heads]


class SparseRun:
    """One pass under a finished mask; no gradients.

    Row 0 of the buffer is x0, as in the whole stack; the others are those of the plan.
    """

    def __init__(self, run: EdgeRun, plan: SparsePlan, keep: Tensor):
        self.run, self.plan, self.keep = run, plan, keep
        self.model, self.graph = run.model, run.model.graph
        self._gates: dict[int, Tensor] = {}

    def __call__(self, stream: Tensor, position: Tensor | None) -> Tensor:
        """What the logits read, (batch, seq, d_model)."""
        shape = stream.shape[0] * stream.shape[1], self.model.d_model
        buffers, n_rows = self.run.buffers, 1 + len(self.plan.rows)
        # x0 and x[w] of the stored writers   (1 + stored, token, d_model)
        self.rows = buffers.borrow(stream, n_rows, *shape, spread=True)
        self.rows[0].zero_()
        self.dtype, self.shape = stream.dtype, stream.shape
        flat = stream.reshape(shape)  # (token, d_model)
        inputs = [flat]
        if position is not None:
            # h[input] = stream - e; e is a writer of its own, or in x0
            embedding = position.expand_as(stream).reshape(shape)
            inputs = [flat - embedding]
            if self.graph.position == "own":
                inputs.append(embedding)
            else:
                self.rows[0] += centred(self.model, embedding)
        for writer, value in enumerate(inputs):
            self._store(writer, centred(self.model, value))
        self._add_ablated(slice(0, len(inputs)))
        if self.plan.form == "ablated":
            read = self._run_beside_model(flat)
        else:
            read = self._run_kept()
        buffers.give_back(self.rows)
        return read.view(self.shape)

    def _run_beside_model(self, stream: Tensor) -> Tensor:
        """Form `ablated`: all blocks of the model, on the plain stream (token, d)."""
        model, graph = self.model, self.graph
        is_ablated = ~self.keep
        for layer in range(graph.n_layers):
            written, attended = self._attend_beside_model(layer, stream, is_ablated)
            scale = None
            norm = model.norm(layer, model.parts.norm_attention)
            if norm is not None:
                # h[n] = s gain o[n] O[n], s of the sum of all heads
                total = written.reshape(stream.shape)
                scale = model.inverse_deviation(norm, total) * model.gain(norm)
                written = norm(written)
            self._store_heads(layer, attended, scale)
            before = stream
            stream = stream + written.reshape(stream.shape)
            mlp_read = before if graph.parallel else stream
            if layer in self.plan.mlps:
                # read[mlp] = C stream - sum over ablated w of x[w]
                ablated = mlp_gates(graph, layer, is_ablated)[None]
                mlp_read = centred(model, mlp_read) - self._sum(ablated)[0]
            written = model.run_mlp(layer, mlp_read.view(self.shape))
            written = written.reshape(stream.shape)
            writer = graph.n_before(layer) + graph.n_heads
            self._store(writer, centred(model, written))
            stream = stream + written
        ablated = output_gates(graph, is_ablated)[None]
        return stream - self._sum(ablated)[0] if bool(ablated.any()) else stream

    def _attend_beside_model(
        self, layer: int, stream: Tensor, is_ablated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What attention writes, b_O included, and o of all heads, (batch, seq, ...).

        The projections of the plain stream, but for readers with an ablated edge.
        """
        model = self.model
        norm = model.norm(layer, model.parts.norm_in)
        normed = stream if norm is None else norm(stream)
        outputs = [
            projection(normed.view(self.shape))
            for projection in model.projections(layer)
        ]
        readers = list(self.plan.readers[layer])
        if readers:
            # read[r] = C stream - sum over ablated w of x[w]   (reader, token, d_model)
            ablated = attention_gates(self.graph, layer, is_ablated)[readers]
            reads = centred(model, stream) - self._sum(ablated)
            self._replace(layer, readers, reads, outputs)
        attended = attend_given(self.run, layer, outputs)
        return model.output(layer)(attended), attended

    def _run_kept(self) -> Tensor:
        """Form `kept`: the needed readers, heads and MLPs alone."""
        model, graph = self.model, self.graph
        n_readers = [len(self._gates_of(layer)) for layer in range(graph.n_layers)]
        grouped = GroupedReads(
            self.run, self.rows, graph.n_layers, max(n_readers), self._gates_of
        )
        for layer in range(graph.n_layers):
            first = graph.n_before(layer)
            always = self.rows[0].clone()
            mlp_read = None
            if n_readers[layer]:
                projected, mlp_read = self._read(layer, grouped, always)
                if self.plan.readers[layer]:
                    attended = attend(self.run, layer, projected)
                    self._store_heads(layer, attended, None)
            bias = self.run.layers[layer].always_bias
            if bias is not None:
                self.rows[0] += bias  # x0 += k0
            self._add_ablated(slice(first, first + graph.n_heads))
            writer = first + graph.n_heads
            if mlp_read is not None:
                if not graph.parallel:
                    self._complete_mlp_read(layer, mlp_read, always)
                written = model.run_mlp(layer, mlp_read.view(self.shape))
                written = written.reshape(mlp_read.shape)
                self._store(writer, centred(model, written))
            self._add_ablated(slice(writer, writer + 1))
        grouped.release()
        return self._read_one(output_gates(graph, self.keep))

    def _gates_of(self, layer: int) -> Tensor:
        """[1, g[r, stored w]] of the needed readers: attention's, and the MLP if it is.

        (reader, x0 and stored writer before the layer)
        """
        if layer not in self._gates:
            readers = list(self.plan.readers[layer])
            gates = attention_gates(self.graph, layer, self.keep)
            of_mlp = mlp_gates(self.graph, layer, self.keep)[None, : gates.shape[1]]
            n_mlps = int(layer in self.plan.mlps)
            gates = torch.cat([gates[readers], of_mlp[:n_mlps]])
            stored = gates[:, self._stored(gates)].to(self.dtype)
            self._gates[layer] = with_always(stored)
        return self._gates[layer]

    def _read(
        self, layer: int, grouped: GroupedReads, always: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """p of all attention readers, and the MLP's read of the writers before.

        p is (reader, token, width), 0 where not needed; the MLP's read, (token,
        d_model), is None where it is not needed.
        """
        readers = list(self.plan.readers[layer])
        pieces = []
        has_mlp = layer in self.plan.mlps
        mlp_read = torch.empty_like(always) if has_mlp else None
        for group, place in grouped.of(layer, always):
            reads, squares = group.of(place), group.squares_of(place)
            n_readers = len(readers)
            pieces.append(
                self._projected(layer, readers, reads[:n_readers], squares[:n_readers])
            )
            if mlp_read is not None:
                mlp_read[group.tokens] = reads[-1]
        projected = torch.cat(pieces, 1)
        if len(readers) == self.graph.n_attention_readers:
            return projected, mlp_read
        n_readers = self.graph.n_attention_readers
        all_projected = projected.new_zeros(n_readers, *projected.shape[1:])
        all_projected[readers] = projected
        return all_projected, mlp_read

    def _complete_mlp_read(self, layer: int, mlp_read: Tensor, always: Tensor) -> None:
        """Add k0 and this layer's stored heads to what the MLP reads, in place."""
        first = self.graph.n_before(layer)
        heads = list(self.plan.heads[layer])
        new_gates = mlp_gates(self.graph, layer, self.keep)[first:][heads]
        n_before = sum(writer < first for writer in self.plan.rows)
        complete(mlp_read, self.rows, always, n_before, new_gates.to(self.dtype))

    def _read_one(self, kept: Bool[Tensor, "writer"]) -> Tensor:
        """x0 + sum over kept w of x[w], (token, d_model)."""
        return self._sum(kept[None])[0].add_(self.rows[0])

    def _stored(self, marked: Bool[Tensor, "reader writer"]) -> list[int]:
        """Writers that are stored, of those that the readers may read."""
        # rows are stored in the order of their writers: a prefix
        return [writer for writer in self.plan.rows if writer < marked.shape[1]]

    def _sum(self, marked: Bool[Tensor, "reader writer"]) -> Tensor:
        """sum over marked w of x[w, t]: (reader, token, d_model)."""
        gates = marked[:, self._stored(marked)].to(self.dtype)
        sums = self.rows.new_empty(len(marked), *self.rows.shape[1:])
        mix(sums, gates, self.rows[1 : 1 + gates.shape[1]])
        return sums

    def _projected(
        self, layer: int, readers: Sequence[int], reads: Tensor, squares: Tensor
    ) -> Tensor:
        """p = s read A + b of these readers: (reader, token, width)."""
        folded = self.run.layers[layer]
        scale = scale_of(self.model, layer, squares, reads.dtype)
        projected = reads.new_empty(*reads.shape[:2], folded.read.shape[-1])
        if len(readers) == len(folded.read):
            project_into(projected, folded, reads, scale)
            return projected
        # one product a reader: a few weights are not worth a copy
        for reader, read, product in zip(readers, reads, projected, strict=True):
            torch.mm(read, folded.read[reader], out=product)
        if scale is not None:
            projected.mul_(scale)
        return projected.add_(folded.read_bias[readers])

    def _replace(
        self, layer: int, readers: Sequence[int], reads: Tensor, outputs: list[Tensor]
    ) -> None:
        """Put p of these readers into the projections' outputs, (batch, seq, ...)."""
        width = self.model.d_head
        projected = self._projected(layer, readers, reads, squares_of(reads))
        for reader, values in zip(readers, projected, strict=True):
            # merged readers: p = [q, k, v], three pieces of d_head
            for part, value in enumerate(values.split(width, -1)):
                place = reader
                if not self.graph.separate_qkv:
                    place = part * self.graph.n_heads + reader
                module, first = self.model.columns(place)
                columns = slice(first, first + width)
                outputs[module][..., columns] = value.view(*self.shape[:2], width)

    def _store_heads(self, layer: int, attended: Tensor, scale: Tensor | None) -> None:
        """Fill the rows of a layer's stored heads, of o of all heads."""
        heads = list(self.plan.heads[layer])
        if not heads:
            return
        folded, first = self.run.layers[layer], self.graph.n_before(layer)
        # x[n] = C (scale o[n] O[n] + k[n] - a[n])   (head, token, d_model)
        by_head = attended.reshape(-1, self.graph.n_heads, self.model.d_head)
        by_head = by_head.transpose(0, 1)
        place = 1 + self.plan.rows[first + heads[0]]
        head_rows = self.rows[place : place + len(heads)]
        if len(heads) == len(folded.write):
            products_into(head_rows, by_head, folded.write)
        else:
            for head, row in zip(heads, head_rows, strict=True):
                torch.mm(by_head[head], folded.write[head], out=row)
        if scale is not None:
            head_rows *= scale
        if folded.head_bias is not None:
            head_rows += folded.head_bias[heads, None]
        if self.run.ablated is not None:
            writers = [first + head for head in heads]
            head_rows -= centred(self.model, self.run.ablated[writers])

    def _store(self, writer: int, value: Tensor) -> None:
        """x[w] = C h[w] - C a[w] where the writer is stored; `value` is C h[w]."""
        place = self.plan.rows.get(writer)
        if place is not None:
            if self.run.ablated is not None:
                value = value - centred(self.model, self.run.ablated[writer])
            self.rows[1 + place] = value

    def _add_ablated(self, writers: slice) -> None:
        """x0 += sum_w C a[w]."""
        if self.run.ablated is not None:
            self.rows[0] += centred(self.model, self.run.ablated[writers]).sum(0)
