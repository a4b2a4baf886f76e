"""A language model at every token: loss, entropy, rank, scale of the final norm."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.models.architectures import final_norm_path

MEASURES = {
    "loss": "nats",
    "entropy": "nats",
    "rank": "tokens",
    "log_scale": "log",
}
"""Measure -> its unit.

loss: -log p of the true next token; entropy: -sum p log p of the prediction; rank: 1
for the most likely token; log_scale: log of what the final norm divides by.
"""
_ROWS, _ROWS_ELSEWHERE = 4, 64
"""Tokens whose predictions are worked on at once, on a CPU, where their copies fit into
a cache, and on other devices."""


@torch.no_grad()
def measured(
    logits: Float[Tensor, "batch seq vocab"],
    targets: Int[Tensor, "batch seq"],
    where: Bool[Tensor, "batch seq"],
    log_scale: Float[Tensor, "batch seq"],
) -> dict[str, Float[Tensor, "token"]]:
    """Every measure at the tokens where `where` is True.

    Args:
        targets: The true next token.
    """
    n_rows = _ROWS if logits.device.type == "cpu" else _ROWS_ELSEWHERE
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # used for all rows: to allocate new ones costs more than the sums below
    buffers = logits.new_empty(2, n_rows, logits.shape[-1], dtype=dtype)
    of_rows = [
        _of_rows(logits[text, places].to(dtype), targets[text, places], buffers)
        for text, places in _rows(where, n_rows)
    ]
    names = ("loss", "entropy", "rank")
    found = {
        name: torch.cat([row[n] for row in of_rows]) if of_rows else logits.new_zeros(0)
        for n, name in enumerate(names)
    }
    return found | {"log_scale": log_scale[where]}


def _rows(where: Tensor, n_rows: int) -> Iterator[tuple[int, Tensor | slice]]:
    """Tokens of one text at a time, at most so many.

    As a slice, which copies nothing, where no token between them is left out.
    """
    for text, of_text in enumerate(where):
        for places in of_text.nonzero().squeeze(1).split(n_rows):
            if not len(places):
                continue
            first, stop = int(places[0]), int(places[-1]) + 1
            whole = stop - first == len(places)
            yield text, slice(first, stop) if whole else places


def _of_rows(
    logits: Float[Tensor, "token vocab"],
    targets: Int[Tensor, "token"],
    buffers: Float[Tensor, "2 rows vocab"],
) -> tuple[Tensor, Tensor, Tensor]:
    d, e = buffers[0, : len(logits)], buffers[1, : len(logits)]
    # a token that cannot come has logit -inf and probability 0, and adds 0 below
    torch.sub(logits, logits.amax(-1, keepdim=True), out=d).clamp_min_(-1e30)
    true = d.gather(1, targets[:, None])
    rank = 1 + torch.gt(d, true, out=e).sum(1)
    torch.exp(d, out=e)  # the one exponential: p = e / sum e
    total = e.sum(1)
    entropy = total.log() - d.mul_(e).sum(1) / total
    return total.log() - true[:, 0], entropy, rank


@contextmanager
def scales_seen(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """`log_scale`, (batch, seq), of the newest forward pass inside the context.

    The scale is sqrt(mean x^2 + eps) of an RMS norm, and that of x minus its mean of a
    LayerNorm.

    Raises:
        UserError: When the model has no final norm.
    """
    norm = model.get_submodule(final_norm_path(model))
    seen: dict[str, Tensor] = {}

    def see(module: Any, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if isinstance(module, nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
        eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", 0.0)
        seen["log_scale"] = (x.square().mean(-1) + eps).log() / 2

    handle = norm.register_forward_pre_hook(see)
    try:
        yield seen
    finally:
        handle.remove()
