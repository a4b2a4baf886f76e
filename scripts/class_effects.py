"""Ablate a class of neurons and its controls on a text, token by token.

    python scripts/class_effects.py --model smollm2 --data valid.txt.gz \
        --classes weakening --n_tokens 20000
    python scripts/class_effects.py --model smollm2 --data valid.txt.gz \
        --classes weakening --when gate+/post+ gate+/post- gate-/post+ gate-/post-

Classes are those of weight_classes.py. Measured are loss, entropy, rank of the true
token and the scale of the final norm, clean and ablated; the same for --draws controls
of the same layers, drawn from all neurons outside the class and from those that are on
about as often; how often neurons are on and in which quadrant; and the texts that
change most. The texts run once clean and once for each ablation, in memory that does
not grow with them: SmolLM2 needs 3 ms a token and pass on one core. Writes a run with
results.json, tables (Markdown, CSV, LaTeX) and report.html.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.masks.neurons.rule import EVERYWHERE, Rule, RuleKind, rule_of
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import BATCH, SEED, Range, check_flags
from circuitcut.storage.provenance import PROVENANCE, code_version
from circuitcut.storage.run_directory import DEFAULT_PARENT, RunDirectory
from circuitcut.training.config import config_dict, parse_first, run_script, saved_flags
from circuitcut.weight_classes.selection_flags import WHEN_HELP, ChoiceFlags, RuleFlags


@dataclass(frozen=True)
class ClassEffectsConfig(RuleFlags, ChoiceFlags):
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
        256, "tokens of a text; longer documents are cut up", within=Range(2, 10**5)
    )
    controls: list[str] = flag(
        ["layer", "frequency"],
        "as many neurons of the same layers outside the classes; frequency: that are "
        "also on about as often; none",
    )
    draws: int = flag(5, "draws of every control", within=Range(1, 100))
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
    changed_by: Literal["entropy", "loss", "rank", "log_scale"] = flag(
        "entropy", "measure whose change counts there"
    )
    seed: int = flag(0, "seed of all draws", within=SEED)
    device: str = flag("cpu", "cpu or cuda")
    batch_size: int = flag(4, "texts in one forward pass", within=BATCH)
    run_dir: Path = flag(DEFAULT_PARENT, "parent folder of the run directories")
    name: Path | None = flag(None, "name of the run directory; default: generated")

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


parse_first(__name__, ClassEffectsConfig, __doc__)

import torch
from torch import Tensor

from circuitcut.data.text.files import read_retained
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.neurons.values import (
    check_gates,
    conditional_means,
    rule_values,
    watching,
)
from circuitcut.models.architectures import sites_of
from circuitcut.models.loaded import LoadedModel, most_positions
from circuitcut.models.loading import load_model
from circuitcut.reports.html import write_report
from circuitcut.reports.tables import format_table
from circuitcut.reports.weights.effect_tables import EFFECT_TABLES, summary_rows
from circuitcut.reports.weights.files import write_tables
from circuitcut.storage.progress import Waiting, shown
from circuitcut.storage.results_schema import SCHEMA_VERSION
from circuitcut.weight_classes.activity import Activity, activity_of
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.classes import classify
from circuitcut.weight_classes.cosines import Cosines
from circuitcut.weight_classes.effects import (
    Effects,
    Texts,
    batched,
    summary_of,
    token_effects,
)
from circuitcut.weight_classes.selection import (
    Chosen,
    choose,
    control_by,
    cosines_of,
    flipped_of,
    frozen_mask,
    n_chosen,
)

Name = tuple[str, int | None, str]
"""Set of neurons (`class`, `layer`, `frequency`), number of the draw, condition."""


def main(config: ClassEffectsConfig) -> Path:
    """Choose, measure, write tables and report; print the summary."""
    config.check_given()
    if config.data is None:
        raise UserError(
            "--data must name a text to measure on, for instance a .txt file"
        )
    RunDirectory.check(config.run_dir, config.name)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda is not available here; use cpu")
    documents = _documents(config.data, config.text_column)
    with Waiting(f"loading the model {config.model}"):
        loaded = load_model(
            config.model,
            head="causal_lm",
            revision=config.revision,
            device=config.device,
        )
    texts = _texts(config, loaded, documents)
    study = Study(config, loaded, texts)
    results = study.results()
    made_with = {
        "settings": config_dict(config),
        "code_version": code_version(),
        "revision": loaded.revision,
    }
    run = RunDirectory.create(
        config.run_dir,
        kind="class_effects",
        task="effects",
        model=config.model,
        config=saved_flags(config) | {PROVENANCE: made_with},
        name=config.name,
    )
    with run.locked():
        results |= {
            "next": command("report", {"runs": run.path}),
            PROVENANCE: made_with,
        }
        run.write_results(results)
    rows = summary_rows(results)
    print(format_table(rows, list(rows[0])))
    write_tables(run.path / "tables", results, EFFECT_TABLES)
    print(f"report: {write_report([run.path], run.path / 'report.html')}")
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


class Study:
    """One model on one corpus: what is chosen, measured and described."""

    def __init__(
        self, config: ClassEffectsConfig, loaded: LoadedModel, texts: list[list[int]]
    ):
        self.config, self.loaded, self.texts = config, loaded, texts
        self.model = loaded.model
        self.sites = sites_of(self.model, ["neurons"])
        self.checkpoint = checkpoint_of(self.model, loaded.name)
        self.flipped = [f.cpu() for f in flipped_of(self.checkpoint, config.convention)]
        self.special_ids = loaded.special_ids if config.positions == "words" else ()
        self.rng = torch.Generator().manual_seed(config.seed)

    @cached_property
    def cosines(self) -> list[Cosines]:
        """Of every neuron, layer by layer."""
        return cosines_of(self.checkpoint, self.config.convention)

    @cached_property
    def frequency(self) -> list[Tensor]:
        """Share of the sample's tokens at which a neuron is on, layer by layer."""
        return activity_of(self.model, self.sites, self._sample(), self.flipped).on()

    def results(self) -> dict[str, Any]:
        """results.json, but for the way to go on and the provenance."""
        config = self.config
        rules = config.rules()
        for rule in rules.values():
            check_gates(self.model, self.sites, rule)
        sets, whole = self._sets()
        ablated = {when: self._values(rule) for when, rule in rules.items()}
        masks = {
            (*key, when): frozen_mask(
                chosen, self.sites, values, special_ids=self.special_ids
            )
            for when, values in ablated.items()
            for key, chosen in sets.items()
        }
        active = Activity(self.sites, self.flipped)
        effects, names = self._measured(masks, active)
        norms = [of_layer.norm_out for of_layer in self.cosines]
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "class_effects",
            "task": "none",
            "model": config.model,
            "units": ["neurons"],
            "ablation": config.ablation,
            "n_ablated": n_chosen(sets["class", None]),
            "n_units": sum(site.n_units for site in self.sites),
            "concept_metric": None,
            "retain_metric": None,
            "base": {},
            "selection": {
                **config.described(),
                "n_of_classes": n_chosen(whole),
                "controls": config.kinds_of_control,
                "draws": config.draws,
                "gated": self.checkpoint.layout.is_gated,
                "theta": config.theta,
                "at_positions": config.at_positions,
            },
            "corpus": {
                "data": config.data,
                "n_texts": effects.n_texts,
                "n_tokens": effects.n_tokens,
                "length": config.length,
                "sample": min(config.sample, effects.n_tokens),
            },
            "clean": {name: s.described() for name, s in effects.clean.items()},
            "effects": [
                {
                    "set": name[0],
                    "draw": name[1],
                    "when": name[2],
                    "ablated": {m: s.mean for m, s in effect.ablated.items()},
                    "difference": {
                        m: s.described() for m, s in effect.difference.items()
                    },
                }
                for name, effect in zip(names, effects.of.values(), strict=True)
            ],
            "summary": summary_of(names, list(effects.of.values())),
            "activity": [
                {"set": key[0], "draw": key[1], **active.of(chosen, norms)}
                for key, chosen in sets.items()
            ],
            "activity_by_layer": self._by_layer(active, whole),
            "changed": self._changed(effects, names),
        }

    def _sets(self) -> tuple[dict[tuple[str, int | None], Chosen], Chosen]:
        """The neurons of the class, those of every control, and the whole class."""
        config = self.config
        classes = [classify(cosines, config.tau).cpu() for cosines in self.cosines]
        chosen, whole = choose(config, classes, lambda: self.frequency, self.rng)
        sets: dict[tuple[str, int | None], Chosen] = {("class", None): chosen}
        for kind in config.kinds_of_control:
            for draw in range(config.draws):
                sets[kind, draw] = control_by(
                    kind,
                    chosen,
                    whole,
                    lambda: self.frequency,
                    config.tolerance,
                    self.rng,
                )
        return sets, whole

    def _values(self, rule: Rule) -> AblationValues:
        if rule == Rule("zero"):
            return zero_values(self.sites)
        means = None
        if rule.kind == "mean":
            means = conditional_means(
                self.model, self.sites, self._sample(), rule, self.flipped
            )
        return rule_values(rule, self.sites, self.flipped, means)

    def _batches(self, n_tokens: int) -> Iterator[Texts]:
        tokenizer: Any = self.loaded.tokenizer
        texts = list(_at_most(self.texts, n_tokens))
        device = torch.device(self.config.device)
        return batched(texts, self.config.batch_size, tokenizer.pad_token_id, device)

    def _sample(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """The first texts, with the positions that count."""
        for texts in self._batches(self.config.sample):
            inputs = {"input_ids": texts.ids, "attention_mask": texts.attention}
            where = texts.where(self.special_ids)
            yield inputs, torch.nn.functional.pad(where, (0, 1))

    def _measured(
        self, masks: Mapping[Name, FrozenMask], active: Activity
    ) -> tuple[Effects, list[Name]]:
        config, names = self.config, list(masks)
        keys = {name: str(number) for number, name in enumerate(names)}
        shown_of = {keys[n]: config.n_shown for n in names if n[0] == "class"}
        texts = list(self._batches(config.n_tokens))
        effects = token_effects(
            self.model,
            shown(texts, f"texts under {len(masks)} ablations", unit="batch"),
            {keys[name]: mask for name, mask in masks.items()},
            special_ids=self.special_ids,
            n_shown=shown_of,
            changed_by=config.changed_by,
            seen_clean=lambda where: watching(
                self.model, self.sites, where, active.see
            ),
        )
        return effects, names

    def _by_layer(self, active: Activity, whole: Chosen) -> list[dict[str, Any]]:
        """Frequencies inside and outside the class, and correlations, by layer."""
        rows = zip(active.on(), whole, active.correlations(self.cosines), strict=True)
        return [
            {
                "layer": layer,
                "n_of_classes": int(inside.sum()),
                "on": float(on[inside].mean()) if inside.any() else None,
                "on_of_others": float(on[~inside].mean()) if not inside.all() else None,
                "correlations": r,
            }
            for layer, (on, inside, r) in enumerate(rows)
        ]

    def _changed(self, effects: Effects, names: Sequence[Name]) -> list[dict[str, Any]]:
        tokenizer: Any = self.loaded.tokenizer

        def words(pairs: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
            return [{"token": tokenizer.decode([t]), "change": c} for t, c in pairs]

        return [
            {
                "when": name[2],
                "text": change.text,
                "position": change.position,
                "context": tokenizer.decode(change.ids[-33:-1]),
                "next": tokenizer.decode(change.ids[-1:]),
                "clean": change.clean,
                "ablated": change.ablated,
                "promoted": words(change.promoted),
                "suppressed": words(change.suppressed),
            }
            for name, effect in zip(names, effects.of.values(), strict=True)
            if effect.most_changed is not None
            for change in effect.most_changed.found()
        ]


def _documents(data: str, text_column: str | None) -> list[str]:
    """The texts of a corpus; pieces of one document are joined."""
    joined: dict[str, list[str]] = {}
    for number, record in enumerate(read_retained(data, text_column, "--data")):
        joined.setdefault(record.document or f"row {number}", []).append(record.text)
    return [" ".join(parts) for parts in joined.values()]


def _texts(
    config: ClassEffectsConfig, loaded: LoadedModel, documents: Sequence[str]
) -> list[list[int]]:
    """Token ids of texts of at most `length`, up to the number of tokens asked for.

    Raises:
        UserError: When there is not one prediction to measure, or a text is longer than
            the model reads.
    """
    tokenizer: Any = loaded.tokenizer
    begin = tokenizer("a").input_ids[:1]
    begin = begin if begin == [tokenizer.bos_token_id] else []
    texts: list[list[int]] = []
    n_found, size = 0, config.length - len(begin)
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False, verbose=False).input_ids
        for first in range(0, len(ids), size):
            text = [*begin, *ids[first : first + size]]
            if len(text) > 2:
                texts.append(text)
                n_found += len(text) - 1
        if n_found >= config.n_tokens:
            break
    if not texts:
        raise UserError(
            f"--data {config.data} must have a text of three tokens, got none; give "
            "more text"
        )
    most = most_positions(loaded.model)
    if most is not None and max(map(len, texts)) > most:
        raise UserError(
            f"--length must be at most {most}, the positions of the model, got "
            f"{config.length}"
        )
    return list(_at_most(texts, config.n_tokens))


def _at_most(texts: Sequence[list[int]], n_tokens: int) -> Iterator[list[int]]:
    """The first texts, the last one cut, so that they predict so many tokens."""
    left = n_tokens
    for text in texts:
        if left < 1:
            return
        yield text[: max(left + 1, 3)]
        left -= len(text) - 1


if __name__ == "__main__":
    run_script(main, ClassEffectsConfig)
