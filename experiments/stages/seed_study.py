"""The study of one seed: read the base model, rank, scan shares, prune and retrain.

Files in the seed's folder: `base/` (a stage record, with the rankings and word vectors
beside it), `scan.json` and `arms/ARM/stage-N/`. What is there is not computed again.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitcut.attribution.words.registry import WORD_RANKINGS, Ranked
from circuitcut.attribution.words.states import WordSource, hidden_sites
from circuitcut.data.word_vectors import read_word_vectors
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.stages.flags import StagesConfig
from circuitcut.experiments.stages.fresh import learned_scores, mask_settings
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site, split_by_site
from circuitcut.relearning.protocol import measured_at
from circuitcut.relearning.stages.abilities import left_of
from circuitcut.relearning.stages.arms import Arm, arms, n_pruned
from circuitcut.relearning.stages.choosing import Choice, Pruned, concept_specific
from circuitcut.relearning.stages.comparing import (
    compared_similarity,
    saliency_of,
    without_letters,
)
from circuitcut.relearning.stages.reading import Reading, read_units
from circuitcut.relearning.stages.records import (
    HEADER,
    StageFiles,
    StageRecord,
    measured_tensors,
    read_kept,
    read_scan,
)
from circuitcut.relearning.stages.retraining import (
    OnLog,
    StagedStudy,
    StageOf,
    run_arm,
)
from circuitcut.relearning.stages.silencing import norm_of, silence_
from circuitcut.relearning.stages.vocabulary import Vocabulary
from circuitcut.relearning.study import RelearnSettings
from circuitcut.relearning.top_words import UNWORDED
from circuitcut.storage.atomic import (
    jsonable,
    write_json,
    write_tensors,
)
from circuitcut.storage.checksums import file_digest
from circuitcut.storage.modes import weights_frozen
from circuitcut.storage.processes import by_first
from circuitcut.tasks.base import Split
from circuitcut.tasks.evaluation import evaluate

BASE, SCAN = "base", "scan.json"
RANKINGS_FILE, VECTORS_FILE = "rankings", "vectors"


@dataclass(frozen=True)
class SeedResult:
    """All records of one seed."""

    seed: int
    base: StageRecord
    rankings: Mapping[str, Tensor]
    """Of the base model, (unit,) by name; high is pruned first."""
    seconds: Mapping[str, float]
    """That each ranking took."""
    scan: list[dict[str, Any]]
    arms: dict[Arm, list[StageRecord]]
    vectors: Tensor | None
    """Of the words of the vocabulary."""


@dataclass(frozen=True)
class SeedStudy:
    """One seed's model, and where its records lie."""

    config: StagesConfig
    """With the resolved flags."""
    experiment: Experiment
    seed: int
    folder: Path
    vocabulary: Vocabulary | None
    provenance: Mapping[str, Any]
    on_log: OnLog | None = None

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The hidden units of every level."""
        return hidden_sites(self.experiment.loaded.model)

    @property
    def source(self) -> WordSource:
        """The words that rank and are read."""
        return source_of(self.config, self.experiment)

    @property
    def n_units(self) -> int:
        """Of all levels."""
        return sum(site.n_units for site in self.sites)

    @property
    def _writes(self) -> bool:
        return bool(self.experiment.accelerator.is_main_process)

    def check(self) -> None:
        """Refuse shares and arms that this model cannot have, before any work."""
        for share in [*self.config.shares, *(self.config.retrained() or [])]:
            n_pruned(share, self.n_units)
        if self.config.word_vectors is not None and self.vocabulary is not None:
            read_word_vectors(self.config.word_vectors, self.vocabulary.words)
        if "one_shot" in self.config.holdings:
            model = deepcopy(self.experiment.loaded.model)
            silence_(model, self.mask(torch.zeros(self.n_units), 1))

    def run(self, shares: Sequence[float] | None) -> SeedResult:
        """Everything of this seed.

        Args:
            shares: Those that are retrained; None: as the scan chooses.
        """
        base = self.base
        rankings, seconds = self.rankings()
        scan = self.scan(rankings[self.config.ranking])
        chosen = shares if shares is not None else [self.choice(scan).share]
        study = self._staged_study(base)
        records = {}
        for arm in arms(
            self.config.conditions, self.config.holdings, chosen, self.seed
        ):
            mask = self.mask_of(arm, rankings[self.config.ranking])
            folder = self.folder / "arms" / arm.key
            records[arm] = run_arm(study, arm, mask, folder)
        return SeedResult(
            self.seed, base, rankings, seconds, scan, records, self.vectors
        )

    def mask(self, scores: Tensor, n: int) -> FrozenMask:
        """The mask that ablates the `n` units with the highest scores, to zero."""
        loaded = self.experiment.loaded
        return FrozenMask.exactly_k(
            split_by_site(-scores.double(), self.sites),
            self.sites,
            zero_values(self.sites),
            n_ablated=n,
            special_ids=loaded.special_ids,
            provenance={"model": loaded.name, "task": self.config.task},
        )

    def mask_of(self, arm: Arm, scores: Tensor) -> FrozenMask | None:
        """What an arm prunes; None for `uncut`."""
        if arm.condition == "uncut":
            return None
        mask = self.mask(scores, n_pruned(arm.share, self.n_units))
        return arm.as_condition.mask(mask)

    # -- the base model ---------------------------------------------------------------

    @cached_property
    def base(self) -> StageRecord:
        """Scores and reading of the base model; measured where there is no record."""
        files = StageFiles(self.folder / BASE, self._base_made_with(), self._writes)
        record = files.load() if self._has(self.folder / BASE / HEADER) else None
        if record is not None:
            return record
        experiment, model = self.experiment, self.experiment.loaded.model
        size = self._settings.evaluation_size
        measured = measured_at(0, 0, experiment.task, model, model, size)
        tune = evaluate(experiment.task, model, "tune")
        reading = self.read(model)
        entries, tensors = self._fresh("base", model, reading.is_constant)
        content = {
            "condition": BASE,
            "seed": self.seed,
            "stage": None,
            **measured.row(),
            "tune": tune.scores,
            **entries,
        }
        tensors |= self._described(reading, None)
        return files.save(content, measured_tensors(measured) | tensors, None)

    def read(self, model: nn.Module) -> Reading:
        """The units of a model as it stands."""
        return read_units(
            self.source,
            model,
            self.sites,
            self.vocabulary,
            all_labels=self.config.ranking == "probeless_labels",
        )

    def _base_made_with(self) -> dict[str, Any]:
        weights = self.experiment.loaded.weights_sha256
        return {"base_sha256": weights, "observed_with": self._observed_with()}

    def _observed_with(self) -> dict[str, Any]:
        config = self.config
        return dict(
            jsonable(
                {
                    "words_split": config.words_split,
                    "word_vectors": None
                    if config.word_vectors is None
                    else file_digest(config.word_vectors),
                    "score": "probeless_labels"
                    if config.ranking == "probeless_labels"
                    else "probeless",
                    "fresh_masks": config.fresh_masks,
                    "mask_steps": config.mask_steps,
                }
            )
        )

    @cached_property
    def vectors(self) -> Tensor | None:
        """A vector of every word of the vocabulary, kept in `base/`."""
        if self.vocabulary is None:
            return None
        file = self.folder / BASE / f"{VECTORS_FILE}.safetensors"
        if not self._has(file, file.with_suffix(".json")):
            self._save(file, {"vectors": self._read_vectors()}, {})
        return read_kept(file)[0]["vectors"]

    def _read_vectors(self) -> Tensor:
        assert self.vocabulary is not None
        if self.config.word_vectors is not None:
            words = self.vocabulary.words
            return torch.from_numpy(read_word_vectors(self.config.word_vectors, words))
        return self.vocabulary.embeddings(self.source, self.experiment.loaded.model)

    def rankings(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Scores of all units by every ranking, and the seconds they took."""
        file = self.folder / BASE / f"{RANKINGS_FILE}.safetensors"
        if self._has(file, file.with_suffix(".json")):
            saved, header = read_kept(file)
            in_order = {name: saved[name] for name in self.config.rankings}
            return in_order, dict(header["seconds"])
        model, seed = self.experiment.loaded.model, self.config.seed + self.seed
        ranked = Ranked(self.source, model, self.sites, seed)
        scores, seconds = {}, {}
        for name in self.config.rankings:
            began = time.perf_counter()
            scores[name] = self._ranking(name, ranked).double()
            seconds[name] = round(time.perf_counter() - began, 2)
        header = {"polarity": "high is pruned first", "seconds": seconds}
        self._save(file, scores, header)
        return scores, seconds

    def _ranking(self, name: str, ranked: Ranked) -> Tensor:
        if name != "learned":
            return WORD_RANKINGS[name](ranked)
        settings = mask_settings(self.config, self.n_units)
        return learned_scores(self.experiment, ranked.model, self.sites, settings)

    # -- pruning without retraining ---------------------------------------------------

    def scan(self, scores: Tensor) -> list[dict[str, Any]]:
        """Scores of the pruned model at every share, not retrained."""
        path = self.folder / SCAN
        if self._has(path):
            return read_scan(path)
        names = dict.fromkeys(["cut", *self.config.conditions])
        shares = sorted(set(self.config.shares))
        scanned = arms(list(names), self.config.holdings, shares, self.seed)
        rows = [self._scanned(a, scores) for a in scanned if a.condition != "uncut"]
        rows = list(jsonable(rows))
        if self._writes:
            write_json(path, {"rows": rows})
        return rows

    def _scanned(self, arm: Arm, scores: Tensor) -> dict[str, Any]:
        mask = self.mask_of(arm, scores)
        assert mask is not None
        experiment = self.experiment
        task, model, size = experiment.task, experiment.loaded.model, mask.n_ablated
        is_held = arm.holding == "lasting"
        if not is_held:
            model = deepcopy(model)
            size = sum(silence_(model, mask).values())
        row = asdict(arm) | {"n_pruned": size}
        splits: tuple[Split, ...] = ("tune", "heldout")
        for split in splits:
            with mask.applied(model) if is_held else nullcontext():
                row[split] = evaluate(task, model, split).scores
        return row

    def choice(self, scan: Sequence[Mapping[str, Any]]) -> Choice:
        """The share at which the concept is gone, by the cut's scores on `tune`."""
        task, base = self.experiment.task, self.base.header["tune"]
        return concept_specific(
            [
                Pruned(
                    row["share"],
                    left_of(task.concept_metric, base, row["tune"]),
                    left_of(task.retain_metric, base, row["tune"]),
                )
                for row in scan
                if row["condition"] == "cut"
                and row["holding"] == self.config.holdings[0]
            ]
        )

    # -- retraining -------------------------------------------------------------------

    @property
    def _settings(self) -> RelearnSettings:
        config, task = self.config, self.experiment.task
        assert config.batch_size is not None
        assert config.lr is not None
        n_examples = task.n_examples("relearn")
        return RelearnSettings(
            n_steps=max(1, round(config.epochs * n_examples / config.batch_size)),
            batch_size=config.batch_size,
            lr=config.lr,
            weight_decay=config.weight_decay,
            optimiser=config.optimiser,
            schedule=config.schedule,
            warmup=config.warmup,
            clip_norm=config.clip_norm,
            n_evaluations=1,
            evaluation_size=config.eval_batch,
            checkpoint_every=config.checkpoint_every,
        )

    def _staged_study(self, base: StageRecord) -> StagedStudy:
        def observe(
            model: nn.Module, which: StageOf
        ) -> tuple[dict[str, Any], dict[str, Tensor]]:
            reading = self.read(model)
            entries, tensors = self._fresh(which, model, reading.is_constant)
            described = self._described(reading, base)
            return entries, tensors | described | {"pruned": self._pruned(which)}

        config = self.config
        return StagedStudy(
            self.experiment.task,
            self.experiment.loaded,
            self._settings,
            config.n_stages,
            observe,
            self.experiment.accelerator,
            keep_weights=config.keep_weights,
            provenance=self.provenance,
            observed_with=self._observed_with(),
            on_log=self.on_log,
        )

    def _pruned(self, which: StageOf) -> Tensor:
        """Which units of all levels the arm prunes, (unit,) bools."""
        pruned = torch.zeros(self.n_units, dtype=torch.bool)
        if which.mask is None:
            return pruned
        model, of_level = (
            self.experiment.loaded.model,
            split_by_site(pruned, self.sites),
        )
        for site in self.sites:
            if which.is_held or norm_of(model, site) is not None:
                of_level[site.name].copy_(~which.mask.keep[site.name])
        return pruned

    def _described(
        self, reading: Reading, base: StageRecord | None
    ) -> dict[str, Tensor]:
        """Tensors by unit: the reading, and what follows from it."""
        tensors, unnamed = reading.tensors(), None
        if self.vocabulary is not None:
            unnamed = without_letters(tensors["top_words"], self.vocabulary.words)
        tensors["saliency"] = saliency_of(reading.score, reading.is_constant, unnamed)
        if base is not None and self.vectors is not None:
            tensors["similarity"] = compared_similarity(
                base.tensors["top_words"], tensors["top_words"], self.vectors
            )
        return tensors

    def _fresh(
        self, which: StageOf | str, model: nn.Module, left_out: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Scores of a fresh mask, at the stages for which one was asked."""
        if not self._wants_fresh(which):
            return {"fresh_mask": None}, {}
        settings = mask_settings(self.config, self.n_units)
        with weights_frozen(model):
            scores = learned_scores(
                self.experiment, model, self.sites, settings, left_out
            )
        return {"fresh_mask": asdict(settings)}, {"fresh_score": scores.float()}

    def _wants_fresh(self, which: StageOf | str) -> bool:
        wanted = self.config.fresh_masks
        if wanted == "none" or isinstance(which, str):
            return wanted != "none"
        if which.arm.condition != "cut":
            return False
        return wanted == "all" or which.number == self.config.n_stages

    # -- files ------------------------------------------------------------------------

    @staticmethod
    def _has(*files: Path) -> bool:
        """Whether all files are there, the same on every process."""
        return by_first(lambda: all(file.exists() for file in files))

    def _save(
        self, file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> None:
        if self._writes:
            write_tensors(file, tensors)
            content = {**header, "sha256": file_digest(file)}
            write_json(file.with_suffix(".json"), content)
        self.experiment.accelerator.wait_for_everyone()


def vocabulary_of(config: StagesConfig, experiment: Experiment) -> Vocabulary | None:
    """The words that are read; None where they are left out (`UNWORDED`)."""
    if config.task in UNWORDED:
        return None
    source = source_of(config, experiment)
    return Vocabulary.of(source, experiment.loaded.tokenizer)


def source_of(config: StagesConfig, experiment: Experiment) -> WordSource:
    """The words that rank and are read."""
    ids = experiment.loaded.special_ids
    return WordSource(experiment.task, config.words_split, ids)
