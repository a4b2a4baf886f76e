"""Flags of knowledge neurons: which facts, how units are found, what they do."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.attribution.knowledge.names import Aggregation, Grid, Measure, Word
from circuitcut.experiments.flags import TaskConfig
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import (
    COUNT,
    COUNT_OR_0,
    FINITE,
    POSITIVE_SHARE,
    SHARE,
    SHARE_BELOW_1,
    UNITS,
    Range,
    quoted,
)

ADAPTIVE: dict[Measure, float] = {"integrated_gradients": 0.2, "activations": 0.5}
"""The published shares of the largest score."""
MOST_SHARES, MOST_PROCESSES = 1000, 256
SHARE_OF_RULE = {"share": 0.5, "original": 0.7}
"""The published shares of the paraphrases."""


@dataclass(frozen=True)
class KnowledgeFlags(TaskConfig):
    """Flags of `knowledge`.

    Raises:
        UserError: When a value is out of range, or two flags contradict each other.
    """

    heading: ClassVar[str] = "knowledge neurons"
    headings: ClassVar[Headings] = {
        "what is done with them": (
            *("n_others", "n_random", "mask", "edit", "edit_strengths"),
            *("most_edits", "edit_shared"),
            *("to_mask", "n_ablated", "ablation", "positions", "mean_over", "bake"),
        ),
        "several processes": ("processes", "share", "join"),
    }

    task: str = flag("facts", "facts; other tasks have none", decides_defaults=True)
    facts: Literal["all", "concept"] = flag(
        "all", "the known facts of all relations, or those of --concept alone"
    )
    split: Literal["all", "mask", "tune", "relearn", "heldout"] = flag(
        "all",
        "the facts of this split alone; mask: those on which masks are trained, so "
        "that evaluate scores --to_mask on subjects that had no part in it",
    )
    most_facts: int = flag(
        200, "most facts, of every relation as many as of the others", within=COUNT
    )
    measure: Measure = flag(
        "integrated_gradients", "score of a neuron; activations: how active it is"
    )
    word: Word = flag(
        "gold", "whose probability is attributed: the object's, or the predicted word's"
    )
    grid: Grid = flag(
        "midpoints",
        "steps of integrated gradients; original: k/m from 0; both_ends: m points from "
        "0 to 1, as in EleutherAI's code; gauss: Gauss-Legendre nodes",
    )
    n_steps: int = flag(20, "steps of integrated gradients", within=Range(1, 1000))
    aggregation: Aggregation = flag(
        "sum", "scores of an object of several tokens from those at its masks"
    )
    threshold: float | None = flag(
        None, "a prompt's units: those with a score above this", within=FINITE
    )
    adaptive: float | None = flag(
        None,
        "a prompt's units: those with at least this share of the largest score; .2, or "
        ".5 of activations, if no other rule is given",
        within=POSITIVE_SHARE,
    )
    percentile: float | None = flag(
        None,
        "a prompt's units: those above this percentile of all scores",
        within=Range(0, 100, without="both"),
    )
    refine: Literal["share", "original"] = flag(
        "share",
        "a fact's units: those of more than --refine_share of its prompts; original: "
        "of at least that share and three prompts, the share moved until facts have 2 "
        "to 5 units on average",
    )
    refine_share: float | None = flag(
        None,
        "that share of the prompts; default: .5, of the original rule .7",
        within=SHARE_BELOW_1,
    )
    negatives: Literal["none", "others", "relation"] = flag(
        "none",
        "remove units that prompts of other relations' facts have too, or those of the "
        "same relation with another object",
    )
    n_negatives: int = flag(10, "such prompts drawn for every fact", within=COUNT)
    negative_share: float = flag(
        0.0, "share of them that may have a unit that stays", within=SHARE
    )
    relation_share: float = flag(
        0.1, "a relation's units: those of this share of its facts", within=SHARE
    )
    n_others: int = flag(
        10,
        "facts of other relations at which a fact's units are scaled too",
        within=COUNT_OR_0,
    )
    n_random: int = flag(
        3, "random sets of as many units of the same layers", within=Range(1, 1000)
    )
    mask: list[Path] = flag(
        [],
        "train_mask runs, or masks of attribute: as many of the neurons that they cut "
        "first are scaled and edited too",
    )
    edit: Literal["relative", "plain", "none"] = flag(
        "relative",
        "move the values of a fact's units from its object to another one: in "
        "proportion to their norms (published), or by twice the embeddings "
        "(EleutherAI's code)",
    )
    edit_strengths: list[float] = flag(
        [],
        "how much of the old object's embedding is taken away and of the new one's "
        "added; default: as published, 1 8 (relative) and 2 2 (plain)",
        within=Range(0, 1000),
    )
    most_edits: int = flag(
        10, "facts of a relation that are edited, one at a time", within=COUNT
    )
    edit_shared: float = flag(
        0.1,
        "units of more than this share of a relation's facts, and of two, are not "
        "edited",
        within=SHARE,
    )
    to_mask: Literal["none", "facts", "relations"] = flag(
        "none",
        "write a mask that ablates the units of all facts or relations, for evaluate, "
        "relearn and report",
    )
    n_ablated: int | None = flag(
        None, "of that mask: only so many, those of the most facts", within=UNITS
    )
    ablation: Literal["zero", "mean"] = flag(
        "zero", "of that mask: what replaces an ablated activation"
    )
    mean_over: Literal["retain", "all"] = flag(
        "retain", "of that mask: positions over which means are taken"
    )
    positions: Literal["words", "all"] = flag(
        "words",
        "of that mask: words leaves special tokens and a causal model's first position "
        "uncut",
    )
    bake: Literal["none", "suppress", "enhance", "erase_unk"] = flag(
        "none",
        "save a checkpoint in which the values of those units are 0, doubled, or the "
        "embedding of the unknown token",
    )

    processes: int = flag(
        1,
        "find the units in so many processes on this machine, then join them; the "
        "same command goes on after it was stopped",
        within=Range(1, MOST_PROCESSES),
    )
    share: str | None = flag(
        None,
        "one process's share of the facts, such as 1/4: every fourth one from the "
        "first; --join puts the shares together",
    )
    join: list[Path] = flag(
        [], "finished runs of all shares, put together with their flags"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        place, n_shares = self.place_of_share
        if not 1 <= place <= n_shares <= MOST_SHARES:
            raise UserError(
                f"--share must be i/n with i from 1 to n and n at most {MOST_SHARES}, "
                f"got {quoted(str(self.share))}"
            )
        products = (self.to_mask, self.bake) != ("none", "none")
        if self.share is not None and (self.join or products):
            raise UserError(
                "--share finds the units of a part of the facts; leave --to_mask, "
                "--bake and --join to the run that joins all shares"
            )
        if self.processes > 1 and (self.share is not None or self.join):
            raise UserError(
                "--processes makes the shares and joins them; leave --share and --join "
                "out, or --processes"
            )
        if self.task != "facts":
            raise UserError(
                f"--task must be facts, got {self.task}; other prompts are facts too: "
                "name a table with subject, relation, object and prompt as --data"
            )
        rules = {
            "--threshold": self.threshold,
            "--adaptive": self.adaptive,
            "--percentile": self.percentile,
        }
        given = [name for name, value in rules.items() if value is not None]
        if len(given) > 1:
            raise UserError(
                f"{' and '.join(given)} choose a prompt's units; give one of them"
            )
        if len(self.edit_strengths) not in (0, 2):
            raise UserError(
                "--edit_strengths must be two numbers, for instance 1 8, got "
                f"{self.edit_strengths}"
            )
        if self.edit_strengths and self.edit == "none":
            raise UserError(
                "--edit_strengths is about edits; give --edit relative or plain"
            )
        of_mask = {"n_ablated": None, "ablation": "zero"}
        of_mask |= {"mean_over": "retain", "positions": "words"}
        changed = [name for name, usual in of_mask.items() if vars(self)[name] != usual]
        if changed and self.to_mask == "none":
            raise UserError(
                f"--{changed[0]} is about a mask; give --to_mask facts or relations"
            )

    def chosen(self) -> dict[str, Any]:
        """Values of flags that are not given, for `--help`."""
        return super().chosen() | {"refine_share": SHARE_OF_RULE[self.refine]}

    @property
    def place_of_share(self) -> tuple[int, int]:
        """The share's place from 1, and the number of shares; (0, 0) where wrong."""
        found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", self.share or "1/1")
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def rule(self) -> dict[str, float]:
        """The one rule of coarse sets and its value."""
        rules = {
            "threshold": self.threshold,
            "adaptive": self.adaptive,
            "percentile": self.percentile,
        }
        given = {name: value for name, value in rules.items() if value is not None}
        return given or {"adaptive": ADAPTIVE[self.measure]}

    @property
    def share_of_prompts(self) -> float:
        """Share of a fact's prompts that must have a unit."""
        return (
            SHARE_OF_RULE[self.refine]
            if self.refine_share is None
            else self.refine_share
        )
