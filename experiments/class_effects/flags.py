"""Flags of the effects of a class of neurons: which neurons, how, on which text."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from circuitcut.masks.neurons.rule import EVERYWHERE, Rule, RuleKind, rule_of
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import BATCH, SEED, Range, check_flags
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
        "run": ("seed", "device", "batch_size", "run_dir", "name"),
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
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"--device must be cpu or cuda, got {self.device!r}")

    @property
    def kinds_of_control(self) -> list[str]:
        """The controls asked for."""
        return [name for name in self.controls if name != "none"]

    def rules(self) -> dict[str, Rule]:
        """The rule of every condition."""
        kind: RuleKind = self.ablation
        positions = tuple(self.at_positions)
        return {w: rule_of(kind, self.theta, w, positions) for w in self.when}
