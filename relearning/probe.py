"""Is the concept still decodable? A linear probe on the hidden states of every level.

A cut can change the output while the information stays in the residual stream. The
probe is a logistic regression trained on `relearn` examples and tested on `heldout`
ones. The control is the same probe trained on shuffled labels.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from circuitcut.masks.ablation import record_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.relearning.conditions import Condition
from circuitcut.storage.cache import content_hash
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import Batch, Split, Task, rows_of, to_device


@dataclass(frozen=True)
class ProbeScore:
    """How well the hidden states of one level separate concept from retain."""

    layer: int
    """-1 is the embedding level."""
    f1: float
    """F1 of the concept class."""
    accuracy: float
    """Balanced accuracy: the mean of both classes' recalls."""
    auc: float
    control_auc: float
    """The same probe trained on shuffled labels; about one half."""
    n_train: int
    n_test: int


@dataclass(frozen=True)
class LabelledStates:
    """Hidden states per level and whether each belongs to the concept."""

    states: dict[int, np.ndarray]
    """Layer -> (position, d_model)."""
    is_concept: np.ndarray
    """(position,) bools."""


Known = dict[str, ProbeScore]
"""Scores by a digest of the states and labels they were computed from."""


def probe(
    task: Task,
    model: nn.Module,
    sites: Sequence[Site],
    *,
    max_positions: int = 4000,
    size: int = 32,
    seed: int = 0,
    known: Known | None = None,
) -> list[dict[str, Any]]:
    """Probe every level of the model as it stands, with whatever mask is on.

    Positions of the concept are distinguished from retained positions; where no example
    holds both (whole texts or images), each example is one: the mean of its real
    tokens.

    Args:
        task: Gives the examples.
        model: Run in evaluation mode; its mode is restored.
        sites: `hidden` sites, one a level.
        max_positions: Most positions of each split, drawn by seed.
        size: Examples of one forward pass.
        seed: Of the draw and of the shuffled control.
        known: Scores of levels probed with the same seed; those of this model are
            added. A level with the same states (below the first unit that a cut
            changes, say) is not probed twice.

    Returns:
        One `ProbeScore` a level as a dict, lowest level first.

    Raises:
        UserError: When a split lacks concept or retained positions.
    """
    train = hidden_states(task, model, sites, "relearn", max_positions, size, seed)
    test = hidden_states(task, model, sites, "heldout", max_positions, size, seed)
    known = {} if known is None else known
    levels = []
    for layer in shown(sorted(train.states), "probes", unit="level"):
        states = _digest(layer, train, test)
        if states not in known:
            # hundreds of small products: threads wait for each other most of the time
            with threadpool_limits(1):
                known[states] = _score(layer, train, test, seed)
        levels.append(asdict(replace(known[states], layer=layer)))
    return levels


def probe_conditions(
    task: Task,
    model: nn.Module,
    mask: FrozenMask,
    conditions: Sequence[Condition],
    *,
    never_learned: nn.Module | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Probe the model right after the cut of every condition, before any relearning.

    Conditions that differ only in holding or number of examples start from the same
    model and are probed once, and so are levels with the same states.

    Args:
        task: Gives the examples.
        model: The base model; it is as before afterwards.
        mask: The cut under study.
        conditions: As `conditions.conditions` combines them.
        never_learned: The model of the condition of that name, which is not probed
            without it.
        seed: See `probe`.

    Returns:
        One entry a condition and seed: `condition`, `seed` and `levels`, from `probe`.
    """
    sites = sites_of(model, ["hidden"])
    starts = {(c.start, c.seed if c.name == "random" else None): c for c in conditions}
    probed, known = [], Known()
    for (name, drawn), condition in starts.items():
        cut = condition.mask(mask)
        start = never_learned if name == "never_learned" else model
        if start is None:
            continue
        with cut.applied(start) if cut else nullcontext():
            levels = probe(task, start, sites, seed=seed, known=known)
        probed.append({"condition": name, "seed": drawn, "levels": levels})
    return probed


def hidden_states(
    task: Task,
    model: nn.Module,
    sites: Sequence[Site],
    split: Split,
    max_positions: int,
    size: int,
    seed: int,
) -> LabelledStates:
    """Hidden states of a split, at most `max_positions`, in a fixed order.

    Of longer splits some examples are drawn and run; the head of the model never is.

    Raises:
        UserError: When a class is missing.
    """
    batches = list(task.evaluation_batches(split, size=size))
    pooled = not any(_mixed(batch) for batch in batches)
    batches = _drawn(batches, pooled, max_positions, seed)
    labels = np.concatenate([_labels(batch, pooled) for batch in batches])
    if labels.all() or not labels.any():
        raise UserError(
            f"split {split!r} must hold concept and retained examples for a probe, got "
            f"{int(labels.sum())} concept of {len(labels)} positions; give more data"
        )
    chosen = np.random.default_rng(seed).permutation(len(labels))[:max_positions]
    chosen.sort()
    rows_of: dict[int, list[np.ndarray]] = {site.layer: [] for site in sites}
    device, done = next(model.parameters()).device, 0
    with evaluating(model):
        for batch in shown(batches, f"hidden states of {split}"):
            n = len(_labels(batch, pooled))
            in_batch = chosen[(chosen >= done) & (chosen < done + n)] - done
            done += n
            inputs = task.inputs(to_device(batch, device))
            recorded = record_values(model, sites, inputs).values
            for site in sites:
                rows = _rows(recorded[site.name].float().cpu(), batch, pooled)
                rows_of[site.layer].append(rows[in_batch].numpy())
    states = {layer: np.concatenate(parts) for layer, parts in rows_of.items()}
    return LabelledStates(states, labels[chosen])


def _drawn(
    batches: Sequence[Batch], pooled: bool, max_positions: int, seed: int
) -> list[Batch]:
    """Examples drawn by seed until they hold `max_positions`, in their order."""
    parts = [_per_example(batch, pooled) for batch in batches]
    n_labels = torch.cat(parts)
    order = torch.randperm(len(n_labels), generator=torch.Generator().manual_seed(seed))
    before = n_labels[order].cumsum(0) - n_labels[order]
    is_drawn = torch.zeros(len(n_labels), dtype=torch.bool)
    is_drawn[order[before < max_positions]] = True
    sizes = [len(part) for part in parts]
    return [
        rows_of(batch, of_batch)
        for batch, of_batch in zip(batches, is_drawn.split(sizes), strict=True)
        if of_batch.any()
    ]


def _digest(layer: int, train: LabelledStates, test: LabelledStates) -> str:
    """Of all that the scores of a level are computed from, but the seed."""
    parts: list[str | bytes] = []
    for split in (train, test):
        states = split.states[layer]
        parts += [f"{states.shape} {states.dtype}", states.tobytes()]
        parts.append(split.is_concept.tobytes())
    return content_hash(*parts)


def _score(
    layer: int, train: LabelledStates, test: LabelledStates, seed: int
) -> ProbeScore:
    shuffled = np.random.default_rng(seed).permutation(train.is_concept)
    fitted = _fit(train.states[layer], train.is_concept)
    control = _fit(train.states[layer], shuffled)
    predicted = fitted.predict(test.states[layer])
    return ProbeScore(
        layer=layer,
        f1=float(f1_score(test.is_concept, predicted, zero_division=0.0)),
        accuracy=float(balanced_accuracy_score(test.is_concept, predicted)),
        auc=_auc(fitted, test.states[layer], test.is_concept),
        control_auc=_auc(control, test.states[layer], test.is_concept),
        n_train=len(train.is_concept),
        n_test=len(test.is_concept),
    )


def _fit(states: np.ndarray, labels: np.ndarray) -> Any:
    regression = LogisticRegression(C=0.1, class_weight="balanced", max_iter=300)
    pipeline = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        # a probe a little short of its optimum is still a probe
        warnings.simplefilter("ignore", ConvergenceWarning)
        return pipeline.fit(states, labels)


def _auc(fitted: Any, states: np.ndarray, labels: np.ndarray) -> float:
    return float(roc_auc_score(labels, fitted.decision_function(states)))


def _mixed(batch: Batch) -> bool:
    """Whether an example holds concept and retained positions side by side."""
    if batch["concept"].dim() == 1:
        return False
    return bool((batch["concept"].any(dim=1) & batch["retain"].any(dim=1)).any())


def _labels(batch: Batch, pooled: bool) -> np.ndarray:
    concept = batch["concept"]
    if not pooled:
        return concept[concept | batch["retain"]].numpy()
    return (concept if concept.dim() == 1 else concept.any(dim=1)).numpy()


def _per_example(batch: Batch, pooled: bool) -> Tensor:
    """Labels of every example."""
    if pooled:
        return torch.ones(len(batch["concept"]), dtype=torch.long)
    return (batch["concept"] | batch["retain"]).sum(dim=1)


def _rows(output: Tensor, batch: Batch, pooled: bool) -> Tensor:
    """One row a label: (batch, seq, d_model) -> (position, d_model)."""
    if not pooled:
        return output[batch["concept"] | batch["retain"]]
    if output.dim() == 2:
        return output
    real = batch["real"].unsqueeze(-1).to(output)
    return (output * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
