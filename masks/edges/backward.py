"""The backward pass through all blocks of a model under gates on its edges."""

import torch
from torch import Tensor

from circuitcut.masks.edges.forward import KeptLayer, gates_of_reads
from circuitcut.masks.edges.products import mix, products_into, through_reads
from circuitcut.masks.edges.reads import centred, tiles
from circuitcut.masks.edges.run import EdgeRun
from circuitcut.models.residual.edge_slices import (
    attention_gates,
    mlp_gates,
    output_gates,
)
from circuitcut.models.residual.folded_model import FoldedLayer


class _ByWriter:
    """What arrives at every writer, a row each, as gates let it through."""

    def __init__(self, run: EdgeRun, gates: Tensor, arriving: Tensor):
        self.run, self.gates = run, gates
        graph = run.model.graph
        shape = graph.n_writers, *arriving.shape
        self.rows = run.buffers.borrow(arriving, *shape, spread=True)
        # the last layer's; older writers are reached through one more of its reads
        last = graph.n_before(graph.n_layers - 1)
        own = output_gates(graph, gates)[last:, None]
        torch.mul(own, arriving.view(-1), out=self.rows[last:].flatten(1))

    def add_seen(self, layer: int, d_seen: Tensor) -> None:
        """At a layer's heads, of the gradient of what its MLP saw, flat."""
        graph = self.run.model.graph
        first = graph.n_before(layer)
        own_gates = mlp_gates(graph, layer, self.gates)[first:]
        own = self.rows[first : first + graph.n_heads]
        own.flatten(1).addr_(own_gates, d_seen)

    def add_reads(
        self,
        layer: int,
        given: Tensor,
        reads: Tensor,
        tokens: slice,
        weighed: Tensor | None,
    ) -> Tensor | None:
        """At the writers before a layer, of the gradient of a tile of its reads.

        Returns the gradient of the reads' gates, if given what they weigh.
        """
        graph = self.run.model.graph
        own = self.rows[: graph.n_before(layer), tokens]
        is_first = layer + 1 == graph.n_layers
        return through_reads(reads, given[:, 1:], weighed, own, add=not is_first)

    def release(self) -> None:
        """Nothing reads it any more."""
        self.run.buffers.give_back(self.rows)


class _Alike:
    """The same with all gates open: the same arrives everywhere, so one row does."""

    def __init__(self, run: EdgeRun, arriving: Tensor):
        self.graph = run.model.graph
        self.total = arriving.clone()
        self.rows = self.total.expand(self.graph.n_writers, -1, -1)

    def add_seen(self, layer: int, d_seen: Tensor) -> None:
        """Here earlier writers get it too."""
        del layer
        self.total.view(-1).add_(d_seen)

    def add_reads(
        self,
        layer: int,
        given: Tensor,
        reads: Tensor,
        tokens: slice,
        weighed: Tensor | None,
    ) -> Tensor | None:
        """All but what `add_seen` has added, and what was there from the start."""
        del layer
        n_new = self.graph.n_attention_readers + self.graph.parallel
        self.total[tokens] += reads[:n_new].sum(0)
        return through_reads(reads, given[:, 1:], weighed, None)

    def release(self) -> None:
        """No buffer to give back."""


class Backward:
    """The backward pass, from the last layer down.

    Args:
        run: The forward pass, with what every layer kept.
        gates: Gates of all edges.
        rows: What the writers wrote, row 0 the part that is always on.
        grad: Gradient of what the logits read.
        of_gates: Whether the gates' own gradient is asked for.
        of_positions: Whether that of a position embedding apart is.
    """

    def __init__(
        self,
        run: EdgeRun,
        gates: Tensor,
        rows: Tensor,
        grad: Tensor,
        *,
        of_gates: bool,
        of_positions: bool,
    ):
        self.run, self.gates, self.rows = run, gates, rows
        graph = run.model.graph
        self.arriving = centred(run.model, grad).reshape(-1)
        # of every writer what its gates weigh; what it is multiplied by is centred
        self.weighed = rows[1:] if run.differences is None else run.differences
        arriving = self.arriving.view(rows.shape[1:])
        self.arrived: _ByWriter | _Alike
        if run.is_open:
            self.arrived = _Alike(run, arriving)
        else:
            self.arrived = _ByWriter(run, gates, arriving)
        self.grads = self.arrived.rows
        self.d_keep = torch.empty_like(gates) if of_gates else None
        if self.d_keep is not None:
            last = graph.n_before(graph.n_layers - 1)
            d_own = output_gates(graph, self.d_keep)[last:]
            torch.mv(self.weighed[last:].flatten(1), self.arriving, out=d_own)
        # of row 0, which only weights and positions have a use for
        self.of_always = of_positions or run.trained is not None
        self.d_always = self.arriving.clone()

    def through_layer(self, layer: int, kept: KeptLayer) -> None:
        """From what the writers of a layer wrote to what its readers saw."""
        graph = self.run.model.graph
        first = graph.n_before(layer)
        own = slice(first, first + graph.n_heads)
        d_seen = self._through_mlp(layer, kept)
        if not graph.parallel:
            self.d_always.add_(d_seen)
            if self.d_keep is not None:
                d_own = mlp_gates(graph, layer, self.d_keep)[first:]
                torch.mv(self.weighed[own].flatten(1), d_seen, out=d_own)
            self.arrived.add_seen(layer, d_seen)
        self._take_output_bias(layer)
        if graph.parallel:
            self.d_always.add_(d_seen)
        d_projected = self._through_heads(layer, kept)
        self._to_writers_before(layer, kept, d_projected, d_seen.view_as(self.rows[0]))

    def _to_writers_before(
        self, layer: int, kept: KeptLayer, d_projected: Tensor, d_seen: Tensor
    ) -> None:
        """Through the reads of a layer, tile by tile: to gates and earlier writers."""
        run, graph = self.run, self.run.model.graph
        first = graph.n_before(layer)
        given = gates_of_reads(graph, layer, self.gates)
        n_readers, is_last = graph.n_attention_readers, layer + 1 == graph.n_layers
        folded = run.layers[layer]
        d_gates = torch.zeros_like(given[:, 1:])
        for place, tokens in enumerate(tiles(self.rows[0], len(given))):
            reads = self._reads(kept, given, place, tokens)
            of_heads, grad = reads[:n_readers], d_projected[:, tokens]
            scale = None if kept.scale is None else kept.scale[:, tokens]
            if run.trained is not None:
                self._take_projections(layer, of_heads, grad, scale)
            projected = kept.projected.detach()[:, tokens]
            _through_projection(folded, of_heads, projected, grad, scale)
            if self.of_always:
                self.d_always.view_as(d_seen)[tokens] += of_heads.sum(0)
            reads[n_readers].copy_(d_seen[tokens])
            if is_last:
                reads[-1].copy_(self.arriving.view_as(d_seen)[tokens])
            weighed = None if self.d_keep is None else self.weighed[:first, tokens]
            found = self.arrived.add_reads(layer, given, reads, tokens, weighed)
            if found is not None:
                d_gates += found
            run.buffers.give_back(reads)
        if self.d_keep is not None:
            attention_gates(graph, layer, self.d_keep).copy_(d_gates[:n_readers])
            mlp_gates(graph, layer, self.d_keep)[:first] = d_gates[n_readers]
            if is_last:
                output_gates(graph, self.d_keep)[:first] = d_gates[-1]

    def _reads(
        self, kept: KeptLayer, given: Tensor, place: int, tokens: slice
    ) -> Tensor:
        """A tile of a layer's reads, to be turned into its gradient."""
        if kept.reads:
            return kept.reads[place]
        reads = self.run.tile(self.rows, len(given), tokens)
        n_heads = self.run.model.graph.n_attention_readers  # the others are overwritten
        of_heads = reads[:n_heads]
        if kept.live is not None:
            of_heads.copy_(kept.live[tokens])
        elif kept.scale is not None or self.run.trained is not None:  # looked at
            self.rows[0, tokens] = kept.always[tokens]
            mix(of_heads, given[:n_heads], self.rows[: given.shape[1], tokens])
        return reads

    def of_inputs(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the input's stream and, where it is apart, of the positions."""
        model = self.run.model
        d_stream = centred(model, self.grads[0]).reshape(like.shape).clone()
        if model.graph.position == "own":
            d_position = centred(model, self.grads[1]).reshape(like.shape) - d_stream
        else:
            always = self.d_always.view(self.rows[0].shape)
            d_position = centred(model, always).reshape(like.shape) - d_stream
        self.run.buffers.give_back(self.rows)
        self.arrived.release()
        return d_stream, d_position

    def _through_mlp(self, layer: int, kept: KeptLayer) -> Tensor:
        """Gradient of what the MLP saw, flat."""
        run, graph = self.run, self.run.model.graph
        written = self.grads[graph.n_before(layer) + graph.n_heads]
        grad = centred(run.model, written).view_as(kept.written)
        weights = () if run.trained is None else run.trained.layers[layer].mlp
        return run.through(kept.written, kept.seen, grad, weights).reshape(-1)

    def _through_heads(self, layer: int, kept: KeptLayer) -> Tensor:
        """Gradient of queries, keys and values, of that of what the heads write."""
        run, graph = self.run, self.run.model.graph
        folded, trained = run.layers[layer], run.trained
        first = graph.n_before(layer)
        own = slice(first, first + graph.n_heads)
        grad = self.grads[own]
        found = kept.attended.detach().reshape(-1, graph.n_heads, run.model.d_head)
        if kept.head_scale is not None:
            if trained is not None:
                plain = torch.bmm(found.transpose(0, 1), folded.write)
                d_gain = (grad * plain * kept.head_scale[0]).sum((0, 1))
                trained.sums.add(trained.layers[layer].head_gain, d_gain)
            grad = _through_head_norm(
                run, layer, kept.head_scale, grad, self.rows[1:][own]
            )
        if trained is not None:
            # centred weights: the gradient's own mean over d_model is taken by autograd
            d_write = torch.bmm(found.permute(1, 2, 0), grad)
            trained.sums.add(trained.layers[layer].folded.write, d_write)
        d_found = torch.bmm(grad, folded.write.transpose(1, 2)).transpose(0, 1)
        d_found = d_found.reshape(kept.attended.shape)
        weights = () if trained is None else trained.layers[layer].attention
        return run.through(kept.attended, kept.projected, d_found, weights)

    def _take_output_bias(self, layer: int) -> None:
        """Gradient of the bias of attention's output projection."""
        run, graph = self.run, self.run.model.graph
        if run.trained is None or run.layers[layer].write_bias is None:
            return
        first = graph.n_before(layer)
        if graph.attention_bias == "heads":
            d_bias = self.grads[first : first + graph.n_heads].sum((0, 1))
            d_bias = d_bias / graph.n_heads
        else:
            d_bias = self.d_always.view(self.rows[0].shape).sum(0)
        run.trained.sums.add(run.trained.layers[layer].folded.write_bias, d_bias)

    def _take_projections(
        self, layer: int, reads: Tensor, grad: Tensor, scale: Tensor | None
    ) -> None:
        """Gradients of queries', keys' and values' weights and biases."""
        trained = self.run.trained
        assert trained is not None
        folded = trained.layers[layer].folded
        trained.sums.add(folded.read_bias, grad.sum(1, keepdim=True))
        scaled = grad if scale is None else grad * scale
        trained.sums.add(folded.read, torch.bmm(reads.transpose(1, 2), scaled))


def _through_head_norm(
    run: EdgeRun,
    layer: int,
    head_scale: tuple[Tensor, Tensor],
    grad: Tensor,
    written: Tensor,
) -> Tensor:
    """Through h_i = o_i * gain * s, s = 1 / root(mean square of the sum of o + eps)."""
    model = run.model
    graph = model.graph
    first = graph.n_before(layer)
    scale, total = head_scale
    values = written
    if run.ablated is not None:
        values = values + run.ablated[first : first + graph.n_heads]
    gain = model.gain(model.norm(layer, model.parts.norm_attention))
    d_scale = (grad * values).sum((0, 2))[:, None] / scale
    d_total = d_scale * (-(scale**3) / model.d_model) * total
    return grad * (gain * scale) + d_total


def _through_projection(
    folded: FoldedLayer,
    reads: Tensor,
    projected: Tensor,
    grad: Tensor,
    scale: Tensor | None,
) -> None:
    """Turn a tile of the reads into their gradient, in place.

    With R a read, s its scale and p = s R W + b: dR = s dp W^T - s^2 / d <p - b, dp> R.

    Args:
        reads: R, (reader, token, d_model).
        projected: p, (reader, token, width).
        grad: dp.
        scale: s, (#reader, token, 1); None where there is no norm.
    """
    if scale is None:
        torch.bmm(grad, folded.read.mT, out=reads)
        return
    along = ((projected - folded.read_bias) * grad).sum(-1)
    factors = along.mul_(scale[..., 0].square()).mul_(-1 / reads.shape[-1])
    products_into(reads, grad * scale, folded.read.mT, factors)
