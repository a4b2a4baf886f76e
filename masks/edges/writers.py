"""h[w] of every writer in a plain run of the model, from which ablation values come.

With all edges open the plain model is the graph, so hooks on it record everything: a
head writes its part of the output projection's input times its rows of that projection.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.masks.edges.buffers import spread_rows
from circuitcut.masks.edges.products import products_into
from circuitcut.models.residual.folded_model import ResidualModel


def record_writers(
    model: ResidualModel, inputs: Mapping[str, Tensor]
) -> Float[Tensor, "writer batch seq d_model"]:
    """h[w] of all writers in the plain run on `inputs`, without a gradient.

    In the precision of the weights, under autocast too.
    """
    recorder = _Recorder(model)
    device = next(model.base.parameters()).device.type
    with (
        torch.no_grad(),
        torch.autocast(device, enabled=False),
        ExitStack() as hooks,
    ):
        for module, hook in recorder.hooks_before():
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        for module, hook in recorder.hooks_after():
            hooks.callback(module.register_forward_hook(hook).remove)
        model.base(**inputs)
    return recorder.rows


class _Recorder:
    """Hooks that fill one row a writer."""

    def __init__(self, model: ResidualModel):
        self.model = model
        self.rows = torch.empty(0)
        self.position: Tensor | None = None

    def hooks_before(self) -> list[tuple[Any, Any]]:
        """Modules whose input is read; the first makes the rows."""
        layers = range(self.model.graph.n_layers)
        heads = [(self.model.output(i), partial(self.on_heads, i)) for i in layers]
        return [(self.model.blocks[0], self.on_stream), *heads]

    def hooks_after(self) -> list[tuple[Any, Any]]:
        """Modules whose output is read."""
        layers = range(self.model.graph.n_layers)
        hooks: list[tuple[Any, Any]] = [
            (self.model.last_of_mlp(i), partial(self.on_mlp, i)) for i in layers
        ]
        name = self.model.parts.position
        if self.model.graph.position != "merged" and name is not None:
            hooks.append((self.model.base.get_submodule(name), self.on_position))
        return hooks

    def on_position(self, _: Any, __: Any, output: Tensor) -> None:
        self.position = output

    def on_stream(self, _: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        # one row a writer: (writer, batch, seq, d_model)
        stream: Tensor = args[0] if args else kwargs["hidden_states"]
        self.rows = spread_rows(stream, self.model.graph.n_writers, *stream.shape)
        self.rows[0] = stream
        if self.position is not None:
            self.rows[0] -= self.position
            if self.model.graph.position == "own":
                self.rows[1] = self.position

    def on_heads(self, layer: int, _: Any, args: Any, __: Any) -> None:
        model, graph = self.model, self.model.graph
        first = graph.n_before(layer)
        head_rows = self.rows[first : first + graph.n_heads].flatten(1, 2)
        # h[n] = o[n] O[n] + k[n]   (head, token, d_head) @ (head, d_head, d_model)
        by_head = args[0].flatten(0, 1).unflatten(1, (graph.n_heads, model.d_head))
        products_into(head_rows, by_head.transpose(0, 1), model.write(layer))
        norm = model.norm(layer, model.parts.norm_attention)
        if norm is not None:
            # h[n] = s gain o[n] O[n], s of the sum of all heads
            scale = model.inverse_deviation(norm, head_rows.sum(0))
            head_rows.mul_(scale).mul_(model.gain(norm))
        of_heads, _ = model.written_constants(layer)
        if of_heads is not None:
            head_rows.add_(of_heads[:, None])

    def on_mlp(self, layer: int, _: Any, __: Any, output: Tensor) -> None:
        graph = self.model.graph
        row = self.rows[graph.n_before(layer) + graph.n_heads]
        row.copy_(output.reshape(row.shape))  # OPT has batch and seq in one axis
