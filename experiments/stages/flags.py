"""Flags of the relearning study in stages: what is ranked, pruned and retrained."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from circuitcut.attribution.words.names import RANKINGS
from circuitcut.experiments.flags import TaskConfig
from circuitcut.models.names import BUILTIN
from circuitcut.relearning.stages.arms import ARMS, arms, check_shares
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import (
    BATCH,
    COUNT,
    COUNT_OR_0,
    DECAY,
    LEARNING_RATE,
    POSITIVE,
    PROBABILITY,
    SEED,
    Range,
)
from circuitcut.tasks.settings.options import Split
from circuitcut.training.schedules import Schedule

AUTO = "auto"
PUBLISHED: dict[str, Any] = {"seeds": [0, 1, 2], "batch_size": 8, "lr": 2e-5}
"""The paper's settings, with three seeds instead of one."""
OF_BUILTIN: dict[str, Any] = {"seeds": [0, 1], "batch_size": 32, "lr": 5e-4}
"""Of the small built-in models: a study of a few minutes."""


@dataclass(frozen=True)
class StagesConfig(TaskConfig):
    """Flags of `relearn_stages`.

    Raises:
        UserError: When a value is out of range, or two flags contradict each other.
    """

    heading: ClassVar[str] = "relearning in stages"
    headings: ClassVar[Headings] = {
        "what is cut": ("ranking", "compare", "shares"),
        "training": (
            *("n_stages", "epochs", "batch_size", "lr", "weight_decay", "optimiser"),
            *("schedule", "warmup", "clip_norm", "keep_weights", "checkpoint_every"),
        ),
        "reading": ("words_split", "word_vectors", "fresh_masks", "mask_steps"),
    }

    ranking: str = flag(
        "probeless",
        "ranking of the hidden units whose top is pruned: "
        f"{', '.join(RANKINGS)}. probeless: the concept against other words; "
        "probeless_labels: all pairs of labels; learned: a trained mask",
    )
    compare: list[str] = flag(
        ["probeless_labels", "linear_l2", "gradient_margin", "random"],
        "further rankings of the base model, for the overlap of their top units; none",
    )
    shares: list[float] = flag(
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5],
        "shares of the hidden units of all levels that are pruned and scored",
        within=PROBABILITY,
    )
    retrain: list[str] = flag(
        [AUTO],
        "shares that are retrained as well; auto: the smallest one at which at most "
        "10 % of the concept's ability on the tune split is left (score above a "
        "guess; of a loss the probability per token)",
    )
    conditions: list[str] = flag(
        list(ARMS),
        f"what is retrained: {', '.join(ARMS)}; random has the cut's counts at every "
        "level",
    )
    holdings: list[str] = flag(
        ["lasting", "one_shot"],
        "lasting: the mask stays on; one_shot: gain and bias of the unit are set to 0 "
        "once, as published, and then train",
    )
    seeds: list[int] = flag(
        [],
        "seeds, each with its own base model (--base_seed plus the seed), ranking, "
        "order of the data and random cut",
        within=SEED,
    )
    n_stages: int = flag(
        4,
        "stages of retraining; optimiser and schedule begin anew",
        within=Range(1, 1000),
    )
    epochs: float = flag(
        2.0, "epochs of a stage over the relearn split", within=POSITIVE
    )
    batch_size: int | None = flag(None, "examples a step", within=BATCH)
    lr: float | None = flag(
        None, "learning rate at the beginning of a stage", within=LEARNING_RATE
    )
    weight_decay: float = flag(0.01, "decoupled weight decay", within=DECAY)
    optimiser: Literal["adam", "adamw", "sgd"] = flag("adamw", "optimiser")
    schedule: Schedule = flag("linear", "of the learning rate within a stage")
    warmup: int = flag(
        0, "steps of a stage over which the learning rate grows", within=COUNT_OR_0
    )
    clip_norm: float | None = flag(
        1.0, "greatest norm of a gradient; none: no limit", within=POSITIVE
    )
    keep_weights: Literal["all", "last"] = flag(
        "all", "keep the weights after every stage, or after the last one of each arm"
    )
    checkpoint_every: int = flag(
        0,
        "steps between checkpoints within a stage; 0: a killed stage begins anew",
        within=COUNT_OR_0,
    )
    words_split: Split = flag(
        "mask", "split whose words rank the units and are read at every stage"
    )
    word_vectors: Path | None = flag(
        None,
        "text file of word vectors for similarities; default: the base model's input "
        "embeddings",
    )
    fresh_masks: Literal["none", "last", "all"] = flag(
        "none",
        "train a mask on the base model and after the last or after all stages of the "
        "cut arms, as a second opinion on where the concept is (slow)",
    )
    mask_steps: int | None = flag(
        None,
        "steps of such a mask and of the ranking learned; default: the task's",
        within=COUNT,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in (("ranking", [self.ranking]), ("compare", self.compare)):
            known = [*RANKINGS, "none"] if name == "compare" else list(RANKINGS)
            wrong = [value for value in given if value not in known]
            if wrong:
                raise UserError(
                    f"--{name} must be among {', '.join(known)}, got {wrong}"
                )
        check_shares("shares", self.shares)
        self.retrained()  # checks them
        arms(self.conditions, self.holdings, self.shares[:1], 0)  # checks the names
        if self.task == "mnist":
            raise UserError(
                "--task mnist has no words to read; use --task locations or a task of "
                "language models"
            )
        if self.word_vectors is not None and not self.word_vectors.is_file():
            raise UserError(
                f"--word_vectors must be an existing file, got {self.word_vectors}"
            )

    def chosen(self) -> dict[str, Any]:
        """Values by task and model of flags that are not given, for `--help`."""
        return super().chosen() | self.usual

    @property
    def usual(self) -> dict[str, Any]:
        """The flags that were not given, for this model."""
        return OF_BUILTIN if self.model_name in BUILTIN else PUBLISHED

    def with_usual(self) -> Self:
        """The flags with these in place of those not given, and each seed once."""
        missing = {
            name: value
            for name, value in self.usual.items()
            if getattr(self, name) in (None, [])
        }
        filled = replace(self, **missing)
        return replace(filled, seeds=list(dict.fromkeys(filled.seeds)))

    @property
    def rankings(self) -> list[str]:
        """The ranking that prunes, then those that are compared with it."""
        return list(dict.fromkeys([self.ranking, *self.compared()]))

    def compared(self) -> list[str]:
        """The rankings of `compare`; the word none is none."""
        return [name for name in self.compare if name != "none"]

    def retrained(self) -> list[float] | None:
        """The shares that are retrained, in order; None: chosen by the scan.

        Raises:
            UserError: When one is no share.
        """
        if self.retrain == [AUTO]:
            return None
        try:
            shares = [float(text) for text in self.retrain]
        except ValueError as error:
            raise UserError(
                f"--retrain must be shares, or {AUTO} alone, got {self.retrain}"
            ) from error
        check_shares("retrain", shares)
        return list(dict.fromkeys(shares))
