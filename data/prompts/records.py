"""Records of the task prompts: prompts with an answer, and texts to retain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from circuitcut.data.sampling import digest_of
from circuitcut.data.text.records import TextRecord

MASK = "[MASK]"
"""The place of the answer in a prompt; the tokenizer's own mask token is put there."""
MASK_SPELLINGS = (MASK, "<mask>")


@dataclass(frozen=True)
class PromptRecord:
    """A prompt with its answer or, where `answer` is empty, a text to retain."""

    text: str
    """The answer follows it, or stands at its `MASK`."""
    answer: str = ""
    continues: bool = False
    """The answer continues the last word of the prompt: no space is put between."""
    rivals: tuple[str, ...] = ()
    """Wrong answers of the same kind."""
    named: bool = True
    """Whether the data name the rivals. Otherwise the answer has to beat every token,
    and `rivals` are answers of other rows."""
    counterfactual: str | None = None
    group: str = ""
    """Prompts of one group stay in one split; if empty, each prompt is its own group.
    """
    where: str = ""
    """File and line, for messages."""
    unseen: bool = False
    """No prompt of another split has this answer."""


@dataclass(frozen=True)
class PromptsCorpus:
    """Records by split, prompts first.

    Where the prompts are facts, `base` has those of all splits.
    """

    records: Mapping[str, tuple[PromptRecord, ...]]

    @property
    def labels(self) -> list[str] | None:
        """None: the task has no classes."""
        return None

    def everything(self) -> list[PromptRecord]:
        """The records of all splits, those of `base` first, each once."""
        splits = sorted(self.records, key=lambda split: split != "base")
        return list(dict.fromkeys(r for split in splits for r in self.records[split]))

    def texts(self) -> list[str]:
        """Full texts of the `base` split, answers included."""
        return [completed(record) for record in self.records["base"]]

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every record."""
        return digest_of(self.records)


def with_further_texts(
    corpus: PromptsCorpus, texts: Mapping[str, Sequence[TextRecord]]
) -> PromptsCorpus:
    """The corpus with further texts to retain, by split."""
    return PromptsCorpus(
        {
            split: (*rows, *text_records(texts.get(split, ())))
            for split, rows in corpus.records.items()
        }
    )


def text_records(texts: Sequence[TextRecord]) -> tuple[PromptRecord, ...]:
    """Texts to retain as records without an answer."""
    return tuple(PromptRecord(text.text, unseen=True) for text in texts)


def around(record: PromptRecord) -> tuple[str, str]:
    """The text before and after the answer of a prompt."""
    if MASK in record.text:
        before, _, after = record.text.partition(MASK)
        return before, after
    return record.text + " " * (not record.continues), ""


def completed(record: PromptRecord) -> str:
    """The prompt with its answer; a text to retain as it is."""
    if not record.answer:
        return record.text
    before, after = around(record)
    return f"{before}{record.answer}{after}"


def places(records: Sequence[PromptRecord]) -> str:
    """`data.csv, line 3, line 7 and 4 more`: where some prompts stand."""
    ordered = sorted((record.where for record in records), key=lambda w: (len(w), w))
    file = ordered[0].split(",")[0]
    shown = [where.removeprefix(f"{file}, ") for where in ordered[:5]]
    more = f" and {len(records) - 5} more" if len(records) > 5 else ""
    return f"{file}, {', '.join(shown)}{more}"


Column = Literal[
    "prompt", "answer", "rivals", "counterfactual", "group", "relation", "retained"
]
COLUMNS: dict[Column, tuple[str, ...]] = {
    "prompt": ("prompt", "clean", "clean_prompt", "question", "query", "sentence"),
    "answer": ("answer", "target", "attribute", "object", "ans", "correct_answer"),
    "rivals": (
        *("rivals", "rival", "distractors", "wrong_answers", "wrong_answer", "foil"),
        *("candidates", "candidate_ans", "choices", "options"),
    ),
    "counterfactual": (
        *("counterfactual", "counterfactual_prompt", "corrupted", "corrupted_prompt"),
        "abc_counterfactual",
    ),
    "group": ("group", "cluster", "document", "subject"),
    "relation": ("relation", "relation_id", "category"),
    "retained": ("retained", "retain", "retained_text", "retain_text"),
}
"""Usual names of each column, the first that a row has counts; case, spaces, hyphens
and underscores make no difference."""
