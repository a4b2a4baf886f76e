"""A finished mask on edges, run for what it costs: its few ablated, or few kept, edges.

With few ablated edges the model runs as it is, and readers with an ablated edge take
what it carried out of the stream: r_v = x - sum over ablated u of (h_u - a_u). With few
kept edges only what reaches the logits through kept edges is run, on
r_v = always on + sum over kept u of (h_u - a_u). Both give what the whole stack gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcut.masks.edges.attention import attend, attend_given
from circuitcut.masks.edges.products import mix, products_into, squares_of
from circuitcut.masks.edges.reads import centred, project_into, scale_of, tiles
from circuitcut.masks.edges.run import EdgeRun
from circuitcut.models.architectures import architecture_of
from circuitcut.models.residual.edge_slices import (
    attention_gates,
    mlp_gates,
    output_gates,
    with_always,
    writers_of,
)
from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel
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
    cost = _plain_cost(model) + model.graph.n_edges * model.d_model
    return SparsePlan("all", {}, (), (), frozenset(), {"all": cost})


def _ablated_plan(model: ResidualModel, keep: Tensor) -> SparsePlan:
    graph, d_model = model.graph, model.d_model
    cut = ~keep
    sources = writers_of(graph, cut)
    rows = {writer: place for place, writer in enumerate(sources)}
    readers, heads, mlps = [], [], set()
    for layer in range(graph.n_layers):
        first = graph.n_before(layer)
        found = attention_gates(graph, layer, cut).any(1).nonzero()[:, 0]
        readers.append(tuple(found.tolist()))
        own = range(first, first + graph.n_heads)
        heads.append(tuple(w - first for w in own if w in rows))
        if bool(mlp_gates(graph, layer, cut).any()):
            mlps.add(layer)
    n_projected, n_written = sum(map(len, readers)), sum(map(len, heads))
    cost = _plain_cost(model) + int(cut.sum()) * d_model
    cost += n_projected * d_model * _width(graph, model.d_head)
    cost += n_written * model.d_head * d_model
    return SparsePlan(
        "ablated", rows, tuple(readers), tuple(heads), frozenset(mlps),
        {"ablated": cost},
    )  # fmt: skip


def _beside_plan(model: ResidualModel, keep: Tensor) -> SparsePlan:
    """Of an encoder, which runs as it is (`masks/edges/encoder_beside.py`)."""
    graph, d_model = model.graph, model.d_model
    cut, sources = ~keep, len(writers_of(graph, ~keep))
    cost = _plain_cost(model) + graph.n_layers * 2 * sources * d_model
    for layer in range(graph.n_layers):
        n_read = int(attention_gates(graph, layer, cut).any(1).sum())
        cost += n_read * d_model * (sources + _width(graph, model.d_head))
    cost += sources * model.d_head * d_model
    return SparsePlan("ablated", {}, (), (), frozenset(), {"ablated": cost})


def _kept_plan(model: ResidualModel, keep: Tensor) -> SparsePlan:
    graph, d_model = model.graph, model.d_model
    needed = set(output_gates(graph, keep).nonzero()[:, 0].tolist())
    readers: list[tuple[int, ...]] = []
    heads: list[tuple[int, ...]] = []
    mlps = set()
    for layer in reversed(range(graph.n_layers)):
        first = graph.n_before(layer)
        if first + graph.n_heads in needed:
            mlps.add(layer)
            needed |= set(mlp_gates(graph, layer, keep).nonzero()[:, 0].tolist())
        own = [head for head in range(graph.n_heads) if first + head in needed]
        read = sorted({r for head in own for r in _readers_of(graph, head)})
        if read:
            seen = attention_gates(graph, layer, keep)[read].any(0)
            needed |= set(seen.nonzero()[:, 0].tolist())
        heads.insert(0, tuple(own))
        readers.insert(0, tuple(read))
    rows = {writer: place for place, writer in enumerate(sorted(needed))}
    d_mlp = architecture_of(model.model).d_mlp(model.base.config)
    cost = len(mlps) * 3 * d_model * d_mlp
    for layer in range(graph.n_layers):
        before = sum(writer < graph.n_before(layer) for writer in rows)
        projected = before + _width(graph, model.d_head)
        cost += len(readers[layer]) * d_model * projected
        cost += len(heads[layer]) * model.d_head * d_model
        cost += (layer in mlps) * before * d_model
    return SparsePlan(
        "kept", rows, tuple(readers), tuple(heads), frozenset(mlps), {"kept": cost}
    )


def _plain_cost(model: ResidualModel) -> int:
    graph, d_model = model.graph, model.d_model
    d_mlp = architecture_of(model.model).d_mlp(model.base.config)
    attention = (graph.n_heads * 2 + 2 * graph.n_kv_heads) * model.d_head * d_model
    return graph.n_layers * (attention + 3 * d_model * d_mlp)


def _width(graph: ResidualGraph, d_head: int) -> int:
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

    Row 0 of the buffer is always on, as in the whole stack.
    """

    def __init__(self, run: EdgeRun, plan: SparsePlan, keep: Tensor):
        self.run, self.plan, self.keep = run, plan, keep
        self.model, self.graph = run.model, run.model.graph

    def __call__(self, stream: Tensor, position: Tensor | None) -> Tensor:
        """What the logits read, (batch, seq, d_model)."""
        shape = stream.shape[0] * stream.shape[1], self.model.d_model
        buffers, n_rows = self.run.buffers, 1 + len(self.plan.rows)
        self.rows = buffers.borrow(stream, n_rows, *shape, spread=True)
        self.rows[0].zero_()
        self.dtype, self.shape = stream.dtype, stream.shape
        whole = stream.reshape(shape)
        inputs = [whole]
        if position is not None:
            apart = position.expand_as(stream).reshape(shape)
            inputs = [whole - apart]
            if self.graph.position == "own":
                inputs.append(apart)
            else:
                self.rows[0] += centred(self.model, apart)
        for writer, value in enumerate(inputs):
            self._store(writer, centred(self.model, value))
        self._add_ablated(slice(0, len(inputs)))
        if self.plan.form == "ablated":
            found = self._beside_the_model(whole)
        else:
            found = self._alone()
        buffers.give_back(self.rows)
        return found.view(self.shape)

    def _beside_the_model(self, stream: Tensor) -> Tensor:
        model, graph = self.model, self.graph
        cut = ~self.keep
        for layer in range(graph.n_layers):
            first = graph.n_before(layer)
            norm = model.norm(layer, model.parts.norm_in)
            normed = stream if norm is None else norm(stream)
            given = [
                projection(normed.view(self.shape))
                for projection in model.projections(layer)
            ]
            readers = list(self.plan.readers[layer])
            if readers:
                taken = attention_gates(graph, layer, cut)[readers]
                reads = centred(model, stream) - self._sum(taken)
                self._give(layer, readers, reads, given)
            found = attend_given(self.run, layer, given)
            written = model.output(layer)(found)
            scale = None
            norm = model.norm(layer, model.parts.norm_attention)
            if norm is not None:
                total = written.reshape(stream.shape)
                scale = model.inverse_deviation(norm, total) * model.gain(norm)
                written = norm(written)
            self._store_heads(layer, found, scale)
            before = stream
            stream = stream + written.reshape(stream.shape)
            seen = before if graph.parallel else stream
            if layer in self.plan.mlps:
                taken = mlp_gates(graph, layer, cut)[None]
                seen = centred(model, seen) - self._sum(taken)[0]
            written = model.run_mlp(layer, seen.view(self.shape))
            written = written.reshape(stream.shape)
            self._store(first + graph.n_heads, centred(model, written))
            stream = stream + written
        taken = output_gates(graph, cut)[None]
        return stream - self._sum(taken)[0] if bool(taken.any()) else stream

    def _alone(self) -> Tensor:
        model, graph = self.model, self.graph
        for layer in range(graph.n_layers):
            first = graph.n_before(layer)
            seen = self._seen_by_mlp(layer) if graph.parallel else None
            if self.plan.readers[layer]:
                found = attend(self.run, layer, self._read(layer))
                self._store_heads(layer, found, None)
            bias = self.run.layers[layer].write_bias
            if bias is not None and graph.attention_bias == "always":
                self.rows[0] += bias
            self._add_ablated(slice(first, first + graph.n_heads))
            place = first + graph.n_heads
            if layer in self.plan.mlps:
                if seen is None:
                    seen = self._seen_by_mlp(layer)
                written = model.run_mlp(layer, seen.view(self.shape))
                written = written.reshape(seen.shape)
                self._store(place, centred(model, written))
            self._add_ablated(slice(place, place + 1))
        return self._with_always(output_gates(graph, self.keep))

    def _read(self, layer: int) -> Tensor:
        """Queries, keys and values of all readers; zero where nothing needs them."""
        readers = list(self.plan.readers[layer])
        gates = attention_gates(self.graph, layer, self.keep)[readers]
        given = with_always(gates[:, self._stored(gates)].to(self.dtype))
        projected = []
        for tokens in tiles(self.rows[0], len(given)):
            reads = self.run.read(self.rows, given, tokens)
            projected.append(self._projected(layer, readers, reads))
            self.run.buffers.give_back(reads)
        found = torch.cat(projected, 1)
        if len(readers) == self.graph.n_attention_readers:
            return found
        every = found.new_zeros(self.graph.n_attention_readers, *found.shape[1:])
        every[readers] = found
        return every

    def _seen_by_mlp(self, layer: int) -> Tensor:
        return self._with_always(mlp_gates(self.graph, layer, self.keep))

    def _with_always(self, marked: Bool[Tensor, "writer"]) -> Tensor:
        return self._sum(marked[None])[0].add_(self.rows[0])

    def _stored(self, marked: Bool[Tensor, "reader writer"]) -> list[int]:
        """Writers that are stored, of those that the readers may read."""
        # rows are stored in the order of their writers: a prefix
        return [writer for writer in self.plan.rows if writer < marked.shape[1]]

    def _sum(self, marked: Bool[Tensor, "reader writer"]) -> Tensor:
        """Of every reader, the stored rows of the writers it marks."""
        gates = marked[:, self._stored(marked)].to(self.dtype)
        found = self.rows.new_empty(len(marked), *self.rows.shape[1:])
        mix(found, gates, self.rows[1 : 1 + gates.shape[1]])
        return found

    def _projected(self, layer: int, readers: Sequence[int], reads: Tensor) -> Tensor:
        folded = self.run.layers[layer]
        if len(readers) < len(folded.read):
            folded = FoldedLayer(
                folded.read[readers], folded.read_bias[readers], folded.write, None
            )
        scale = scale_of(self.model, layer, squares_of(reads), reads.dtype)
        projected = reads.new_empty(*reads.shape[:2], folded.read.shape[-1])
        project_into(projected, folded, reads, scale)
        return projected

    def _give(
        self, layer: int, readers: Sequence[int], reads: Tensor, given: list[Tensor]
    ) -> None:
        """Put these readers' queries, keys and values into the projections' outputs."""
        width = self.model.d_head
        projected = self._projected(layer, readers, reads)
        for reader, values in zip(readers, projected, strict=True):
            for part, value in enumerate(values.split(width, -1)):
                place = reader
                if not self.graph.separate_qkv:
                    place = part * self.graph.n_heads + reader
                module, first = self._columns(place)
                columns = slice(first, first + width)
                given[module][..., columns] = value.view(*self.shape[:2], width)

    def _columns(self, reader: int) -> tuple[int, int]:
        """Which projection's output a reader's values lie in, and from which column."""
        graph, width = self.graph, self.model.d_head
        if self.model.parts.fused == "by head":
            part, head = divmod(reader, graph.n_heads)
            return 0, (head * 3 + part) * width
        if self.model.parts.fused == "concatenated":
            return 0, reader * width
        if reader < graph.n_heads:
            return 0, reader * width
        part, head = divmod(reader - graph.n_heads, graph.n_kv_heads)
        return 1 + part, head * width

    def _store_heads(self, layer: int, found: Tensor, scale: Tensor | None) -> None:
        heads = list(self.plan.heads[layer])
        if not heads:
            return
        folded, first = self.run.layers[layer], self.graph.n_before(layer)
        found = found.reshape(-1, self.graph.n_heads, self.model.d_head).transpose(0, 1)
        weights = folded.write
        if len(heads) < len(weights):
            found, weights = found[heads], weights[heads]
        place = 1 + self.plan.rows[first + heads[0]]
        own = self.rows[place : place + len(heads)]
        products_into(own, found, weights)
        if scale is not None:
            own *= scale
        if folded.write_bias is not None and self.graph.attention_bias == "heads":
            own += folded.write_bias / self.graph.n_heads
        if self.run.ablated is not None:
            writers = [first + head for head in heads]
            own -= centred(self.model, self.run.ablated[writers])

    def _store(self, writer: int, value: Tensor) -> None:
        place = self.plan.rows.get(writer)
        if place is not None:
            if self.run.ablated is not None:
                value = value - centred(self.model, self.run.ablated[writer])
            self.rows[1 + place] = value

    def _add_ablated(self, writers: slice) -> None:
        """Put the writers' ablation values into row 0."""
        if self.run.ablated is not None:
            self.rows[0] += centred(self.model, self.run.ablated[writers]).sum(0)
