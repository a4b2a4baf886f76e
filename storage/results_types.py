"""Types of the entries of results.json, as docs/schema.md explains them.

What reads results.json may rely on these types. A file that was changed by hand is
refused by name, before it becomes a table.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from circuitcut.storage.provenance import Provenance
from circuitcut.storage.reading.knowledge_types import KNOWLEDGE_ENTRIES
from circuitcut.storage.reading.trace_types import TRACE_ENTRIES
from circuitcut.storage.reading.typed_fields import (
    Between,
    Count,
    Matching,
    Positive,
    check_entries,
)
from circuitcut.storage.reading.weight_types import (
    EFFECT_ENTRIES,
    WEIGHT_ENTRIES,
    Selection,
)
from circuitcut.storage.results_schema import ENTRIES

Score = float | None
Scores = dict[str, Score]
Interval = tuple[Score, Score]
Intervals = dict[str, Interval]
Size = Annotated[int, Between(0, 10_000)]
"""Of a model: layers, or heads of a layer."""
Layer = Annotated[int, Between(-1, 10_000)]
Fraction = Annotated[float, Between(0, 1)]
_HEAD, _MLP = r"a\d{1,5}\.h\d{1,5}", r"m\d{1,5}"
HeadName = Annotated[str, Matching(_HEAD, "the name of a head such as a9.h6")]
EdgeName = Annotated[
    str,
    Matching(
        rf"(input|position|{_HEAD}|{_MLP})->(logits|{_MLP}|{_HEAD}(<[qkv]>)?)",
        "the name of an edge such as a0.h1->m3",
    ),
]


class Metric(TypedDict):
    """The main score of a side."""

    name: str
    higher_is_better: bool
    unit: NotRequired[str | None]
    label: NotRequired[str | None]
    chance: NotRequired[Score]


class Site(TypedDict):
    """Units of a site."""

    kind: str
    layer: Layer
    n_units: Count
    n_ablated: Count
    site: NotRequired[str]
    level: NotRequired[str]


class Circuit(TypedDict):
    """What the picture shows."""

    kept: bool
    n_layers: Size
    n_heads: Size
    edges: list[EdgeName]
    n_edges: NotRequired[Count]
    scores: NotRequired[list[Score] | None]


class HeadsOfLayer(TypedDict):
    """The heads of a layer."""

    layer: Size
    n_heads: Size
    ablated: list[Size]
    scores: NotRequired[list[Score] | None]


class Heads(TypedDict):
    """The heads of a mask."""

    kept: bool
    names: list[HeadName]
    layers: list[HeadsOfLayer]


Class = TypedDict("Class", {"class": str, "heads": list[str], "found": list[str]})
"""Heads of one class of a published circuit."""


class Published(TypedDict):
    """Heads shared with a published circuit."""

    n_heads: Count
    n_shared: Count
    n_published: Count
    expected: float
    classes: list[Class]


class Point(TypedDict):
    """Scores of a method at a size."""

    method: str
    n_ablated: Count
    scores: Scores
    intervals: NotRequired[Intervals]
    seed: NotRequired[int | None]


class Base(TypedDict, total=False):
    """How the base model was trained."""

    recipe: dict[str, Any]
    heldout: Scores
    heldout_unseen: Scores
    folder: str


class Without(TypedDict):
    """The complement of a circuit."""

    faithfulness: Score
    scores: Scores


class Share(TypedDict):
    """A circuit of a ranking."""

    method: str
    order: str
    seed: int | None
    fraction: Fraction
    n_kept: Count
    n_connected: Count
    faithfulness: Score
    scores: Scores
    without: Without | None


class Area(TypedDict):
    """Areas under the faithfulness of a ranking."""

    method: str
    order: str
    seed: int | None
    cpr: Score
    cmd: Score
    score_area: NotRequired[Score]


class Random(TypedDict):
    """Jaccard index of random masks."""

    mean: float
    interval: Interval


class ComparedMask(TypedDict):
    """A mask of a stability run."""

    mask: str
    seed: int | None
    gate: str | None
    n_chosen: Count


class Pair(TypedDict):
    """Two masks of a stability run."""

    first: Count
    second: Count
    n_shared: Count
    jaccard: Score
    random: Random | None
    random_per_site: NotRequired[Random | None]


class MeanPair(TypedDict):
    """The mean over pairs."""

    n_pairs: Count
    jaccard: Score
    random: Random | None
    random_per_site: NotRequired[Random | None]


class SharedSite(TypedDict):
    """A site of a stability run."""

    site: str
    kind: str
    layer: Layer
    n_units: Count
    n_chosen: list[Count]
    jaccard: Score
    random: Random | None


class ByNumber(TypedDict):
    """Units that so many masks choose."""

    n_masks: Count
    n_units: Count
    expected: Score


class SharedUnit(TypedDict):
    """A unit that most masks choose."""

    unit: str
    kind: str
    layer: Layer
    n_masks: Count


class Condition(TypedDict):
    """A condition of relearning."""

    condition: str
    holding: Literal["lasting", "one_shot"] | None
    limit: Count | None


class MeasuredRow(Condition):
    """A measurement of a seed."""

    seed: int | None
    step: Count
    examples: Count
    scores: Scores
    distance: NotRequired[Score]
    unseen_scores: NotRequired[Scores]


class SummaryRow(Condition):
    """Means over seeds at a step."""

    n_seeds: Positive
    step: Count
    examples: Count
    concept: Score
    retain: Score
    distance: NotRequired[Score]
    concept_interval: NotRequired[Interval | None]
    retain_interval: NotRequired[Interval | None]
    unseen_concept: NotRequired[Score]
    unseen_concept_interval: NotRequired[Interval | None]


class RecoveryPoint(TypedDict):
    """A recovery at a step."""

    step: Count
    examples: NotRequired[Count]
    ratio: Score
    normalised: Score
    ratio_interval: NotRequired[Interval | None]
    normalised_interval: NotRequired[Interval | None]
    reason: str | None


class Reached(TypedDict):
    """When a share of the recovery was reached."""

    fraction: Fraction
    step: Count | None
    examples: NotRequired[Count | None]
    step_interval: NotRequired[Interval | None]


class ReachedBy(TypedDict):
    """Of both recoveries."""

    ratio: list[Reached]
    normalised: list[Reached]


class Recovery(Condition):
    """The recovery of a condition."""

    uncut_limit: Count | None
    n_seeds: Positive
    minimum: float
    points: list[RecoveryPoint]
    reached: ReachedBy
    area: Score
    area_interval: NotRequired[Interval | None]
    final_gap: NotRequired[Score]
    final_gap_interval: NotRequired[Interval | None]


class Level(TypedDict):
    """A linear probe at a level."""

    layer: Layer
    f1: Score
    accuracy: Score
    auc: Score
    control_auc: Score
    n_train: NotRequired[Count]
    n_test: NotRequired[Count]


class Probe(TypedDict):
    """The probes of a model."""

    condition: str
    levels: list[Level]
    seed: NotRequired[int | None]


class SetOfUnits(TypedDict):
    """Number and share of a set's units."""

    n: Count
    share: Score


class LayerOfSets(TypedDict):
    """Where sets of units lie."""

    layer: Layer
    kind: str
    top_before: NotRequired[SetOfUnits]
    top_after: NotRequired[SetOfUnits]
    salient_before: NotRequired[SetOfUnits]
    salient_after: NotRequired[SetOfUnits]
    mask: NotRequired[SetOfUnits]
    fresh_mask: NotRequired[SetOfUnits]


class Redistribution(TypedDict):
    """Where the concept is after relearning."""

    n_compared: Count
    overlap: Score
    overlap_with_mask: Score
    layers: list[LayerOfSets]
    fresh_n: NotRequired[Count]
    fresh_overlap: NotRequired[Score]


class Word(TypedDict):
    """A token and what it does to a unit."""

    word: str
    activation: Score


class Words(TypedDict):
    """The tokens of two moments."""

    before: list[Word]
    after: list[Word]


class UnitWords(TypedDict):
    """What a unit responds to."""

    top: Literal["before", "after"]
    site: str
    kind: str
    layer: Layer
    unit: Count
    ablated: bool
    words: Words


class After(Condition):
    """A relearned model."""

    seed: int | None
    redistribution: NotRequired[Redistribution | None]
    words: NotRequired[list[UnitWords] | None]


class ScoresOfModels(TypedDict, total=False):
    """Scores by model; other names are models of their own."""

    uncut: Scores
    cut: Scores
    cut_before_rounding: Scores
    random: list[Scores] | Scores
    attribution: dict[str, Scores]


class IntervalsOfModels(TypedDict, total=False):
    """Intervals by model."""

    uncut: Intervals
    cut: Intervals
    random: list[Intervals] | Intervals
    attribution: dict[str, Intervals]


_OF_ALL: dict[str, Any] = {
    "schema_version": int,
    "kind": str,
    "task": str,
    "model": str,
    "units": list[str],
    "ablation": str | None,
    "n_ablated": Count | None,
    "n_units": Count | None,
    "concept_metric": Metric,
    "retain_metric": Metric,
    "base": Base | None,
    "next": str | None,
    "provenance": Provenance | None,
    "direction": str | None,
    "gate": str | None,
    "expected_ablated": Score,
    "asked_ablated": Score,
    "per_site": list[Site],
    "edges": list[EdgeName] | None,
    "circuit": Circuit | None,
    "heads": Heads | None,
    "warning": str | None,
    "published_circuit": Published | None,
    "scores": ScoresOfModels,
    "unseen": ScoresOfModels,
    "intervals": IntervalsOfModels,
    "curve": list[Point],
    "split": str,
    "mask": str | None,
    "file": str,
    "format": str,
    "chosen": str,
    "pairs": list[Pair],
    "mean": MeanPair,
    "by_number_of_masks": list[ByNumber],
    "shared": list[SharedUnit],
    "rows": list[MeasuredRow],
    "summary": list[SummaryRow],
    "recovery": list[Recovery],
    "never_learned": Base | None,
    "probe": list[Probe] | None,
    "after": list[After] | None,
    "words_note": str | None,
}
_OF_KIND: dict[str, dict[str, Any]] = {
    "train_mask": {"n_ablated": Count, "n_units": Positive},
    "import_mask": {"n_ablated": Count, "n_units": Positive},
    "faithfulness": {"curve": list[Share], "areas": list[Area], "masks": list[str]},
    "stability": {
        "concept_metric": Metric | None,
        "retain_metric": Metric | None,
        "masks": list[ComparedMask],
        "per_site": list[SharedSite],
    },
    "relearn": {"selection": Selection | None},
    "select_mask": {"n_ablated": Count, "n_units": Positive, "selection": Selection},
    "trace": TRACE_ENTRIES,
    "knowledge": {"n_ablated": Count, "n_units": Positive, **KNOWLEDGE_ENTRIES},
    "class_effects": {
        "n_ablated": Positive,
        "n_units": Positive,
        "concept_metric": Metric | None,
        "retain_metric": Metric | None,
        **EFFECT_ENTRIES,
    },
    "weight_classes": {
        "n_units": Positive,
        "concept_metric": Metric | None,
        "retain_metric": Metric | None,
        **WEIGHT_ENTRIES,
    },
}
"""Entries that have other types in a kind of run."""


def check_results(results: dict[str, Any], path: Path) -> None:
    """Check the type of every entry of a results.json, at every depth.

    Entries that are missing are no matter of this, nor runs of an unknown kind.

    Raises:
        UserError: Naming the file, the entry, what it must be, and what was found.
    """
    check_entries(results, {"kind": str}, str(path))
    kind = results.get("kind", "")
    if kind not in ENTRIES:
        return
    check_entries(results, _OF_ALL | _OF_KIND.get(kind, {}), str(path))
    for name in ("scores", "unseen", "intervals"):
        models = results.get(name) or {}
        one = Intervals if name == "intervals" else Scores
        hints = {m: one for m in models if m not in ("random", "attribution")}
        check_entries(models, hints, f"{path}: {name}")
