"""Words that a reader of the report needs, by kind of run."""

from collections.abc import Sequence

from circuitcut.reports import knowledge
from circuitcut.reports.load import Run
from circuitcut.reports.verdict import THRESHOLDS

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
