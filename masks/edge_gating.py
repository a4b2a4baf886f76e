"""How gates on edges are put into an unmodified model: its blocks run as one stack.

The model's own code makes the embeddings, the attention masks and the position
embeddings, and applies the final norm and the head; inside the context only its blocks
are replaced, so any task head works, and `generate` does without a cache.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from masks.edge_sparse import plan_of
from masks.edge_stack import EdgeStack
from models.residual_parts import ResidualModel
from storage.errors import UserError

# What a block passes on to its attention is all of its arguments but these.
_OF_THE_BLOCK = frozenset(
    {
        "hidden_states", "past_key_values", "layer_past", "use_cache",
        "output_attentions", "encoder_hidden_states", "encoder_attention_mask",
    }
)  # fmt: skip


@contextmanager
def edge_gated(
    stack: EdgeStack,
    keep: Float[Tensor, "edge"] | Bool[Tensor, "edge"],
    ablated: Float[Tensor, "writer #token d_model"] | None = None,
) -> Iterator[None]:
    """Run the stack's model by the gates `keep` inside the context.

    Args:
        stack: The model's blocks; its weights are those of when it was folded.
        keep: Gates of all edges in the graph's order; may carry a gradient. Bools are a
            finished mask: where no gradient is asked for, few ablated edges cost
            little more than the model itself, and few kept ones less.
        ablated: Ablation value of every writer; None is zero.

    Raises:
        UserError: When the gates are not one an edge.
    """
    model = stack.model
    if keep.shape != (model.graph.n_edges,):
        raise UserError(
            f"argument keep must hold {model.graph.n_edges} gates, one an edge, got "
            f"{tuple(keep.shape)}"
        )
    replacement = _Blocks(stack, keep, ablated)
    with ExitStack() as undo:
        for layer, block in enumerate(model.blocks):
            vars(block)["forward"] = partial(replacement.forward, layer)
            undo.callback(vars(block).pop, "forward")
        if model.graph.position != "merged":
            module = model.base.get_submodule(model.parts.position)
            undo.callback(module.register_forward_hook(replacement.on_position).remove)
        undo.enter_context(_without_cache(model))
        yield


class _Blocks:
    """Stands in for all blocks: the last one runs the stack, the others wait."""

    def __init__(self, stack: EdgeStack, keep: Tensor, ablated: Tensor | None):
        self.stack, self.keep, self.ablated = stack, keep, ablated
        finished = keep.dtype == torch.bool
        self.plan = plan_of(stack.model, keep) if finished else None
        self.kwargs: list[Mapping[str, Any]] = []
        self.position: Tensor | None = None
        self.signature = inspect.signature(type(stack.model.blocks[0]).forward)

    def forward(self, layer: int, *args: Any, **kwargs: Any) -> Tensor:
        block = self.stack.model.blocks[layer]
        bound = self.signature.bind(block, *args, **kwargs).arguments
        named = {**bound, **bound.get("kwargs", {})}
        stream: Tensor = named["hidden_states"]
        for name in ("self", "kwargs", *_OF_THE_BLOCK):
            named.pop(name, None)
        if layer == 0:
            self.kwargs = []
        self.kwargs.append(named)
        if layer + 1 < self.stack.model.graph.n_layers:
            return stream
        return self.stack(
            stream,
            self.keep.to(stream.device),
            self.kwargs,
            position=self.position,
            ablated=self.ablated,
            plan=self.plan,
        )

    def on_position(self, _: Any, __: Any, output: Tensor) -> None:
        self.position = output


@contextmanager
def _without_cache(model: ResidualModel) -> Iterator[None]:
    """`generate` gives the whole text at every token: the stack keeps no cache."""
    settings = [model.base.config, getattr(model.model, "generation_config", None)]
    earlier = [getattr(each, "use_cache", None) for each in settings]
    for each in settings:
        if each is not None:
            each.use_cache = False
    try:
        yield
    finally:
        for each, value in zip(settings, earlier, strict=True):
            if each is not None:
                each.use_cache = value
