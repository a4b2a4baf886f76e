"""The model that will be cut, trained once; later runs take it from the cache.

It lies in the user's cache folder (CIRCUITCUT_CACHE), named by a hash of data, model,
recipe and versions. Its base.json has the SHA-256 of every file beside it; a damaged
model is trained again.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from accelerate import Accelerator
from filelock import FileLock

from circuitcut.experiments.flags import TaskConfig, base_recipe, task_flags
from circuitcut.experiments.load import Experiment, dtype_of, load, task_of
from circuitcut.models.builtin import BUILTIN
from circuitcut.models.loading import load_model, save_model
from circuitcut.models.weights_hash import weights_hash
from circuitcut.reports.verdict import base_warning
from circuitcut.storage.atomic import os_errors_as_user_errors, read_object, write_json
from circuitcut.storage.cache import cache_folder, content_hash
from circuitcut.storage.checksums import damaged_files, digests_of
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.processes import by_first
from circuitcut.storage.progress import Waiting
from circuitcut.storage.reading.typed_fields import Count, Digest, check_type
from circuitcut.tasks.base import Batch, to_device
from circuitcut.tasks.defaults import BaseRecipe
from circuitcut.tasks.evaluation import Evaluation, evaluate
from circuitcut.tasks.registry import TASKS
from circuitcut.training.embedding_noise import noisy_embeddings
from circuitcut.training.fit_arguments import Checkpoints, Watch
from circuitcut.training.loop import FitSettings, StepLoss, fit
from circuitcut.training.shares import own_share

_RECORD = "base.json"
CACHE_FORMAT = 2  # part of the hash: raise it when training changes
MORE_STEPS = 4
"""Times the steps of a base model that learned nothing."""
logger = logging.getLogger(__name__)


def prepare(config: TaskConfig, *, without_concept: bool = False) -> Experiment:
    """`load`, then `with_base_model`: for runs whose flags need no plan in between."""
    return with_base_model(load(config), without_concept=without_concept)


def with_base_model(
    experiment: Experiment, *, without_concept: bool = False
) -> Experiment:
    """The experiment with its base model, trained or taken from the cache, frozen.

    A model that is used as it comes (`--base`) is only moved to the device.

    Args:
        without_concept: Leave out the examples of `base` that hold the concept: the
            same model, that never learned it. A pretrained model may know it from
            before.

    Raises:
        UserError: When the model is used as it comes, but has a new head or is asked
            for `without_concept`.
    """
    config = experiment.config
    if _needs_training(experiment):
        experiment = _trained(experiment, without_concept)
        if not without_concept and (warning := warning_of_base(experiment)):
            logger.warning("%s A cut of it shows nothing.", warning)
    elif without_concept:
        raise UserError(
            f"{config.model_name!r} is used as it comes, so it cannot be trained "
            "without the concept; leave never_learned out, or use --base always"
        )
    loaded = experiment.loaded
    loaded.model.to(experiment.accelerator.device).eval().requires_grad_(False)
    if without_concept:
        return experiment
    task = experiment.task.for_model(loaded.model, loaded.weights_sha256)
    return replace(experiment, task=task)


def warning_of_base(experiment: Experiment) -> str | None:
    """Why the trained base model is of no use, by its held-out scores; None if it is.

    A model that is used as it comes has none before the run measures it.
    """
    task = experiment.task
    return base_warning(
        {
            "concept_metric": vars(task.concept_metric),
            "retain_metric": vars(task.retain_metric),
            "scores": {"uncut": experiment.base.get("heldout", {})},
        }
    )


def longer_training(config: TaskConfig, base: Mapping[str, Any]) -> str:
    """The command that trains a base model for more steps.

    Args:
        base: Entry `base` of results.json, of a trained model.
    """
    n_steps = MORE_STEPS * base["recipe"]["n_steps"]
    flags = {"task": config.task} | task_flags(config) | {"base_steps": n_steps}
    return command("train_base", flags)


def _needs_training(experiment: Experiment) -> bool:
    config = experiment.config
    new = config.model_name in BUILTIN or experiment.loaded.head_is_new
    if config.base == "never" and new:
        raise UserError(
            f"--base never leaves {config.model_name!r} with an untrained "
            f"{TASKS[config.task].head.replace('_', ' ')} head; use --base auto"
        )
    return config.base == "always" or (config.base == "auto" and new)


def _trained(experiment: Experiment, without_concept: bool) -> Experiment:
    """Train the model where the cache has none, and load it from there."""
    config, corpus = experiment.config, experiment.corpus
    recipe = base_recipe(config)
    with Waiting("looking for the base model in the cache"):
        folder = _cached(experiment, recipe, without_concept)
    with _only_one(folder, experiment.accelerator):
        if not by_first(lambda: _is_usable(folder)):
            task = experiment.task
            draw = task.retain_batch if without_concept else task.finetune_batch
            _train(_Training(experiment, recipe, draw), folder)
        experiment.accelerator.wait_for_everyone()
    with Waiting("loading the base model"):
        loaded = load_model(
            str(folder),
            head=TASKS[config.task].head,
            labels=corpus.labels,
            dtype=dtype_of(config),
            seed=config.base_seed,
        )
    loaded = replace(loaded, name=experiment.loaded.name)
    return replace(
        experiment,
        loaded=loaded,
        task=task_of(config, corpus, loaded),
        base=_record(folder) | {"folder": str(folder)},
    )


def _record(folder: Path) -> dict[str, Any]:
    """How the model in the cache was trained."""
    record = read_object(folder / _RECORD)
    return {key: value for key, value in record.items() if key != "files"}


class _Recipe(TypedDict):
    n_steps: Count


class _BaseRecord(TypedDict):
    """Entries of base.json that are read again."""

    recipe: _Recipe
    heldout: NotRequired[dict[str, float | None]]
    heldout_unseen: NotRequired[dict[str, float | None]]
    revision: NotRequired[str | None]
    files: NotRequired[dict[str, Digest]]


def _is_usable(folder: Path) -> bool:
    """Whether the cache has this model undamaged; a damaged one is removed."""
    if not folder.exists():
        return False
    if damage := _damage(folder):
        logger.warning(
            "the base model in %s is damaged (%s): it is trained again", folder, damage
        )
        with os_errors_as_user_errors(folder):
            shutil.rmtree(folder)
    return not damage


def _damage(folder: Path) -> str | None:
    """What is wrong with a cached model; None where nothing is."""
    try:
        record = read_object(folder / _RECORD)
        check_type(record, _BaseRecord, str(folder / _RECORD))
    except UserError as error:
        return str(error)
    if "files" not in record:  # before December 2026
        logger.info("%s has no checksums: the base model is not checked", folder)
        return None
    return ", ".join(damaged_files(folder, record["files"])) or None


def _cached(experiment: Experiment, recipe: BaseRecipe, without_concept: bool) -> Path:
    """The folder of this base model, which need not exist."""
    config = experiment.config
    key = content_hash(
        str(CACHE_FORMAT),
        _canonical_json([config.task, config.model_name, config.base_seed]),
        *([config.dtype] if config.dtype != "float32" else []),
        _canonical_json(asdict(recipe)),
        _canonical_json(_options_dict(experiment)),
        experiment.corpus.fingerprint(),
        weights_hash(experiment.loaded.model),
        str(torch.__version__),
        *(["without concept"] if without_concept else []),
    )
    model_tag = Path(config.model_name).name.replace(":", "-")
    model_tag += "-without_concept" if without_concept else ""
    return cache_folder() / "base" / f"{config.task}-{model_tag}-{key[:16]}"


@contextmanager
def _only_one(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a base model: whoever comes second finds it trained."""
    with os_errors_as_user_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    if accelerator.is_main_process:
        with Waiting("waiting for another run that trains this base model"):
            lock.acquire()
    accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            lock.release()


@dataclass(frozen=True)
class _Training:
    """What is trained, on which batches."""

    experiment: Experiment
    recipe: BaseRecipe
    draw: Callable[..., Batch]
    """`task.finetune_batch`, or `task.retain_batch`."""

    @property
    def n_steps(self) -> int:
        n_examples = self.experiment.task.n_examples("base")
        recipe = self.recipe
        return recipe.n_steps or max(1, 3 * n_examples // recipe.batch_size)

    def settings(self) -> FitSettings:
        recipe = self.recipe
        return FitSettings(
            n_steps=self.n_steps,
            lr=recipe.lr,
            optimiser="adamw",
            weight_decay=recipe.weight_decay,
            schedule=recipe.schedule,
            warmup=recipe.warmup,
            clip_norm=1.0,
            checkpoint_every=100,
            seed=self.experiment.config.base_seed,
        )

    def step_loss(self) -> StepLoss:
        """The task's own loss on this process's share of each batch."""
        experiment, recipe = self.experiment, self.recipe
        task, accelerator = experiment.task, experiment.accelerator
        model, seed = experiment.loaded.model, experiment.config.base_seed

        def loss_of_step(
            step: int, rng: torch.Generator
        ) -> tuple[torch.Tensor, dict[str, float]]:
            model.train()
            batch = self.draw("base", step, size=recipe.batch_size, seed=seed)
            batch, weight = own_share(
                batch,
                task.target_weights(batch),
                accelerator.process_index,
                accelerator.num_processes,
            )
            with noisy_embeddings(model, recipe.embedding_noise):
                loss = task.finetune_loss(model, to_device(batch, accelerator.device))
            return weight * loss, {}

        return loss_of_step


def _train(training: _Training, folder: Path) -> None:
    """Train, score on `heldout`, and put the model into `folder` in one rename."""
    experiment, settings = training.experiment, training.settings()
    loaded, accelerator = experiment.loaded, experiment.accelerator
    model = loaded.model.to(accelerator.device)
    model.requires_grad_(True)
    logger.info("training the base model %s: %d steps", loaded.name, settings.n_steps)
    # another version's checkpoint may have other settings, and is left alone
    tag = content_hash(_canonical_json(asdict(settings)))[:8]
    unfinished = folder.with_name(f"{folder.name}.{tag}.unfinished")
    start = time.perf_counter()
    fit(
        dict(model.named_parameters()),
        training.step_loss(),
        settings,
        accelerator=accelerator,
        watch=Watch(progress="base model"),
        checkpoints=Checkpoints(unfinished, resume=True),
    )
    seconds = time.perf_counter() - start
    model.eval()
    if accelerator.is_main_process:
        _save(training, folder, seconds)


def _save(training: _Training, folder: Path, seconds: float) -> None:
    experiment = training.experiment
    loaded = experiment.loaded
    evaluation = evaluate(experiment.task, loaded.model, "heldout")
    scratch = folder.with_name(f"{folder.name}.tmp")
    for left in (scratch, *folder.parent.glob(f".{scratch.name}.*.tmp")):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
    try:
        with os_errors_as_user_errors(scratch):
            scratch.mkdir(parents=True)
            save_model(loaded, scratch)
        record = _new_record(training, seconds, evaluation, scratch)
        write_json(scratch / _RECORD, record)
        with os_errors_as_user_errors(folder):
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for left in folder.parent.glob(f"{folder.name}.*unfinished"):
        shutil.rmtree(left, ignore_errors=True)


def _new_record(
    training: _Training, seconds: float, evaluation: Evaluation, folder: Path
) -> dict[str, Any]:
    """What base.json says of a model whose files lie in `folder`."""
    experiment = training.experiment
    loaded = experiment.loaded
    return {
        "model": loaded.name,
        "revision": loaded.revision,
        "recipe": asdict(training.recipe) | {"n_steps": training.n_steps},
        "from_scratch": experiment.config.model_name in BUILTIN,
        "seconds": round(seconds, 1),
        "heldout": evaluation.scores,
        "heldout_unseen": evaluation.unseen_scores,
        "files": digests_of(folder),
    }


def _canonical_json(value: Any) -> str:
    """JSON with sorted keys, for hashes."""
    return json.dumps(value, sort_keys=True, default=str)


def _options_dict(experiment: Experiment) -> dict[str, Any]:
    """JSON-able form of the task options, with the concept that the task chose.

    Without the kind of language model, which the hash of the weights tells, without
    the number of sampled prompts, which changes no training, without a list of words
    that is not there, and without the options of facts that have their default values
    or change the corpus, which is hashed itself.
    """
    options = asdict(experiment.config.task_options("first"))
    if options["concept_words"] is None:
        del options["concept_words"]
    options["concept"] = options["concept"] or experiment.task.concept
    left_out = {"masked_lm", "n_prompts", "split_by", "n_facts", "languages"}
    if options["n_paraphrases"] is None:
        left_out.add("n_paraphrases")
    return {
        key: str(v) if isinstance(v, Path) else v
        for key, v in options.items()
        if key not in left_out
    }
