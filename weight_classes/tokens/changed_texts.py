"""The texts that an ablation changes most, with the tokens that it promotes."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

N_TOKENS = 8
"""Tokens shown of those that gain and of those that lose most probability."""


@dataclass(frozen=True, order=True)
class Change:
    """The token of a text at which a measure changes most."""

    size: float
    """|ablated minus clean|."""
    text: int = field(compare=False)
    """Number of the text, from 0 over the whole corpus."""
    position: int = field(compare=False)
    """Of the token that predicts."""
    ids: list[int] = field(compare=False)
    """Tokens up to that position, the true next one last."""
    clean: float = field(compare=False)
    ablated: float = field(compare=False)
    promoted: list[tuple[int, float]] = field(compare=False)
    """Tokens whose probability grows most, with the growth."""
    suppressed: list[tuple[int, float]] = field(compare=False)
    """Tokens whose probability falls most, with a negative number."""


class MostChanged:
    """The `n` texts with the largest change of one token, in the memory of `n` texts.

    Of equal changes the earlier text is kept.
    """

    def __init__(self, n: int):
        self.n = n
        self._heap: list[tuple[float, int, Change]] = []
        self._n_texts = 0

    def add(
        self,
        clean: Float[Tensor, "token"],
        ablated: Float[Tensor, "token"],
        where: Bool[Tensor, "batch seq"],
        ids: Int[Tensor, "batch longer"],
        logits: tuple[
            Float[Tensor, "batch longer vocab"], Float[Tensor, "batch longer vocab"]
        ],
    ) -> None:
        """Look at the texts of a batch.

        Args:
            clean: The measure at the tokens where `where` is True, in order.
            ids: Tokens with the next ones: seq + 1 of them.
            logits: Clean and ablated.
        """
        pairs = torch.full((2, *where.shape), float("nan"), dtype=torch.float64)
        pairs[:, where.cpu()] = torch.stack([clean, ablated]).double().cpu()
        size = (pairs[1] - pairs[0]).abs().nan_to_num(nan=-1.0)
        for row, place in enumerate(size.argmax(1).tolist()):
            text, value = self._n_texts + row, float(size[row, place])
            if value < 0 or not self._enters(value):
                continue
            change = self._change(value, text, row, place, ids, logits, pairs)
            heapq.heappush(self._heap, (value, -text, change))
            if len(self._heap) > self.n:
                heapq.heappop(self._heap)
        self._n_texts += len(where)

    def _enters(self, size: float) -> bool:
        return len(self._heap) < self.n or size > self._heap[0][0]

    def _change(
        self,
        size: float,
        text: int,
        row: int,
        place: int,
        ids: Tensor,
        logits: tuple[Tensor, Tensor],
        pairs: Tensor,
    ) -> Change:
        before, after = (part[row, place].float().softmax(-1) for part in logits)
        gain = after - before
        most = gain.topk(min(N_TOKENS, len(gain)))
        least = (-gain).topk(min(N_TOKENS, len(gain)))
        return Change(
            size,
            text,
            place,
            ids[row, : place + 2].tolist(),
            clean=float(pairs[0, row, place]),
            ablated=float(pairs[1, row, place]),
            promoted=list(
                zip(most.indices.tolist(), most.values.tolist(), strict=True)
            ),
            suppressed=list(
                zip(least.indices.tolist(), (-least.values).tolist(), strict=True)
            ),
        )

    def state(self) -> dict[str, Any]:
        """All of it in JSON types, for a checkpoint."""
        return {
            "n_texts": self._n_texts,
            "found": [vars(change) for change in self.found()],
        }

    def restore_(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._n_texts, changes = state["n_texts"], [_change(c) for c in state["found"]]
        self._heap = [(change.size, -change.text, change) for change in changes]
        heapq.heapify(self._heap)

    def found(self) -> list[Change]:
        """The texts, the most changed one first."""
        return [change for _, _, change in sorted(self._heap, reverse=True)]


def _change(saved: Mapping[str, Any]) -> Change:
    pairs = {name: list(map(tuple, saved[name])) for name in ("promoted", "suppressed")}
    return Change(**{**saved, **pairs})
