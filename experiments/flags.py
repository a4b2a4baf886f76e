"""What every script needs first: the task's data, the network and its device."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from circuitcut.data.hub import HUB_PREFIX
from circuitcut.models.loading import LoadedModel
from circuitcut.models.sites import UNIT_KINDS
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import DEFAULT_PARENT
from circuitcut.tasks.base import Corpus, Task, TaskOptions
from circuitcut.tasks.evaluation import References
from circuitcut.tasks.registry import TASKS

DEFAULT_MODELS = {
    "locations": "tiny-encoder",
    "ioi": "tiny-decoder",
    "toxicity": "tiny-decoder",
    "mnist": "mlp",
}


def flag(default: Any, help_text: str) -> Any:
    """A dataclass field whose text `--help` shows."""
    if isinstance(default, list):
        return field(
            default_factory=lambda: list(default), metadata={"help": help_text}
        )
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class TaskConfig:
    """Flags that name the task, its data and the model; shared by the scripts."""

    task: str = flag("locations", f"what to cut: {', '.join(TASKS)}")
    model: str | None = flag(
        None,
        "tiny-encoder, tiny-decoder, deep-decoder, mlp (built in), minilm (PyPI), a "
        "local folder or a hub name; default: the task's built-in model",
    )
    revision: str | None = flag(None, "revision of a hub model")
    data: str | None = flag(
        None,
        "local file or folder, or hub:owner/name; default: built-in data (ioi also has "
        "builtin:several)",
    )
    data_format: str = flag("auto", "format of --data where it cannot be told")
    labels_file: Path | None = flag(None, "label file of a token/label pair")
    retain_data: str | None = flag(None, "further retain text: file, folder, hub:name")
    concept: str | None = flag(
        None, "the concept: an entity type (locations), digits like 3 or 3,8 (mnist)"
    )
    text_column: str | None = flag(None, "column of --data that holds the text")
    label_column: str | None = flag(None, "column of --data that holds the label")
    concept_values: list[str] = flag([], "values of the label column that mark it")
    hub_config: str | None = flag(None, "configuration name of a hub data set")
    hub_revision: str | None = flag(None, "revision of a hub data set")
    max_length: int = flag(128, "longest input in tokens")
    split_seed: int = flag(0, "seed of the split of --data")
    base: Literal["auto", "never", "always"] = flag(
        "auto",
        "train the model on the task's base split first: auto does so for built-in "
        "models and for a new classification head",
    )
    base_steps: int | None = flag(None, "steps of that training; default: a recipe")
    base_lr: float | None = flag(None, "its learning rate; default: a recipe")
    base_seed: int = flag(0, "its seed")
    seed: int = flag(0, "seed of batches, gates and controls")
    device: str | None = flag(None, "cpu, cuda, ...; default: what accelerate finds")
    mixed_precision: Literal["no", "bf16"] = flag("no", "arithmetic of the model")
    run_dir: Path = flag(DEFAULT_PARENT, "parent folder of the run directories")

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"--task must be one of {sorted(TASKS)}, got {self.task!r}")
        if self.max_length < 4:
            raise UserError(f"--max_length must be at least 4, got {self.max_length}")
        if self.base_steps is not None and self.base_steps < 1:
            raise UserError(f"--base_steps must be positive, got {self.base_steps}")
        if self.seed < 0 or self.base_seed < 0 or self.split_seed < 0:
            raise UserError("--seed, --base_seed and --split_seed must be >= 0")

    @property
    def model_name(self) -> str:
        """The model asked for, or the task's own."""
        return self.model or DEFAULT_MODELS[self.task]

    def task_options(self, label_piece: Literal["first", "last"]) -> TaskOptions:
        """The part that the task reads."""
        return TaskOptions(
            data=self.data,
            data_format=self.data_format,
            labels_file=self.labels_file,
            retain_data=self.retain_data,
            concept=self.concept,
            text_column=self.text_column,
            label_column=self.label_column,
            concept_values=tuple(self.concept_values),
            hub_config=self.hub_config,
            hub_revision=self.hub_revision,
            max_length=self.max_length,
            label_piece=label_piece,
            split_seed=self.split_seed,
        )


@dataclass(frozen=True)
class UnitsConfig(TaskConfig):
    """Flags that name what is cut; shared by the scripts that choose it."""

    units: list[str] = flag([], f"what is cut: {' '.join(UNIT_KINDS)}")
    layers: list[int] = flag(
        [], "only these layers (0 is the first block; edges: their number, the logits)"
    )
    merged_qkv: bool = flag(
        False, "edges: a head reads queries, keys and values through one edge a writer"
    )
    attention_bias: Literal["always", "heads"] = flag(
        "always", "edges: the bias of attention's output is always on, or in the heads"
    )
    position_node: Literal["merged", "own", "always"] = flag(
        "merged",
        "edges: the position embedding goes with the input, is a writer of its own, or "
        "is always on",
    )


_ONLY_FOR = {
    "labels_file": ("locations",),
    "concept": ("locations", "mnist"),
    "concept_values": ("toxicity",),
    "retain_data": ("toxicity",),
}
"""Tasks that read a flag, where not all do."""
_OF_DATA = (
    *("data_format", "labels_file", "retain_data", "text_column", "label_column"),
    *("concept_values", "hub_config", "hub_revision"),
)
"""Flags about `--data`; built-in data know none of them."""


def check_data_flags(config: TaskConfig) -> None:
    """Refuse flags that the task or its data would leave unread.

    Raises:
        UserError: When there is one, naming it and what reads it.
    """
    defaults = {f.name: f.default for f in fields(TaskConfig)}
    given = [
        name
        for name in (*_OF_DATA, "concept")
        if getattr(config, name) not in (defaults[name], [])
    ]
    for name in given:
        tasks = _ONLY_FOR.get(name, tuple(TASKS))
        if config.task not in tasks:
            raise UserError(
                f"--{name} belongs to --task {' or '.join(tasks)}, got --task "
                f"{config.task}; leave it out"
            )
        if name in _OF_DATA and config.data is None:
            raise UserError(
                f"--{name} describes --data, which is not given; name a file, or "
                "leave it out"
            )
        if name.startswith("hub_") and not str(config.data).startswith(HUB_PREFIX):
            raise UserError(
                f"--{name} describes --data {HUB_PREFIX}owner/name, got --data "
                f"{config.data}; leave it out"
            )


def task_flags(config: TaskConfig) -> dict[str, Any]:
    """The task flags of `config` that differ from their defaults, seeds excepted."""
    default = TaskConfig()
    own = {"seed", "device", "mixed_precision"}
    return {
        f.name: getattr(config, f.name)
        for f in fields(TaskConfig)
        if f.name not in own and getattr(config, f.name) != getattr(default, f.name)
    }


def where(config: TaskConfig) -> dict[str, Any]:
    """The flag that names the parent of the runs, if it is not the usual one."""
    usual = config.run_dir == DEFAULT_PARENT
    return {} if usual else {"run_dir": config.run_dir}


def command(script: str, flags: Mapping[str, Any]) -> str:
    """A command line to paste into a shell."""
    words = ["python", f"scripts/{script}.py"]
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


@dataclass(frozen=True)
class Experiment:
    """A task, a network that can do it, and how that network came to be."""

    task: Task
    corpus: Corpus
    loaded: LoadedModel
    accelerator: Accelerator
    base: dict[str, Any]
    """How the base model was trained: recipe, seconds, scores; empty if as loaded."""
    references: dict[str, References] = field(default_factory=dict)
    """Outputs of the uncut model by split."""


def make_accelerator(config: TaskConfig) -> Accelerator:
    """The device and precision of this run.

    Raises:
        UserError: When the device asked for does not exist.
    """
    wanted = config.device
    if wanted is None:
        return Accelerator(mixed_precision=config.mixed_precision)
    kind = wanted.split(":")[0]
    if kind == "cpu":
        return Accelerator(cpu=True, mixed_precision=config.mixed_precision)
    backend = getattr(torch, kind, None)
    if backend is None or not getattr(backend, "is_available", lambda: False)():
        raise UserError(
            f"--device {wanted!r} is not available here; leave the flag out or use cpu"
        )
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    if accelerator.device.type != kind:
        raise UserError(
            f"--device {wanted!r} was asked for, but accelerate is set to "
            f"{accelerator.device}; change its configuration"
        )
    return accelerator


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, for hashes."""
    return json.dumps(value, sort_keys=True, default=str)


def options_dict(options: TaskOptions) -> dict[str, Any]:
    """JSON-able form of the task options."""
    return {
        key: str(v) if isinstance(v, Path) else v for key, v in asdict(options).items()
    }
