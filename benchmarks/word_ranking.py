"""Time and memory of a streamed ranking of all hidden units against a bare model.

    python benchmarks/word_ranking.py --data tokens.txt --labels_file labels.txt
    python benchmarks/word_ranking.py --model tiny-encoder

A bare pass runs the model without its head, in evaluation mode and without gradients,
over the same batches of all splits. The ranking reads every word's vector at every
level and keeps counts, sums and sums of squares by label (probeless). Both run in turn,
round by round. Times are the processor's; the ratio is the median over rounds. Memory:
the peak of torch's allocator on the batch with most tokens, weights included.
Targets: time <= 1.2, memory <= 1.5. On MiniLM and 74,052 words about three minutes a
round on one core.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from circuitcut.attribution.words.moments import Moments
from circuitcut.attribution.words.states import (
    Words,
    WordSource,
    hidden_sites,
    word_states,
)
from circuitcut.benchmarks.peak import peak_bytes, seconds
from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.load import load
from circuitcut.models.sites import Site
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import Batch, Split, Task
from circuitcut.training.config import run_script

SPLITS: tuple[Split, ...] = ("base", "tune", "heldout")
"""They hold every sentence of a user's data once."""


@dataclass(frozen=True)
class WordRankingConfig:
    """Settings of the benchmark."""

    model: str = field(default="minilm", metadata={"help": "an encoder or decoder"})
    data: str | None = field(
        default=None, metadata={"help": "tagged text; default: built-in sentences"}
    )
    labels_file: Path | None = field(
        default=None, metadata={"help": "label file of a token/label pair"}
    )
    rounds: int = field(default=1, metadata={"help": "interleaved rounds"})
    threads: int = field(default=1, metadata={"help": "torch threads"})


@dataclass(frozen=True)
class _Measured:
    """One model on all words of some data."""

    task: Task
    model: nn.Module
    special_ids: tuple[int, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        return hidden_sites(self.model)

    def batches(self) -> Iterator[Batch]:
        for split in SPLITS:
            yield from WordSource(self.task, split, self.special_ids).batches()

    def states(self) -> Iterator[tuple[Words, Tensor]]:
        for split in SPLITS:
            source = WordSource(self.task, split, self.special_ids)
            yield from word_states(source, self.model, self.sites)

    def bare(self, batch: Batch) -> None:
        base = getattr(self.model, "base_model", self.model)
        with torch.no_grad(), evaluating(self.model):
            base(**self.task.inputs(batch))


@dataclass(frozen=True)
class _OneBatch(WordSource):
    """A source of one batch alone."""

    batch: Batch = field(default_factory=dict)

    def batches(self) -> list[Batch]:
        return [self.batch]


def main(config: WordRankingConfig) -> dict[str, float]:
    """Print the ratios and return them."""
    torch.set_num_threads(config.threads)
    experiment = load(
        TaskConfig(
            model=config.model,
            data=config.data,
            labels_file=config.labels_file,
            max_length=256,
            device="cpu",
        )
    )
    loaded = experiment.loaded
    measured = _Measured(experiment.task, loaded.model, loaded.special_ids)
    batches = list(measured.batches())
    ratios, counts = [], 0

    def bare() -> None:
        for batch in batches:
            measured.bare(batch)

    def ranking() -> None:
        nonlocal counts
        counts = int(Moments.over(measured.states()).counts.sum())

    for _ in range(config.rounds):
        base = seconds(bare, clock=time.process_time)
        taken = seconds(ranking, clock=time.process_time)
        ratios.append(taken / base)
        print(f"bare {base:.1f} s, ranking {taken:.1f} s, ratio {ratios[-1]:.3f}")
    memory = _memory(measured, max(batches, key=lambda b: b["input_ids"].numel()))
    found = {
        "words": counts,
        "units": sum(site.n_units for site in measured.sites),
        "time_ratio": statistics.median(ratios),
        **memory,
    }
    shown = (
        f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.3f}" for k, v in found.items()
    )
    print("  ".join(shown))
    return found


def _memory(measured: _Measured, batch: Batch) -> dict[str, float]:
    """Peaks of both on one batch, weights included, in MB, and their ratio."""
    weights = sum(p.numel() * p.element_size() for p in measured.model.parameters())
    source = _OneBatch(measured.task, "base", measured.special_ids, batch)

    def ranking() -> None:
        Moments.over(word_states(source, measured.model, measured.sites))

    steps: dict[str, Callable[[], None]] = {
        "bare": lambda: measured.bare(batch),
        "ranking": ranking,
    }
    peaks = {name: (weights + peak_bytes(step)) / 1e6 for name, step in steps.items()}
    return {
        "bare_mb": peaks["bare"],
        "ranking_mb": peaks["ranking"],
        "memory_ratio": peaks["ranking"] / peaks["bare"],
    }


if __name__ == "__main__":
    run_script(main, WordRankingConfig)
