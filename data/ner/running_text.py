"""Tagged sentences as text of a language model, which has no classes of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from circuitcut.data.ner.corpus import NerCorpus
from circuitcut.data.ner.tagged import TaggedSentence
from circuitcut.data.splits import Split


@dataclass(frozen=True)
class RunningText:
    """Sentences by split; their tags say which words are the concept."""

    tagged: NerCorpus

    @property
    def splits(self) -> Mapping[Split, tuple[TaggedSentence, ...]]:
        """Sentences by split."""
        return self.tagged.splits

    @property
    def labels(self) -> list[str] | None:
        """None: the classes are the tokens of the model."""
        return None

    def texts(self) -> list[str]:
        """Sentences of the `base` split, words joined by spaces."""
        return self.tagged.texts()

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every word, tag and document number."""
        return self.tagged.fingerprint()
