"""The logit lens: what the residual stream predicts after every sublayer of a decoder.

nostalgebraist (2020), "interpreting GPT: the logit lens",
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru. The stream behind a block's
attention, and behind its MLP, goes through the final norm and the unembedding as if no
further block came. Behind the last MLP these are the model's own logits. Where
attention and MLP read one stream (GPT-J, parallel GPT-NeoX), a block counts whole.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.models.architectures import block_paths, final_norm_path, text_module
from circuitcut.models.residual.block_modules import parts_of
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating

Sublayer = Literal["attention", "mlp", "block"]
N_TOKENS = 3
"""Tokens named of those that gain and of those that lose most probability."""


@dataclass(frozen=True)
class Reading:
    """The prediction behind one sublayer."""

    layer: int
    sublayer: Sublayer
    logits: Float[Tensor, "vocab"]


@dataclass(frozen=True)
class Seen:
    """A prediction in short."""

    top: int
    """The most likely token."""
    top_probability: float
    next_probability: float
    """Of the true next token."""
    entropy: float
    """nats"""


@dataclass(frozen=True)
class ComparedReading:
    """The predictions behind one sublayer, clean and ablated."""

    layer: int
    sublayer: Sublayer
    clean: Seen
    ablated: Seen
    promoted: list[tuple[int, float]]
    """Tokens whose probability grows most, with the growth."""
    suppressed: list[tuple[int, float]]
    """Tokens whose probability falls most, with a negative number."""


@torch.no_grad()
def readings(model: Any, ids: Sequence[int]) -> list[Reading]:
    """The predictions at the last token of a text, behind every sublayer in order.

    Raises:
        UserError: When the model is no decoder with a residual stream of its own.
    """
    seen: dict[tuple[int, Sublayer], Tensor] = {}
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for layer, path in enumerate(block_paths(model)):
            block = model.get_submodule(path)
            reader = _reader_of_mlp(model, block)
            after: Sublayer = "block" if reader is None else "mlp"
            if reader is not None:
                see = partial(_see_input, seen, (layer, "attention"))
                stack.callback(reader.register_forward_pre_hook(see).remove)
            keep = partial(_see_output, seen, (layer, after))
            stack.callback(block.register_forward_hook(keep).remove)
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    logits = unembedded(model, torch.stack(list(seen.values())))
    return [
        Reading(layer, sublayer, row)
        for (layer, sublayer), row in zip(seen, logits, strict=True)
    ]


def unembedded(
    model: Any, stream: Float[Tensor, "*position d_model"]
) -> Float[Tensor, "*position vocab"]:
    """Logits of the residual stream: the final norm, then the unembedding."""
    hidden = model.get_submodule(final_norm_path(model))(stream)
    narrowed = getattr(text_module(model), "project_out", None)  # OPT's embedding width
    hidden = hidden if narrowed is None else narrowed(hidden)
    logits: Tensor = model.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * (logits / cap).tanh()


def compared(
    clean: Sequence[Reading], ablated: Sequence[Reading], next_id: int
) -> list[ComparedReading]:
    """The readings of one text beside each other.

    Args:
        next_id: The true next token.
    """
    return [
        _compared(one, other, next_id)
        for one, other in zip(clean, ablated, strict=True)
    ]


def _compared(clean: Reading, ablated: Reading, next_id: int) -> ComparedReading:
    before, after = (r.logits.double().softmax(-1) for r in (clean, ablated))
    gain = after - before
    most, least = gain.topk(N_TOKENS), (-gain).topk(N_TOKENS)
    return ComparedReading(
        clean.layer,
        clean.sublayer,
        _seen(before, next_id),
        _seen(after, next_id),
        list(zip(most.indices.tolist(), most.values.tolist(), strict=True)),
        list(zip(least.indices.tolist(), (-least.values).tolist(), strict=True)),
    )


def _seen(p: Float[Tensor, "vocab"], next_id: int) -> Seen:
    top = int(p.argmax())
    entropy = float(torch.special.entr(p).sum())
    return Seen(top, float(p[top]), float(p[next_id]), entropy)


def _reader_of_mlp(model: nn.Module, block: nn.Module) -> nn.Module | None:
    """The module that reads the stream behind attention; None: there is none."""
    parts = parts_of(model)
    if parts.norms_on_stream is not None:
        raise UserError(
            f"the logit lens needs a model whose blocks write the residual stream, "
            f"got {type(model).__name__} with norms on the stream itself"
        )
    if parts.parallel(getattr(model, "config", None)):
        return None
    return block.get_submodule(parts.norm_mlp or parts.mlp[0])


Key = tuple[int, Sublayer]


def _see_input(
    seen: dict[Key, Tensor], key: Key, _: nn.Module, args: tuple[Any, ...]
) -> None:
    seen[key] = _last(args[0])


def _see_output(
    seen: dict[Key, Tensor], key: Key, _: nn.Module, __: Any, output: Any
) -> None:
    seen[key] = _last(output[0] if isinstance(output, tuple) else output)


def _last(stream: Tensor) -> Float[Tensor, "d_model"]:
    """At the last token of one text; some modules see batch and seq as one axis."""
    return stream.detach().flatten(0, -2)[-1].clone()
