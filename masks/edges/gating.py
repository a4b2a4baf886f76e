"""How gates on edges are put into an unmodified model: its blocks run as one stack.

One of the two doors of this folder (`__all__` is what others may take): it loads the
engine, and is itself loaded only when a mask has edges.

The model's own code makes the embeddings, the attention masks and the position
embeddings, and applies the final norm and the head; inside the context only its blocks
are replaced, so any task head works. The model has no key-value cache there
(`models/without_cache.py`): `generate` runs the whole text for every token. Hooks below
a block run as usual; a block itself no longer has an output of its own.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.masks.edges.memory import free_bytes, give_back_freed, token_bytes
from circuitcut.masks.edges.sparse import SparsePlan, block_cost, plan_of
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.masks.edges.stack_cache import residual_model, stack_of, writers_seen
from circuitcut.masks.edges.writers import record_writers
from circuitcut.masks.uncopied import uncopied
from circuitcut.models.architectures import architecture_of, text_module
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.spared import first_positions
from circuitcut.models.without_cache import without_cache
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating

__all__ = [
    "EdgeStack",
    "block_cost",
    "edge_gated",
    "free_bytes",
    "plan_of",
    "record_writers",
    "residual_model",
    "stack_of",
    "token_bytes",
    "writers_seen",
]

AttentionArguments = Sequence[Mapping[str, Any]]
"""What each block's attention gets besides the stream."""
RunBlocks = Callable[[Tensor, AttentionArguments, Tensor | None], Tensor]
"""(stream, arguments of attention, position embedding) -> what the logits read."""

# A block passes all of its arguments but these on to its attention.
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
    ablated: Float[Tensor, "writer *token d_model"] | None = None,
    inside: Sequence[Tensor] = (),
    differences: Float[Tensor, "writer batch seq d_model"] | None = None,
    *,
    spare_first: bool = False,
    pause: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Run the stack's model by the gates `keep` inside the context.

    The blocks compute in the precision of their weights, under autocast too.

    Args:
        stack: The model's blocks; folded anew where a weight changed.
        keep: Gates of all edges in the graph's order; may carry a gradient. Bools are a
            finished mask: where no gradient is asked for, few ablated edges cost
            little more than the model itself, and few kept ones less.
        ablated: a[w], the ablation value of every writer; `token` is 1 or batch * seq,
            or two axes, 1 or batch and 1 or seq. None is zero.
        inside: Gates that hooks inside the blocks use; may carry a gradient.
        differences: y[w] in dL/dg[r, w] = sum_t <y[w, t], dL/dread[r, t]>, in place of
            h[w] - a[w] of this run (`attribution.edge_integrated`).
        spare_first: Nothing is cut at the first position of a text. In a causal model
            it sees no other position, so its ablation values become what the uncut
            model has there: one more pass on the first tokens alone.
        pause: Context in which the hooks inside the blocks do nothing.

    Raises:
        UserError: When the gates are not one an edge, the blocks are gated already, or
            `spare_first` is asked of an encoder.
    """
    n_edges = stack.model.graph.n_edges
    if keep.shape != (n_edges,):
        raise UserError(
            f"argument keep must hold {n_edges} gates, one an edge, got "
            f"{tuple(keep.shape)}"
        )
    # hooks of other gates would run twice where the model runs beside the edges
    is_alone = keep.dtype == torch.bool and not inside
    plan = plan_of(stack.model, keep) if is_alone else None
    first = _FirstPositions(stack.model, pause) if spare_first else None
    run = partial(_run_gated, stack, keep, ablated, inside, differences, plan, first)
    with _run_instead(stack, run) as blocks, ExitStack() as undo:
        if first is not None:
            first.blocks = blocks
            texts = text_module(stack.model.model)
            read = texts.register_forward_pre_hook(first.read, with_kwargs=True)
            undo.callback(read.remove)
        if keep.dtype == torch.bool:
            undo.callback(give_back_freed)
        yield


def _run_gated(
    stack: EdgeStack,
    keep: Tensor,
    ablated: Tensor | None,
    inside: Sequence[Tensor],
    differences: Tensor | None,
    plan: SparsePlan | None,
    first: "_FirstPositions | None",
    stream: Tensor,
    kwargs: AttentionArguments,
    position: Tensor | None,
) -> Tensor:
    base = stack.model.base
    values = _by_token(ablated, stream)
    if first is not None:
        values = first.put_into(values, stream)
    # no dropout between the edges
    with torch.autocast(stream.device.type, enabled=False), evaluating(base):
        return stack(
            stream,
            keep.to(stream.device),
            kwargs,
            position=position,
            ablated=values,
            inside=inside,
            differences=_by_token(differences, stream),
            plan=plan,
        )


def _by_token(values: Tensor | None, stream: Tensor) -> Tensor | None:
    """Values of the stream's tokens, (writer, #token, d_model)."""
    if values is None:
        return None
    if values.dim() == 3:
        return values.to(stream)
    n_batch, n_seq, _ = stream.shape
    values = values.to(stream)[:, :, :n_seq]
    if values.shape[1:3] == (1, 1):
        return values.flatten(1, 2)
    if values.shape[1] not in (1, n_batch) or values.shape[2] not in (1, n_seq):
        raise UserError(
            f"the ablation values of edges are for {values.shape[1]} inputs of "
            f"{values.shape[2]} tokens, the batch has {n_batch} of {n_seq}; record "
            "them on inputs of this shape"
        )
    return values.expand(-1, n_batch, n_seq, -1).flatten(1, 2)


class _FirstPositions:
    """What the uncut model writes at the first position of every text of a batch."""

    def __init__(
        self,
        model: ResidualModel,
        pause: Callable[[], AbstractContextManager[None]],
    ):
        if not architecture_of(model.model).is_decoder:
            raise UserError(
                "an encoder's first position depends on all others: no edge mask can "
                "spare it; leave FIRST_POSITION out of special_ids"
            )
        self.model, self.pause = model, pause
        self.blocks: _Blocks | None = None
        self.is_recording = False
        self.places = torch.empty(0)
        self.writers = torch.empty(0)

    def read(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record the writers on the first tokens, a pass a distinct token."""
        if self.is_recording:  # the base, run by this method
            return
        assert self.blocks is not None
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise UserError(
                "a mask that spares the first position needs a model called with "
                "input_ids, got none; pass input_ids"
            )
        self.places = first_positions(ids, kwargs.get("attention_mask"))
        tokens = ids.gather(1, self.places[:, None])
        inputs = {"input_ids": tokens, "position_ids": self.places[:, None]}
        at_zero = self.model.parts.counts_real_tokens or not self.places.any()
        if at_zero:
            tokens, row_of = tokens.unique(return_inverse=True)
            inputs = {"input_ids": tokens[:, None]}
        self.is_recording = True
        try:
            with self.blocks.suspended(), self.pause():
                written = record_writers(self.model, inputs)[:, :, 0]
        finally:
            self.is_recording = False
        rows = row_of[:, 0] if at_zero else torch.arange(len(ids))
        self.writers = written[:, rows.to(written.device)]

    def put_into(
        self, values: Tensor | None, stream: Tensor
    ) -> Float[Tensor, "writer token d_model"]:
        """The values of all tokens, with those of the first positions in place."""
        n_batch, n_seq, d_model = stream.shape
        n_writers = len(self.writers)
        full = stream.new_zeros(n_writers, n_batch, n_seq, d_model)
        if values is not None:
            full += (
                values.unsqueeze(1)
                if values.shape[1] == 1
                else values.unflatten(1, (n_batch, n_seq))
            )
        rows = torch.arange(n_batch, device=stream.device)
        full[:, rows, self.places] = self.writers.to(full)
        return full.flatten(1, 2)


@contextmanager
def _run_instead(stack: EdgeStack, run: RunBlocks) -> Iterator["_Blocks"]:
    """Let `run` stand in for all blocks of the stack's model."""
    model = stack.model
    if any("forward" in vars(block) for block in model.blocks):
        raise UserError(
            "the blocks of this model are gated already; masks on edges do not nest, "
            "so leave the other context first"
        )
    blocks = _Blocks(model, run)
    with ExitStack() as undo:
        undo.enter_context(uncopied(model.blocks))
        for layer, block in enumerate(model.blocks):
            vars(block)["forward"] = partial(blocks.forward, layer)
            undo.callback(vars(block).pop, "forward")
        if model.graph.position != "merged":
            module = model.base.get_submodule(model.parts.position)
            undo.callback(module.register_forward_hook(blocks.on_position).remove)
        undo.enter_context(
            without_cache(model.model, "a mask on edges allows no key-value cache")
        )
        yield blocks


class _Blocks:
    """Replaces all blocks: the last one runs them all, the others only pass on."""

    def __init__(self, model: ResidualModel, run: RunBlocks):
        self.model, self.run = model, run
        self.kwargs: list[Mapping[str, Any]] = []
        self.position: Tensor | None = None
        self.signature = inspect.signature(type(model.blocks[0]).forward)

    def forward(
        self, layer: int, *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, None]:
        block = self.model.blocks[layer]
        bound = self.signature.bind(block, *args, **kwargs).arguments
        named = {**bound, **bound.get("kwargs", {})}
        stream: Tensor = named["hidden_states"]
        for name in ("self", "kwargs", *_OF_THE_BLOCK):
            named.pop(name, None)
        if layer == 0:
            self.kwargs = []
        self.kwargs.append(named)
        if layer + 1 == self.model.graph.n_layers:
            stream = self.run(stream, self.kwargs, self.position)
        return (stream, None) if self.model.parts.returns_tuple else stream

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let the blocks run as they are."""
        replaced = [vars(block).pop("forward") for block in self.model.blocks]
        try:
            yield
        finally:
            for block, forward in zip(self.model.blocks, replaced, strict=True):
                vars(block)["forward"] = forward

    def on_position(self, _: Any, __: Any, output: Tensor) -> None:
        self.position = output
