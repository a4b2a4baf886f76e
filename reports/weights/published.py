"""Published counts of classes, and how far a classification is from them.

Gerstner & Schuetze (2025), "Understanding Gated Neurons in Transformers from Their
Input-Output Functionality", https://arxiv.org/abs/2505.17936, and its results
repository sjgerstner/RW_functionalities: folded weights, tau 0.5. For OLMo-7B the table
there has 526 weakening neurons and the README 243, of OLMo-7B-0424; the reason is not
known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitcut.storage.errors import UserError

Row = dict[str, Any]
CONVENTION, TAU = "folded", 0.5


@dataclass(frozen=True)
class Published:
    """Numbers of one model; classes that are not listed are not known."""

    total: Mapping[str, int]
    by_layer: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    bins: tuple[int, ...] = ()
    """Neurons by cos(w_in, w_out), in ten bins from -1."""


def _plain(strengthening: int, orthogonal: int, weakening: int) -> dict[str, int]:
    return {
        "strengthening": strengthening,
        "orthogonal output": orthogonal,
        "weakening": weakening,
    }


def _gated(*numbers: int) -> dict[str, int]:
    """In the order in which the paper lists the six classes."""
    names = (
        *("strengthening", "conditional strengthening", "proportional change"),
        *("orthogonal output", "weakening", "conditional weakening"),
    )
    return dict(zip(names, numbers, strict=True))


def _weakening(number: int) -> Published:
    return Published({"weakening": number})


PUBLISHED: Mapping[str, Published] = {
    "olmo-7b-hf": Published(
        _gated(47, 121_671, 23_814, 192_376, 526, 12_440), {31: {"weakening": 138}}
    ),
    "olmo-1b-hf": Published(
        {
            "conditional strengthening": 14_216,
            "proportional change": 10_009,
            "orthogonal output": 93_752,
            "weakening": 218,
            "conditional weakening": 12_312,
        },
        {0: {"conditional strengthening": 4_365}},
    ),
    "llama-3.2-3b": Published(_gated(24, 49_297, 6_322, 171_368, 836, 472)),
    "qwen2.5-0.5b": Published(
        {
            "conditional strengthening": 9_716,
            "proportional change": 3_277,
            "orthogonal output": 101_462,
            "weakening": 226,
            "conditional weakening": 1_484,
            "atypical weakening": 381,
        },
        {23: {"weakening": 56}},
    ),
    "gemma-2-2b": _weakening(372),
    "gemma-2-9b": _weakening(762),
    "llama-2-7b-hf": _weakening(967),
    "llama-3.1-8b": _weakening(1_144),
    "llama-3.2-1b": _weakening(403),
    "mistral-7b-v0.1": _weakening(1_541),
    "qwen2.5-7b": _weakening(925),
    "yi-6b": _weakening(552),
    "gpt2": Published(
        _plain(458, 30_229, 6_177),
        {
            0: _plain(1, 3_070, 1),
            1: _plain(325, 1_358, 1_389),
            2: _plain(16, 2_106, 950),
            11: _plain(13, 3_013, 46),
        },
    ),
    "pythia-1b": Published(_plain(262, 111_074, 19_736)),
    "bert-base-cased": Published(
        {}, {}, (75, 658, 1_341, 2_959, 11_764, 12_611, 6_671, 748, 37, 0)
    ),
}
"""Last part of a hub name, in lower case -> its numbers."""


def published_of(model: str) -> Published:
    """The published numbers of a model.

    Args:
        model: A hub name, or a folder of the same last name.

    Raises:
        UserError: When there are none.
    """
    name = model.rstrip("/").rpartition("/")[2].lower()
    if name not in PUBLISHED:
        raise UserError(
            f"--check published knows no numbers of the model {name!r}; it has those "
            f"of {', '.join(sorted(PUBLISHED))}"
        )
    return PUBLISHED[name]


def check_rows(results: Mapping[str, Any], published: Published) -> list[Row]:
    """One row a published number: place, what is counted, both numbers, difference."""
    layers = {layer["layer"]: layer["classes"] for layer in results["layers"]}
    found = [("all", results["total"]["classes"], published.total)]
    found += [(str(n), layers[n], of) for n, of in published.by_layer.items()]
    rows = [
        _row(place, name, counted[name], number)
        for place, counted, numbers in found
        for name, number in numbers.items()
    ]
    n_bins = len(published.bins)
    here = results["total"]["bins"]["in_out"]
    for k, number in enumerate(published.bins):
        low = -1 + 2 * k / n_bins
        title = f"cos(w_in, w_out) from {low:.1f} to {low + 2 / n_bins:.1f}"
        rows.append(_row("all", title, here[k], number))
    return rows


def _row(place: str, name: str, counted: int, number: int) -> Row:
    return {
        "layer": place,
        "neurons": name,
        "counted": counted,
        "published": number,
        "difference": counted - number,
    }
