"""Train the model that will be cut, once; later runs take it from the cache.

    python scripts/train_base.py --task ioi

Built-in models are trained from scratch (under 90 s on two cores); a pretrained model
with a new classification head is fine-tuned on the task's `base` split. The result lies
in the user's cache folder (CIRCUITCUT_CACHE), named by a hash of data, model, recipe.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from filelock import FileLock

from circuitcut.experiments.flags import (
    Experiment,
    TaskConfig,
    canonical_json,
    check_data_flags,
    command,
    make_accelerator,
    options_dict,
    task_flags,
)
from circuitcut.models.builtin import BUILTIN, build_builtin
from circuitcut.models.loading import LoadedModel, load_model, save_model
from circuitcut.models.weights_hash import weights_hash
from circuitcut.reports.tables import format_table
from circuitcut.storage.atomic import read_json, told_to_the_user, write_json
from circuitcut.storage.cache import cache_folder, content_hash
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Batch, Corpus, Task, to_device
from circuitcut.tasks.evaluation import evaluate
from circuitcut.tasks.registry import TASKS
from circuitcut.training.config import run_script
from circuitcut.training.embedding_noise import noisy_embeddings
from circuitcut.training.loop import FitSettings, fit
from circuitcut.training.shares import own_share

CACHE_FORMAT = 2  # part of the hash: raise it when training changes
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a base model is built and trained."""

    n_steps: int | None = None
    """Steps; None: three epochs over the base split."""
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.01
    schedule: Literal["constant", "linear", "cosine", "late"] = "linear"
    warmup: int = 0
    tokenizer_kind: Literal["word", "wordpiece", "bpe"] = "word"
    vocab_size: int = 4096
    n_layers: int = 2
    d_model: int = 128
    n_heads: int = 4
    max_positions: int = 128
    d_hidden: int = 50
    """Hidden units of the image MLP."""
    embedding_noise: float = 0.0
    """Normal noise on token embeddings in training, in their standard deviations."""


FINETUNE = Recipe()
GENERATED_STEPS = 400
"""A pretrained model has learned a generated corpus by then; three epochs are 3,000."""
RECIPES: dict[tuple[str, str], Recipe] = {
    ("locations", "tiny-encoder"): Recipe(
        1200, 32, 2e-3, 0.01, "cosine", 50, "word", 1000, 2, 128, 4, 128
    ),
    ("locations", "tiny-decoder"): Recipe(
        1200, 32, 2e-3, 0.01, "cosine", 50, "word", 1000, 2, 128, 4, 128
    ),
    ("ioi", "tiny-decoder"): replace(
        Recipe(600, 64, 3e-3, 0.01, "late", 30, "word", 4096, 2, 128, 8, 128),
        embedding_noise=0.5,
    ),
    ("ioi", "deep-decoder"): replace(
        Recipe(1000, 64, 3e-3, 0.01, "late", 60, "word", 4096, 4, 128, 8, 128),
        embedding_noise=0.5,
    ),
    ("toxicity", "tiny-decoder"): Recipe(
        600, 32, 3e-3, 0.01, "cosine", 30, "word", 4096, 2, 128, 4, 128
    ),
    ("mnist", "mlp"): Recipe(1500, 64, 1e-3, 0.0, "constant"),
}
# A corpus of one's own is larger and its vocabulary open.
USER_TEXT_RECIPE = Recipe(
    1500, 32, 3e-3, 0.01, "cosine", 100, "bpe", 4096, 4, 128, 4, 128
)


@dataclass(frozen=True)
class TrainBaseConfig(TaskConfig):
    """Settings of one base model."""


def recipe_for(config: TaskConfig) -> Recipe:
    """The recipe of this task and model, with the flags' changes."""
    name = config.model_name
    recipe = RECIPES.get((config.task, name), FINETUNE)
    if config.task == "toxicity" and name == "tiny-decoder" and config.data:
        recipe = USER_TEXT_RECIPE
    if recipe is FINETUNE and config.data is None:
        recipe = replace(recipe, n_steps=GENERATED_STEPS)
    if config.task == "mnist" and config.data:
        recipe = replace(recipe, n_steps=12_000, d_hidden=128, schedule="linear")
    if config.base_steps is not None:
        warmup = min(recipe.warmup, config.base_steps - 1)
        recipe = replace(recipe, n_steps=config.base_steps, warmup=warmup)
    if config.base_lr is not None:
        recipe = replace(recipe, lr=config.base_lr)
    return replace(recipe, max_positions=max(recipe.max_positions, config.max_length))


def prepare(
    config: TaskConfig,
    *,
    check: Callable[[LoadedModel], Any] | None = None,
    without_concept: bool = False,
) -> Experiment:
    """Task and base model of `config`, trained or taken from the cache.

    Args:
        check: Gets the model before it is trained, to refuse flags that do not fit it.
        without_concept: Leave out the examples of `base` that hold the concept: the
            same model, that never learned it. A pretrained model may know it from
            before.

    Raises:
        UserError: When the data, the model or a flag is wrong; before any training.
    """
    check_data_flags(config)
    accelerator = make_accelerator(config)
    task_class = TASKS[config.task]
    check_head(config)
    corpus = task_class.read(config.task_options("first"))
    recipe = recipe_for(config)
    loaded = _load(config, corpus, recipe)
    task = _task(config, corpus, loaded)
    if check is not None:
        check(loaded)
    base: dict[str, Any] = {}
    if _needs_training(config, loaded):
        key = content_hash(
            str(CACHE_FORMAT),
            canonical_json([config.task, config.model_name, config.base_seed]),
            canonical_json(asdict(recipe)),
            canonical_json(options_dict(config.task_options("first"))),
            corpus.fingerprint(),
            weights_hash(loaded.model),
            str(torch.__version__),
            *(["without concept"] if without_concept else []),
        )
        model_tag = Path(config.model_name).name.replace(":", "-")
        model_tag += "-without_concept" if without_concept else ""
        folder = cache_folder() / "base" / f"{config.task}-{model_tag}-{key[:16]}"
        with _only_one(folder, accelerator):
            if not (folder / "base.json").exists():
                draw = task.retain_batch if without_concept else task.finetune_batch
                _train(config, task, draw, loaded, recipe, accelerator, folder)
            accelerator.wait_for_everyone()
        base = read_json(folder / "base.json") | {"folder": str(folder)}
        name = loaded.name
        loaded = load_model(
            str(folder),
            head=task_class.head,
            labels=corpus.labels,
            seed=config.base_seed,
        )
        loaded = replace(loaded, name=name)
        task = _task(config, corpus, loaded)
    elif without_concept:
        raise UserError(
            f"{config.model_name!r} is used as it comes, so it cannot be trained "
            "without the concept; leave never_learned out, or use --base always"
        )
    loaded.model.to(accelerator.device).eval()
    loaded.model.requires_grad_(False)
    return Experiment(task, corpus, loaded, accelerator, base)


def check_head(config: TaskConfig) -> None:
    """Refuse a built-in model that cannot do the task.

    Raises:
        UserError: When model and task do not fit.
    """
    head, name = TASKS[config.task].head, config.model_name
    wrong = (
        (head == "image_classification") != (name == "mlp") and name in BUILTIN
    ) or (head == "causal_lm" and name in ("tiny-encoder", "minilm"))
    if wrong:
        raise UserError(
            f"--model {name!r} cannot do --task {config.task!r}, which needs "
            f"{head.replace('_', ' ')}; leave --model out for the task's own model"
        )


def _load(config: TaskConfig, corpus: Corpus, recipe: Recipe) -> LoadedModel:
    head, name = TASKS[config.task].head, config.model_name
    if name in BUILTIN:
        return build_builtin(
            name,
            head=head,
            labels=corpus.labels,
            texts=corpus.texts(),
            tokenizer_kind=recipe.tokenizer_kind,
            vocab_size=recipe.vocab_size,
            n_layers=recipe.n_layers,
            d_model=recipe.d_model,
            n_heads=recipe.n_heads,
            max_positions=recipe.max_positions,
            n_pixels=getattr(corpus, "n_pixels", 784),
            d_hidden=recipe.d_hidden,
            seed=config.base_seed,
        )
    return load_model(
        name,
        head=head,
        labels=corpus.labels,
        revision=config.revision,
        seed=config.base_seed,
    )


def _task(config: TaskConfig, corpus: Corpus, loaded: LoadedModel) -> Task:
    piece: Literal["first", "last"] = "last" if loaded.is_decoder else "first"
    return TASKS[config.task](corpus, loaded.tokenizer, config.task_options(piece))


def _needs_training(config: TaskConfig, loaded: LoadedModel) -> bool:
    new = config.model_name in BUILTIN or loaded.head_is_new
    if config.base == "never" and new:
        raise UserError(
            f"--base never leaves {config.model_name!r} with an untrained "
            f"{TASKS[config.task].head.replace('_', ' ')} head; use --base auto"
        )
    return config.base == "always" or (config.base == "auto" and new)


@contextmanager
def _only_one(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a base model: whoever comes second finds it trained."""
    with told_to_the_user(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    if accelerator.is_main_process:
        lock.acquire()
    accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            lock.release()


def _train(
    config: TaskConfig,
    task: Task,
    draw: Callable[..., Batch],
    loaded: LoadedModel,
    recipe: Recipe,
    accelerator: Accelerator,
    folder: Path,
) -> None:
    """Train, score on `heldout`, and put the model into `folder` in one rename.

    `draw` gives the batches: `task.finetune_batch`, or `task.retain_batch`.
    """
    n_steps = recipe.n_steps or max(1, 3 * task.n_examples("base") // recipe.batch_size)
    model = loaded.model.to(accelerator.device)
    model.requires_grad_(True)
    logger.info("training the base model %s: %d steps", loaded.name, n_steps)

    def step_loss(
        step: int, rng: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        model.train()
        batch = draw("base", step, size=recipe.batch_size, seed=config.base_seed)
        batch, weight = own_share(
            batch,
            task.target_weights(batch),
            accelerator.process_index,
            accelerator.num_processes,
        )
        with noisy_embeddings(model, recipe.embedding_noise):
            loss = task.finetune_loss(model, to_device(batch, accelerator.device))
        return weight * loss, {}

    settings = FitSettings(
        n_steps=n_steps,
        lr=recipe.lr,
        optimiser="adamw",
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        warmup=recipe.warmup,
        clip_norm=1.0,
        checkpoint_every=100,
        seed=config.base_seed,
    )
    # another version's checkpoint may have other settings, and is left alone
    tag = content_hash(canonical_json(asdict(settings)))[:8]
    unfinished = folder.with_name(f"{folder.name}.{tag}.unfinished")
    start = time.perf_counter()
    fit(
        dict(model.named_parameters()),
        step_loss,
        settings,
        accelerator=accelerator,
        checkpoints=unfinished,
        resume=True,
        progress="base model",
    )
    seconds = time.perf_counter() - start
    model.eval()
    if not accelerator.is_main_process:
        return
    evaluation = evaluate(task, model, "heldout")
    scratch = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    with told_to_the_user(scratch):
        scratch.mkdir(parents=True)
        save_model(loaded, scratch)
    record = {
        "model": loaded.name,
        "revision": loaded.revision,
        "recipe": asdict(recipe) | {"n_steps": n_steps},
        "from_scratch": config.model_name in BUILTIN,
        "seconds": round(seconds, 1),
        "heldout": evaluation.scores,
        "heldout_unseen": evaluation.unseen_scores,
    }
    write_json(scratch / "base.json", record)
    with told_to_the_user(folder):
        scratch.rename(folder)
    for left in folder.parent.glob(f"{folder.name}.*unfinished"):
        shutil.rmtree(left, ignore_errors=True)


def main(config: TrainBaseConfig) -> dict[str, Any]:
    """Train or find the base model and show its scores."""
    experiment = prepare(config)
    base = experiment.base
    if not experiment.accelerator.is_main_process:
        return base
    if not base:
        print(f"{config.model_name} is used as loaded; --base always fine-tunes it")
        base = {
            "heldout": evaluate(
                experiment.task, experiment.loaded.model, "heldout"
            ).scores
        }
    rows = [{"score": key, "held out": value} for key, value in base["heldout"].items()]
    print(format_table(rows, ["score", "held out"]))
    if "folder" in base:
        print(f"trained in {base['seconds']} s; kept in {base['folder']}")
    flags = {"task": config.task} | task_flags(config)
    print(f"next: {command('train_mask', flags)}")
    return base


if __name__ == "__main__":
    run_script(main, TrainBaseConfig)
