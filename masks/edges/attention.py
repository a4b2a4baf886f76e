"""A model's own attention, given the queries, keys and values of gated reads.

Its projections are replaced for one call by p[r, t] and its output projection by the
identity, so what comes back is o[n, t]. Symbols: docs/edge_engine.md.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from circuitcut.masks.edges.run import EdgeRun
from circuitcut.models.residual.graph import ResidualGraph


def attend(run: EdgeRun, layer: int, projected: Tensor) -> Tensor:
    """o of all heads, (batch, seq, head * d_head), by the model's own code.

    Args:
        run: Of which masks and shapes are taken.
        layer: Number of the block.
        projected: p, queries, keys and values of all readers: (reader, token, width).
    """
    return attend_given(run, layer, _as_outputs(run, projected))


def attend_given(run: EdgeRun, layer: int, outputs: Sequence[Tensor]) -> Tensor:
    """The same, of the outputs of the model's own projections."""
    model = run.model
    attention = model.attention(layer)
    with (
        _replaced(model.projections(layer), outputs, model.output(layer)),
        _ungrouped(attention, model.graph),
    ):
        # attention takes the shape of its first argument, and nothing else of it
        shaped = outputs[0].new_empty(()).expand(*run.shape, model.d_model)
        arguments = {**model.parts.attention_arguments, **run.attention_kwargs[layer]}
        attended = attention(shaped, **arguments)[0]
        if model.parts.output.startswith(f"{model.parts.attention}."):
            return attended
        return model.output(layer)(attended)  # the identity here: it runs its hooks


def _as_outputs(run: EdgeRun, projected: Tensor) -> list[Tensor]:
    """p, (reader, token, width), as the outputs of the model's projections."""
    model = run.model
    graph, d_head = model.graph, model.d_head
    n_tokens = projected.shape[1]
    groups = graph.n_kv_heads
    if not graph.separate_qkv:
        groups = graph.n_heads
        projected = projected.view(graph.n_heads, n_tokens, 3, d_head)
        if model.parts.fused == "separate":
            # (head, token, qkv, d_head) -> (qkv; batch, seq, head * d_head)
            by_token = projected.permute(2, 1, 0, 3).reshape(3, *run.shape, -1)
            return list(by_token.unbind())
        # (head, token, 3 * d_head) -> (q heads, k heads, v heads; token; d_head)
        projected = projected.permute(2, 0, 1, 3).reshape(-1, n_tokens, d_head)
    if model.parts.fused == "by head":
        # (qkv, head, token, d_head) -> (batch, seq, head * qkv * d_head)
        by_head = projected.view(3, graph.n_heads, n_tokens, d_head)
        return [by_head.permute(2, 1, 0, 3).reshape(*run.shape, -1)]
    parts = [projected]
    if model.parts.fused == "separate":
        parts = list(projected.split([graph.n_heads, groups, groups]))
    # (reader, token, d_head) -> (batch, seq, reader * d_head)
    return [part.transpose(0, 1).reshape(*run.shape, -1) for part in parts]


@contextmanager
def _replaced(
    projections: Sequence[Any], values: Sequence[Tensor], output: Any
) -> Iterator[None]:
    """Projections that give these values; an output projection that does nothing."""
    modules = [*projections, output]
    earlier = [vars(module).get("forward") for module in modules]
    for module, value in zip(projections, values, strict=True):
        vars(module)["forward"] = partial(_constant, value)
    vars(output)["forward"] = _identity
    try:
        yield
    finally:
        for module, forward in zip(modules, earlier, strict=True):
            vars(module).pop("forward")
            if forward is not None:
                vars(module)["forward"] = forward


def _constant(value: Tensor, _: Tensor) -> Tensor:
    return value


def _identity(x: Tensor) -> Tensor:
    return x


@contextmanager
def _ungrouped(attention: Any, graph: ResidualGraph) -> Iterator[None]:
    """Attention with a key and a value for every query head, where they are merged."""
    if graph.separate_qkv or graph.n_kv_heads == graph.n_heads:
        yield
        return
    names = {"num_key_value_groups": 1, "num_key_value_heads": graph.n_heads}
    earlier = {name: vars(attention)[name] for name in names if name in vars(attention)}
    vars(attention).update({name: names[name] for name in earlier})
    try:
        yield
    finally:
        vars(attention).update(earlier)
