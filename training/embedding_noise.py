"""Noise on token embeddings while a model trains, so that it learns roles, not tokens.

After Jain et al. (2023), "NEFTune: Noisy Embeddings Improve Instruction Finetuning",
https://arxiv.org/abs/2310.05914. Departures: normal noise rather than uniform, in units
of the standard deviation of the embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def noisy_embeddings(model: nn.Module, scale: float) -> Iterator[None]:
    """Add noise to the output of the token embedding, from the default generator.

    Args:
        model: A transformers model.
        scale: Standard deviation of the noise over that of the embeddings of the batch;
            0 adds none.
    """
    if scale == 0:
        yield
        return
    embeddings: Any = model

    def add(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        spread = scale * output.detach().std()
        return output + spread * torch.randn_like(output)

    handle = embeddings.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
