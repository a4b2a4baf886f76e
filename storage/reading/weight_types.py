"""Types of the entries of results.json of weight_classes.py and select_mask.py."""

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
}
