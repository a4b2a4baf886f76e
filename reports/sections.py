"""What the report shows of every kind of run: its tables, and the words it uses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitcut.reports import knowledge
from circuitcut.reports.circuits.edge_names import edge_rows, head_rows
from circuitcut.reports.circuits.trace_map import effect_rows
from circuitcut.reports.facts import tables as of_facts
from circuitcut.reports.load import Run
from circuitcut.reports.stages.change_tables import (
    level_change_rows,
    polysemantic_change_rows,
    relearned_rows,
)
from circuitcut.reports.stages.statements import statement_rows
from circuitcut.reports.stages.tables import level_rows, scan_rows, stage_rows
from circuitcut.reports.stages.unit_tables import (
    flat,
    overlap_rows,
    polysemantic_rows,
    ranking_rows,
    scan_data,
    similarity_rows,
    took_over_rows,
    type_rows,
)
from circuitcut.reports.tables import (
    RECOVERY_NOTE,
    Row,
    all_score_rows,
    area_rows,
    curve_rows,
    faithfulness_rows,
    further_relearning_rows,
    named_scores,
    published_rows,
    recovery_rows,
    relearning_rows,
    score_rows,
    site_rows,
    stability_rows,
)
from circuitcut.reports.verdict import THRESHOLDS
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
from circuitcut.reports.whereabouts import location_rows, probe_rows, word_rows
from circuitcut.reports.words import format_cell, metric_name, metric_unit, plural

Results = Mapping[str, Any]
MOST_SHARED = 40
OVER_DOCUMENTS = "Brackets: 95 % bootstrap interval over documents."


@dataclass(frozen=True)
class Table:
    """A table with its heading and, below it, units, baseline and intervals."""

    title: str
    rows: list[Row]
    note: str = ""
    data: list[Row] = field(default_factory=list)
    """Rows of the CSV file, where it has more than is shown."""


def _metric_note(results: Results) -> str:
    """Names, units and directions of both scores."""
    said = []
    for side, name in (("concept", "concept"), ("retain", "rest")):
        metric = results[f"{side}_metric"]
        unit = metric_unit(metric)
        better = "higher" if metric["higher_is_better"] else "lower"
        said.append(
            f"Score of the {name}: {metric_name(metric)}{f', {unit}' if unit else ''}; "
            f"{better} means more ability{_guess(metric)}."
        )
    return " ".join(said)


def _guess(metric: Results) -> str:
    """What a guess scores, where it is not 0."""
    chance = metric.get("chance")
    return f"; chance: {format_cell(chance)}" if chance else ""


FURTHER_NOTES = {
    "logit_difference": "Logit difference: logit of the right answer minus that of the "
    "best wrong one, in nats; 0 at chance.",
    "margin": "Margin: how far the right answer is preferred, in nats; 0 at chance.",
    "top1": "Top-1 accuracy: share of prompts whose most probable token, of the whole "
    "vocabulary, is the right one, 0 to 1; chance is near 0.",
    "other_accuracy": "Accuracy on other facts: share of the prompts about known facts "
    "of other relations whose object beats the other objects of its relation, 0 to 1.",
    "near_accuracy": "Accuracy on neighbours: the same of prompts about other subjects "
    "of which the concept's objects are true, 0 to 1.",
    "kl_retain": "KL: mean KL(uncut \u2016 cut) per position, in nats; 0 is no change "
    "of the predictions.",
}
"""Score -> what it is, its unit and its value at chance."""


def _further_note(scored: Iterable[Results]) -> str:
    """What the tables' further scores are, of those that were measured."""
    known = {key for scores in scored for key in scores}
    return " ".join(note for key, note in FURTHER_NOTES.items() if key in known)


def _score_tables(results: Results) -> list[Table]:
    """Scores of the run's models, on all held-out data and on unseen entities alone."""
    models = [scores for _, scores in named_scores(results["scores"])]
    models += [entry["scores"] for entry in results.get("curve") or []]
    note = f"{_metric_note(results)} {_further_note(models)}".strip()
    tables = [Table("Scores on held-out data", score_rows(results), note)]
    if results.get("intervals"):
        tables[0] = Table(tables[0].title, tables[0].rows, f"{OVER_DOCUMENTS} {note}")
    if results.get("unseen"):
        unseen = {**results, "scores": results["unseen"], "intervals": {}}
        title = "Scores on held-out examples whose entities occur in no other split"
        tables.append(Table(title, score_rows(unseen), note))
    return [
        *tables,
        Table(
            "Scores by number of units ablated",
            curve_rows(results),
            f"{note} {OVER_DOCUMENTS}",
        ),
        Table("All scores on held-out data", all_score_rows(results), note),
        *_name_tables(results),
        Table(
            "Heads of the published circuit (Wang et al. 2022) in the mask",
            published_rows(results),
        ),
    ]


def _mask_tables(results: Results) -> list[Table]:
    return [*_score_tables(results), *_site_table(results)]


def _name_tables(results: Results) -> list[Table]:
    """Every edge and head that the mask is about, by name."""
    order = "Strongest first: the edges that the ranking chose first, of those shown."
    scored = (results.get("circuit") or {}).get("scores")
    return [
        Table("Edges by name", edge_rows(results), order if scored else ""),
        Table("Heads by name", head_rows(results)),
    ]


def _import_tables(results: Results) -> list[Table]:
    return [*_site_table(results), *_name_tables(results)]


def _site_table(results: Results) -> list[Table]:
    note = "Of edges: those that the layer's heads and MLP read."
    edges = any(site["kind"] == "edges" for site in results["per_site"])
    return [Table("Units ablated by layer", site_rows(results), note if edges else "")]


def _relearn_tables(results: Results) -> list[Table]:
    smallest = min((entry["minimum"] for entry in results["recovery"]), default=0.0)
    n_seeds = max((entry["n_seeds"] for entry in results["summary"]), default=1)
    over = "seeds and documents" if n_seeds > 1 else "documents"
    brackets = f"Brackets: 95 % bootstrap interval over {over}."
    metrics = _metric_note(results)
    return [
        Table(
            "Recovery of the concept after the last step",
            recovery_rows(results),
            f"{brackets} {RECOVERY_NOTE} Smallest denominator: "
            f"{format_cell(smallest)}. Steps to 90 %: first measured step at which cut "
            "/ uncut is at least .9.",
        ),
        Table(
            "Scores before and after relearning",
            relearning_rows(results),
            f"Means over {plural(n_seeds, 'seed')}. {brackets} {metrics}",
        ),
        Table(
            "Further scores before and after relearning",
            further_relearning_rows(results),
            f"Means over {plural(n_seeds, 'seed')}. "
            + _further_note(row["scores"] for row in results["rows"]),
        ),
        Table(
            "Linear probes right after the cut",
            probe_rows(results),
            "AUC: area under the ROC curve of a logistic regression on the hidden "
            "states; 1: the concept can be decoded, .5: chance. Shuffled labels: "
            "control.",
        ),
        Table(
            "Where the concept is after relearning",
            location_rows(results),
            "Top units: ranked by mean difference. Overlap: Jaccard index, from 0 to "
            "1. A held mask has overlap 0, since its units are constant.",
        ),
        Table(
            "Words to which the concept's top units respond",
            word_rows(results),
            "The words with the largest mean activation (in brackets) on held-out "
            "data. Cut model relearned from most examples, first seed.",
        ),
    ]


def _faithfulness_tables(results: Results) -> list[Table]:
    kinds = " and ".join(results["units"])
    return [
        Table(
            "Areas under faithfulness",
            area_rows(results),
            "CPR: area under the faithfulness over the share kept. CMD: area between "
            "the faithfulness and 1. Last area: under the concept's score. "
            "Parentheses: lowest to highest seed.",
        ),
        Table(
            "Circuits of every size",
            faithfulness_rows(results),
            f"Means over seeds. Units are {kinds}. On a path: units left when those on "
            "no path from the input to the logits are dropped. Complement: the circuit "
            "is ablated and the rest is kept. KL: to the uncut model, on the concept. "
            + _metric_note(results),
        ),
    ]


def _stability_tables(results: Results) -> list[Table]:
    shared = [
        {
            "unit": unit["unit"],
            "masks": f"{unit['n_masks']} of {len(results['masks'])}",
        }
        for unit in results["shared"][:MOST_SHARED]
    ]
    return [
        Table(
            "Overlap of the masks",
            stability_rows(results),
            "Jaccard: units in both masks divided by units in either. Random: exact "
            "expectation of random masks of the same sizes; brackets: central 95 %.",
        ),
        Table(
            f"Units {results['chosen']} in more than half of the masks",
            shared,
            f"At most {MOST_SHARED} units; results.json has the others.",
        ),
    ]


def _trace_tables(results: Results) -> list[Table]:
    tracing = results["tracing"]
    return [
        Table(
            "Largest indirect effect of each kind of state and token",
            effect_rows(results),
            f"Noise of {tracing['noise']:g} standard deviations on the subject's "
            f"embeddings, {tracing['n_noise']} draws. MLPs and attention: windows of "
            f"{tracing['window']} layers. Normalised: share of what noise takes away; "
            "parentheses: 95 % interval over prompts, of the layer with the largest.",
            flat(results["effects"]),
        ),
        Table(
            "Prompts",
            results["prompts"],
            "P(object) of the clean run, and with a noisy subject (mean over draws).",
        ),
    ]


OVER_SEEDS = "Means over seeds; brackets: 95 % intervals over seeds by Student's t."


def _weight_tables(results: Results) -> list[Table]:
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
        Table("The same, by the sign of cos(w_in, w_out) alone", _coarse(results)),
        Table("Medians by layer", median_rows(results)),
        Table("Quartiles by layer", quartile_rows(results)),
        Table("Neurons by cosine", bin_rows(results), "Bins include their lower end."),
        Table("Share of neurons outside chance", outside_rows(results), regions),
        Table("Regions of chance", region_rows(results), regions),
        Table("Classes along the training series", series_rows(results)),
        Table("Median cosine, first to last revision", change_rows(results)),
    ]
    return found


def _effect_tables(results: Results) -> list[Table]:
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
        Table("The same by layer", reading_layer_rows(results)),
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


def _coarse(results: Results) -> list[Row]:
    return class_rows(results, "coarse") if results["weights"]["gated"] else []


def _weights_note(results: Results) -> str:
    weights = results["weights"]
    return (
        f"Threshold tau {weights['tau']:g}, convention {weights['convention']}"
        f"{', centred' if weights['centred'] else ''}, {weights['family']} of "
        f"{len(results['layers'])} layers, d_model {weights['d_model']}."
    )


BY_CHANCE = (
    "By chance: as many neurons drawn from all of the model; in the same layers: as "
    "many drawn in every layer. Brackets: central 95 % (hypergeometric, exact). p: "
    "two-sided, against the draw in the same layers, not corrected for the classes."
)
WORDS = (
    "Scores: product of the vector, at length 1, with the token's unembedding (folded: "
    "times the gain of the final norm). +gate and -gate: w_gate and its opposite."
)


def _stages_tables(results: Results) -> list[Table]:
    scores = _metric_note(results)
    return [
        Table(
            "Scores at every stage",
            stage_rows(results, intervals=True),
            "Held-out data, means over seeds; in brackets 95 % bootstrap intervals "
            f"over seeds and documents. {scores}",
            flat(results["summary"]),
        ),
        Table(
            "Statements of Lo et al. (2024), and what is found here",
            statement_rows(results),
            "Confirmed: the 95 % interval over seeds (Student's t) lies on the "
            "statement's side; not testable: no interval, no random cut, or the random "
            "cut takes less than 5 % of the score. Points: percentage points, from the "
            "base model to the last stage where no stage is named.",
        ),
        Table(
            "Abilities as a share of the base model's",
            relearned_rows(results),
            "Held-out data, 1: the seed's base model. A score above a guess; of a loss "
            f"the probability per token, exp(-loss). {OVER_SEEDS}",
            flat(results.get("relearned", [])),
        ),
        Table(
            "Units that took over, with their words",
            took_over_rows(results),
            "The units that rank highest after the last stage, pruned ones left out: "
            "the first ten of every cut, first seed. Words: at most five to which the "
            "unit responds most strongly; a star marks the concept's. Similarity: of "
            "the words after the last stage to those of the base model.",
            took_over_rows(results, everything=True),
        ),
        Table(
            "What the units that took over respond to",
            polysemantic_rows(results),
            "Share of the units of the table above, all seeds, whose words are the "
            "concept's alone, the concept's and others (polysemantic), others alone.",
        ),
        Table(
            "Scores by type at every stage",
            type_rows(results),
            "Span F1 of each type on held-out data, 0 to 1, means over seeds.",
        ),
        Table(
            "Pruned, not retrained",
            scan_rows(results),
            f"Held-out data, means over seeds. {scores}",
            scan_data(results),
        ),
        Table(
            "Where the salient units are",
            level_rows(results),
            "Share of the units with a saliency above .5 that lies at each level; 0 is "
            "the embedding level. Means over seeds; units that are held constant are "
            "left out.",
            flat(results["stages"]),
        ),
        Table(
            "Where the salient units went, cut beside random cut",
            level_change_rows(results),
            "Share of the salient units at each level at the base model, right after "
            "pruning and after the last stage; the last row is their mean level. "
            "Change: from the base model to the cut's last stage, in percentage points "
            "(levels in the last row). Beyond the random cut's: the cut minus the "
            "random cut after the last stage, paired by seed. Among units not pruned: "
            "the pruned units have no rank, neither at the base model nor later. "
            f"{OVER_SEEDS}",
            flat(results.get("changes", [])),
        ),
        Table(
            "Polysemantic units at every stage",
            polysemantic_change_rows(results),
            "Share of all units with words that have words of the concept and others. "
            f"Changes in percentage points. {OVER_SEEDS}",
        ),
        Table(
            "Similarity of words between stages",
            similarity_rows(results),
            f"Mean cosine over the units whose words differ. {OVER_SEEDS}",
            flat(results["similarity"]),
        ),
        Table(
            "Overlap of the highest-ranked units",
            overlap_rows(results),
            "Jaccard index of the units that rank highest at a stage, as many as were "
            f"pruned, 0 to 1. {OVER_SEEDS}",
            flat(results["overlap"]),
        ),
        Table(
            "Rankings of the base model compared",
            ranking_rows(results),
            "Jaccard index of the highest units of two rankings at every share of the "
            "hidden units, 0 to 1, means over seeds.",
            flat(results["rankings"]["overlap"]),
        ),
    ]


def _knowledge_tables(results: Results) -> list[Table]:
    return [
        Table(
            "Probability of the object under scaled units",
            knowledge.effect_rows(results),
            "Change: mean over facts of after / before - 1; brackets: 95 % bootstrap "
            "interval over facts. Facts without units are left out.",
            flat(results["effects"]),
        ),
        *_edit_tables(results),
        Table(
            "Units by layer",
            knowledge.layer_rows(results),
            "Share of all units of all prompts (coarse) or facts (refined).",
            flat(results["layers"]),
        ),
        Table(
            "Overlap of the units of two facts",
            [dict(row) for row in results["overlap"]],
            "Mean Jaccard index, 0 to 1; random: of sets of the same sizes drawn from "
            "all neurons.",
        ),
        Table("Facts by language", of_facts.language_rows(results)),
        Table(
            "Groups of facts that share units",
            of_facts.group_rows(results),
            "The same by relation and by language, the largest overlap beyond random "
            "sets first.",
            of_facts.group_data(results),
        ),
        Table(
            "Activation of the units of a fact",
            of_facts.activity_rows(results),
            "Mean over units and prompts where the object is predicted; brackets: 95 % "
            "bootstrap interval over facts.",
            flat(results.get("activity") or []),
        ),
        Table(
            "Prompts that trigger a unit",
            of_facts.trigger_rows(results),
            "The units (LAYER.NUMBER) of the most facts, and the prompts of at most "
            "200 facts on which each is most active; median over these prompts.",
        ),
    ]


def _edit_tables(results: Results) -> list[Table]:
    rows = knowledge.edit_rows(results)
    if not rows:
        return []
    edits = results["edits"]
    left_out = "; ".join(f"{why}: {n}" for why, n in edits["left_out"].items())
    return [
        Table(
            "Edited facts",
            rows,
            f"{edits['n_edited']} facts one at a time, formula {edits['formula']}, "
            f"{edits['n_units']:.1f} units a fact. Shares of facts, means over facts. "
            f"Not edited: {left_out or 'none'}.",
            flat(edits["rows"]),
        ),
        Table(
            "Gains of the edits",
            knowledge.gain_rows(results),
            "After minus before (ranks: before minus after; perplexities: after / "
            "before - 1); brackets: 95 % bootstrap interval over facts.",
        ),
    ]


TABLES: dict[str, Callable[[Results], list[Table]]] = {
    "train_mask": _mask_tables,
    "relearn": _relearn_tables,
    "evaluate": _score_tables,
    "attribute": _score_tables,
    "import_mask": _import_tables,
    "select_mask": _site_table,
    "knowledge": _knowledge_tables,
    "faithfulness": _faithfulness_tables,
    "stability": _stability_tables,
    "trace": _trace_tables,
    "weight_classes": _weight_tables,
    "class_effects": _effect_tables,
    "relearn_stages": _stages_tables,
}
"""Kind of run -> its tables in the order of the report."""

CUT_TERMS = {
    "concept, rest": "The concept is what the mask is trained to remove (direction "
    "break) or to keep with few units (isolate), for instance recognising locations. "
    "The rest is what the model does on other data.",
    "uncut, cut": "The model before the cut, and with the mask's units ablated: each "
    "is replaced by its ablation value (zero, a mean, or the value on a "
    "counterfactual input).",
    "random cut": "Control: as many units, drawn at random at every site.",
    "attribution cut": "Baseline: as many units, ranked without training a mask.",
    "kept, weakened, lost": THRESHOLDS,
}
TERMS = {
    "trace": {
        "first, middle, last subject": "Tokens of the subject; one of a single token "
        "is the last.",
        "before, after, last": "Tokens before the subject, behind it, and the token "
        "at which the object is predicted.",
        "indirect effect": "P(object) with a noisy subject and the state restored, "
        "minus P(object) with a noisy subject.",
    },
    "train_mask": CUT_TERMS,
    "evaluate": CUT_TERMS,
    "attribute": {key: CUT_TERMS[key] for key in ("concept, rest", "attribution cut")},
    "import_mask": {"ablated": "Replaced by the unit's ablation value."},
    "select_mask": {"ablated": "Replaced by the unit's ablation value."},
    "knowledge": knowledge.TERMS,
    "class_effects": {
        "ablated": "Replaced by zero, a mean or another function of the activation.",
        "control": "As many neurons of each layer outside the class, drawn at random; "
        "by frequency: each of them is on about as often as one of the class.",
    },
    "relearn": {
        "concept examples": "Training examples of the fine-tuning that hold the "
        "concept. Cut, uncut and randomly cut models get the same examples.",
        "mask held, written once": "Held: the ablated units stay ablated during "
        "fine-tuning. Written once: the cut is written into the weights, which are "
        "then free to change.",
    },
    "faithfulness": {
        "circuit": "The highest-ranked units; all others are ablated.",
        "margin": "How far the model prefers the right answer, in nats. Faithfulness "
        "is the share of the uncut model's margin, 0 with everything ablated.",
    },
    "relearn_stages": {
        "mask held, written once": "Held: the pruned units stay at zero. Written once: "
        "gain and bias of the units are set to zero and then train, as published.",
        "random cut": "Control: as many units, drawn at random at every level.",
        "base, pruned, stage n": "The model before the cut, right after it, and after "
        "n retrainings, each with a new optimiser and schedule.",
        "level": "Where hidden units are read: 0 the embeddings, n the output of block "
        "n.",
        "saliency": "From the rank r of a unit among N by |mean over the concept's "
        "words \u2212 mean over others|: |(\u230ar/100\u230b + 1 \u2212 N/100) / (1 "
        "\u2212 N/100)|, 1 for the first hundred, near 0 for the last. With at most "
        "200 units each rank has its own value. Salient: above .5.",
        "words of a unit": "Mean over a word's occurrences of the unit's |z-score|, "
        "divided by the largest such mean: the first five words above .1. Words that "
        "occur once are left out.",
        "similarity": "Cosine of the mean word vectors of a unit's words at two "
        "stages; the vectors are the base model's input embeddings, or those of "
        "--word_vectors.",
        "polysemantic": "The unit has words of the concept and other words. A word is "
        "the concept's where at least half of its occurrences are labelled so.",
    },
    "stability": {
        "random masks": "Masks that choose as many units as these, drawn uniformly: "
        "from all units, or as many at every site.",
    },
    "weight_classes": {
        "w_gate, w_in, w_out": "A gated neuron adds act(w_gate · x) (w_in · x) w_out "
        "to the residual stream. w_in and w_out change their sign together where "
        "w_gate · w_in is negative, which leaves the model as it is.",
        "strengthening, weakening": "It writes what it reads with w_in: cos(w_in, "
        "w_out) is above tau; or its opposite: below minus tau.",
        "conditional": "Of a strengthening or weakening neuron: w_out is not aligned "
        "with w_gate. Else w_gate says the same as w_in.",
        "proportional change": "w_out is aligned with w_gate and not with w_in.",
        "orthogonal output": "w_out is aligned with neither.",
        "atypical": "cos(w_gate, w_in) is not what the other two cosines suggest.",
        "folded, raw": "Folded: the gain of the norm before the MLP belongs to w_gate "
        "and w_in. Raw: vectors as they are stored.",
    },
}
"""Kind of run -> words a reader needs."""


def terms(runs: Sequence[Run]) -> dict[str, str]:
    """Words that the report of these runs uses, explained."""
    explained: dict[str, str] = {}
    for run in runs:
        explained |= TERMS[run.kind]
    return explained
