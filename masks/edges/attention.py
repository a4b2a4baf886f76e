"""A model's own attention, given the queries, keys and values of gated reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from circuitcut.masks.edges.run import EdgeRun
from circuitcut.models.residual.graph import ResidualGraph


def attend(run: EdgeRun, layer: int, projected: Tensor) -> Tensor:
    """What the heads find, (batch, seq, head * d_head), by the model's own code.

    Args:
        run: Of which masks and shapes are taken.
        layer: Number of the block.
        projected: Queries, keys and values of all readers: (reader, token, width).
    """
    return attend_given(run, layer, _as_projected(run, projected))


def attend_given(run: EdgeRun, layer: int, given: Sequence[Tensor]) -> Tensor:
    """The same, of the outputs of the model's own projections."""
    model = run.model
    attention = model.attention(layer)
    with (
        _answering(model.projections(layer), given, model.output(layer)),
        _ungrouped(attention, model.graph),
    ):
        # only the shape of the first argument is read
        shaped = given[0].new_empty(()).expand(*run.shape, model.d_model)
        found = attention(shaped, **run.attention_kwargs[layer])[0]
        if model.parts.output.startswith(f"{model.parts.attention}."):
            return found
        return model.output(layer)(found)  # which does nothing but run its hooks


def _as_projected(run: EdgeRun, projected: Tensor) -> list[Tensor]:
    """The projections' outputs as the model's attention takes them."""
    model = run.model
    graph, d_head = model.graph, model.d_head
    n_tokens = projected.shape[1]
    groups = graph.n_kv_heads
    if not graph.separate_qkv:
        groups = graph.n_heads
        projected = projected.view(graph.n_heads, n_tokens, 3, d_head)
        projected = projected.permute(2, 0, 1, 3).reshape(-1, n_tokens, d_head)
    if model.parts.fused == "by head":
        by_head = projected.view(3, graph.n_heads, n_tokens, d_head)
        return [by_head.permute(2, 1, 0, 3).reshape(*run.shape, -1)]
    parts = [projected]
    if model.parts.fused == "separate":
        parts = list(projected.split([graph.n_heads, groups, groups]))
    return [part.transpose(0, 1).reshape(*run.shape, -1) for part in parts]


@contextmanager
def _answering(
    projections: Sequence[Any], values: Sequence[Tensor], output: Any
) -> Iterator[None]:
    """Projections that give these values; an output projection that does nothing."""
    replaced = [*projections, output]
    earlier = [vars(module).get("forward") for module in replaced]
    for module, value in zip(projections, values, strict=True):
        vars(module)["forward"] = partial(_given, value)
    vars(output)["forward"] = _unchanged
    try:
        yield
    finally:
        for module, forward in zip(replaced, earlier, strict=True):
            vars(module).pop("forward")
            if forward is not None:
                vars(module)["forward"] = forward


def _given(value: Tensor, _: Tensor) -> Tensor:
    return value


def _unchanged(x: Tensor) -> Tensor:
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
