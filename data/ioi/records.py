"""Records of the indirect-object task: prompts with two names, and other text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from circuitcut.data.sampling import digest_of

IoiKind = Literal["ioi", "three_names", "text", "copy", "wiki"]


@dataclass(frozen=True)
class IoiRecord:
    """One prompt or one text.

    A record of kind `ioi` is a prompt that stops before the answer, the name `io`;
    `subject` is the name that occurs twice. `three_names` is a prompt with its answer
    in which no name is repeated before the answer. `text` copies nothing; `copy`
    repeats names in other ways than the prompts do; `wiki` is further text to retain.
    """

    text: str
    kind: IoiKind
    io: str = ""
    subject: str = ""
    corrupted: str | None = None
    """The prompt with three other names at the same places; None when not given."""
    template: int = -1
    """Index of the generator's template; -1 for everything else."""


@dataclass(frozen=True)
class IoiCorpus:
    """Records by split, and the names that only the held-out prompts contain."""

    records: Mapping[str, tuple[IoiRecord, ...]]
    unseen_names: frozenset[str]

    @property
    def labels(self) -> list[str] | None:
        """None: the task has no classes."""
        return None

    def texts(self) -> list[str]:
        """Full texts of the `base` split, answers included."""
        return [completed(record) for record in self.records["base"]]

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every record and of the held-out names."""
        return digest_of(self.records, repr(sorted(self.unseen_names)))


def with_further_texts(
    corpus: IoiCorpus, texts: Mapping[str, Sequence[str]]
) -> IoiCorpus:
    """The corpus with further texts to retain, by split."""
    records = {
        split: (*rows, *(IoiRecord(text, "wiki") for text in texts[split]))
        for split, rows in corpus.records.items()
    }
    return replace(corpus, records=records)


def completed(record: IoiRecord) -> str:
    """The text followed by the answer, if the record has one."""
    return f"{record.text} {record.io}" if record.kind == "ioi" else record.text
