"""Which facts a model knows: their object has rank 1 in half of the prompts or more.

An object of several tokens has rank 1 if each of its tokens has, behind the others (a
causal model) or at its own mask (a masked one).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from circuitcut.storage.atomic import read_object, write_json
from circuitcut.storage.cache import cache_folder, content_hash
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown
from circuitcut.storage.reading.typed_fields import check_type
from circuitcut.tasks.facts.asked import AskedPrompt, answer_positions, padded_prompts
from circuitcut.tasks.selected_logits import logits_at

KNOWN_SHARE = 0.5
"""Share of a fact's prompts in which its object has rank 1, for it to be known."""
FORMAT = 1  # part of the cache's keys: raise it when the measure changes
_TOKENS_AT_ONCE = 2048
logger = logging.getLogger(__name__)


def right_prompts(
    prompts: Sequence[AskedPrompt], model: nn.Module, pad_id: int
) -> list[bool]:
    """Whether every token of the object has the highest logit, prompt by prompt."""
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].whole_ids))
    right = [False] * len(prompts)
    with evaluating(model), torch.no_grad():
        for group in shown(_in_groups(prompts, order), "known facts"):
            batch = padded_prompts([prompts[i] for i in group], pad_id, whole=True)
            moved = {name: value.to(device) for name, value in batch.items()}
            for i, is_right in zip(group, _right(model, moved), strict=True):
                right[i] = is_right
    return right


def _in_groups(prompts: Sequence[AskedPrompt], order: Sequence[int]) -> list[list[int]]:
    """Prompts of like length, a few thousand tokens together."""
    groups: list[list[int]] = []
    for i in order:
        length = len(prompts[i].whole_ids)
        if not groups or (len(groups[-1]) + 1) * length > _TOKENS_AT_ONCE:
            groups.append([])
        groups[-1].append(i)
    return groups


def _right(model: nn.Module, batch: dict[str, Tensor]) -> list[bool]:
    where = answer_positions(batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    best = logits_at(model, inputs, where).argmax(-1)
    answers = batch["answer_ids"]
    hits = best == answers[answers >= 0]
    n_hits = torch.zeros_like(batch["position"]).index_add(
        0, where.nonzero()[:, 0], hits.long()
    )
    return (n_hits == batch["n_answer"]).tolist()


def cached_right_prompts(
    prompts: Sequence[AskedPrompt], model: nn.Module, pad_id: int, *key: str
) -> list[bool]:
    """`right_prompts`, computed once for a model, tokenizer and data.

    Args:
        key: Hashes of everything that decides the answers.
    """
    file = cache_folder() / "known" / f"{content_hash(str(FORMAT), *key)[:24]}.json"
    if (found := _read(file, len(prompts))) is not None:
        return found
    right = right_prompts(prompts, model, pad_id)
    write_json(file, {"right": right})
    return right


def _read(file: Path, n: int) -> list[bool] | None:
    """What the cache has; None where it has nothing, or a damaged file."""
    if not file.exists():
        return None
    try:
        content = read_object(file)
        check_type(content.get("right"), list[bool], f"{file}: entry right")
    except UserError as error:
        logger.warning("%s; the known facts are found anew", error)
        return None
    return content["right"] if len(content["right"]) == n else None


def shares_right(
    prompts: Sequence[AskedPrompt], right: Sequence[bool], n_facts: int
) -> list[float]:
    """Share of each fact's prompts that are right; 0 of a fact without a prompt."""
    n_prompts, n_right = [0] * n_facts, [0] * n_facts
    for prompt, is_right in zip(prompts, right, strict=True):
        n_prompts[prompt.fact] += 1
        n_right[prompt.fact] += is_right
    return [hits / max(1, n) for hits, n in zip(n_right, n_prompts, strict=True)]
