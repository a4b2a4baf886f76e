"""The kinds of gates by name."""

from collections.abc import Callable

from masks.clamped import ClampedGate
from masks.gate import Gate, GateSettings
from masks.hard_concrete import HardConcreteGate
from masks.soft_topk import SoftTopKGate

GATES: dict[str, Callable[[int, GateSettings], Gate]] = {
    "hard_concrete": HardConcreteGate,
    "topk": SoftTopKGate,
    "clamped": ClampedGate,
}
