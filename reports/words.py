"""Names and numbers as a reader sees them: metrics, methods, conditions, shares."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Interval = Sequence[float | None]

METRICS = {
    "concept_f1": "F1 of the concept",
    "retain_f1": "F1 of other types",
    "concept_nll": "loss on the concept",
    "concept_accuracy": "accuracy on the concept",
    "retain_accuracy": "accuracy on the rest",
    "accuracy": "accuracy on the concept",
    "toxic_nll": "loss on toxic text",
    "retain_nll": "loss on the rest",
    "logit_difference": "logit difference (nats)",
    "margin": "margin (nats)",
    "top1": "top-1 accuracy",
    "p_io": "P(indirect object)",
    "p_answer": "P(answer)",
    "log_p": "log P(answer) (nats)",
    "other_accuracy": "accuracy on other facts",
    "other_top1": "top-1 accuracy on other facts",
    "other_p_answer": "P(answer) of other facts",
    "other_log_p": "log P(answer) of other facts (nats)",
    "near_accuracy": "accuracy on neighbours",
    "near_top1": "top-1 accuracy on neighbours",
    "near_p_answer": "P(answer) of neighbours",
    "near_log_p": "log P(answer) of neighbours (nats)",
    "template_nll": "loss on the prompts' other words (nats per token)",
    "copy_nll": "loss on texts that copy names (nats per token)",
    "neutral_nll": "loss on neutral text (nats per token)",
    "wiki_nll": "loss on further text to retain (nats per token)",
    "toxic_share": "continuations called toxic",
    "toxic_share_of_toxic_prompts": "continuations of toxic prompts called toxic",
    "continuation_perplexity": "perplexity of continuations (uncut model)",
    "n_prompts": "number of continuations",
    "classifier_accuracy": "accuracy of the classifier of continuations",
    "classifier_balanced_accuracy": "its balanced accuracy",
    "generated": "object within ten generated tokens",
    "choice_accuracy": "accuracy of multiple choice",
    "choice_chance": "multiple choice, of a guess",
    "other_generated": "object within ten generated tokens, other facts",
    "other_choice_accuracy": "accuracy of multiple choice, other facts",
    "other_choice_chance": "multiple choice, of a guess, other facts",
    "near_generated": "object within ten generated tokens, neighbours",
    "kl_concept": "KL to uncut, concept (nats)",
    "kl_retain": "KL to uncut, rest (nats)",
}
"""Key of a score -> its name; another key is shown without its underscores."""
BESIDE = ("other_accuracy", "near_accuracy")
"""Scores of what must survive beside the plain text, of the task facts."""
FURTHER = ("logit_difference", "margin", "top1", *BESIDE)
"""Scores that tables show beside both main ones, where a run has them."""
OF_A_GUESS = {"logit_difference": 0.0, "margin": 0.0}
"""What a guess scores, by definition; of main scores their metric says it."""
UNITS = {"fraction": "0 to 1", "nats/token": "nats per token"}
METHODS = {
    "learned": "learned mask",
    "topk": "soft top-k (learned)",
    "hard_concrete": "hard-concrete (learned)",
    "clamped": "clamped (learned)",
    "gradient_concept_loss": "gradient \u00d7 activation of the loss",
    "gradient_margin": "gradient \u00d7 activation of the margin",
    "gradient_margin_over_retain": "margin gradient over retain sensitivity",
    "greedy_margin": "greedy re-attribution",
    "integrated_gradients_margin": "integrated gradients of the margin",
    "probeless": "probeless (mean difference)",
    "eap": "EAP",
    "eap_ig": "EAP-IG",
    "patching": "exact patching",
    "acdc": "ACDC",
}
CONDITIONS = {
    "random": "random cut",
    "retain_only": "cut, no concept examples",
    "never_learned": "never learned the concept",
}
HOLDINGS = {"lasting": "mask held", "one_shot": "written once"}


def metric_name(metric: Mapping[str, Any]) -> str:
    """Name of a score, without its unit; runs before December 2026 have no label."""
    return metric.get("label") or METRICS.get(
        metric["name"], metric["name"].replace("_", " ")
    )


def score_name(results: Mapping[str, Any], key: str) -> str:
    """Name of a score by its key; a run's main scores have those of its metrics."""
    for side in ("concept", "retain"):
        metric = results.get(f"{side}_metric")
        if metric and metric["name"] == key:
            return metric_name(metric)
    return METRICS.get(key, key.replace("_", " "))


def metric_unit(metric: Mapping[str, Any]) -> str:
    """Unit of a score in words; empty where it has none."""
    unit = metric.get("unit") or ""
    return UNITS.get(unit, unit)


def metric_label(metric: Mapping[str, Any], width: int = 60) -> str:
    """Axis label of a score: name and unit, on two lines beyond so many characters."""
    name, unit = metric_name(metric), metric_unit(metric)
    if not unit:
        return name
    between = " " if len(name) + len(unit) + 3 <= width else "\n"
    return f"{name}{between}({unit})"


def method_name(method: str) -> str:
    """Name of a ranking: a gate or an attribution method."""
    return METHODS.get(method, method.replace("_", " "))


def ranking_name(entry: Mapping[str, Any]) -> str:
    """`EAP`, or `EAP, absolute` where the signs of its scores were left out."""
    name = method_name(entry["method"])
    return f"{name}, absolute" if entry["order"] == "absolute" else name


def condition_name(entry: Mapping[str, Any]) -> str:
    """`cut, mask held`; the uncut model has no holding."""
    name, holding = entry["condition"], entry.get("holding")
    parts = [CONDITIONS.get(name, name.replace("_", " "))]
    if holding:
        parts.append(HOLDINGS.get(holding, holding.replace("_", " ")))
    return ", ".join(parts)


def limit_name(limit: int | None) -> str:
    """Number of training examples that hold the concept."""
    return "all" if limit is None else f"{limit:,}"


def examples(limit: int | None) -> str:
    """`16 concept examples`, `all concept examples`."""
    return f"{limit_name(limit)} concept example{'' if limit == 1 else 's'}"


def plural(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def number_word(n: int) -> str:
    """A small number at the start of a sentence: `Three`."""
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
    return words[n] if n < len(words) else f"{n:,}"


def layer_name(layer: int) -> str:
    """A layer's number; layer -1 is the embedding level."""
    return "emb." if layer < 0 else str(layer)


def long_layer_name(layer: int) -> str:
    """A layer in a sentence or a table of levels."""
    return "embeddings" if layer < 0 else f"layer {layer}"


LARGEST_IN_FULL = 1e9
"""Larger numbers are written as powers of ten."""


def format_cell(value: Any) -> str:
    """A value in few characters: three significant decimals, thousands grouped."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return ""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    if abs(value) >= LARGEST_IN_FULL:
        return f"{value:.1e}"
    return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def with_interval(value: float | None, interval: Interval | None) -> str:
    """`0.123 [0.100, 0.150]`, without brackets where no interval is known."""
    text = format_cell(value)
    if value is None or interval is None or None in interval:
        return text
    low, high = map(format_cell, interval)
    return f"{text} [{low}, {high}]"


def percent(share: float, decimals: int = 0) -> str:
    """A share as `92 %`; one that would be rounded to 0 has one significant digit."""
    text = f"{100 * share:.{decimals}f}"
    if share > 0 and float(text) == 0:
        text = f"{100 * share:.1g}" if 100 * share >= 1e-4 else "< 0.0001"
    return f"{text} %"


def percent_with_interval(share: float, interval: Interval | None) -> str:
    """`92 % [90, 94]`, without brackets where no interval is known."""
    if interval is None or any(end is None for end in interval):
        return percent(share)
    low, high = (f"{100 * (end or 0.0):.0f}" for end in interval)
    return f"{percent(share)} [{low}, {high}]"


def count_of(n: int, total: int) -> str:
    """`164 of 1,032`."""
    return f"{n:,} of {total:,}"


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def mean_and_range(values: Sequence[float | None]) -> str:
    """`0.903 (0.883 to 0.924)`, without a range of a single value."""
    known = [value for value in values if value is not None]
    text = format_cell(mean(known)) or "undefined"
    if len(known) < 2:
        return text
    return f"{text} ({format_cell(min(known))} to {format_cell(max(known))})"
