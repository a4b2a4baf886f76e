"""Types of the entries of results.json that scripts/trace.py writes."""

from typing import Annotated, Any, Literal, TypedDict

from circuitcut.storage.reading.typed_fields import Between, Count, Positive

_Layer = Annotated[int, Between(0, 10_000)]
_Share = Annotated[float, Between(0, 1)]
_Change = Annotated[float, Between(-1, 1)]


class Tracing(TypedDict):
    """What was done, and means over the prompts."""

    noise: float
    sigma: float
    n_noise: Positive
    window: Positive
    n_asked: Count
    left_out: dict[str, Count]
    clean: _Share
    corrupted: _Share
    total_effect: _Change


class Prompt(TypedDict):
    """A prompt that was traced."""

    text: str
    subject: str
    object: str
    clean: _Share
    corrupted: _Share


class Effect(TypedDict):
    """A state restored in a layer, at the tokens of a class."""

    restored: Literal["hidden", "mlp", "attention"]
    tokens: Literal[
        "before", "first subject", "middle subject", "last subject", "after", "last"
    ]
    layer: _Layer
    n_prompts: Positive
    indirect: _Change
    normalised: float | None
    interval: tuple[float, float] | None


TRACE_ENTRIES: dict[str, Any] = {
    "tracing": Tracing,
    "prompts": list[Prompt],
    "effects": list[Effect],
}
