"""A task: its data in batches, and scores of the concept and of what is retained."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.storage.errors import UserError
from circuitcut.tasks.defaults import TaskDefaults
from circuitcut.tasks.selected_logits import logits_at
from circuitcut.tasks.settings.options import SPLITS as SPLITS
from circuitcut.tasks.settings.options import Split, TaskOptions

T = TypeVar("T")
Head = Literal[
    "causal_lm", "language_model", "token_classification", "image_classification"
]
"""`language_model` is causal for a decoder and masked for an encoder."""
LANGUAGE_HEADS: tuple[Head, ...] = ("causal_lm", "language_model")
"""Heads with a class for every token of the vocabulary."""
Batch = dict[str, Tensor]
MODEL_INPUTS = ("input_ids", "attention_mask", "pixels")
NO_TARGET = -100
NO_WORD = -1
"""Of a position that is of no word, in a batch's `word`."""


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
        """SHA-256 hex digest of every record; it is a part of cache keys."""
        ...


@dataclass(frozen=True)
class Predictions:
    """Logits and targets at the positions of one behaviour, flattened over a batch."""

    logits: Float[Tensor, "position classes"]
    targets: Int[Tensor, "position"]
    """The correct class (next token, tag, digit) of each position."""
    concept_classes: Int[Tensor, "position concept"]
    """Classes that count as the concept's answer at each position."""
    rivals: Int[Tensor, "position rival"] | None
    """Classes that compete with the answer; None means all other classes."""
    weights: Float[Tensor, "position"]
    """Weight of each position in an average."""


@dataclass(frozen=True)
class Outputs:
    """Predictions of one forward pass at the concept and at the retained positions."""

    concept: Predictions
    retain: Predictions


@dataclass(frozen=True)
class Metric:
    """A score of `Task.summarise` by name."""

    name: str
    higher_is_better: bool
    unit: str
    chance: float = 0.0
    """Score of a guess; of a loss that of a uniform guess, 0 where it is unknown."""
    label: str = ""
    """Name that people use, such as `LOC span F1`; empty: the name of the score."""


class Task(ABC):
    """Data and scores. A task has no state: a batch is a function of its step.

    Subclasses hold no model and do not use devices, masks or optimisers. Batches are
    CPU tensors whose first dimension is the example. A text batch holds `input_ids`,
    `attention_mask`, `targets` (batch, seq; -100 means no target; the logits at
    position t predict targets[t]), `concept` and `retain` (batch, seq; bool, disjoint,
    True only at positions with a target), `weights` (batch, seq) and `real` (batch,
    seq; True at tokens that are neither padding nor special). Per example it holds
    `cluster` (the document, for the bootstrap) and `unseen` (no entity of the example
    occurs in another split). Where a text is given in words (`words_of`) it also holds
    `word` (batch, seq; the number of the word in its text, -1 at other positions) and
    `example` (batch,; the number of the text in its split), and where its tokens are
    predicted from those before, `word_piece` and `word_concept` (batch, seq; bool; one
    piece of every word, and of the concept's words). An image batch holds
    `pixels` (batch, pixel) and the same keys with shape (batch,).
    """

    name: ClassVar[str]
    head: ClassVar[Head]
    concept_metric: Metric
    retain_metric: Metric
    defaults: ClassVar[TaskDefaults]
    concept: str | None = None
    """What `--concept` names or, without it, what the data or the task choose; None
    where the task has one concept only."""
    eval_batch: int = 64
    """Examples of one forward pass in evaluation; the scores do not depend on it."""
    n_heldout: int | None = None
    """So many evenly spaced examples of `tune` and `heldout` are scored; None: all."""

    @classmethod
    @abstractmethod
    def read(cls, options: TaskOptions) -> Corpus:
        """Read or generate the data, check and split them.

        Raises:
            UserError: When the data or an option is wrong, before a model is loaded.
        """

    @abstractmethod
    def __init__(self, corpus: Any, tokenizer: Any, options: TaskOptions): ...

    @abstractmethod
    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Batch number `step` of mask training, with concept and retain examples."""

    @abstractmethod
    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Training batch number `step` of the base model or of relearning.

        Examples are drawn epoch by epoch from the whole split. With `limit` they are
        drawn from the first `limit` examples with the concept, in an order fixed by
        `seed`.

        Raises:
            UserError: When fewer than `limit` examples have the concept.
        """

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Training batch number `step` of examples without any concept position.

        Raises:
            UserError: When the split has no such example, or the task cannot tell
                examples with and without the concept apart.
        """
        raise UserError(f"task {self.name!r} cannot leave out the concept's examples")

    @abstractmethod
    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """Batches that contain every scored example of `split` once, in a fixed order.

        All examples, but of `tune` and `heldout` `n_heldout` ones (see `scored`).
        """

    @abstractmethod
    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Sums per example (hits, misses, summed nats, tokens), for the bootstrap."""

    @abstractmethod
    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Scores of a set of examples from the sums of their counts.

        The result has `concept_metric.name` and `retain_metric.name`; an undefined
        score is NaN.
        """

    @abstractmethod
    def n_examples(self, split: Split) -> int:
        """Number of examples of a split."""

    @property
    def retain_losses(self) -> tuple[str, ...]:
        """Losses that limit a mask's size: of retained text and of each kind of it.

        They count where the concept's score is a loss as well; NaN: no such text.
        """
        return (self.retain_metric.name,)

    def scored(self, split: Split, examples: Sequence[T]) -> Sequence[T]:
        """As many examples as `n_heldout` allows in this split, of every kind as many.

        Those of a kind are evenly spaced. A kind with fewer than its share leaves the
        rest to the others, so that many texts do not crowd out a concept with few
        prompts.
        """
        n, most = len(examples), self.n_heldout
        if split not in ("tune", "heldout") or most is None or most >= n:
            return examples
        chosen = _chosen(range(n), self.kinds(split, examples), most)
        return [examples[i] for i in sorted(chosen)]

    def kinds(
        self, split: Split, examples: Sequence[Any]
    ) -> Sequence[tuple[Hashable, ...]]:
        """What each example is, from the general to the particular, for `scored`.

        Kinds within a kind share its examples equally. By default all are the same.
        """
        del split
        return [()] * len(examples)

    def pieces(
        self, split: Split, examples: Sequence[T], size: int
    ) -> Iterator[Sequence[T]]:
        """The scored examples in pieces of `size`, for `evaluation_batches`."""
        chosen = self.scored(split, examples)
        for first in range(0, len(chosen), size):
            yield chosen[first : first + size]

    def for_model(self, model: nn.Module, weights_sha256: str) -> "Task":
        """The task on what this uncut model can do; by default on everything.

        Args:
            model: As it will be cut, in evaluation mode.
            weights_sha256: Of its weights, for caches.
        """
        del model, weights_sha256
        return self

    def files(self) -> dict[str, Any]:
        """Further JSON files of a run directory, by name; by default none."""
        return {}

    def words_of(self, split: Split) -> Sequence[Sequence[str]] | None:
        """The words of every example, where `word` and `example` of a batch tell them.

        None: the task's texts are tokens, or it has none.
        """
        return None

    def counterfactual(self, batch: Batch) -> Batch:
        """The paired corrupted inputs, aligned position by position.

        Raises:
            UserError: When the task has no paired inputs.
        """
        raise UserError(f"task {self.name!r} has no paired counterfactual inputs")

    @property
    def no_pairs(self) -> str | None:
        """Why there are no paired counterfactual inputs; None if all examples have."""
        return None if can_have_pairs(type(self)) else f"task {self.name} has none"

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The keyword arguments of the model's forward."""
        return {key: batch[key] for key in MODEL_INPUTS if key in batch}

    def counted(self, batch: Batch) -> Bool[Tensor, "batch *seq"]:
        """Positions whose logits any score or objective needs; by default all."""
        return torch.ones_like(batch["concept"])

    def logits(
        self, model: nn.Module, batch: Batch
    ) -> Float[Tensor, "position classes"]:
        """Logits at the counted positions, row by row, in one forward pass."""
        return logits_at(model, self.inputs(batch), self.counted(batch))

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Predictions of one forward pass at the concept and the retained positions."""
        logits = self.logits(model, batch)
        return Outputs(
            self._predictions(logits, batch, batch["concept"]),
            self._predictions(logits, batch, batch["retain"]),
        )

    def finetune_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats, weighted by `target_weights`."""
        where = batch["targets"] != NO_TARGET
        losses = nn.functional.cross_entropy(
            logits_at(model, self.inputs(batch), where).float(),
            batch["targets"][where],
            reduction="none",
        )
        weights = self.target_weights(batch)[where]
        return (losses * weights).sum() / weights.sum()

    def target_weights(self, batch: Batch) -> Float[Tensor, "..."]:
        """Weight of each position in `finetune_loss`; 0 at positions without target."""
        return (batch["targets"] != NO_TARGET).float()

    def sampled_scores(
        self,
        model: nn.Module,
        cut: Callable[[], AbstractContextManager[Any]],
        *,
        seed: int,
    ) -> dict[str, float]:
        """Scores that need passes of their own, such as of text that is generated.

        By default none.
        """
        return {}

    def concept_classes(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position concept"]:
        """Classes that count as the concept's answer; by default the target."""
        return batch["targets"][where].unsqueeze(-1).clamp(min=0)

    def rivals(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position rival"] | None:
        """Classes that compete with the answer; by default all other classes."""
        return None

    def _predictions(self, logits: Tensor, batch: Batch, where: Tensor) -> Predictions:
        chosen = where[self.counted(batch)]
        if not chosen.all():  # all need no copy, of often hundreds of megabytes
            logits = logits[chosen]
        return Predictions(
            logits.float(),
            batch["targets"][where],
            self.concept_classes(batch, where),
            self.rivals(batch, where),
            batch["weights"][where],
        )


def can_have_pairs(task: type[Task]) -> bool:
    """Whether the task's inputs have counterfactuals where the data do."""
    return task.counterfactual is not Task.counterfactual


_OF_TOKENS = frozenset(
    {
        "input_ids", "corrupted_ids", "attention_mask", "targets", "concept", "retain",
        "weights", "real", "word", "word_piece", "word_concept",
    }
)  # fmt: skip


def has_concept(batch: Batch) -> Bool[Tensor, "batch"]:
    """Which examples have a position of the concept."""
    return batch["concept"].reshape(len(batch["concept"]), -1).any(1)


def rows_of(batch: Batch, rows: Bool[Tensor, "batch"] | Int[Tensor, "chosen"]) -> Batch:
    """Some examples, without the padding at the end that only the others needed.

    Of a batch in which an unknown tensor may be one per token the padding stays.
    """
    chosen = {name: values[rows] for name, values in batch.items()}
    mask = chosen.get("attention_mask")
    if mask is None or not len(mask):
        return chosen
    n_seq = int(mask.any(0).nonzero().max()) + 1
    per_token = {
        name for name, v in chosen.items() if v.dim() > 1 and v.shape[1] == len(mask[0])
    }
    if not per_token <= _OF_TOKENS:
        return chosen
    return {
        name: values[:, :n_seq] if name in per_token else values
        for name, values in chosen.items()
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on another device."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def check_limit(limit: int, n_examples: int, split: Split) -> None:
    """Check that a split has at least `limit` examples with the concept.

    Raises:
        UserError: When `limit` is not in 1..n_examples.
    """
    if not 1 <= limit <= n_examples:
        raise UserError(
            f"limit must lie in 1..{n_examples}, the number of examples of {split!r} "
            f"with the concept, got {limit}; give a smaller limit, or all"
        )


def _chosen(
    examples: Sequence[int], kinds: Sequence[tuple[Hashable, ...]], most: int
) -> list[int]:
    """At most `most` of the examples, whose kinds are at their place in `kinds`."""
    n = min(len(examples), most)
    if not any(kinds[i] for i in examples):
        return [examples[i * len(examples) // n] for i in range(n)]
    by_kind: dict[Hashable, list[int]] = {}
    for i in examples:
        by_kind.setdefault(kinds[i][:1], []).append(i)
    within = [kind[1:] for kind in kinds]
    chosen: list[int] = []
    smallest_first = sorted(by_kind.values(), key=len)
    for place, alike in enumerate(smallest_first):
        share = (n - len(chosen)) // (len(smallest_first) - place)
        chosen += _chosen(alike, within, share)
    return chosen
