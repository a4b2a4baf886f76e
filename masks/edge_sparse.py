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

from masks.edge_attention import attend, attend_given
from masks.edge_gates import attention_gates, mlp_gates, writers_of
from masks.edge_reads import centred, projected_by, scale_of
from masks.edge_run import EdgeRun
from models.architectures import architecture_of
from models.residual_graph import ResidualGraph
from models.residual_parts import FoldedLayer, ResidualModel

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
    grouped = not graph.apart and graph.n_kv_heads != graph.n_heads
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
    """Of an encoder, which runs as it is (`masks/encoder_beside.py`)."""
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
    needed = set(keep[-graph.n_writers :].nonzero()[:, 0].tolist())
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
    return d_head if graph.apart else 3 * d_head


def _readers_of(graph: ResidualGraph, head: int) -> list[int]:
    """The attention readers that a head uses."""
    if not graph.apart:
        return [head]
    group = head // (graph.n_heads // graph.n_kv_heads)
    key = graph.n_heads + group
    return [head, key, key + graph.n_kv_heads]


class SparseRun:
    """One pass under a finished mask; no gradients."""

    def __init__(self, run: EdgeRun, plan: SparsePlan, keep: Tensor):
        self.run, self.plan, self.keep = run, plan, keep
        self.model, self.graph = run.model, run.model.graph

    def __call__(self, stream: Tensor, position: Tensor | None) -> Tensor:
        """What the logits read, (batch, seq, d_model)."""
        shape = stream.shape[0] * stream.shape[1], self.model.d_model
        self.rows = stream.new_empty(len(self.plan.rows), *shape)
        self.dtype, self.shape = stream.dtype, stream.shape
        whole = stream.reshape(shape)
        always = whole.new_zeros(1, self.model.d_model)
        inputs = [whole]
        if position is not None:
            apart = position.expand_as(stream).reshape(shape)
            inputs = [whole - apart]
            if self.graph.position == "own":
                inputs.append(apart)
            else:
                always = always + centred(self.model, apart)
        for writer, value in enumerate(inputs):
            self._store(writer, centred(self.model, value))
        always = self._with_ablated(always, slice(0, len(inputs)))
        run = self._beside_the_model if self.plan.form == "ablated" else self._alone
        return run(whole, always).view(self.shape)

    def _beside_the_model(self, stream: Tensor, always: Tensor) -> Tensor:
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
        taken = cut[-graph.n_writers :][None]
        return stream - self._sum(taken)[0] if bool(taken.any()) else stream

    def _alone(self, stream: Tensor, always: Tensor) -> Tensor:
        model, graph = self.model, self.graph
        for layer in range(graph.n_layers):
            first = graph.n_before(layer)
            readers = list(self.plan.readers[layer])
            before = always
            if readers:
                kept = attention_gates(graph, layer, self.keep)[readers]
                projected = self._projected(layer, readers, always + self._sum(kept))
                every = stream.new_zeros(
                    graph.n_attention_readers, len(stream), projected.shape[-1]
                )
                every[readers] = projected
                found = attend(self.run, layer, every)
                self._store_heads(layer, found, None)
            bias = self.run.layers[layer].write_bias
            if bias is not None and graph.attention_bias == "always":
                always = always + bias
            always = self._with_ablated(always, slice(first, first + graph.n_heads))
            place = first + graph.n_heads
            if layer in self.plan.mlps:
                kept = mlp_gates(graph, layer, self.keep)[None]
                seen = (before if graph.parallel else always) + self._sum(kept)[0]
                seen = seen.expand_as(stream).reshape(self.shape)
                written = model.run_mlp(layer, seen).reshape(stream.shape)
                self._store(place, centred(model, written))
            always = self._with_ablated(always, slice(place, place + 1))
        read = always + self._sum(self.keep[-graph.n_writers :][None])[0]
        return read.expand_as(stream).contiguous()

    def _sum(self, marked: Bool[Tensor, "reader writer"]) -> Tensor:
        """Of every reader, the stored rows of the writers it marks."""
        stored = [w for w in self.plan.rows if w < marked.shape[1]]
        places = [self.plan.rows[writer] for writer in stored]
        gates = marked[:, stored].to(self.dtype)
        # rows are stored in the order of their writers: a prefix
        rows = self.rows[: len(places)].flatten(1)
        return (gates @ rows).view(len(marked), *self.rows.shape[1:])

    def _projected(self, layer: int, readers: Sequence[int], reads: Tensor) -> Tensor:
        folded = self.run.layers[layer]
        chosen = FoldedLayer(
            folded.read[readers], folded.read_bias[readers], folded.write, None
        )
        return projected_by(chosen, reads, scale_of(self.model, layer, reads))

    def _give(
        self, layer: int, readers: Sequence[int], reads: Tensor, given: list[Tensor]
    ) -> None:
        """Put these readers' queries, keys and values into the projections' outputs."""
        width = self.model.d_head
        projected = self._projected(layer, readers, reads)
        for reader, values in zip(readers, projected, strict=True):
            for part, value in enumerate(values.split(width, -1)):
                place = reader
                if not self.graph.apart:
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
        folded = self.run.layers[layer]
        found = found.reshape(-1, self.graph.n_heads, self.model.d_head)
        written = torch.bmm(found[:, heads].transpose(0, 1), folded.write[heads])
        if scale is not None:
            written = written * scale
        if folded.write_bias is not None and self.graph.attention_bias == "heads":
            written = written + folded.write_bias / self.graph.n_heads
        first = self.graph.n_before(layer)
        for head, value in zip(heads, written, strict=True):
            self._store(first + head, value)

    def _store(self, writer: int, value: Tensor) -> None:
        place = self.plan.rows.get(writer)
        if place is not None:
            if self.run.ablated is not None:
                value = value - centred(self.model, self.run.ablated[writer])
            self.rows[place] = value

    def _with_ablated(self, always: Tensor, writers: slice) -> Tensor:
        if self.run.ablated is None:
            return always
        return always + centred(self.model, self.run.ablated[writers]).sum(0)
