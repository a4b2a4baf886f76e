"""Types of the entries of results.json of knowledge.py."""

from typing import Annotated, Any, Literal, TypedDict

from circuitcut.storage.reading.typed_fields import Between, Count, Positive

Fraction = Annotated[float, Between(0, 1)]


class Facts(TypedDict):
    """How many facts and prompts."""

    n_data: Count
    n_asked: Count
    n_known: Count
    n_facts: Positive
    n_prompts: Positive
    n_relations: Positive
    n_right: Count


class Size(TypedDict):
    """Units of the sets of one kind."""

    mean: float
    median: float
    most: Count
    n_empty: Count


class Sizes(TypedDict):
    """Units of prompts and of facts."""

    coarse: Size
    refined: Size
    share_of_prompts: float


class LayerOfUnits(TypedDict):
    """Shares of the units that lie in a layer."""

    layer: Annotated[int, Between(0, 10_000)]
    n_units: Positive
    coarse: Fraction
    refined: Fraction


class Effect(TypedDict):
    """What scaling units does to a probability."""

    on: Literal["own", "others"]
    units: str
    """`refined`, `one_prompt`, `random`, or the method of a mask."""
    operation: Literal["suppress", "enhance"]
    n_facts: Positive
    before: Fraction
    after: Fraction
    change: float
    change_interval: tuple[float, float]
    change_of_mean: float
    change_of_mean_interval: tuple[float, float]


class PairsOfFacts(TypedDict):
    """Overlap of the units of two facts."""

    pairs: str
    n_pairs: Count
    jaccard: Fraction | None
    random: Fraction | None


class EditRow(TypedDict):
    """One measure of all edited facts."""

    units: str
    measure: str
    n_facts: Positive
    before: float
    after: float
    gain: float
    gain_interval: tuple[float, float]


class Edits(TypedDict):
    """What editing the facts did."""

    formula: Literal["relative", "plain", "none"]
    n_edited: Count
    n_units: float
    left_out: dict[str, Count]
    rows: list[EditRow]


class PairsOfGroups(PairsOfFacts):
    """The same of two relations, or of two languages."""

    by: Literal["relation", "language"]
    one: str
    other: str


class OfLanguage(TypedDict):
    """How many facts a language has."""

    language: str
    n_asked: Count
    n_known: Count
    n_facts: Count


class ActiveUnits(TypedDict):
    """Mean activation of the units of facts on prompts of one kind."""

    units: Literal["refined", "random"]
    prompts: Literal["fact", "head", "relation", "other"]
    n_facts: Positive
    mean: float
    interval: tuple[float, float]


class ActivePrompt(TypedDict):
    """A prompt, and how active a unit is on it."""

    text: str
    object: str
    activation: float


class Trigger(TypedDict):
    """The prompts on which a unit is most active."""

    unit: tuple[Count, Count]
    n_facts: Count
    median: float
    prompts: list[ActivePrompt]


KNOWLEDGE_ENTRIES: dict[str, Any] = {
    "facts": Facts,
    "sizes": Sizes,
    "layers": list[LayerOfUnits],
    "effects": list[Effect],
    "overlap": list[PairsOfFacts],
    "edits": Edits,
    "masks": list[str],
    "groups": list[PairsOfGroups],
    "languages": list[OfLanguage],
    "activity": list[ActiveUnits],
    "triggers": list[Trigger],
}
