"""Every reader of files in this program: a valid input, and the call that reads it."""

import csv
import gzip
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from circuitcut.data.digits.digits import digits_from_folder
from circuitcut.data.facts.bmlama import read_bmlama, read_languages
from circuitcut.data.facts.concept import chosen_facts
from circuitcut.data.facts.files import read_facts
from circuitcut.data.facts.subject_words import read_subject_words
from circuitcut.data.ioi.files import prompt_records as ioi_records
from circuitcut.data.ner.files import read_tagged
from circuitcut.data.ner.word_lists import read_word_list
from circuitcut.data.prompts.files import prompt_records
from circuitcut.data.tables import read_tables
from circuitcut.data.text.files import labelled_texts, read_retained, read_rows
from circuitcut.data.word_vectors import read_word_vectors
from circuitcut.experiments.base_model import _damage, _record
from circuitcut.experiments.class_effects.progress import SavedEffects
from circuitcut.experiments.knowledge.records import (
    ActivityRecord,
    EditRecord,
    EffectRecord,
    FoundRecord,
    read_records,
)
from circuitcut.experiments.runs.chosen_neurons import chosen_neurons
from circuitcut.experiments.saved_runs import (
    checked_ranking,
    mask_at,
    ranking_of_run,
    save_frozen,
    settings_of_run,
    with_flags_of_run,
)
from circuitcut.experiments.settings import MaskSettings, saved_settings
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.formats.edge_files import (
    read_edges,
    write_edges,
    write_named_edges,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.neurons.rule import rule_of
from circuitcut.masks.neurons.values import rule_values
from circuitcut.models.architectures import edge_sites, sites_of
from circuitcut.models.gguf_files import _check, _is_whole
from circuitcut.models.loading import load_model, save_model
from circuitcut.models.mlp import MLP_TYPE
from circuitcut.models.residual.block_modules import graph_of
from circuitcut.relearning.conditions import Condition
from circuitcut.relearning.records import ConditionFiles, ConditionRun, Measurement
from circuitcut.relearning.stages.records import (
    StageFiles,
    measured_tensors,
    read_kept,
    read_scan,
    step_of,
)
from circuitcut.reports.html import consistent, page, write_report
from circuitcut.reports.load import load_run
from circuitcut.reports.stages.records import unit_values
from circuitcut.reports.weights.figures import units_of
from circuitcut.scripts.evaluate import EvaluateConfig
from circuitcut.scripts.train_mask import TrainMaskConfig
from circuitcut.storage.atomic import (
    jsonable,
    read_json,
    read_metadata,
    read_tensors,
    write_json,
    write_tensors,
)
from circuitcut.storage.checkpoints import load_latest
from circuitcut.storage.checksums import digests_of, file_digest
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import read_text
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.facts.known import _read as known_read
from circuitcut.training.config import config_dict, parse_config
from circuitcut.training.fit_arguments import Checkpoints
from circuitcut.training.fit_state import load_fit
from circuitcut.training.loop import FitSettings, fit
from circuitcut.weight_classes.activity import Activity
from circuitcut.weight_classes.checkpoint import open_checkpoint
from circuitcut.weight_classes.tokens.effects import Effects
from tests.models.tiny import tiny_loaded, tiny_model
from tests.reports import conftest as runs
from tests.reports.known import knowledge_results
from tests.reports.staged import stages_results, write_records


@dataclass(frozen=True)
class Reader:
    """One kind of input."""

    modules: tuple[str, ...]
    """The modules with the code that reads it."""
    write: Callable[[Path], Any]
    """Puts a valid input into an empty folder."""
    read: Callable[[Path], Any]
    """Reads it from there."""
    damaged: tuple[str, ...]
    """Names of the files that are damaged, one at a time."""
    n_examples: int = 12
    """In the default suite; slow readers have few, and those that draw have none."""


# ---------------------------------------------------------------- data of the user

CONLL = "-DOCSTART- O\n\n" + "Paris B-LOC\nis O\nlarge O\n\nAnn B-PER\nran O\n\n" * 3
TAGGED = [
    {"tokens": ["Paris", "is"], "ner_tags": ["B-LOC", "O"]},
    {"tokens": ["Ann", "ran"], "ner_tags": ["B-PER", "O"]},
]
IOI = [
    {
        "prompt": "Then Mary and John went out. John gave a book to",
        "answer": "Mary",
        "subject": "John",
        "corrupted": "Then Ann and Tom went out. Sue gave a book to",
    },
    {
        "prompt": "When Ann and Tom met, Tom gave a drink to",
        "choices": ["Ann", "Tom"],
        "answerKey": 0,
        "metadata": {"subject": "Tom"},
        "abc_counterfactual": {"prompt": "When Al and Bo met, Cy gave a drink to"},
    },
]
PROMPTS = [
    {
        "prompt": "The capital of France is",
        "answer": "Paris",
        "rivals": ["Rome", "Oslo"],
    },
    {"prompt": "The capital of Italy is", "answer": "Rome", "relation": "capital"},
    {"prompt": "", "answer": "", "retained": "A text to retain."},
]
FACTS: list[dict[str, Any]] = [
    {
        "subject": "France",
        "relation": "P36",
        "object": "Paris",
        "prompts": ["The capital of {} is", "[Y] rules [X]"],
        "neighbourhood": ["The capital of Gaul is"],
        "counterfactual": "Rome",
        "choices": "Rome|Oslo",
    },
    {
        "requested_rewrite": {
            "prompt": "The capital of {} is",
            "relation_id": "P36",
            "target_new": {"str": "Rome"},
            "target_true": {"str": "Paris"},
            "subject": "France",
        },
        "paraphrase_prompts": ["France is ruled from"],
        "neighborhood_prompts": ["The capital of Gaul is"],
    },
    {"retain": "A text to retain."},
]
LRE = {
    "name": "capital",
    "prompt_templates": ["The capital of {} is"],
    "prompt_templates_zs": ["{} is ruled from"],
    "samples": [{"subject": "France", "object": "Paris"}],
}
BMLAMA = (
    "Prompt\tAns\tCandidate Ans\tSubject\r\n"
    "France is ruled from <mask>.\tParis\tRome, Paris\tFrance\r\n"
)
TOXIC = [
    {"text": "you silly fool", "toxic": 1, "spans": [4, 5, 6]},
    {"text": "what a lovely day", "toxic": 0, "spans": [0]},
]
WIKI = " = Title = \n\n Some text of an article .\n = = Section = = \n More text .\n"


def _csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    columns = [key for key in rows[0] if not isinstance(rows[0][key], dict | list)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    writer.writerows([{key: row.get(key, "") for key in columns} for row in rows])
    return text.getvalue().encode()


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    packed = gzip.compress(content, mtime=0) if name.endswith(".gz") else content

    def write(folder: Path) -> None:
        (folder / name).write_bytes(packed)

    return write


def _tagged(name: str) -> Callable[[Path], Any]:
    return lambda folder: read_tagged(folder / name, None, "auto")


def _pair(folder: Path) -> None:
    (folder / "a.txt").write_text("Paris is\nAnn ran\n")
    (folder / "b.txt").write_text("B-LOC O\nB-PER O\n")


def _ioi(name: str) -> Callable[[Path], Any]:
    return lambda folder: ioi_records(read_tables(folder / name, "auto"), None, None)


def _prompts(name: str) -> Callable[[Path], Any]:
    return lambda folder: prompt_records(read_tables(folder / name, "auto"), None, None)


def _toxic(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        rows = read_rows(str(folder / name), "auto", None, None)
        return labelled_texts(
            rows,
            text_column=None,
            label_column=None,
            concept_values=(),
            all_toxic=False,
        )

    return read


def _pararel(folder: Path) -> None:
    patterns = [{"pattern": "The capital of [X] is [Y]."}, {"pattern": "[Y] rules [X]"}]
    tuples = [{"sub_label": "France", "obj_label": "Paris"}]
    for name, rows in (("patterns", patterns), ("tuples", tuples)):
        (folder / name).mkdir()
        (folder / name / "P36.jsonl").write_bytes(_jsonl(rows))


def _languages(folder: Path) -> None:
    (folder / "en.tsv").write_text(BMLAMA)
    (folder / "fr.tsv").write_text(BMLAMA.replace("ruled from", "chez"))


def _chosen(folder: Path) -> Any:
    facts, _ = read_facts(str(folder / "facts.jsonl"))
    return chosen_facts(facts, str(folder / "concept.tsv"))


def _concept(folder: Path) -> None:
    (folder / "facts.jsonl").write_bytes(_jsonl(FACTS))
    (folder / "concept.tsv").write_text("subject\trelation\nFrance\tP36\n")


def _digits(folder: Path) -> None:
    for part in ("train", "t10k"):
        images = struct.pack(">4I", 0x803, 3, 2, 2) + bytes(range(12))
        labels = struct.pack(">2I", 0x801, 3) + bytes([1, 2, 3])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        packed = gzip.compress(labels, mtime=0)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(packed)


_TABLES = ("data.tables", "storage.reading.files", "storage.reading.strict_json")
_NER = ("data.ner.files", "data.ner.tables")
DATA = {
    "conll": Reader(
        _NER, _file("a.conll", CONLL.encode()), _tagged("a.conll"), ("a.conll",)
    ),
    "conll.gz": Reader(
        _NER,
        _file("a.conll.gz", CONLL.encode()),
        _tagged("a.conll.gz"),
        ("a.conll.gz",),
    ),
    "tagged jsonl": Reader(
        _NER, _file("a.jsonl", _jsonl(TAGGED)), _tagged("a.jsonl"), ("a.jsonl",)
    ),
    "plain text": Reader(
        ("data.ner.plain", "data.text.files"),
        _file("a.txt", b" = One = \nAnn left .\nBob came to Ulm .\n"),
        lambda folder: read_tagged(folder / "a.txt", None, "text"),
        ("a.txt",),
    ),
    "list of words": Reader(
        ("data.ner.word_lists",),
        _file("a.txt", b"Ann\nNew York\n"),
        lambda folder: read_word_list(folder / "a.txt"),
        ("a.txt",),
    ),
    "tokens and labels": Reader(
        _NER,
        _pair,
        lambda folder: read_tagged(folder / "a.txt", folder / "b.txt", "parallel"),
        ("a.txt", "b.txt"),
    ),
    "ioi csv": Reader(
        _TABLES, _file("a.csv", _csv(IOI[:1])), _ioi("a.csv"), ("a.csv",)
    ),
    "ioi json": Reader(
        ("data.ioi.files", *_TABLES),
        _file("a.json", json.dumps(IOI).encode()),
        _ioi("a.json"),
        ("a.json",),
        20,
    ),
    "prompts tsv": Reader(
        _TABLES, _file("a.tsv", _csv(PROMPTS[:2], "\t")), _prompts("a.tsv"), ("a.tsv",)
    ),
    "prompts jsonl": Reader(
        ("data.prompts.files", *_TABLES),
        _file("a.jsonl", _jsonl(PROMPTS)),
        _prompts("a.jsonl"),
        ("a.jsonl",),
        20,
    ),
    "facts jsonl": Reader(
        ("data.facts.tables", "data.facts.files", *_TABLES),
        _file("a.jsonl", _jsonl(FACTS)),
        lambda folder: read_facts(str(folder / "a.jsonl")),
        ("a.jsonl",),
        20,
    ),
    "words of subjects": Reader(
        ("data.facts.subject_words",),
        _file("a.json", json.dumps({"France": ["Paris", "wine"]}).encode()),
        lambda folder: read_subject_words(folder / "a.json"),
        ("a.json",),
    ),
    "table of subjects' words": Reader(
        ("data.facts.subject_words", *_TABLES),
        _file("a.tsv", b"subject\twords\nFrance\tParis|wine\n"),
        lambda folder: read_subject_words(folder / "a.tsv"),
        ("a.tsv",),
    ),
    "relation of lre": Reader(
        ("data.facts.lre",),
        _file("a.json", json.dumps(LRE).encode()),
        lambda folder: read_facts(str(folder / "a.json")),
        ("a.json",),
    ),
    "pararel": Reader(
        ("data.facts.pararel",),
        _pararel,
        lambda folder: read_facts(str(folder), "pararel"),
        ("patterns/P36.jsonl", "tuples/P36.jsonl"),
    ),
    "bmlama": Reader(
        ("data.facts.bmlama",),
        _languages,
        lambda folder: read_bmlama(folder / "fr.tsv"),
        ("en.tsv", "fr.tsv"),
    ),
    "bmlama in languages": Reader(
        ("data.facts.bmlama",),
        _languages,
        lambda folder: read_languages(folder, ["fr", "en"]),
        ("en.tsv", "fr.tsv"),
    ),
    "concept of facts": Reader(
        ("data.facts.concept",), _concept, _chosen, ("concept.tsv", "facts.jsonl")
    ),
    "neurons by fact": Reader(
        ("experiments.runs.chosen_neurons",),
        lambda folder: write_json(
            folder / "neurons.json", {"facts": [{"refined": [[0, 3], [1, 5]]}]}
        ),
        lambda folder: chosen_neurons(folder / "neurons.json", [10, 10]),
        ("neurons.json",),
    ),
    "known facts": Reader(
        ("tasks.facts.known",),
        lambda folder: write_json(folder / "a.json", {"right": [True, False]}),
        lambda folder: known_read(folder / "a.json", 2),
        ("a.json",),
    ),
    "toxic csv": Reader(
        ("data.text.files", *_TABLES),
        _file("a.csv", _csv(TOXIC)),
        _toxic("a.csv"),
        ("a.csv",),
    ),
    "toxic jsonl": Reader(
        ("data.text.files", *_TABLES),
        _file("a.jsonl", _jsonl(TOXIC)),
        _toxic("a.jsonl"),
        ("a.jsonl",),
        20,
    ),
    "retained text": Reader(
        ("data.text.files", "storage.reading.files"),
        _file("a.txt.gz", WIKI.encode()),
        lambda folder: read_retained(str(folder / "a.txt.gz"), None),
        ("a.txt.gz",),
    ),
    "digits": Reader(
        ("data.digits.idx",),
        _digits,
        digits_from_folder,
        ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"),
    ),
}

# ------------------------------------------------------------------ run directories


def _run(results: Callable[[], dict[str, Any]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = results()
        (folder / "config.json").write_text(
            json.dumps({"kind": content["kind"], "seed": 3, "resolved": ["seed"]})
        )
        (folder / "environment.json").write_text('{"command": ["a", "b"], "cpus": 2}')
        lines = [
            {"step": step, "loss": 1.0, "sample_ablated": 3.0, "lr": None}
            for step in range(4)
        ]
        (folder / "metrics.jsonl").write_bytes(_jsonl(lines))
        write_json(folder / "results.json", content)

    return write


def _reported(folder: Path) -> str:
    run = load_run(folder)
    with consistent([run]):
        return page([(run, {})])


def _drawn(folder: Path) -> Path:
    return write_report([folder], folder / "report.html")


_RUN_FILES = ("results.json", "results.json", "config.json", "environment.json")
_RUN_MODULES = (
    "storage.run_directory",
    "storage.atomic",
    "reports.load",
    "storage.results_types",
)
RESULTS: dict[str, Callable[[], dict[str, Any]]] = {
    "train_mask": runs.mask_results,
    "relearn": runs.relearn_results,
    "evaluate": lambda: runs.curve_results("evaluate"),
    "attribute": lambda: runs.curve_results("attribute"),
    "import_mask": runs.import_results,
    "faithfulness": runs.faithfulness_results,
    "stability": runs.stability_results,
    "trace": runs.trace_results,
    "knowledge": knowledge_results,
}
RUNS = {
    f"report of {kind}": Reader(
        _RUN_MODULES,
        _run(results),
        _reported,
        (*_RUN_FILES, "metrics.jsonl"),
        8 if kind == "relearn" else 20,
    )
    for kind, results in RESULTS.items()
} | {
    f"figures of {kind}": Reader(
        _RUN_MODULES, _run(results), _drawn, ("results.json", "metrics.jsonl"), 0
    )
    for kind, results in RESULTS.items()
}


def _parsed(config: type) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        try:
            return parse_config(config, ["--config", str(folder)])
        except SystemExit as error:
            if error.code != 2:
                raise
            raise UserError("refused") from error

    return read


def _saved_flags(folder: Path) -> None:
    given = {"task": "ioi", "units": ["heads"], "layers": [0], "gate": "topk"}
    config = TrainMaskConfig(**given)
    content = {"kind": "train_mask", **config_dict(config), "resolved": ["lr"]}
    write_json(folder / "config.json", content)


def _checkpoint(folder: Path) -> None:
    layer = nn.Linear(2, 2)
    fit(
        dict(layer.named_parameters()),
        lambda step, rng: (layer(torch.ones(1, 2)).sum(), {}),
        FitSettings(2, 0.1, "adam", checkpoint_every=1),
        checkpoints=Checkpoints(folder),
    )
    state = folder / "step-00000002" / "state.json"
    content = json.loads(state.read_text())
    del content["state_sha256"]  # so that what it says is looked at
    state.write_text(json.dumps(content))


def _resumed(folder: Path) -> Any:
    layer = nn.Linear(2, 2)
    load_latest(folder)
    if load_fit(folder) is None:
        return None
    return fit(
        dict(layer.named_parameters()),
        lambda step, rng: (layer(torch.ones(1, 2)).sum(), {}),
        FitSettings(3, 0.1, "adam", checkpoint_every=1),
        checkpoints=Checkpoints(folder / ".." / folder.name, resume=True),
    )


def _saved_effects(folder: Path) -> SavedEffects:
    sites = sites_of(tiny_model("llama", "causal_lm"), ["neurons"])
    flipped = [torch.zeros(site.width, dtype=torch.bool) for site in sites]
    effects = Effects.none(["0"], {"0": 1})
    shown = effects.of["0"].most_changed
    assert shown is not None
    logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    entropy = torch.ones(1)
    where, ids = torch.tensor([[True]]), torch.tensor([[0, 1]])
    shown.add(entropy, 2 * entropy, where, ids, (logits, -logits))
    effects.clean["loss"].add(entropy, torch.zeros(1, dtype=torch.long))
    return SavedEffects(folder, effects, Activity(sites, flipped), 1)


def _write_saved_effects(folder: Path) -> None:
    _saved_effects(folder).done(1)
    state = folder / "step-00000001" / "state.json"
    content = json.loads(state.read_text())
    del content["state_sha256"]  # so that what it says is looked at
    state.write_text(json.dumps(content))


CONDITION = Condition("cut", "lasting", 0)


def _condition_files(folder: Path) -> ConditionFiles:
    return ConditionFiles(folder, {"n_steps": 2})


def _condition(folder: Path) -> None:
    run = ConditionRun(CONDITION)
    files = _condition_files(folder)
    for step in (0, 2):
        scores = {"concept_f1": 0.5, "retain_f1": float("nan")}
        counts = {"concept_tp": torch.tensor([1.0, 2.0])}
        clusters, unseen = torch.tensor([0, 1]), torch.tensor([True, False])
        row = Measurement(step, 8, scores, {}, 0.1, counts, clusters, unseen)
        run.measurements.append(row)
        files.add(run, row)
    content = json.loads((folder / "condition.json").read_text())
    write_json(folder / "condition.json", content | {"at_end": {"held": True}})


def _read_condition(folder: Path) -> Any:
    files = _condition_files(folder)
    return files.is_finished, files.load(CONDITION, resume=True)


def _stage_files(folder: Path) -> StageFiles:
    return StageFiles(folder / "stage-1", {"base_sha256": 64 * "0"})


def _stage(folder: Path) -> None:
    counts = {"concept_tp": torch.tensor([1.0, 2.0])}
    clusters, unseen = torch.tensor([0, 1]), torch.tensor([True, False])
    scores = {"concept_f1": 0.5, "retain_f1": float("nan")}
    measured = Measurement(3, 24, scores, {}, 0.1, counts, clusters, unseen)
    content = {
        **{"condition": "cut", "holding": "lasting", "share": 0.1, "seed": 0},
        **{"stage": 1, "step": 3, "examples": 24, "distance": 0.1},
        **{"scores": scores, "unseen_scores": {}, "n_pruned": {"0": 2}},
        "fresh_mask": None,
    }
    weights = torch.nn.Linear(2, 1)
    _stage_files(folder).save(content, measured_tensors(measured), weights)


def _read_stage(folder: Path) -> Any:
    record = _stage_files(folder).load()
    _stage_files(folder).load_weights_(torch.nn.Linear(2, 1))
    return record and (record.measurement(), step_of(folder / "stage-1"))


def _study_run(folder: Path) -> None:
    _run(stages_results)(folder)
    write_records(folder)


def _read_units(folder: Path) -> Any:
    run = load_run(folder)
    with consistent([run]):
        return unit_values(run, 0, (0.1, "cut", "lasting"))


@cache
def _llama() -> Any:
    return tiny_model("llama", "causal_lm")


def _read_weights(folder: Path) -> Any:
    return open_checkpoint(str(folder)).read("layers.0.mlp.up_proj.weight")


def _neurons(folder: Path) -> None:
    names = ("layer", "class", "in_out", "gate_in", "gate_out")
    tensors = {name: torch.zeros(4) for name in names}
    write_tensors(folder / "units.safetensors", tensors)


def _of_seed(folder: Path) -> None:
    file = folder / "rankings.safetensors"
    write_tensors(file, {"random": torch.ones(3)})
    seconds = {"random": 0.1}
    digest = file_digest(file)
    write_json(folder / "rankings.json", {"seconds": seconds, "sha256": digest})
    row = {"condition": "cut", "holding": "lasting", "share": 0.1, "seed": 0}
    row |= {"n_pruned": 2, "tune": {"concept_f1": 0.5}}
    write_json(folder / "scan.json", {"rows": [row]})


def _read_of_seed(folder: Path) -> Any:
    return read_kept(folder / "rankings.safetensors"), read_scan(folder / "scan.json")


def _base(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights")
    record = {"recipe": {"n_steps": 3}, "heldout": {"f1": 0.5}, "revision": None}
    write_json(folder / "base.json", record | {"files": digests_of(folder)})


def _read_base(folder: Path) -> Any:
    return _damage(folder) or _record(folder)


def _converted(folder: Path) -> None:
    write_json(folder / "converted.json", {"files": {"a": 64 * "0"}, "gguf": "a.gguf"})


RUNS |= {
    "flags of train_mask": Reader(
        ("training.config",),
        _saved_flags,
        _parsed(TrainMaskConfig),
        ("config.json",),
        10,
    ),
    "checkpoint": Reader(
        ("storage.checkpoints", "training.fit_state"),
        _checkpoint,
        _resumed,
        ("step-00000002/state.json", "step-00000002/tensors.safetensors"),
    ),
    "effects so far": Reader(
        ("experiments.class_effects.progress",),
        _write_saved_effects,
        _saved_effects,
        ("step-00000001/state.json", "step-00000001/tensors.safetensors"),
    ),
    "condition": Reader(
        ("relearning.records", "storage.checksums"),
        _condition,
        _read_condition,
        ("condition.json", "condition.json", "counts-00000002.safetensors"),
        20,
    ),
    "stage": Reader(
        ("relearning.stages.records",),
        _stage,
        _read_stage,
        (
            "stage-1/stage.json",
            "stage-1/units.safetensors",
            "stage-1/weights.safetensors",
        ),
        8,
    ),
    "units of a stage in a report": Reader(
        ("reports.stages.records",),
        _study_run,
        _read_units,
        (
            "results.json",
            "seeds/seed-0/base/stage.json",
            "seeds/seed-0/base/units.safetensors",
        ),
        8,
    ),
    "weights of neurons": Reader(
        ("weight_classes.checkpoint",),
        lambda folder: _llama().save_pretrained(folder),
        _read_weights,
        ("config.json", "model.safetensors"),
        8,
    ),
    "numbers of neurons": Reader(
        ("reports.weights.figures",),
        _neurons,
        lambda folder: units_of(folder, gated=True),
        ("units.safetensors",),
        8,
    ),
    "word vectors": Reader(
        ("data.word_vectors",),
        lambda folder: (folder / "a.txt").write_text("2 2\na 1 2\nb 3 4.5\n"),
        lambda folder: read_word_vectors(folder / "a.txt", ["a", "B"]),
        ("a.txt",),
        30,
    ),
    "what a seed keeps": Reader(
        ("relearning.stages.records",),
        _of_seed,
        _read_of_seed,
        ("rankings.json", "rankings.safetensors", "scan.json"),
        8,
    ),
    "cached base model": Reader(
        ("experiments.base_model",), _base, _read_base, ("base.json",)
    ),
    "cached conversion": Reader(
        ("models.gguf_files",), _converted, _is_whole, ("converted.json",)
    ),
    "settings": Reader(
        ("experiments.settings",),
        lambda folder: write_json(folder / "settings.json", vars(MaskSettings())),
        saved_settings,
        ("settings.json",),
    ),
}

# ---------------------------------------------------------------------------- masks


@cache
def _model() -> Any:
    return tiny_model("gpt2", "causal_lm")


@cache
def _graph() -> Any:
    return graph_of(_model())


def _edges_kept() -> torch.Tensor:
    kept = torch.ones(_graph().n_edges, dtype=torch.bool)
    kept[[1, 5, 9]] = False
    return kept


def _frozen(kind: str) -> FrozenMask:
    if kind == "edges":
        sites = tuple(edge_sites(_model(), _graph()))
        values = zero_values(sites)
    elif kind == "rule":
        sites = tuple(sites_of(_model(), ["neurons"]))
        flipped = [torch.arange(site.width) % 2 == 0 for site in sites]
        values = rule_values(rule_of("cap", 0.5, "post+", (1, 3)), sites, flipped)
    else:
        sites = tuple(sites_of(_model(), ["neurons", "heads"]))
        means = {site.name: torch.ones(site.width) for site in sites}
        values = AblationValues("mean", means)
    provenance = {
        "task": "ioi",
        "model": "tiny",
        "direction": "break",
        "settings": {"task": "ioi", "units": ["heads"], "seed": 1},
        "config_hash": 64 * "0",
    }
    mask = FrozenMask.random(sites, values, n_ablated=5, seed=0, special_ids=(0, 1))
    return replace(mask, provenance=provenance)


def _mask(kind: str, *, sealed: bool = True) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        mask = _frozen(kind)
        ranking = {site.name: torch.rand(site.n_units) for site in mask.sites}
        save_frozen(mask, ranking, folder)
        if not sealed:  # as before December 2026, so that every entry is looked at
            header = json.loads((folder / "mask.json").read_text())
            del header["header_sha256"], header["sha256"]
            (folder / "mask.json").write_text(json.dumps(header))

    return write


def _read_mask(folder: Path) -> Any:
    mask = FrozenMask.load(folder)
    assert mask.n_ablated == sum(int((~kept).sum()) for kept in mask.keep.values())
    return mask.edges(kept=False), mask.random_like(3), mask_at(folder)


def _read_flags(folder: Path) -> Any:
    return with_flags_of_run(EvaluateConfig(mask=folder), folder)


def _read_ranking(folder: Path) -> Any:
    mask = _frozen("neurons")
    return (
        ranking_of_run(folder, mask),
        checked_ranking(folder / "ranking.safetensors", mask),
    )


def _run_with_settings(folder: Path) -> None:
    _saved_flags(folder)
    (folder / "environment.json").write_text("{}")


def _foreign(name: str, file: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / file
        if name == "edges":
            write_named_edges(path, _graph(), _edges_kept())
        elif path.suffix == ".npz":
            write_edges(
                path.with_suffix(".safetensors"),
                name,
                _model(),
                _graph(),
                _edges_kept(),
                ablation="counterfactual",
            )
            tensors = read_tensors(path.with_suffix(".safetensors"))
            np.savez_compressed(path, **{k: v.numpy() for k, v in tensors.items()})
        else:
            write_edges(
                path,
                name,
                _model(),
                _graph(),
                _edges_kept(),
                ablation="counterfactual",
                shared="keep" if name == "circuit_breaking" else "refuse",
            )

    return write


def _read_foreign(name: str, file: str, scored: bool) -> Callable[[Path], Any]:
    return lambda folder: read_edges(folder / file, name, _model(), scored=scored)


FOREIGN = {
    "edges": "a.json",
    "mib": "a.json",
    "edge_pruning": "a.json",
    "auto_circuit": "a.npz",
    "disco_gp": "a.safetensors",
}
_FORMATS = (
    "masks.formats.edge_files",
    "masks.formats.edge_lists",
    "masks.formats.edge_tensors",
)
MASKS = {
    "mask": Reader(
        ("masks.mask_files", "experiments.saved_runs"),
        _mask("neurons"),
        _read_mask,
        ("mask.json", "mask.safetensors"),
    ),
    "mask with a rule": Reader(
        ("masks.mask_files",),
        _mask("rule", sealed=False),
        _read_mask,
        ("mask.json", "mask.json", "mask.safetensors"),
    ),
    "mask without checksums": Reader(
        ("masks.mask_files",),
        _mask("neurons", sealed=False),
        _read_mask,
        ("mask.json", "mask.json", "mask.safetensors"),
        25,
    ),
    "mask on edges": Reader(
        ("masks.mask_files",),
        _mask("edges", sealed=False),
        _read_mask,
        ("mask.json",),
        25,
    ),
    "flags of a mask": Reader(
        ("experiments.saved_runs",),
        _mask("neurons", sealed=False),
        _read_flags,
        ("mask.json",),
    ),
    "flags of a run": Reader(
        ("experiments.saved_runs",), _run_with_settings, _read_flags, ("config.json",)
    ),
    "settings of an old run": Reader(
        ("experiments.saved_runs",),
        _run_with_settings,
        lambda folder: settings_of_run(folder, 1000),
        ("config.json",),
    ),
    "ranking": Reader(
        ("experiments.saved_runs",),
        _mask("neurons", sealed=False),
        _read_ranking,
        ("ranking.json", "ranking.safetensors", "mask.json"),
    ),
} | {
    f"{'scores' if scored else 'mask'} of {name}": Reader(
        _FORMATS, _foreign(name, file), _read_foreign(name, file, scored), (file,), 6
    )
    for name, file in FOREIGN.items()
    for scored in (False, True)
}

# --------------------------------------------------------------------------- models


def _saved_model(kind: str, head: str) -> Callable[[Path], None]:
    return lambda folder: save_model(tiny_loaded(kind, head), folder / "model")


def _loaded(head: str) -> Callable[[Path], Any]:
    return lambda folder: load_model(str(folder / "model"), head=head)


def _gguf(folder: Path) -> None:
    from tests.models.test_gguf_files import model_of, write_gguf

    write_gguf(folder / "a.gguf", model_of("llama"), "llama")


_MODELS = ("models.loading", "models.source")
MODELS = {
    f"model {kind}": Reader(
        _MODELS,
        _saved_model(kind, head),
        _loaded(head),
        tuple(
            f"model/{name}"
            for name in (
                "config.json",
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            )
        ),
        4,
    )
    for kind, head in (
        ("gpt2", "causal_lm"),
        ("llama", "token_classification"),
        ("bert", "masked_lm"),
    )
} | {
    "model mlp": Reader(
        _MODELS,
        _saved_model(MLP_TYPE, "image_classification"),
        _loaded("image_classification"),
        ("model/config.json", "model/model.safetensors"),
    ),
    "header of gguf": Reader(
        ("models.gguf_files",),
        _gguf,
        lambda folder: _check(folder / "a.gguf"),
        ("a.gguf",),
        6,
    ),
}

# ----------------------------------------------------------------------- foundations


def _tensors(folder: Path) -> None:
    write_tensors(
        folder / "a.safetensors",
        {"x": torch.ones(3), "b": torch.tensor([True, False])},
        {"unit": "nats"},
    )


def _read_tensors(folder: Path) -> Any:
    return read_tensors(folder / "a.safetensors"), read_metadata(
        folder / "a.safetensors"
    )


FOUNDATIONS = {
    "json": Reader(
        ("storage.atomic", "storage.reading.strict_json"),
        _file("a.json", b'{"a": [1, 2.5, "x\\u00e9"], "b": {"c": null}}'),
        lambda folder: jsonable(read_json(folder / "a.json")),
        ("a.json",),
        40,
    ),
    "text": Reader(
        ("storage.reading.files",),
        _file("a.txt", "One line\r\nand änother\n".encode()),
        lambda folder: read_text(folder / "a.txt").encode(),
        ("a.txt",),
    ),
    "tensors": Reader(
        ("storage.atomic",), _tensors, _read_tensors, ("a.safetensors",), 40
    ),
    "runs under a folder": Reader(
        ("storage.run_directory",),
        lambda folder: _run(runs.mask_results)(_made(folder / "run")),
        lambda folder: RunDirectory.newest(folder, "train_mask"),
        ("run/config.json", "run/environment.json"),
    ),
}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


FOUND = [
    {
        "fact": number,
        "subject": "France",
        "relation": "capital",
        "object": "Paris",
        "prompts": [
            {
                "text": "The capital of France is",
                "gold": "Paris",
                "predicted": "Paris",
                "probability": 0.75,
                "coarse": [[0, 3], [1, 2]],
            }
        ],
    }
    for number in range(2)
]
EFFECTS = [
    {"fact": number, "own": {"before": 0.5, "refined suppress": 0.1}, "others": {}}
    for number in range(2)
]
EDITS = [
    {
        "fact": number,
        "target": "Rome",
        "left_out": "",
        "n_units": 2,
        "sets": {"before": {"success": 0.0}, "refined": {"success": 1.0}},
    }
    for number in range(2)
]
ACTIVITY = [
    {"fact": number, "refined": {"fact": 0.5, "head": 0.1}, "random": {"fact": 0.2}}
    for number in range(2)
]
KNOWLEDGE = {
    f"records of knowledge neurons, {name}": Reader(
        ("experiments.knowledge.records",),
        _file(f"{name}.jsonl", _jsonl(entries)),
        lambda folder, name=name, kind=kind: read_records(
            folder / f"{name}.jsonl", kind, range(2)
        ),
        (f"{name}.jsonl",),
        20,
    )
    for name, entries, kind in (
        ("found", FOUND, FoundRecord),
        ("effects", EFFECTS, EffectRecord),
        ("edits", EDITS, EditRecord),
        ("activity", ACTIVITY, ActivityRecord),
    )
}

READERS: dict[str, Reader] = DATA | RUNS | KNOWLEDGE | MASKS | MODELS | FOUNDATIONS
