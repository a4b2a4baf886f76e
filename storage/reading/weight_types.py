"""Types of the entries of results.json of the scripts about classes of neurons."""

from typing import Annotated, Literal, NotRequired, TypedDict

from circuitcut.storage.reading.typed_fields import Between, Count, Positive

Layer = Annotated[int, Between(0, 10_000)]
Probability = Annotated[float, Between(0, 1)]
Share = Annotated[float, Between(0, 1)]
Cosine = Annotated[float, Between(-1.001, 1.001)]
Counts = dict[str, Count]
Quartiles = dict[str, tuple[float, float, float, float, float]]
Regions = dict[str, tuple[Cosine, Cosine]]


class Weights(TypedDict):
    """What was classified, and how."""

    family: str
    revision: str | None
    commit: str | None
    gated: bool
    centred: bool
    d_model: Positive
    convention: Literal["folded", "raw"]
    tau: Probability
    classes: list[str]
    n_bins: Positive
    n_pairs: Positive


class Beta(TypedDict):
    """Regions of the cosines of independent Gaussian vectors."""

    alpha: Probability
    corrected_alpha: Probability
    n_dimensions: Positive
    region: Regions
    corrected_region: Regions


class Classified(TypedDict):
    """Neurons of a layer, or of a model."""

    n_units: Positive
    classes: Counts
    half_coarse: Counts
    coarse: Counts
    bins: dict[str, list[Count]]
    quartiles: Quartiles
    outside: dict[str, Counts]


class ClassifiedLayer(Classified):
    """Neurons of a layer."""

    layer: Layer
    n_mlps: Positive
    mismatched_region: Regions


class ClassifiedRevision(Classified):
    """Neurons of a model at one moment of its training."""

    revision: str
    commit: str | None


class Tying(TypedDict):
    """Embeddings beside unembeddings."""

    tied: bool
    quartiles: tuple[Cosine, Cosine, Cosine]


class ChangedLayer(TypedDict):
    """How far the vectors of a layer turned."""

    layer: Layer
    quartiles: Quartiles


class LayerBeside(TypedDict):
    """Medians of a layer of another run."""

    layer: Layer
    n_units: Positive
    quartiles: Quartiles


class ModelBeside(TypedDict):
    """Medians of another run."""

    model: str
    revision: str | None
    convention: str
    layers: list[LayerBeside]


class NearestTokens(TypedDict):
    """Tokens nearest to a vector."""

    vector: str
    tokens: list[str]
    scores: list[float]


class UnitVocabulary(TypedDict):
    """Tokens nearest to the vectors of a neuron."""

    unit: str
    vectors: list[NearestTokens]


ClassCount = TypedDict(
    "ClassCount",
    {
        "class": str,
        "n_class": Count,
        "n": Count,
        "expected": float,
        "interval": tuple[Count, Count],
        "expected_by_layer": float,
        "interval_by_layer": tuple[Count, Count],
        "p": Share,
    },
)
"""Neurons of a class in a set, beside chance."""


class ChosenSet(TypedDict):
    """The neurons of another run by class."""

    path: str
    kind: Literal["ablated", "kept", "knowledge"]
    n: Count
    n_others: Count
    classes: list[ClassCount]


class Selection(TypedDict):
    """Which neurons a mask ablates."""

    classes: list[str]
    n_of_classes: Positive
    control: Literal["none", "layer", "frequency"]
    tau: Probability
    convention: Literal["folded", "raw"]
    gated: NotRequired[bool]
    take: NotRequired[Literal["drawn", "most_frequent", "least_frequent"]]
    tolerance: NotRequired[Share]
    when: NotRequired[str]
    theta: NotRequired[float | None]
    at_positions: NotRequired[list[Count]]
    on: NotRequired[dict[str, Share] | None]


Number = float | None
Ends = tuple[Number, Number]


class Effected(TypedDict):
    """Which neurons were ablated, and how."""

    classes: list[str]
    take: str
    tolerance: Share
    tau: Probability
    convention: Literal["folded", "raw"]
    n_of_classes: Positive
    controls: list[str]
    draws: Positive
    control_tokens: NotRequired[Literal["all", "turns"]]
    gated: bool
    theta: float | None
    at_positions: list[Count]


class Corpus(TypedDict):
    """What was measured on."""

    data: str
    n_texts: Count
    n_tokens: Count
    length: Positive
    sample: Count


class Spread(TypedDict):
    """A measure over tokens."""

    mean: float
    interval: Ends
    least: float
    quantiles: tuple[float, float, float, float, float, float, float]
    greatest: float


Set = Literal["class", "layer", "frequency"]


class MeasuredEffect(TypedDict):
    """One ablation."""

    set: Set
    draw: Count | None
    when: str
    n_tokens: NotRequired[Count]
    ablated: dict[str, float]
    difference: dict[str, Spread]


class OverDraws(TypedDict):
    """A measure of a set, ablated minus clean."""

    mean: float
    interval: Ends
    range: tuple[float, float] | None


class SummedEffect(TypedDict):
    """All draws of a set under one condition."""

    set: Set
    when: str
    n_draws: Count
    measures: dict[str, OverDraws]


_ActiveSet = TypedDict(
    "_ActiveSet",
    {
        "set": Set,
        "draw": Count | None,
        "on": Share,
        "gate+/post+": Share,
        "gate+/post-": Share,
        "gate-/post+": Share,
        "gate-/post-": Share,
        "written": float,
    },
)


class ActiveLayer(TypedDict):
    """Frequencies of a layer's neurons."""

    layer: Layer
    n_of_classes: Count
    on: Share | None
    on_of_others: Share | None
    correlations: dict[str, float | None]


class ChangedToken(TypedDict):
    """A token and the change of its probability."""

    token: str
    change: float


class SeenPrediction(TypedDict):
    """A prediction of the logit lens."""

    top: str
    top_probability: float
    next_probability: float
    entropy: float


class LensReading(TypedDict):
    """The predictions behind a sublayer."""

    layer: Layer
    sublayer: Literal["attention", "mlp", "block"]
    clean: SeenPrediction
    ablated: SeenPrediction
    promoted: list[ChangedToken]
    suppressed: list[ChangedToken]


class Continued(TypedDict, total=False):
    """What follows a text."""

    clean: str
    ablated: str


class ChangedText(TypedDict):
    """A text that an ablation changes most."""

    when: str
    text: Count
    position: Count
    context: str
    next: str
    clean: float
    ablated: float
    promoted: list[ChangedToken]
    suppressed: list[ChangedToken]
    lens: NotRequired[list[LensReading]]
    continued: NotRequired[Continued]


Percent = Annotated[float, Between(0, 100)]


class RateOfLayer(TypedDict):
    """The mean attributes rate behind a block."""

    layer: Layer
    n: Count
    rate: Percent | None
    interval: Ends
    difference: NotRequired[Number]
    difference_interval: NotRequired[Ends]
    of_others: NotRequired[Percent | None]
    """With the words of another subject."""
    above_others: NotRequired[Number]
    above_others_interval: NotRequired[Ends]


class RatesOfSet(TypedDict):
    """The attributes rates under the ablations of a set."""

    set: Set
    when: str
    n_draws: Count
    layers: list[RateOfLayer]


class Attributes(TypedDict):
    """Attributes rates of subjects."""

    source: Literal["facts", "table", "corpus"]
    n_subjects: Positive
    left_out: Counts
    words_of_a_subject: float
    n_top: Positive
    n_common_words: NotRequired[Count]
    clean: list[RateOfLayer]
    effects: list[RatesOfSet]


class ReaderEffect(TypedDict):
    """What a measure changes because a reader notices an ablation."""

    reader: str
    effect: float


class EdgeEffect(TypedDict):
    """The part of one writer."""

    edge: str
    effect: float


class ReadersOfLayer(TypedDict):
    """Sums over the readers of a layer."""

    layer: Layer
    queries: float
    keys: float
    values: float
    mlp: float


class NoticedSet(TypedDict):
    """Who notices the ablation of a set."""

    set: Set
    draw: Count | None
    when: str
    logits: float
    readers: list[ReaderEffect]
    edges: list[EdgeEffect]
    layers: list[ReadersOfLayer]


class Noticed(TypedDict):
    """Edges of the ablations."""

    measure: Literal["loss", "entropy"]
    n_tokens: Positive
    sets: list[NoticedSet]


EFFECT_ENTRIES = {
    "selection": Effected,
    "corpus": Corpus,
    "clean": dict[str, Spread],
    "effects": list[MeasuredEffect],
    "summary": list[SummedEffect],
    "activity": list[_ActiveSet],
    "activity_by_layer": list[ActiveLayer],
    "changed": list[ChangedText],
    "attributes": Attributes | None,
    "edges": Noticed | None,
}
WEIGHT_ENTRIES = {
    "weights": Weights,
    "beta": Beta,
    "layers": list[ClassifiedLayer],
    "total": Classified,
    "tying": Tying | None,
    "series": list[ClassifiedRevision],
    "change": list[ChangedLayer],
    "beside": list[ModelBeside],
    "vocabulary": list[UnitVocabulary],
    "chosen": list[ChosenSet],
}
