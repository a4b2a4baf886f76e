"""A task is a concept to cut and the rest to retain: batches and scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcut.storage.errors import UserError
from circuitcut.tasks.defaults import TaskDefaults

Split = Literal["base", "mask", "tune", "relearn", "heldout"]
SPLITS: tuple[Split, ...] = ("base", "mask", "tune", "relearn", "heldout")
Head = Literal["causal_lm", "token_classification", "image_classification"]
Batch = dict[str, Tensor]
MODEL_INPUTS = ("input_ids", "attention_mask", "pixels")
NO_TARGET = -100


@dataclass(frozen=True)
class TaskOptions:
    """Where a task's data come from and what its concept is; None means built in."""

    data: str | None = None
    """A local file or folder, or `hub:owner/name`; None generates the built-in data."""
    data_format: str = "auto"
    labels_file: Path | None = None
    """Label file of a parallel token/label pair."""
    retain_data: str | None = None
    """Further retain text (toxicity): file, folder or `hub:` name."""
    concept: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    concept_values: tuple[str, ...] = ()
    """Values of `label_column` that mark the concept."""
    hub_config: str | None = None
    hub_revision: str | None = None
    max_length: int = 128
    label_piece: Literal["first", "last"] = "first"
    """Which word piece carries a word's tag; decoders know the word at the last."""
    split_seed: int = 0
    toxicity_scorer: Literal["builtin", "detoxify"] = "builtin"
    """What calls continuations toxic: our classifier or the Detoxify package."""


@runtime_checkable
class Corpus(Protocol):
    """Records of every split, read and checked before any model is loaded."""

    @property
    def labels(self) -> list[str] | None:
        """Class names of a classification head; None for language models."""
        ...

    def texts(self) -> list[str]:
        """Texts of the `base` split, to train a small tokenizer on."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every record, so that caches notice changed data."""
        ...


@dataclass(frozen=True)
class Predictions:
    """Logits at the counted positions of one behaviour, flattened over the batch."""

    logits: Float[Tensor, "position classes"]
    targets: Int[Tensor, "position"]
    """The right class (next token, tag, digit) of each position."""
    concept_classes: Int[Tensor, "position concept"]
    """Classes that together are the concept's answer at each position."""
    rivals: Int[Tensor, "position rival"] | None
    """Classes the answer competes with; None means every other class."""
    weights: Float[Tensor, "position"]
    """Weight of each position in an average."""


@dataclass(frozen=True)
class Outputs:
    """What one forward pass says about the concept and about the rest."""

    concept: Predictions
    retain: Predictions


@dataclass(frozen=True)
class Metric:
    """A score of `Task.summarise` by name."""

    name: str
    higher_is_better: bool
    unit: str
    chance: float = 0.0
    """Value without any ability, where a higher one is better."""


class Task(ABC):
    """Data, and what doing it means. Stateless: a batch is a function of its step.

    Subclasses never hold a model, and never touch devices, masks or optimisers. Batches
    are CPU tensors whose first dimension is the example. Text batches hold `input_ids`,
    `attention_mask`, `targets` (batch, seq; -100 where none; logits at t predict
    targets[t]), `concept` and `retain` (batch, seq; bool, disjoint, both only where
    there is a target), `weights` (batch, seq), `real` (batch, seq; real, non-special
    tokens), and per example `cluster` (document, for the bootstrap) and `unseen` (no
    entity of the example occurs in another split). Image batches hold `pixels` (batch,
    pixel) and the same keys with shape (batch,).
    """

    name: ClassVar[str]
    head: ClassVar[Head]
    concept_metric: ClassVar[Metric]
    retain_metric: ClassVar[Metric]
    defaults: ClassVar[TaskDefaults]
    own_options: ClassVar[tuple[str, ...]] = ()
    """`TaskOptions` that this task reads and not every task does."""

    @classmethod
    @abstractmethod
    def read(cls, options: TaskOptions) -> Corpus:
        """Read or generate, check and split the data; raises UserError early."""

    @abstractmethod
    def __init__(self, corpus: Any, tokenizer: Any, options: TaskOptions): ...

    @abstractmethod
    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Mask-training batch number `step`: concept and retain examples mixed."""

    @abstractmethod
    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Training batch `step` of the base model or of relearning.

        Drawn epoch by epoch from the whole split or, with `limit`, from the first
        `limit` examples that hold the concept, in an order fixed by `seed`.

        Raises:
            UserError: When fewer examples than `limit` hold the concept.
        """

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Training batch `step` like `finetune_batch`, of examples without the concept.

        No position of them is a concept position.

        Raises:
            UserError: When the split has no such example, or the task cannot tell.
        """
        raise UserError(f"task {self.name!r} cannot leave out the concept's examples")

    @abstractmethod
    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """Every example of `split` once, in a fixed order."""

    @abstractmethod
    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Per-example sums (hits, misses, summed nats, tokens) that bootstrap."""

    @abstractmethod
    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Scores of a set of examples from the sums of their counts.

        Holds `concept_metric.name` and `retain_metric.name`; NaN where undefined.
        """

    @abstractmethod
    def n_examples(self, split: Split) -> int:
        """Number of examples of a split."""

    def counterfactual(self, batch: Batch) -> Batch:
        """The paired corrupted inputs, position by position.

        Raises:
            UserError: When the task has no paired inputs.
        """
        raise UserError(f"task {self.name!r} has no paired counterfactual inputs")

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The keyword arguments of the model's forward."""
        return {key: batch[key] for key in MODEL_INPUTS if key in batch}

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """One forward pass, read at the concept's and at the retained positions."""
        logits = model(**self.inputs(batch)).logits
        return Outputs(
            self._predictions(logits, batch, batch["concept"]),
            self._predictions(logits, batch, batch["retain"]),
        )

    def finetune_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over every position that has a target."""
        logits = model(**self.inputs(batch)).logits
        return nn.functional.cross_entropy(
            logits.flatten(0, -2).float(),
            batch["targets"].flatten(),
            ignore_index=NO_TARGET,
        )

    def target_weights(self, batch: Batch) -> Float[Tensor, "..."]:
        """Weight of every position in the mean of `finetune_loss`, 0 without target."""
        return (batch["targets"] != NO_TARGET).float()

    def sampled_scores(
        self,
        model: nn.Module,
        cut: Callable[[], AbstractContextManager[Any]],
        *,
        seed: int,
    ) -> dict[str, float]:
        """Scores that need sampling from the cut model (toxicity); none by default."""
        return {}

    def concept_classes(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position concept"]:
        """Classes that make the concept's answer; the target itself by default."""
        return batch["targets"][where].unsqueeze(-1).clamp(min=0)

    def rivals(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position rival"] | None:
        """Classes the answer competes with; every other class by default."""
        return None

    def _predictions(self, logits: Tensor, batch: Batch, where: Tensor) -> Predictions:
        return Predictions(
            logits[where].float(),
            batch["targets"][where],
            self.concept_classes(batch, where),
            self.rivals(batch, where),
            batch["weights"][where],
        )


def has_pairs(task: type[Task]) -> bool:
    """Whether the task's inputs have counterfactuals."""
    return task.counterfactual is not Task.counterfactual


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on another device."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def check_limit(limit: int, n_examples: int, split: Split) -> None:
    """Refuse a limit that the `n_examples` of the concept do not reach.

    Raises:
        UserError: When `limit` is not in 1..n_examples.
    """
    if not 1 <= limit <= n_examples:
        raise UserError(
            f"limit must lie in 1..{n_examples}, the examples of {split!r} with the "
            f"concept, got {limit}; give fewer, or all"
        )
