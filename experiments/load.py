"""Data, task and untrained model of a run, the cheap checks first."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from accelerate import Accelerator

from circuitcut.experiments.flags import TaskConfig, base_recipe, check_data_flags
from circuitcut.models.builtin import BUILTIN, BuiltinSizes, build_builtin
from circuitcut.models.loaded import most_positions
from circuitcut.models.loading import LoadedModel, load_model
from circuitcut.models.names import ENCODERS
from circuitcut.storage.errors import UserError
from circuitcut.storage.processes import n_processes
from circuitcut.storage.progress import Waiting
from circuitcut.storage.provenance import code_version
from circuitcut.tasks.base import Corpus, Task
from circuitcut.tasks.evaluation import References, check_scored
from circuitcut.tasks.registry import TASKS
from circuitcut.training.config import NONE, config_dict


@dataclass(frozen=True)
class Experiment:
    """A task, a network that can do it, and how that network came to be."""

    config: TaskConfig
    task: Task
    corpus: Corpus
    loaded: LoadedModel
    accelerator: Accelerator
    base: dict[str, Any] = field(default_factory=dict)
    """How the base model was trained: recipe, seconds, scores; empty if as loaded."""
    references: dict[str, References] = field(default_factory=dict)
    """Outputs of the uncut model by split."""

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Hashes of data and weights, and the version of the code."""
        # a task that draws its own examples has no corpus
        fingerprint = getattr(self.corpus, "fingerprint", lambda: None)
        return {
            "data_sha256": fingerprint(),
            "config_hash": self.loaded.config_hash,
            "weights_sha256": self.loaded.weights_sha256,
            "code_version": code_version(),
        }


OF_THE_PLACE = frozenset({"run_dir", "device", "eval_batch", "name", "resume"})
"""Flags that decide no number; a run may continue with others."""


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the numbers, by name; no value is the word `none`."""
    return {
        name: NONE if value is None else value
        for name, value in settings.items()
        if name not in OF_THE_PLACE
    }


def provenance_of(
    experiment: Experiment, further: Mapping[str, Any] | None = None, /, **hashes: str
) -> dict[str, Any]:
    """What a run is made with, as its JSON files and checkpoints keep it.

    Args:
        experiment: Its config has the resolved flags.
        further: Settings that are no flags of the script.
        hashes: Of further inputs, for instance `mask_sha256`.
    """
    settings = dict(further or {}) | config_dict(experiment.config)
    return {"settings": deciding(settings), **experiment.origin, **hashes}


def load(
    config: TaskConfig, check_corpus: Callable[[Corpus], None] | None = None
) -> Experiment:
    """Read the data, then load or build the model; nothing is trained.

    Args:
        check_corpus: Called once the data are read, to refuse them.

    Raises:
        UserError: When the data, the model or a flag is wrong.
    """
    check_data_flags(config)
    accelerator = make_accelerator(config)
    check_dtype(config, accelerator.device)
    check_head(config)
    with Waiting(f"reading the data of {config.task}"):
        corpus = TASKS[config.task].read(config.task_options("first"))
    if check_corpus is not None:
        check_corpus(corpus)
    with Waiting(f"loading the model {config.model_name}"):
        loaded = _model(config, corpus)
    _check_length(config, loaded)
    with Waiting("preparing the examples"):
        task = task_of(config, corpus, loaded)
        check_scored(task, ("tune", "heldout"))
    return Experiment(config, task, corpus, loaded, accelerator)


def _check_length(config: TaskConfig, loaded: LoadedModel) -> None:
    """Refuse inputs that may be longer than the model's table of positions.

    Raises:
        UserError: Saying how long they may be.
    """
    most = most_positions(loaded.model)
    if most is not None and config.max_length > most:
        raise UserError(
            f"--max_length must be at most {most}, the positions of the model "
            f"{loaded.name}, got {config.max_length}"
        )


def make_accelerator(config: TaskConfig) -> Accelerator:
    """The device and precision of this run.

    Raises:
        UserError: When the device asked for does not exist, or the processes that were
            started together would each train alone.
    """
    accelerator = _accelerator(config)
    n_started = max(int(os.environ.get("WORLD_SIZE") or 1), n_processes())
    if accelerator.num_processes != n_started:
        raise UserError(
            f"{n_started} processes were started, but accelerate connects "
            f"{accelerator.num_processes}: each would train alone on the same batches; "
            "on a machine without a GPU set ACCELERATE_USE_CPU=1, or start one process"
        )
    return accelerator


def _accelerator(config: TaskConfig) -> Accelerator:
    device = config.device
    if device is None:
        return Accelerator(mixed_precision=config.mixed_precision)
    kind = device.split(":")[0]
    if kind == "cpu":
        return Accelerator(cpu=True, mixed_precision=config.mixed_precision)
    backend = getattr(torch, kind, None)
    if backend is None or not getattr(backend, "is_available", lambda: False)():
        raise UserError(
            f"--device {device!r} is not available here; leave the flag out or use cpu"
        )
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    found = accelerator.device
    if found.type != kind:
        raise UserError(
            f"--device {device!r} was asked for, but accelerate is set to {found}; "
            "change its configuration"
        )
    if ":" in device and int(device.split(":")[1]) != (found.index or 0):
        raise UserError(
            f"--device {device!r} was asked for, but accelerate takes {found}; choose "
            f"the one to be seen, for instance CUDA_VISIBLE_DEVICES=1 for cuda:1, and "
            f"use --device {kind}"
        )
    return accelerator


def dtype_of(config: TaskConfig) -> torch.dtype:
    """The data type of a loaded model's weights."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def check_dtype(config: TaskConfig, device: torch.device) -> None:
    """Refuse a data type that the device lacks, or that a model cannot begin with.

    Raises:
        UserError: Naming the device, or the model that is trained from scratch.
    """
    if config.dtype == "float32":
        return
    if config.model_name in BUILTIN:
        raise UserError(
            f"--dtype {config.dtype} is for loaded models, got the built-in "
            f"{config.model_name!r}, which is trained in float32; leave it out"
        )
    has_it = device.type != "cuda" or torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    try:
        matrix = torch.ones(2, 2, dtype=dtype_of(config), device=device)
        has_it = has_it and bool((matrix @ matrix == 2).all())
    except (RuntimeError, TypeError):
        has_it = False
    if not has_it:
        raise UserError(
            f"--dtype {config.dtype} is not supported on {device}; use float32"
        )


def check_head(config: TaskConfig) -> None:
    """Refuse a built-in model that cannot do the task.

    Raises:
        UserError: When model and task do not fit.
    """
    head, name = TASKS[config.task].head, config.model_name
    wrong = (
        (head == "image_classification") != (name == "mlp") and name in BUILTIN
    ) or (head == "causal_lm" and name in ENCODERS)
    if wrong:
        raise UserError(
            f"--model {name!r} cannot do --task {config.task!r}, which needs "
            f"{head.replace('_', ' ')}; leave --model out for the task's own model"
        )


def task_of(config: TaskConfig, corpus: Corpus, loaded: LoadedModel) -> Task:
    """The task on this corpus, for the model's tokenizer."""
    piece: Literal["first", "last"] = "last" if loaded.is_decoder else "first"
    of_task = TASKS[config.task]
    masked = of_task.head == "language_model" and not loaded.is_decoder
    options = config.task_options(piece, masked_lm=masked)
    task = of_task(corpus, loaded.tokenizer, options)
    task.eval_batch = config.eval_batch
    usual = task.defaults.of(config.model_name).n_heldout
    task.n_heldout = config.n_heldout or usual
    return task


def _model(config: TaskConfig, corpus: Corpus) -> LoadedModel:
    head, name = TASKS[config.task].head, config.model_name
    if name not in BUILTIN:
        return load_model(
            name,
            head=head,
            labels=corpus.labels,
            revision=config.revision,
            dtype=dtype_of(config),
            seed=config.base_seed,
        )
    recipe = base_recipe(config)
    return build_builtin(
        name,
        head=head,
        labels=corpus.labels,
        texts=corpus.texts(),
        sizes=BuiltinSizes(
            tokenizer_kind=recipe.tokenizer_kind,
            vocab_size=recipe.vocab_size,
            n_layers=recipe.n_layers,
            d_model=recipe.d_model,
            n_heads=recipe.n_heads,
            max_positions=recipe.max_positions,
            n_pixels=getattr(corpus, "n_pixels", 784),
            d_hidden=recipe.d_hidden,
        ),
        seed=config.base_seed,
    )
