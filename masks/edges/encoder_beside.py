"""An encoder run as it is, and beside it what closed edges take out of its stream.

A reader sees r_v = x - sum over u of (1 - z_uv) d_u, with d_u = h_u - a_u carried
through every norm since it was written, by the norm's own statistics. Only writers with
a closed edge are carried, so a mask that breaks something costs little more than the
plain model. Autograd goes through it, at a copy of what is carried for every norm: so
weights are trained under a held mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.masks.edges.attention import attend
from circuitcut.masks.edges.run import EdgeRun
from circuitcut.models.residual.edge_slices import (
    attention_gates,
    mlp_gates,
    output_gates,
    writers_of,
)
from circuitcut.models.residual.folded_model import FoldedLayer


@dataclass
class _Lost:
    """What writers with closed edges wrote, less ablation values, as it is now."""

    numbers: list[int]
    """Writers that have a closed edge, in the graph's order."""
    rows: list[Float[Tensor, "token d_model"]] = field(default_factory=list)
    """Of those that have written so far."""

    def take(self, run: EdgeRun, written: Sequence[Tensor]) -> None:
        """What the next of the writers wrote."""
        for row in written:
            ablated = run.ablated
            number = self.numbers[len(self.rows)]
            self.rows.append(row if ablated is None else row - ablated[number])

    def seen_by(
        self, closed: Float[Tensor, "reader writer"]
    ) -> Float[Tensor, "reader token d_model"] | None:
        """What readers miss whose gates on the writers so far are 1 - `closed`."""
        found = self.numbers[: len(self.rows)]
        if not found:
            return None
        return torch.einsum("rw,wtd->rtd", closed[:, found], torch.stack(self.rows))


def run_beside(
    run: EdgeRun,
    stream: Float[Tensor, "batch seq d_model"],
    keep: Float[Tensor, "edge"],
) -> Float[Tensor, "batch seq d_model"]:
    """What the logits read; the run's layers read and write the stream itself."""
    model, graph = run.model, run.model.graph
    closed = 1 - keep.to(stream)
    live = stream.reshape(-1, model.d_model)
    lost = _Lost(writers_of(graph, closed != 0))
    if 0 in lost.numbers:
        lost.take(run, [live])
    assert model.parts.norms_on_stream is not None
    after_attention, after_mlp = model.parts.norms_on_stream
    for layer, folded in enumerate(run.layers):
        first = graph.n_before(layer)
        projected = _projected(
            folded, live, lost, attention_gates(graph, layer, closed)
        )
        found = attend(run, layer, projected).reshape(len(live), -1)
        live = live + found @ folded.write.flatten(0, 1)
        if folded.write_bias is not None:
            live = live + folded.write_bias
        by_head = found.view(len(live), graph.n_heads, -1)
        own = [n - first for n in lost.numbers if first <= n < first + graph.n_heads]
        lost.take(run, [_written(run, folded, by_head, head) for head in own])
        live = _through_norm(run, layer, after_attention, live, lost)
        missed = lost.seen_by(mlp_gates(graph, layer, closed)[None])
        seen = live if missed is None else live - missed[0]
        of_mlp = model.run_mlp(layer, seen.view_as(stream)).reshape(live.shape)
        live = live + of_mlp
        if first + graph.n_heads in lost.numbers:
            lost.take(run, [of_mlp])
        live = _through_norm(run, layer, after_mlp, live, lost)
    missed = lost.seen_by(output_gates(graph, closed)[None])
    return (live if missed is None else live - missed[0]).view_as(stream)


def _written(run: EdgeRun, folded: FoldedLayer, found: Tensor, head: int) -> Tensor:
    """What one head writes, of what all heads found: (token, head, d_head)."""
    written = found[:, head] @ folded.write[head]
    if folded.write_bias is None or run.model.graph.attention_bias == "always":
        return written
    return written + folded.write_bias / run.model.graph.n_heads


def _projected(
    folded: FoldedLayer,
    live: Tensor,
    lost: _Lost,
    closed: Float[Tensor, "reader writer"],
) -> Tensor:
    """Queries, keys and values of all readers: (reader, token, width)."""
    n_readers, _, width = folded.read.shape
    together = folded.read.transpose(0, 1).reshape(live.shape[1], -1)
    plain = (live @ together).view(len(live), n_readers, width).transpose(0, 1)
    plain = plain + folded.read_bias
    readers = (closed != 0).any(1).nonzero()[:, 0]
    missed = lost.seen_by(closed[readers]) if len(readers) else None
    if missed is None:
        return plain
    return plain.index_add(
        0, readers, torch.bmm(missed, folded.read[readers]), alpha=-1
    )


def _through_norm(
    run: EdgeRun, layer: int, name: str, live: Tensor, lost: _Lost
) -> Tensor:
    """The stream after a norm, and with it what was lost."""
    model, norm = run.model, run.model.norm(layer, name)
    inverse = model.inverse_deviation(norm, live - live.mean(-1, keepdim=True))
    scale = inverse * model.gain(norm)
    lost.rows = [(row - row.mean(-1, keepdim=True)) * scale for row in lost.rows]
    return norm(live)
