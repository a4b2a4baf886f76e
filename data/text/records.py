"""Records of the toxicity task: toxic texts, neutral texts of the same style, others.

Neutral and other texts (`wiki`) are both retained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from circuitcut.data.sampling import digest_of

TextKind = Literal["toxic", "neutral", "wiki"]
TEXT_KINDS: tuple[TextKind, ...] = ("toxic", "neutral", "wiki")


@dataclass(frozen=True)
class TextRecord:
    """One text; `neutral` texts have the same style as `toxic` ones, `wiki` do not."""

    text: str
    kind: TextKind
    spans: tuple[tuple[int, int], ...] = ()
    """Toxic ranges of characters; if empty, all characters of a toxic text."""
    document: str = ""
    """Texts of one document stay in one split; if empty, the text is its document."""
    unseen: bool = False


@dataclass(frozen=True)
class TextCorpus:
    """Records by split."""

    records: Mapping[str, tuple[TextRecord, ...]]

    @property
    def labels(self) -> list[str] | None:
        """None: the task has no classes."""
        return None

    def texts(self) -> list[str]:
        """Texts of the `base` split."""
        return [record.text for record in self.records["base"]]

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every record."""
        return digest_of(self.records)
