"""Tables of classes of neurons, and of what their ablation does."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports.sections.table import Table
from circuitcut.reports.tables import Row
from circuitcut.reports.weights.effect_tables import (
    activity_rows,
    attribute_rows,
    changed_rows,
    clean_rows,
    continued_rows,
    draw_rows,
    edge_effect_rows,
    layer_rows,
    lens_rows,
    reader_rows,
    reading_layer_rows,
    summary_rows,
)
from circuitcut.reports.weights.tables import (
    bin_rows,
    change_rows,
    class_rows,
    count_rows,
    median_rows,
    outside_rows,
    quartile_rows,
    region_rows,
    series_rows,
    total_rows,
    vocabulary_rows,
)

Results = Mapping[str, Any]
BY_CHANCE = (
    "By chance: as many neurons drawn from all of the model; in the same layers: as "
    "many drawn in every layer. Brackets: central 95 % (hypergeometric, exact). p: "
    "two-sided, against the draw in the same layers, not corrected for the classes."
)
WORDS = (
    "Scores: product of the vector, at length 1, with the token's unembedding (folded: "
    "times the gain of the final norm). +gate and -gate: w_gate and its opposite."
)


def weight_tables(results: Results) -> list[Table]:
    """Of the classes of neurons by their weights."""
    beta = results["beta"]
    regions = (
        f"Beta: independent Gaussian vectors in {beta['n_dimensions']} dimensions, "
        f"alpha {beta['alpha']:g}. Mismatched pairs: vectors of two different neurons "
        f"of one MLP, {results['weights']['n_pairs']:,} pairs drawn. Corrected: beta "
        f"at alpha / {results['n_units']:,} (Bonferroni, over the model's neurons)."
    )
    found = [
        Table("Neurons by class", total_rows(results), _weights_note(results)),
        Table("Neurons of other runs by class", count_rows(results), BY_CHANCE),
        Table("Tokens nearest to a neuron's vectors", vocabulary_rows(results), WORDS),
        Table("Neurons of each class by layer", class_rows(results)),
        Table(
            "Typical and atypical neurons together by layer",
            _grouped(results, "half_coarse"),
        ),
        Table(
            "Coarse classes by layer",
            _grouped(results, "coarse"),
            "By the sign of cos(w_in, w_out) alone.",
        ),
        Table("Medians by layer", median_rows(results)),
        Table("Quartiles by layer", quartile_rows(results)),
        Table("Neurons by cosine", bin_rows(results), "Bins include their lower end."),
        Table("Share of neurons outside chance", outside_rows(results), regions),
        Table("Regions of chance", region_rows(results), regions),
        Table("Classes along the training series", series_rows(results)),
        Table("Median cosine, first to last revision", change_rows(results)),
    ]
    return found


def effect_tables(results: Results) -> list[Table]:
    """Of ablated classes: effects per token, texts, rates and readers."""
    corpus, selection = results["corpus"], results["selection"]
    unit = "Loss and entropy in nats a token, rank 1 for the most likely token. "
    over = (
        f"{corpus['n_tokens']:,} tokens of {corpus['n_texts']:,} texts. Brackets: 95 % "
        "interval, of the class over texts, of a control over draws."
    )
    often = (
        "On: share of the tokens with a gate above 0. Quadrants: signs of the gate "
        f"and of the activation. Cosines: weights {selection['convention']}."
    )
    by = "Promoted and suppressed: change of the probability of the next token."
    return [
        Table("Ablated minus clean", summary_rows(results), unit + over),
        Table("How often neurons are on", activity_rows(results), often),
        Table("Texts that change most", changed_rows(results), by),
        Table(
            "How the model goes on",
            continued_rows(results),
            "Greedy continuations of the texts that change most.",
        ),
        Table(
            "Logit lens",
            lens_rows(results, most_changed_only=True),
            "Predictions of the residual stream behind every sublayer: final norm and "
            "unembedding. Of every condition the text that changes most, at the token "
            "that changes; P(next): probability of the true next token. The CSV file "
            "has the other texts too.",
            lens_rows(results),
        ),
        Table("Attributes rate by layer", attribute_rows(results), _rates(results)),
        Table(
            "Readers that notice the ablation",
            reader_rows(results, 10),
            _edges_note(results),
            reader_rows(results),
        ),
        Table("Readers by layer", reading_layer_rows(results)),
        Table("Edges of the ablation", edge_effect_rows(results)),
        Table("Every ablation and measure", draw_rows(results), unit + over),
        Table("The clean model", clean_rows(results), unit + over),
        Table("Frequencies by layer", layer_rows(results), often),
    ]


def _rates(results: Results) -> str:
    found = results.get("attributes") or {
        "n_subjects": 0,
        "n_top": 0,
        "source": "facts",
    }
    words = {
        "facts": "objects of their facts",
        "table": "a given table",
        "corpus": "paragraphs that BM25 ranks highest for their names",
    }
    n_common = found.get("n_common_words") or 0
    common = f", without {n_common:,} words that are common there" if n_common else ""
    return (
        f"{found['n_subjects']} subjects, at their last token, behind every block: of "
        f"the {found['n_top']} nearest tokens that are words, the percentage that are "
        f"the subject's own (words: {words[found['source']]}"
        f"{common}). Words of another subject: what counts by chance. Brackets: 95 % "
        "interval over subjects, of a control minus clean over draws, by Student's t."
    )


def _edges_note(results: Results) -> str:
    found = results.get("edges") or {"measure": "loss", "n_tokens": 0}
    return (
        f"Attribution patching on {found['n_tokens']:,} tokens, first draw of a "
        f"control: change of the {found['measure']} (nats a token) where this reader "
        "alone reads the ablated stream, to first order. Effects of different layers "
        "overlap: later readers also read what earlier ones made of it. Logits: all."
    )


def _grouped(results: Results, groups: str) -> list[Row]:
    return class_rows(results, groups) if results["weights"]["gated"] else []


def _weights_note(results: Results) -> str:
    weights = results["weights"]
    return (
        f"Threshold tau {weights['tau']:g}, convention {weights['convention']}"
        f"{', centred' if weights['centred'] else ''}, {weights['family']} of "
        f"{len(results['layers'])} layers, d_model {weights['d_model']}."
    )
