"""An encoder run as it is, and beside it what closed edges take out of its stream.

    read[r, t] = live[t] - sum_w (1 - g[r, w]) d[w, t]

Here d[w, t] is h[w, t] - a[w, t] carried through every norm since it was written, by
the norm's own statistics. Only writers with a closed edge are carried, so a mask that
breaks something costs little more than the plain model. Autograd goes through it, and
keeps a copy of what is carried for every norm: so weights are trained under a held
mask. Where gates are trained too, all writers are carried, for a gate at 1 has a
gradient like any other. Derivation: docs/edge_engine.md, section 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
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
class _Differences:
    """d[w, t] of the writers with closed edges, at the current place of the stream."""

    numbers: list[int]
    """Writers that have a closed edge or a trained one, in the graph's order."""
    rows: list[Float[Tensor, "token d_model"]] = field(default_factory=list)
    """Of those that have written so far."""

    def append(self, run: EdgeRun, written: Sequence[Tensor]) -> None:
        """d[w] = h[w] - a[w] of the next writers, of their h: (token, d_model) each."""
        for row in written:
            ablated = run.ablated
            number = self.numbers[len(self.rows)]
            self.rows.append(row if ablated is None else row - ablated[number])

    def removed_from(
        self, closed: Float[Tensor, "reader writer"]
    ) -> Float[Tensor, "reader token d_model"] | None:
        """sum_w closed[r, w] d[w, t] over the writers so far; None without writers."""
        so_far = self.numbers[: len(self.rows)]
        if not so_far:
            return None
        return torch.einsum("rw,wtd->rtd", closed[:, so_far], torch.stack(self.rows))


def run_beside(
    run: EdgeRun,
    stream: Float[Tensor, "batch seq d_model"],
    keep: Float[Tensor, "edge"],
) -> Float[Tensor, "batch seq d_model"]:
    """What the logits read; the run's layers read and write the stream itself."""
    model, graph = run.model, run.model.graph
    closed = 1 - keep.to(stream)
    live = stream.reshape(-1, model.d_model)  # (token, d_model)
    differences = _Differences(writers_of(graph, _counts(closed)))
    if 0 in differences.numbers:
        differences.append(run, [live])
    assert model.parts.norms_on_stream is not None
    after_attention, after_mlp = model.parts.norms_on_stream
    for layer, folded in enumerate(run.layers):
        first = graph.n_before(layer)
        projected = _projected(
            folded, live, differences, attention_gates(graph, layer, closed)
        )
        # o of all heads, (token, head * d_head); live += sum_n o[n] O[n] + b_O
        attended = attend(run, layer, projected).reshape(len(live), -1)
        live = live + attended @ folded.write.flatten(0, 1)
        if folded.write_bias is not None:
            live = live + folded.write_bias
        by_head = attended.view(len(live), graph.n_heads, -1)
        last = first + graph.n_heads
        heads = [n - first for n in differences.numbers if first <= n < last]
        differences.append(run, [_written(folded, by_head, n) for n in heads])
        live = _through_norm(run, layer, after_attention, live, differences)
        # read[mlp] = live - sum_w (1 - g[mlp, w]) d[w]
        removed = differences.removed_from(mlp_gates(graph, layer, closed)[None])
        mlp_read = live if removed is None else live - removed[0]
        written = model.run_mlp(layer, mlp_read.view_as(stream)).reshape(live.shape)
        live = live + written
        if first + graph.n_heads in differences.numbers:
            differences.append(run, [written])
        live = _through_norm(run, layer, after_mlp, live, differences)
    removed = differences.removed_from(output_gates(graph, closed)[None])
    return (live if removed is None else live - removed[0]).view_as(stream)


def _counts(closed: Tensor) -> Bool[Tensor, "*edge"]:
    """Edges that take something out of a read, or whose gates get a gradient."""
    return (closed != 0) | closed.requires_grad


def _written(folded: FoldedLayer, by_head: Tensor, head: int) -> Tensor:
    """h[n] = o[n] O[n] + k[n] of a head: (token, head, d_head) to (token, d_model)."""
    written = by_head[:, head] @ folded.write[head]
    return written if folded.head_bias is None else written + folded.head_bias[head]


def _projected(
    folded: FoldedLayer,
    live: Tensor,
    differences: _Differences,
    closed: Float[Tensor, "reader writer"],
) -> Tensor:
    """p of all readers, (reader, token, width).

    p[r] = live A[r] + b[r] - (sum_w (1 - g[r, w]) d[w]) A[r]
    """
    n_readers, _, width = folded.read.shape
    # [A[0] ... A[R - 1]]   (d_model, reader * width)
    together = folded.read.transpose(0, 1).reshape(live.shape[1], -1)
    plain = (live @ together).view(len(live), n_readers, width).transpose(0, 1)
    plain = plain + folded.read_bias
    readers = _counts(closed).any(1).nonzero()[:, 0]
    removed = differences.removed_from(closed[readers]) if len(readers) else None
    if removed is None:
        return plain
    return plain.index_add(
        0, readers, torch.bmm(removed, folded.read[readers]), alpha=-1
    )


def _through_norm(
    run: EdgeRun, layer: int, name: str, live: Tensor, differences: _Differences
) -> Tensor:
    """The live stream after a norm; d[w] <- gain (d[w] - mean of d[w]) / sigma."""
    model, norm = run.model, run.model.norm(layer, name)
    # 1 / sigma of the live stream, (token, 1)
    inverse = model.inverse_deviation(norm, live - live.mean(-1, keepdim=True))
    scale = inverse * model.gain(norm)
    differences.rows = [
        (row - row.mean(-1, keepdim=True)) * scale for row in differences.rows
    ]
    return norm(live)
