"""The backward pass through all blocks of a model under gates on its edges.

Symbols and equations: docs/edge_engine.md, sections 5 to 7. D[w, t] is dL/dx[w, t],
D0[t] is dL/dx0[t], and y[w, t] is what a gate multiplies: x[w, t], or the run's
`differences`.
"""

import torch
from torch import Tensor

from circuitcut.masks.edges.forward import KeptLayer, gates_of_reads, n_readers_of
from circuitcut.masks.edges.products import products_into, through_reads
from circuitcut.masks.edges.read_groups import ReadGroup, layers_of_group
from circuitcut.masks.edges.reads import centred, tiles
from circuitcut.masks.edges.run import EdgeRun
from circuitcut.models.residual.edge_slices import (
    attention_gates,
    mlp_gates,
    output_gates,
)
from circuitcut.models.residual.folded_model import FoldedLayer


class _WriterGradients:
    """D[w, t] of every writer, summed over the readers passed so far.

    D[w, t] = sum_r g[r, w] dL/dread[r, t]   (writer, token, d_model)
    """

    def __init__(self, run: EdgeRun, gates: Tensor, d_logits_read: Tensor):
        self.run, self.gates = run, gates
        graph = run.model.graph
        shape = graph.n_writers, *d_logits_read.shape
        self.rows = run.buffers.borrow(d_logits_read, *shape, spread=True)
        # D[w] = g[logits, w] dL/dread[logits] of the last layer's writers; the others
        # get it with that layer's reads, of which the logits are one
        last = graph.n_before(graph.n_layers - 1)
        logits_gates = output_gates(graph, gates)[last:, None]
        d_last = self.rows[last:].flatten(1)  # (writer, token * d_model)
        torch.mul(logits_gates, d_logits_read.view(-1), out=d_last)

    def add_mlp_read(self, layer: int, d_mlp_read: Tensor) -> None:
        """D[n] += g[mlp, n] dL/dread[mlp] of a layer's own heads n.

        Args:
            d_mlp_read: (token * d_model,).
        """
        graph = self.run.model.graph
        first = graph.n_before(layer)
        head_gates = mlp_gates(graph, layer, self.gates)[first:]
        head_rows = self.rows[first : first + graph.n_heads]
        head_rows.flatten(1).addr_(head_gates, d_mlp_read)

    def add_layer(self, d_reads: Tensor, tokens: slice) -> None:
        """Nothing: they are added writer by writer, to `rows_of`."""

    def rows_of(self, writers: slice, tokens: slice) -> Tensor:
        """D[w, t] of some writers and a tile, (writer, tile, d_model), to add to."""
        return self.rows[writers, tokens]

    def release(self) -> None:
        """Give the rows' buffer back, once nothing reads it any more."""
        self.run.buffers.give_back(self.rows)


class _SharedGradient:
    """The same where all gates are open: D is one row, the same for all writers.

    D[t] = sum_r dL/dread[r, t] over the readers passed so far   (token, d_model)
    """

    def __init__(self, run: EdgeRun, d_logits_read: Tensor):
        self.graph = run.model.graph
        self.total = d_logits_read.clone()
        self.rows = self.total.expand(self.graph.n_writers, -1, -1)

    def add_mlp_read(self, layer: int, d_mlp_read: Tensor) -> None:
        """D += dL/dread[mlp], which the writers before the layer get here as well."""
        del layer
        self.total.view(-1).add_(d_mlp_read)

    def add_layer(self, d_reads: Tensor, tokens: slice) -> None:
        """D += sum_r dL/dread[r] of a layer's readers that D does not hold yet.

        It holds the logits' from the start, and the MLP's by `add_mlp_read`, which is
        not called where attention and MLP are parallel.
        """
        n_new = self.graph.n_attention_readers + self.graph.parallel
        self.total[tokens] += d_reads[:n_new].sum(0)

    def rows_of(self, writers: slice, tokens: slice) -> None:
        """Nothing to add to: `add_layer` adds to D."""

    def release(self) -> None:
        """No buffer to give back."""


class Backward:
    """The backward pass, from the last layer down.

    Args:
        run: The forward pass, with what every layer kept.
        gates: Gates of all edges.
        rows: x0 and x[w] of the forward pass, (1 + writer, token, d_model).
        grad: dL/dread[logits], (batch, seq, d_model).
        of_gates: Whether dL/dg is needed.
        of_positions: Whether the gradient of a separate position embedding is needed.
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
        # C dL/dread[logits], flat   (token * d_model,)
        self.d_logits_read = centred(run.model, grad).reshape(-1)
        # y[w, t]; need not be centred, for every dL/dread that it meets is
        self.gated_rows = rows[1:] if run.differences is None else run.differences
        by_token = self.d_logits_read.view(rows.shape[1:])
        self.running: _WriterGradients | _SharedGradient
        if run.is_open:
            self.running = _SharedGradient(run, by_token)
        else:
            self.running = _WriterGradients(run, gates, by_token)
        self.grads = self.running.rows  # D[w, t]   (writer, token, d_model)
        # of the layers that are passed: a tile each, and [1, g[r, w]] of each layer
        self.groups: list[ReadGroup] = []
        self.group_gates: list[Tensor] = []
        self.d_keep = torch.empty_like(gates) if of_gates else None
        if self.d_keep is not None:
            # of the last layer's writers w:
            # dL/dg[logits, w] = sum_t <y[w, t], dL/dread[logits, t]>   (writer,)
            last = graph.n_before(graph.n_layers - 1)
            d_gates = output_gates(graph, self.d_keep)[last:]
            torch.mv(self.gated_rows[last:].flatten(1), self.d_logits_read, out=d_gates)
        # D0[t] = sum_r dL/dread[r, t], flat; only weights and positions need it
        self.of_always = of_positions or run.trained is not None
        self.d_always = self.d_logits_read.clone()

    def through_layer(self, layer: int, kept: KeptLayer) -> None:
        """From D of a layer's writers to dL/dread of its readers and D before it."""
        graph = self.run.model.graph
        first = graph.n_before(layer)
        heads = slice(first, first + graph.n_heads)
        d_mlp_read = self._through_mlp(layer, kept)
        if not graph.parallel:
            # read[mlp] = x0 with this layer's k0 + ... + sum_n g[mlp, n] x[n]
            self.d_always.add_(d_mlp_read)
            if self.d_keep is not None:
                # dL/dg[mlp, n] = sum_t <y[n, t], dL/dread[mlp, t]>   (head,)
                d_gates = mlp_gates(graph, layer, self.d_keep)[first:]
                torch.mv(self.gated_rows[heads].flatten(1), d_mlp_read, out=d_gates)
            self.running.add_mlp_read(layer, d_mlp_read)
        self._take_constants(layer)
        if graph.parallel:
            # read[mlp] has x0 without this layer's k0, and none of its heads
            self.d_always.add_(d_mlp_read)
        d_projected = self._through_heads(layer, kept)
        self._to_writers_before(
            layer, kept, d_projected, d_mlp_read.view_as(self.rows[0])
        )

    def _to_writers_before(
        self, layer: int, kept: KeptLayer, d_projected: Tensor, d_mlp_read: Tensor
    ) -> None:
        """Through a layer's reads, tile by tile: to gates and to writers before it.

        Writers before the layer's group get the gradients of all of its layers in one
        product, once those of its first layer are there.

        Args:
            d_projected: dL/dp, (reader, token, width).
            d_mlp_read: dL/dread[mlp], (token, d_model).
        """
        run, graph = self.run, self.run.model.graph
        layers = layers_of_group(layer, graph.n_layers, n_readers_of(graph))
        place = layer - layers.start
        if layer + 1 == layers.stop:
            self.group_gates = [
                gates_of_reads(graph, number, self.gates) for number in layers
            ]
            self.groups = []
        gates = self.group_gates
        # W_a of the group's first layer, W_l of this one
        before, new = graph.n_before(layers.start), graph.n_before(layer)
        d_new_gates = torch.zeros_like(gates[place][:, 1 + before :])
        d_gates = [torch.zeros_like(of_layer[:, 1 : 1 + before]) for of_layer in gates]
        n_reads = sum(len(of_layer) for of_layer in gates)
        for number, tokens in enumerate(tiles(self.rows[0], n_reads)):
            if layer + 1 == layers.stop:
                self.groups.append(self._begin(kept, layers, gates, number, tokens))
            group = self.groups[number]
            # read[r, t], which becomes dL/dread[r, t] in place
            self._recompute(kept, group, place)
            self._through_reads(layer, kept, group.of(place), tokens, d_projected)
            group.of(place)[graph.n_attention_readers].copy_(d_mlp_read[tokens])
            if layer + 1 == graph.n_layers:
                d_logits_read = self.d_logits_read.view_as(d_mlp_read)
                group.of(place)[-1].copy_(d_logits_read[tokens])
            self.running.add_layer(group.of(place), tokens)
            if place > 0:
                self._add_reads(
                    gates[place][:, 1 + before :], group.of(place), slice(before, new),
                    tokens, d_new_gates, is_first=layer + 1 == graph.n_layers,
                )  # fmt: skip
                continue
            d_before = torch.zeros_like(group.gates_before[:, 1:])
            self._add_reads(
                group.gates_before[:, 1:], group.reads, slice(0, before), tokens,
                d_before, is_first=layers.stop == graph.n_layers,
            )  # fmt: skip
            for total, part in zip(
                d_gates, d_before.split([len(part) for part in gates]), strict=True
            ):
                total += part
            run.buffers.give_back(group.reads)
        if self.d_keep is None:
            return
        self._take_gates(layer, slice(before, new), d_new_gates)
        if place == 0:
            for number, d_of_layer in zip(layers, d_gates, strict=True):
                self._take_gates(number, slice(0, before), d_of_layer)

    def _add_reads(
        self,
        gates: Tensor,
        d_reads: Tensor,
        writers: slice,
        tokens: slice,
        d_gates: Tensor,
        *,
        is_first: bool,
    ) -> None:
        """D[w] += sum_r g[r, w] dL/dread[r] of some writers, and

        dL/dg[r, w] += sum over the tile's t of <y[w, t], dL/dread[r, t]> in `d_gates`.
        """
        gated_rows = None
        if self.d_keep is not None:
            gated_rows = self.gated_rows[writers, tokens]
        d_rows = self.running.rows_of(writers, tokens)
        of_tile = through_reads(d_reads, gates, gated_rows, d_rows, add=not is_first)
        if of_tile is not None:
            d_gates += of_tile

    def _take_gates(self, layer: int, writers: slice, d_gates: Tensor) -> None:
        """Put dL/dg of some writers and a layer's readers into the flat vector."""
        graph, d_keep = self.run.model.graph, self.d_keep
        assert d_keep is not None
        n_readers = graph.n_attention_readers
        attention_gates(graph, layer, d_keep)[:, writers] = d_gates[:n_readers]
        mlp_gates(graph, layer, d_keep)[writers] = d_gates[n_readers]
        if layer + 1 == graph.n_layers:
            output_gates(graph, d_keep)[writers] = d_gates[-1]

    def _through_reads(
        self,
        layer: int,
        kept: KeptLayer,
        reads: Tensor,
        tokens: slice,
        d_projected: Tensor,
    ) -> None:
        """Turn a tile of attention's reads into their gradient, in place."""
        run = self.run
        attention_reads = reads[: run.model.graph.n_attention_readers]
        grad = d_projected[:, tokens]
        scale = None if kept.scale is None else kept.scale[:, tokens]
        if run.trained is not None:
            self._take_projections(layer, attention_reads, grad, scale)
        projected = kept.projected.detach()[:, tokens]
        _through_projection(run.layers[layer], attention_reads, projected, grad, scale)
        if self.of_always:
            # D0[t] += sum_r dL/dread[r, t]
            self.d_always.view_as(self.rows[0])[tokens] += attention_reads.sum(0)

    def _begin(
        self,
        kept: KeptLayer,
        layers: range,
        gates: list[Tensor],
        number: int,
        tokens: slice,
    ) -> ReadGroup:
        """A tile of the reads of a group, stored, recomputed or still to be filled."""
        if kept.groups:
            return kept.groups[number]
        if not self._needs_reads(kept) or kept.shared_read is not None:
            return ReadGroup.empty(self.run, self.rows, gates, tokens)
        # x0 as it was at the group's first layer
        first = kept if len(layers) == 1 else self.run.kept[layers.start]
        self.rows[0, tokens] = first.always[tokens]
        return ReadGroup.begin(self.run, self.rows, gates, tokens)

    def _recompute(self, kept: KeptLayer, group: ReadGroup, place: int) -> None:
        """Complete a layer's reads where they are not stored.

        Only those of attention are needed; the caller overwrites the others.
        """
        if kept.groups or not self._needs_reads(kept):
            return
        if kept.shared_read is None:
            group.complete(place, self.rows, kept.always)
        else:
            n_readers = self.run.model.graph.n_attention_readers
            group.of(place)[:n_readers].copy_(kept.shared_read[group.tokens])

    def _needs_reads(self, kept: KeptLayer) -> bool:
        """Without a norm and with frozen weights dL/dread does not depend on read."""
        return kept.scale is not None or self.run.trained is not None

    def of_inputs(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the stream and of a separate position embedding e.

        x[input] = stream - e, so dL/dstream = D[input] and dL/de = D' - D[input], with
        D' = D[position] where e is a writer and D' = D0 where it is always on.
        """
        model = self.run.model
        d_stream = centred(model, self.grads[0]).reshape(like.shape).clone()
        if model.graph.position == "own":
            d_position = centred(model, self.grads[1]).reshape(like.shape) - d_stream
        else:
            d_always = self.d_always.view(self.rows[0].shape)
            d_position = centred(model, d_always).reshape(like.shape) - d_stream
        self.run.buffers.give_back(self.rows)
        self.running.release()
        return d_stream, d_position

    def _through_mlp(self, layer: int, kept: KeptLayer) -> Tensor:
        """dL/dread[mlp], flat (token * d_model,), of D of a layer's MLP."""
        run, graph = self.run, self.run.model.graph
        # x = C (h - a), so dL/dh = C D   (batch, seq, d_model)
        d_row = self.grads[graph.n_before(layer) + graph.n_heads]
        grad = centred(run.model, d_row).view_as(kept.mlp_written)
        weights = () if run.trained is None else run.trained.layers[layer].mlp
        d_mlp_read = run.through(kept.mlp_written, kept.mlp_read, grad, weights)
        return d_mlp_read.reshape(-1)

    def _through_heads(self, layer: int, kept: KeptLayer) -> Tensor:
        """dL/dp, (reader, token, width), of D of a layer's heads."""
        run, graph = self.run, self.run.model.graph
        folded, trained = run.layers[layer], run.trained
        first = graph.n_before(layer)
        heads = slice(first, first + graph.n_heads)
        grad = self.grads[heads]  # D[n, t]   (head, token, d_model)
        # o[n, t] by token: (token, head, d_head)
        attended = kept.attended.detach().reshape(-1, graph.n_heads, run.model.d_head)
        if kept.head_scale is not None:
            if trained is not None:
                # h[n] = s gain o[n] O[n]: dL/dgain = sum_nt D[n, t] o[n, t] O[n] s[t]
                products = torch.bmm(attended.transpose(0, 1), folded.write)
                d_gain = (grad * products * kept.head_scale[0]).sum((0, 1))
                trained.sums.add(trained.layers[layer].head_gain, d_gain)
            grad = _through_head_norm(
                run, layer, kept.head_scale, grad, self.rows[1:][heads]
            )
        if trained is not None:
            # dL/dO[n] = sum_t o[n, t]^T D[n, t]   (head, d_head, d_model)
            # O = O' C is folded with a graph: autograd centres it for the model's O'
            d_write = torch.bmm(attended.permute(1, 2, 0), grad)
            trained.sums.add(trained.layers[layer].folded.write, d_write)
        # dL/do[n, t] = D[n, t] O[n]^T   (token, head, d_head), then autograd to p
        d_attended = torch.bmm(grad, folded.write.transpose(1, 2)).transpose(0, 1)
        d_attended = d_attended.reshape(kept.attended.shape)
        weights = () if trained is None else trained.layers[layer].attention
        return run.through(kept.attended, kept.projected, d_attended, weights)

    def _take_constants(self, layer: int) -> None:
        """dL/dk[n] and dL/dk0, which autograd takes on to the biases."""
        run, graph = self.run, self.run.model.graph
        if run.trained is None:
            return
        folded, first = run.trained.layers[layer].folded, graph.n_before(layer)
        if folded.head_bias is not None:
            # x[n] holds k[n]: dL/dk[n] = sum_t D[n, t]   (head, d_model)
            d_heads = self.grads[first : first + graph.n_heads].sum(1)
            run.trained.sums.add(folded.head_bias, d_heads)
        if folded.always_bias is not None:
            # x0 holds k0 for all later readers: dL/dk0 = sum_t D0[t]   (d_model,)
            d_always = self.d_always.view(self.rows[0].shape).sum(0)
            run.trained.sums.add(folded.always_bias, d_always)

    def _take_projections(
        self, layer: int, reads: Tensor, grad: Tensor, scale: Tensor | None
    ) -> None:
        """dL/dA and dL/db of p = s read A + b, of a tile of dL/dp = `grad`."""
        trained = self.run.trained
        assert trained is not None
        folded = trained.layers[layer].folded
        # dL/db[r] = sum_t dL/dp[r, t]   (reader, 1, width)
        trained.sums.add(folded.read_bias, grad.sum(1, keepdim=True))
        # dL/dA[r] = sum_t read[r, t]^T s[r, t] dL/dp[r, t]   (reader, d_model, width)
        scaled = grad if scale is None else grad * scale
        trained.sums.add(folded.read, torch.bmm(reads.transpose(1, 2), scaled))


def _through_head_norm(
    run: EdgeRun,
    layer: int,
    head_scale: tuple[Tensor, Tensor],
    grad: Tensor,
    head_rows: Tensor,
) -> Tensor:
    """Through the norm on what attention writes, h[n] = s gain u[n], u[n] = o[n] O[n].

    With s = (|sum_m u[m]|^2 / d + eps)^(-1/2):
    dL/du[n] = s gain D[n] - s^3 / d (dL/ds) sum_m u[m], dL/ds = sum_n <D[n], h[n]> / s

    Args:
        head_scale: s (token, 1) and sum_m u[m] (token, d_model).
        grad: D[n, t], (head, token, d_model).
        head_rows: x[n, t] = h[n, t] - a[n, t], (head, token, d_model).
    """
    model = run.model
    graph = model.graph
    first = graph.n_before(layer)
    scale, total = head_scale
    written = head_rows  # h[n, t]
    if run.ablated is not None:
        written = written + run.ablated[first : first + graph.n_heads]
    gain = model.gain(model.norm(layer, model.parts.norm_attention))
    d_scale = (grad * written).sum((0, 2))[:, None] / scale  # (token, 1)
    d_total = d_scale * (-(scale**3) / model.d_model) * total  # (token, d_model)
    return grad * (gain * scale) + d_total


def _through_projection(
    folded: FoldedLayer,
    reads: Tensor,
    projected: Tensor,
    grad: Tensor,
    scale: Tensor | None,
) -> None:
    """Turn a tile of attention's reads into their gradient, in place.

    With p = s read A + b and s = (|read|^2 / d + eps)^(-1/2):
    dL/dread = s dL/dp A^T - s^2 / d <p - b, dL/dp> read

    Args:
        reads: read, (reader, token, d_model).
        projected: p, (reader, token, width).
        grad: dL/dp, (reader, token, width).
        scale: s, (#reader, token, 1); None where there is no norm.
    """
    if scale is None:
        torch.bmm(grad, folded.read.mT, out=reads)  # dL/dread = dL/dp A^T
        return
    # <p - b, dL/dp> = s <read A, dL/dp>   (reader, token)
    inner = ((projected - folded.read_bias) * grad).sum(-1)
    factors = inner.mul_(scale[..., 0].square()).mul_(-1 / reads.shape[-1])
    # read <- factors read + (s dL/dp) A^T
    products_into(reads, grad * scale, folded.read.mT, factors)
