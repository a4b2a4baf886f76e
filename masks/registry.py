"""The kinds of gates by name."""

from collections.abc import Callable

from circuitcut.masks.clamped import ClampedGate
from circuitcut.masks.gate import Gate, GateSettings
from circuitcut.masks.hard_concrete import HardConcreteGate
from circuitcut.masks.soft_topk import SoftTopKGate

GATES: dict[str, Callable[[int, GateSettings], Gate]] = {
    "hard_concrete": HardConcreteGate,
    "topk": SoftTopKGate,
    "clamped": ClampedGate,
}
