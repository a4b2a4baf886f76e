"""An encoder under held gates on its edges while its weights are trained, by autograd.

The model runs as it is, and each reader takes out of the stream what its closed edges
carried: r_v = x - sum over u of (1 - z_uv) d_u, with d_u = h_u - a_u carried through
every norm since it was written, by the norm's own statistics. Only writers with a
closed edge are carried, so a mask that breaks something costs little more than the
plain model; autograd keeps a copy of them for every norm.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from masks.edge_attention import attend
from masks.edge_gates import attention_gates, mlp_gates
from masks.edge_run import EdgeRun
from models.residual_parts import FoldedLayer


@dataclass
class _Lost:
    """What writers with closed edges wrote, less ablation values, as it is now."""

    numbers: list[int]
    """Writers that have a closed edge, in the graph's order."""
    rows: list[Float[Tensor, "token d_model"]] = field(default_factory=list)
    """Of those that have written so far."""

    def seen_by(
        self, closed: Float[Tensor, "reader writer"]
    ) -> Float[Tensor, "reader token d_model"] | None:
        """What readers miss whose gates on the writers so far are 1 - `closed`."""
        found = self.numbers[: len(self.rows)]
        if not found:
            return None
        return torch.einsum("rw,wtd->rtd", closed[:, found], torch.stack(self.rows))


def run_trained(
    run: EdgeRun,
    stream: Float[Tensor, "batch seq d_model"],
    keep: Float[Tensor, "edge"],
) -> Float[Tensor, "batch seq d_model"]:
    """What the logits read. The run's layers are folded with a graph."""
    model, graph = run.model, run.model.graph
    closed = 1 - keep.to(stream)
    live = stream.reshape(-1, model.d_model)
    lost = _Lost(_with_closed_edges(run, closed))
    _take(run, lost, 0, live[None])
    assert model.parts.norms_on_stream is not None
    after_attention, after_mlp = model.parts.norms_on_stream
    for layer, folded in enumerate(run.layers):
        first = graph.n_before(layer)
        missed = lost.seen_by(attention_gates(graph, layer, closed))
        projected = _projected(folded, live, missed)
        found = attend(run, layer, projected).reshape(len(live), -1)
        by_head = found.view(len(live), graph.n_heads, -1).transpose(0, 1)
        written = torch.bmm(by_head, folded.write)
        live = live + written.sum(0)
        if folded.write_bias is not None:
            live = live + folded.write_bias
            if graph.attention_bias == "heads":
                written = written + folded.write_bias / graph.n_heads
        _take(run, lost, first, written)
        live = _through_norm(run, layer, after_attention, live, lost)
        missed = lost.seen_by(mlp_gates(graph, layer, closed)[None])
        seen = live if missed is None else live - missed[0]
        of_mlp = model.run_mlp(layer, seen.view_as(stream)).reshape(live.shape)
        live = live + of_mlp
        _take(run, lost, first + graph.n_heads, of_mlp[None])
        live = _through_norm(run, layer, after_mlp, live, lost)
    missed = lost.seen_by(closed[None, -graph.n_writers :])
    return (live if missed is None else live - missed[0]).view_as(stream)


def _with_closed_edges(run: EdgeRun, closed: Tensor) -> list[int]:
    graph = run.model.graph
    found = closed[-graph.n_writers :] != 0
    for layer in range(graph.n_layers):
        found[: graph.n_before(layer)] |= (
            attention_gates(graph, layer, closed) != 0
        ).any(0)
        found[: graph.n_seen_by_mlp(layer)] |= mlp_gates(graph, layer, closed) != 0
    return found.nonzero()[:, 0].tolist()


def _take(
    run: EdgeRun,
    lost: _Lost,
    first: int,
    written: Float[Tensor, "writer token d_model"],
) -> None:
    """Keep what those of the writers from `first` on wrote that have closed edges."""
    for number in lost.numbers[len(lost.rows) :]:
        if number >= first + len(written):
            break
        row = written[number - first]
        lost.rows.append(row if run.ablated is None else row - run.ablated[number])


def _projected(folded: FoldedLayer, live: Tensor, missed: Tensor | None) -> Tensor:
    """Queries, keys and values of all readers: (reader, token, width)."""
    plain = torch.einsum("td,rdw->rtw", live, folded.read) + folded.read_bias
    return plain if missed is None else plain - torch.bmm(missed, folded.read)


def _through_norm(
    run: EdgeRun, layer: int, name: str, live: Tensor, lost: _Lost
) -> Tensor:
    """The stream after a norm, and with it what was lost."""
    model, norm = run.model, run.model.norm(layer, name)
    inverse = model.inverse_deviation(norm, live - live.mean(-1, keepdim=True))
    scale = inverse * model.gain(norm)
    lost.rows = [(row - row.mean(-1, keepdim=True)) * scale for row in lost.rows]
    return norm(live)
