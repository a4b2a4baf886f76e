"""What ablations change at every token of a corpus, beside the clean model.

Every batch runs once clean and once under each ablation, from the first block with an
ablated neuron on: what the blocks below give is kept from the clean pass. Ablations can
take turns, so that each sees a part of the batches. Kept are sums, counts in bins and
the texts that change most, so that memory does not grow with the corpus.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import ARCHITECTURES, block_paths
from circuitcut.models.residual.replayed import record_blocks, replayed
from circuitcut.models.spared import spared_positions
from circuitcut.storage.modes import evaluating
from circuitcut.storage.statistics.student_t import mean_and_interval
from circuitcut.weight_classes.tokens.changed_texts import MostChanged
from circuitcut.weight_classes.tokens.streamed import Stream
from circuitcut.weight_classes.tokens.token_measures import (
    MEASURES,
    measured,
    scales_seen,
)

Measured = Mapping[str, Tensor]


@dataclass(frozen=True)
class Texts:
    """Some whole texts, padded on the right."""

    ids: Int[Tensor, "batch longer"]
    attention: Int[Tensor, "batch longer"]

    def where(self, special_ids: Sequence[int]) -> Bool[Tensor, "batch seq"]:
        """Positions that predict a real token and at which ablations may act."""
        attended = self.attention.bool()
        spared = spared_positions(self.ids, self.attention, special_ids)
        return attended[:, :-1] & attended[:, 1:] & ~spared[:, :-1]


@dataclass
class Effect:
    """The measures of one ablation and their difference from the clean model's."""

    ablated: dict[str, Stream] = field(default_factory=lambda: _streams())
    difference: dict[str, Stream] = field(default_factory=lambda: _streams())
    """Ablated minus clean."""
    most_changed: MostChanged | None = None
    n_tokens: int = 0

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "ablated": _states(self.ablated),
            "difference": _states(self.difference),
            "most_changed": self.most_changed and self.most_changed.state(),
            "n_tokens": self.n_tokens,
        }

    def restore_(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        _restore_(self.ablated, state["ablated"])
        _restore_(self.difference, state["difference"])
        if self.most_changed is not None:
            self.most_changed.restore_(state["most_changed"])
        self.n_tokens = state["n_tokens"]


@dataclass
class Effects:
    """The clean model's measures, and every ablation's by its name."""

    clean: dict[str, Stream]
    of: dict[str, Effect]
    n_tokens: int = 0
    n_texts: int = 0

    @classmethod
    def none(cls, masks: Iterable[str], n_shown: Mapping[str, int]) -> "Effects":
        """Of no text yet.

        Args:
            masks: Names of the ablations.
            n_shown: Of some of them, how many of the most changed texts to keep.
        """
        kept = {name: MostChanged(n) for name, n in n_shown.items() if n}
        return cls(_streams(), {m: Effect(most_changed=kept.get(m)) for m in masks})

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "clean": _states(self.clean),
            "of": {name: effect.state() for name, effect in self.of.items()},
            "n_tokens": self.n_tokens,
            "n_texts": self.n_texts,
        }

    def restore_(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        _restore_(self.clean, state["clean"])
        for name, effect in self.of.items():
            effect.restore_(state["of"][name])
        self.n_tokens, self.n_texts = state["n_tokens"], state["n_texts"]


def _streams() -> dict[str, Stream]:
    return {name: Stream() for name in MEASURES}


def _states(streams: Mapping[str, Stream]) -> dict[str, Any]:
    return {name: stream.state() for name, stream in streams.items()}


def _restore_(streams: Mapping[str, Stream], states: Mapping[str, Any]) -> None:
    for name, stream in streams.items():
        stream.restore_(states[name])


def token_effects(
    model: nn.Module,
    texts: Iterable[Texts],
    masks: Mapping[str, FrozenMask],
    *,
    special_ids: Sequence[int],
    effects: Effects,
    first: int = 0,
    changed_by: str = "entropy",
    turns: Mapping[str, tuple[int, int]] | None = None,
    seen_clean: Callable[[Tensor], AbstractContextManager[None]] | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> None:
    """Measure the model under every mask, in evaluation mode.

    Args:
        masks: Name -> ablation.
        special_ids: Positions that count for no mean, as in `FrozenMask`.
        effects: What is measured is added there.
        first: Number of the first batch of `texts`: of batches before it, which
            `effects` has.
        changed_by: The measure of `MEASURES` by which texts change most.
        turns: Of some masks (k, n): they see batches k, k + n, k + 2 n, ... alone.
        seen_clean: A context around every clean pass, for instance to watch neurons; it
            gets the positions that count, (batch, longer).
        done: Called after every batch with the number of batches done.

    Raises:
        UserError: When a mask does not fit the model.
    """
    starts = {name: first_block(mask, model) for name, mask in masks.items()}
    with torch.no_grad(), evaluating(model), scales_seen(model) as scales:
        for number, batch in enumerate(texts, first):
            where = batch.where(special_ids)
            numbers = torch.arange(len(where), device=where.device)
            of_token = numbers[:, None].expand_as(where)[where]
            watched = (
                nullcontext() if seen_clean is None else seen_clean(_longer(where))
            )
            with watched:
                outputs, (logits, clean) = _recorded(model, batch, where, scales)
            _add(effects.clean, clean, of_token)
            effects.n_tokens += int(where.sum())
            effects.n_texts += len(where)
            for name, mask in masks.items():
                turn, n_turns = (turns or {}).get(name, (0, 1))
                if number % n_turns != turn:
                    continue
                with mask.applied(model), replayed(model, outputs, starts[name], 1):
                    cut_logits, cut = _pass(model, batch, where, scales)
                effect = effects.of[name]
                effect.n_tokens += int(where.sum())
                _add(effect.ablated, cut, of_token)
                _add(effect.difference, {m: cut[m] - clean[m] for m in cut}, of_token)
                if effect.most_changed is not None:
                    effect.most_changed.add(
                        clean[changed_by],
                        cut[changed_by],
                        where,
                        batch.ids,
                        (logits, cut_logits),
                    )
            done(number + 1)


def first_block(mask: FrozenMask, model: nn.Module) -> int:
    """The first block with an ablated neuron; the number of blocks if there is none.

    0 where blocks cannot be left out: the model's family is not in the table.
    """
    if getattr(getattr(model, "config", None), "model_type", None) not in ARCHITECTURES:
        return 0
    ablated = [s.layer for s in mask.sites if mask.n_ablated_at[s.name]]
    return min(ablated, default=len(block_paths(model)))


def _longer(where: Tensor) -> Tensor:
    """The same positions of all tokens, the last of which predicts nothing."""
    return torch.cat([where, torch.zeros_like(where[:, :1])], 1)


def _pass(
    model: nn.Module, batch: Texts, where: Tensor, scales: Measured
) -> tuple[Tensor, Measured]:
    output = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
    logits = output.logits
    found = measured(
        logits[:, :-1], batch.ids[:, 1:], where, scales["log_scale"][:, :-1]
    )
    return logits, found


def _recorded(
    model: nn.Module, batch: Texts, where: Tensor, scales: Measured
) -> tuple[list[Any], tuple[Tensor, Measured]]:
    """The outputs of every block in a pass, and what `_pass` gives."""
    passed: list[tuple[Tensor, Measured]] = []

    def run() -> None:
        passed.append(_pass(model, batch, where, scales))

    outputs = record_blocks(model, run)
    return outputs, passed[0]


def _add(streams: Mapping[str, Stream], values: Measured, texts: Tensor) -> None:
    for name, stream in streams.items():
        stream.add(values[name], texts)


def summary_of(
    names: Sequence[tuple[str, int | None, str]], effects: Sequence[Effect]
) -> list[dict[str, Any]]:
    """Ablated minus clean of every set and condition, draws of one control together.

    Args:
        names: Set, number of the draw (None: not drawn) and condition of each effect.

    Returns:
        One entry a set and condition. Each measure has its `mean` over tokens, of
        several draws the mean of their means; `interval`, 95 %: of a drawn set over
        draws by Student's t, of another one over texts; and `range`, the least and
        greatest mean of a draw.
    """
    groups: dict[tuple[str, str], list[tuple[int | None, Effect]]] = {}
    for (of_set, draw, when), effect in zip(names, effects, strict=True):
        groups.setdefault((of_set, when), []).append((draw, effect))
    return [
        {
            "set": of_set,
            "when": when,
            "n_draws": sum(draw is not None for draw, _ in pairs),
            "measures": {
                name: _over_draws(
                    [effect.difference[name] for _, effect in pairs],
                    is_drawn=pairs[0][0] is not None,
                )
                for name in MEASURES
            },
        }
        for (of_set, when), pairs in groups.items()
    ]


def _over_draws(streams: Sequence[Stream], *, is_drawn: bool) -> dict[str, Any]:
    means = [stream.mean for stream in streams]
    if not is_drawn:
        interval = list(streams[0].interval())
        return {"mean": means[0], "interval": interval, "range": None}
    mean, ends = mean_and_interval(means)
    return {"mean": mean, "interval": ends, "range": [min(means), max(means)]}


def batched(
    texts: Iterable[Sequence[int]], size: int, pad_id: int, device: torch.device
) -> Iterator[Texts]:
    """Texts of token ids in batches, padded on the right."""
    waiting: list[Sequence[int]] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == size:
            yield _padded(waiting, pad_id, device)
            waiting = []
    if waiting:
        yield _padded(waiting, pad_id, device)


def _padded(texts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Texts:
    longest = max(map(len, texts))
    ids = torch.tensor([[*t, *[pad_id] * (longest - len(t))] for t in texts])
    real = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in texts])
    return Texts(ids.to(device), real.to(device))
