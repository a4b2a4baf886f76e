"""Flags that name the task, its data, the model and what is cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from circuitcut.data.hub import HUB_PREFIX, check_hub_name
from circuitcut.models.names import UNIT_KINDS
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.flag_ranges import (
    BATCH,
    COUNT,
    LEARNING_RATE,
    SEED,
    WITHIN,
    Range,
    check_flags,
    check_number,
    quoted,
)
from circuitcut.storage.run_directory import DEFAULT_PARENT
from circuitcut.tasks.defaults import FINETUNE, GENERATED_STEPS, BaseRecipe
from circuitcut.tasks.settings.options import TEXT_OPTIONS, TaskOptions
from circuitcut.tasks.settings.registry import DEFAULTS

_DEVICE = re.compile(r"cpu|(cuda|mps|xpu|hpu|npu|mlu|musa|sdaa|xla)(:[0-9]{1,3})?")


@dataclass(frozen=True)
class TaskConfig:
    """Flags that name the task, its data and the model; shared by the scripts."""

    headings: ClassVar[Headings] = {
        "data": (
            *("task", "data", "data_format", "labels_file", "retain_data", "concept"),
            *("concept_words", "text_column", "label_column", "concept_values"),
            *("hub_config", "hub_revision", "max_length", "prefix", "bos", "chat"),
            *("split_seed", "n_heldout", "n_prompts", "split_by", "n_facts"),
            *("n_paraphrases", "language"),
        ),
        "model": (
            *("model", "revision", "base", "base_steps", "base_lr", "base_recipe"),
            *("base_seed", "dtype", "mixed_precision"),
        ),
        "run": ("seed", "device", "eval_batch", "run_dir", "name", "resume"),
    }

    task: str = flag(
        "locations", f"what to cut: {', '.join(DEFAULTS)}", decides_defaults=True
    )
    model: str | None = flag(
        None,
        "tiny-encoder, multilingual-encoder, tiny-decoder, deep-decoder, mlp (built "
        "in), minilm and smollm2 (PyPI), a local folder, a GGUF file or a hub name",
        decides_defaults=True,
    )
    revision: str | None = flag(None, "revision of a hub model")
    data: str | None = flag(
        None,
        "local file or folder, or hub:owner/name; default: built-in data (ioi also has "
        "builtin:several)",
        decides_defaults=True,
    )
    data_format: str = flag("auto", "format of --data where it cannot be told")
    labels_file: Path | None = flag(None, "label file of a token/label pair")
    retain_data: str | None = flag(
        None,
        "further text to retain (language tasks but words): a file, a folder or "
        "hub:name",
    )
    concept: str | None = flag(
        None,
        "the concept: an entity type (locations, words), digits like 3 or 3,8 (mnist), "
        "a relation like P36, subject:NAME or a table of facts (facts, capital_of, "
        "sports)",
    )
    concept_words: Path | None = flag(
        None,
        "locations, words: the concept is the words of this list, one a line, or of "
        "the .txt files of a folder, in place of --concept",
    )
    text_column: str | None = flag(
        None, "column of --data that holds the text (ioi, prompts: the prompt)"
    )
    label_column: str | None = flag(
        None, "column of --data that holds the label (ioi, prompts: the answer)"
    )
    concept_values: list[str] = flag(
        [], "values of the label column that mark it", free_text=True
    )
    hub_config: str | None = flag(None, "configuration name of a hub data set")
    hub_revision: str | None = flag(None, "revision of a hub data set")
    max_length: int = flag(128, "longest input in tokens", within=Range(4, 2**20))
    prefix: str | None = flag(
        None,
        "language models: text before every input (with --chat: the user's turn)",
        free_text=True,
    )
    bos: bool = flag(
        False, "language models: begin every input with the begin-of-text token"
    )
    chat: bool = flag(
        False,
        "language models: give every input as the answer to --prefix in the chat "
        "template",
    )
    split_seed: int = flag(0, "seed of the split of --data", within=SEED)
    base: Literal["auto", "never", "always"] = flag(
        "auto",
        "train the model on the task's base split first: auto does so for built-in "
        "models and for a new classification head",
        decides_defaults=True,
    )
    base_steps: int | None = flag(None, "steps of that training", within=COUNT)
    base_lr: float | None = flag(None, "its learning rate", within=LEARNING_RATE)
    base_recipe: list[str] = flag(
        [],
        "further changes of its recipe, NAME=VALUE, such as batch_size=32 d_model=64 "
        "(names in tasks/defaults.py)",
    )
    base_seed: int = flag(0, "its seed", within=SEED)
    seed: int = flag(0, "seed of batches, gates and controls", within=SEED)
    device: str | None = flag(None, "cpu, cuda, ...; default: what accelerate finds")
    dtype: Literal["float32", "bfloat16"] = flag(
        "float32", "data type of a loaded model's weights; gates stay float32"
    )
    mixed_precision: Literal["no", "bf16"] = flag("no", "arithmetic of the model")
    n_heldout: int | None = flag(
        None,
        "score so many evenly spaced examples of the tune and held-out splits, of "
        "prompts and of texts as many",
        within=COUNT,
    )
    eval_batch: int = flag(
        64, "examples in one forward pass of an evaluation", within=BATCH
    )
    n_prompts: int = flag(
        500,
        "toxicity: held-out prompts whose sampled continuations are scored",
        within=Range(2, 10**9),
    )
    split_by: Literal["subject", "object"] = flag(
        "subject", "facts: what no two splits share; object: neither subject nor object"
    )
    n_facts: int = flag(
        200,
        "facts: most facts of the concept, and most of all others together",
        within=Range(4, 10**9),
    )
    n_paraphrases: int | None = flag(
        None, "facts: most prompts of one fact; default: all", within=COUNT
    )
    language: list[str] = flag(
        [],
        "facts: languages of the prompts, such as en fr; default: those of the data, "
        "of multilingual-encoder en fr es nl",
    )
    run_dir: Path = flag(DEFAULT_PARENT, "parent folder of the run directories")

    def __post_init__(self) -> None:
        check_flags(self)
        if self.task not in DEFAULTS:
            raise UserError(
                f"--task must be one of {sorted(DEFAULTS)}, got {self.task!r}"
            )
        recipe_changes(self.base_recipe)  # checks them
        for flag_name in ("data", "retain_data"):
            name = getattr(self, flag_name)
            if name is not None and name.startswith(HUB_PREFIX):
                check_hub_name(name, f"--{flag_name}")
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise UserError(
                f"--device must be cpu, cuda, mps or another kind of torch device, got "
                f"{quoted(self.device)}"
            )

    def chosen(self) -> dict[str, Any]:
        """Values by task and model of flags that are not given, for `--help`."""
        recipe = base_recipe(self)
        return {
            "model": self.model_name,
            "n_heldout": DEFAULTS[self.task].of(self.model_name).n_heldout or "all",
            "base_steps": recipe.n_steps or "three epochs",
            "base_lr": recipe.lr,
        }

    @property
    def shown_for(self) -> str:
        """The task and model of `chosen`."""
        return f"--task {self.task} --model {self.model_name}"

    @property
    def model_name(self) -> str:
        """The model asked for, or the task's own."""
        return self.model or DEFAULTS[self.task].model

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages asked for, or those of the task and model.

        A file tells its languages itself; built-in data and a folder have several.
        """
        usual = DEFAULTS[self.task].of(self.model_name).languages
        chosen = self.data is None or Path(self.data).is_dir()
        return tuple(dict.fromkeys(self.language)) or (usual if chosen else ())

    def task_options(
        self, label_piece: Literal["first", "last"], *, masked_lm: bool = False
    ) -> TaskOptions:
        """The part that the task reads."""
        return TaskOptions(
            data=self.data,
            data_format=self.data_format,
            labels_file=self.labels_file,
            retain_data=self.retain_data,
            concept=self.concept,
            concept_words=self.concept_words,
            text_column=self.text_column,
            label_column=self.label_column,
            concept_values=tuple(self.concept_values),
            hub_config=self.hub_config,
            hub_revision=self.hub_revision,
            max_length=self.max_length,
            prefix=self.prefix,
            bos=self.bos,
            chat=self.chat,
            label_piece=label_piece,
            masked_lm=masked_lm,
            split_seed=self.split_seed,
            n_prompts=self.n_prompts,
            split_by=self.split_by,
            n_facts=self.n_facts,
            n_paraphrases=self.n_paraphrases,
            languages=self.languages,
        )


def recipe_changes(items: Sequence[str]) -> dict[str, Any]:
    """Fields of a `BaseRecipe` from `NAME=VALUE`.

    Raises:
        UserError: When a name or a value is none of a recipe.
    """
    hints = get_type_hints(BaseRecipe)
    ranges = {f.name: f.metadata.get(WITHIN) for f in fields(BaseRecipe)}
    changes: dict[str, Any] = {}
    for item in items:
        name, _, text = item.partition("=")
        if name not in hints:
            raise UserError(
                f"--base_recipe must be NAME=VALUE with a name among {', '.join(hints)}"
                f", got {quoted(item)}"
            )
        if name in changes:
            raise UserError(f"--base_recipe must name {name} once, got it twice")
        choices = get_args(hints[name]) or (hints[name],)
        kinds = {int, float} & set(choices)
        try:
            value = text if not kinds else kinds.pop()(text)
        except ValueError:
            value = None
        if text == "none" and NoneType in choices:
            value = None
        elif value is None or (isinstance(value, str) and value not in choices):
            raise UserError(f"--base_recipe {name} has no value {quoted(text)}")
        check_number(f"--base_recipe {name}", value, ranges[name])
        changes[name] = value
    return changes


@dataclass(frozen=True)
class UnitsConfig(TaskConfig):
    """Flags that name what is cut; shared by the scripts that choose it."""

    headings: ClassVar[Headings] = {
        "what is cut": (
            *("units", "layers", "merged_qkv", "attention_bias", "position_node"),
            "value_bias",
        )
    }

    units: list[str] = flag(
        [], f"what is cut: {' '.join(UNIT_KINDS)}", decides_defaults=True
    )
    layers: list[int] = flag(
        [],
        "only these layers (0 is the first block; edges: their number, the logits)",
        within=Range(0, 10**6),
        decides_defaults=True,
    )
    merged_qkv: bool = flag(
        False,
        "edges: a head reads queries, keys and values through one edge a writer",
        decides_defaults=True,
    )
    attention_bias: Literal["always", "heads"] = flag(
        "always", "edges: the bias of attention's output is always on, or in the heads"
    )
    position_node: Literal["merged", "own", "always"] = flag(
        "merged",
        "edges: the position embedding goes with the input, is a writer of its own, or "
        "is always on",
    )
    value_bias: Literal["heads", "output", "output_with_norm"] = flag(
        "heads",
        "edges: the constant that a head's value bias writes is the head's, or part of "
        "the bias of attention's output, without or with the norm's bias in it",
    )

    def chosen(self) -> dict[str, Any]:
        """Values by task and model of flags that are not given, for `--help`."""
        return super().chosen() | {"units": units_of(self)}


def base_recipe(config: TaskConfig) -> BaseRecipe:
    """The recipe of this task and model, with the flags' changes."""
    of_model = DEFAULTS[config.task].of(config.model_name)
    recipe = of_model.base or FINETUNE
    if config.data and of_model.base_on_own_data:
        recipe = of_model.base_on_own_data
    changes: dict[str, Any] = {}
    recipe = replace(recipe, **recipe_changes(config.base_recipe))
    given = {item.split("=")[0] for item in config.base_recipe}
    if of_model.base is None and config.data is None and "n_steps" not in given:
        changes["n_steps"] = GENERATED_STEPS
    if config.base_steps is not None:
        changes["n_steps"] = config.base_steps
        changes["warmup"] = min(recipe.warmup, config.base_steps - 1)
    if config.base_lr is not None:
        changes["lr"] = config.base_lr
    changes["max_positions"] = max(recipe.max_positions, config.max_length)
    return replace(recipe, **changes)


def units_of(config: UnitsConfig) -> Sequence[str]:
    """Kinds of unit asked for, or those of the task and model."""
    defaults = DEFAULTS[config.task]
    return list(config.units or defaults.of(config.model_name).units or defaults.units)


_OF_DATA = (
    *("data_format", "labels_file", "concept_words", "text_column", "label_column"),
    *("concept_values", "hub_config", "hub_revision"),
)
"""Flags about `--data`; built-in data know none of them."""
_OF_SOME_TASKS = (
    *("retain_data", "concept", "n_prompts", "split_by", "n_facts", "n_paraphrases"),
    "language",
)
DATA_FLAGS = (
    *("task", "data", "retain_data", "concept", "split_seed", *_OF_DATA),
    *("split_by", "n_facts", "n_paraphrases", "language"),
)
"""Flags that decide the records of a task."""


def check_data_flags(config: TaskConfig) -> None:
    """Refuse flags that the task or its data would leave unread.

    Raises:
        UserError: When there is one, naming it and what reads it.
    """
    defaults = {f.name: f.default for f in fields(TaskConfig)}
    given = [
        name
        for name in (*_OF_DATA, *TEXT_OPTIONS, *_OF_SOME_TASKS)
        if getattr(config, name) not in (defaults[name], [])
    ]
    for name in given:
        readers = [key for key, task in DEFAULTS.items() if name in task.own_options]
        tasks = readers or list(DEFAULTS)
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
    of_each_run = {"seed", "device", "mixed_precision"}
    return {
        f.name: getattr(config, f.name)
        for f in fields(TaskConfig)
        if f.name not in of_each_run
        and getattr(config, f.name) != getattr(default, f.name)
    }


def run_dir_flag(config: TaskConfig) -> dict[str, Any]:
    """The flag that names the parent of the runs, if it is not the usual one."""
    usual = config.run_dir == DEFAULT_PARENT
    return {} if usual else {"run_dir": config.run_dir}
