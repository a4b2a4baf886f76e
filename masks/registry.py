"""The kinds of gates by name, and the settings of all of them."""

from dataclasses import dataclass

from circuitcut.masks.clamped import ClampedGate, ClampedSettings
from circuitcut.masks.gate import Gate
from circuitcut.masks.hard_concrete import HardConcreteGate, HardConcreteSettings
from circuitcut.masks.soft_topk import SoftTopKGate, SoftTopKSettings

GATES: dict[str, type[Gate]] = {
    "hard_concrete": HardConcreteGate,
    "topk": SoftTopKGate,
    "clamped": ClampedGate,
}


@dataclass(frozen=True)
class GateSettings(SoftTopKSettings, HardConcreteSettings, ClampedSettings):
    """Settings of all gates; each gate declares its settings in its own file."""
