"""Indirect objects: the answer to `... Ann and Bob ..., Bob gave the book to` is `Ann`.

Wang et al. (2022), "Interpretability in the Wild: a Circuit for Indirect Object
Identification in GPT-2 small", https://arxiv.org/abs/2211.00593. The concept is the
answer at the last position of a prompt; its rival is the name that occurs twice.
Retained are texts that copy no names (they give the retain score) and the other tokens
of the prompts. Texts that copy names outside prompts use the same circuit; their score
is reported but not retained. The user's own text (`--retain_data`) is retained too and
also scored separately.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.data.hub import HUB_PREFIX
from circuitcut.data.ioi.files import prompt_records, split_prompts
from circuitcut.data.ioi.generated import generate_ioi
from circuitcut.data.ioi.records import IoiCorpus, IoiKind, with_further_texts
from circuitcut.data.sampling import draw, draw_from
from circuitcut.data.tables import read_hub_table, read_tables
from circuitcut.data.text.files import read_retained
from circuitcut.data.text.splits import split_retained
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import (
    NO_TARGET,
    Batch,
    Head,
    Metric,
    Split,
    TaskOptions,
    check_limit,
)
from circuitcut.tasks.language_rows import (
    Row,
    collate,
    counted_nll,
    of_vocabulary,
    pad_id_of,
    prefix_ids,
    share,
)
from circuitcut.tasks.rows.answers import AnswerTask
from circuitcut.tasks.rows.ioi import KINDS, ioi_rows, one_token_names
from circuitcut.tasks.settings.ioi import DEFAULTS

SEVERAL = "builtin:several"
"""Value of `data` that selects the built-in corpus with several behaviours."""
CONCEPT_SHARE = 0.5
"""Share of prompts in a mask-training batch; the rest is text to retain."""


class IoiTask(AnswerTask):
    """Prompts whose answer is one of two names, each of which is a single token.

    Batches hold further integers per example: `kind` (index into `KINDS`), `io_id` and
    `s_id` (tokens of the answer and of its rival), `io_position`, `s1_position`,
    `s2_position` and `end_position`; a missing one is -1. Prompts with a name of
    several tokens are left out; `name_ids` maps the other names to their tokens. Each
    prompt is its own cluster.

    Raises:
        UserError: When fewer than 20 names are single tokens, or a split is empty.
    """

    name: ClassVar[str] = "ioi"
    head: ClassVar[Head] = "causal_lm"
    concept_metric = Metric("accuracy", True, "fraction", 0.5, "IOI accuracy")
    retain_metric = Metric("retain_nll", False, "nats/token", 0.0, "loss on other text")
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> IoiCorpus:
        """Built-in prompts, or tables of prompts (docs/formats.md).

        `--data builtin:several` gives the built-in prompts together with texts of two
        further behaviours, so that the model has several circuits.
        """
        corpus = cls._prompts(options)
        if options.retain_data is None:
            return corpus
        texts = read_retained(options.retain_data, options.text_column)
        further = split_retained(texts, seed=options.split_seed)
        return with_further_texts(
            corpus,
            {split: [text.text for text in rows] for split, rows in further.items()},
        )

    @classmethod
    def _prompts(cls, options: TaskOptions) -> IoiCorpus:
        if options.data in (None, SEVERAL):
            several = options.data == SEVERAL
            return generate_ioi(options.split_seed, several=several)
        if options.data.startswith(HUB_PREFIX):
            rows = read_hub_table(
                options.data, options.hub_config, options.hub_revision
            )
        else:
            rows = read_tables(Path(options.data), options.data_format)
        records = prompt_records(rows, options.text_column, options.label_column)
        return split_prompts(records, seed=options.split_seed)

    def __init__(self, corpus: IoiCorpus, tokenizer: Any, options: TaskOptions):
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._max_length = options.max_length
        self.retain_metric = of_vocabulary(self.retain_metric, tokenizer)
        self._prefix = prefix_ids(tokenizer, options)
        self._has_wiki = any(r.kind == "wiki" for r in corpus.records["heldout"])
        self._rows: dict[str, list[Row]] = {}
        self._indices: dict[str, dict[IoiKind, list[int]]] = {}
        prompts = {
            split: [record for record in records if record.kind == "ioi"]
            for split, records in corpus.records.items()
        }
        self.name_ids = one_token_names(
            {
                name
                for rows in prompts.values()
                for r in rows
                for name in (r.io, r.subject)
            },
            tokenizer,
        )
        for split, rows in prompts.items():
            if not any({r.io, r.subject} <= self.name_ids.keys() for r in rows):
                raise UserError(
                    f"split {split!r} must have prompts whose names are single tokens, "
                    "got none; use another model or prompts with more common names"
                )

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Half prompts, half texts without names; half of these are the user's own."""
        n_prompts = max(1, round(CONCEPT_SHARE * size))
        n_wiki = (size - n_prompts) // 2 if self._has_wiki else 0
        n_text = size - n_prompts - n_wiki
        chosen: list[int] = []
        shares: dict[IoiKind, int] = {"ioi": n_prompts, "text": n_text, "wiki": n_wiki}
        for kind, n in shares.items():
            pool = self._of_kind(split, kind)
            drawn = draw(len(pool), step, n, "mask", split, kind, seed) if pool else []
            chosen += [pool[i] for i in drawn[:n]]
        return self._collated(split, chosen)

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Prompts with answers, and texts; the first mention of a name is no target."""
        pool: Sequence[int] = range(self.n_examples(split))
        if limit is not None:
            prompts = self._of_kind(split, "ioi")
            check_limit(limit, len(prompts), split)
            pool = prompts[:limit]
        chosen = draw(len(pool), step, size, "finetune", split, seed)
        return self._collated(split, [pool[i] for i in chosen])

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Texts of all kinds (also those that copy names), drawn epoch by epoch.

        Raises:
            UserError: When the split has no texts.
        """
        pool = [
            i for kind in KINDS if kind != "ioi" for i in self._of_kind(split, kind)
        ]
        chosen = draw_from(pool, step, size, "without concept", split, seed)
        return self._collated(split, chosen)

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """Every prompt and text once: first prompts, then texts without names."""
        for piece in self.pieces(split, range(self.n_examples(split)), size):
            yield self._collated(split, piece)

    def kinds(self, split: Split, examples: Sequence[int]) -> Sequence[tuple[str, ...]]:
        """Prompts, and texts of each kind."""
        rows = self._rows_of(split)
        names = [KINDS[rows[i].numbers["kind"]] for i in examples]
        return [(name,) if name == "ioi" else ("text", name) for name in names]

    def n_examples(self, split: Split) -> int:
        """Number of prompts and texts of a split."""
        return len(self._rows_of(split))

    def counterfactual(self, batch: Batch) -> Batch:
        """Prompts with three other names at the same positions; texts are unchanged."""
        # a batch of texts only has no "corrupted_ids"
        paired = batch.get("corrupted_ids", batch["input_ids"])
        return {**batch, "input_ids": paired}

    def rivals(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position rival"] | None:
        """At the end of prompts the name that occurs twice; else all other tokens."""
        if not (where & batch["concept"]).any():
            return None
        return batch["s_id"][where.nonzero()[:, 0]].unsqueeze(-1)

    def counted(self, batch: Batch) -> Bool[Tensor, "batch seq"]:
        """Answers, retained tokens, and the tokens of texts that copy names."""
        is_copy = (batch["kind"] == KINDS.index("copy"))[:, None]
        copied = is_copy & (batch["targets"] != NO_TARGET)
        return batch["concept"] | batch["retain"] | copied

    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Prompts: hits and logit differences; other tokens: summed nats and counts."""
        where = self.counted(batch)
        logits = self.logits(model, batch).float()
        nll = counted_nll(logits, batch, where)
        is_prompt = batch["kind"] == KINDS.index("ioi")
        is_copy = batch["kind"] == KINDS.index("copy")
        is_wiki = batch["kind"] == KINDS.index("wiki")
        counts = _answer_counts(logits[batch["concept"][where]], batch, is_prompt)
        positions = {
            "retain": batch["retain"] & ~is_prompt[:, None],
            "template": batch["retain"] & is_prompt[:, None],
            "copy": (batch["targets"] != NO_TARGET) & is_copy[:, None],
        }
        if self._has_wiki:
            positions["wiki"] = batch["retain"] & is_wiki[:, None]
        for name, where in positions.items():
            counts[f"{name}_nats"] = (nll * where).sum(-1)
            counts[f"{name}_tokens"] = where.sum(-1).float()
        return counts

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Accuracy (logit difference > 0), top-1 and P(IO); NLL of the other tokens."""
        scores = {
            name: share(counts[name], counts["prompts"])
            for name in ("accuracy", "logit_difference", "top1", "p_io")
        }
        for name in ("retain", "template", "copy", *["wiki"] * self._has_wiki):
            nats, tokens = counts[f"{name}_nats"], counts[f"{name}_tokens"]
            scores[f"{name}_nll"] = share(nats, tokens)
        return scores

    def _rows_of(self, split: str) -> list[Row]:
        if split not in self._rows:
            self._rows[split] = ioi_rows(
                self._corpus.records[split],
                self._tokenizer,
                self.name_ids,
                unseen_names=self._corpus.unseen_names,
                max_length=self._max_length,
                prefix=self._prefix,
            )
        return self._rows[split]

    def _of_kind(self, split: str, kind: IoiKind) -> list[int]:
        if split not in self._indices:
            rows = self._rows_of(split)
            self._indices[split] = {
                kind: [i for i, row in enumerate(rows) if row.numbers["kind"] == index]
                for index, kind in enumerate(KINDS)
            }
        return self._indices[split][kind]

    def _collated(self, split: str, indices: Sequence[int]) -> Batch:
        rows = self._rows_of(split)
        return collate([rows[i] for i in indices], pad_id_of(self._tokenizer))


def _answer_counts(
    at_end: Float[Tensor, "prompt vocab"], batch: Batch, is_prompt: Tensor
) -> dict[str, Tensor]:
    """Scores of the answer at the end of every prompt; zero for texts."""
    rows = is_prompt.nonzero()[:, 0]
    io, subject = batch["io_id"][rows], batch["s_id"][rows]
    io_logit = at_end.gather(1, io[:, None]).squeeze(1)
    difference = io_logit - at_end.gather(1, subject[:, None]).squeeze(1)
    answers = {
        "accuracy": (difference > 0).float(),
        "logit_difference": difference,
        "top1": (at_end.argmax(-1) == io).float(),
        "p_io": (io_logit - at_end.logsumexp(-1)).exp(),
    }
    counts = {"prompts": is_prompt.float()}
    for name, values in answers.items():
        counts[name] = values.new_zeros(len(is_prompt)).index_copy(0, rows, values)
    return counts
