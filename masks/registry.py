"""The kinds of gates by name."""

from circuitcut.masks.clamped import ClampedGate
from circuitcut.masks.gate import Gate
from circuitcut.masks.gate_settings import GateSettings as GateSettings
from circuitcut.masks.hard_concrete import HardConcreteGate
from circuitcut.masks.soft_topk import SoftTopKGate

GATES: dict[str, type[Gate]] = {
    "hard_concrete": HardConcreteGate,
    "topk": SoftTopKGate,
    "clamped": ClampedGate,
}
