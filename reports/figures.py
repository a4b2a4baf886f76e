"""The figures of every kind of run: what is drawn, with which caption, and to where."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from circuitcut.reports import knowledge
from circuitcut.reports.circuits.head_map import heads_by_layer
from circuitcut.reports.circuits.trace_map import trace_map
from circuitcut.reports.drawing import STYLE, png, svg
from circuitcut.reports.facts import figures as of_facts
from circuitcut.reports.load import Run
from circuitcut.reports.mask_figures import mask_by_layer, training_curves
from circuitcut.reports.overview import overview
from circuitcut.reports.relearning_figures import (
    recovery_by_examples,
    relearning_curves,
)
from circuitcut.reports.score_figures import (
    faithfulness_curves,
    score_by_size,
    scores_by_method,
)
from circuitcut.reports.stages import figures as of_stages
from circuitcut.reports.weights.figures import (
    change_by_layer,
    class_shares,
    cosine_density,
    cosine_histograms,
    cosine_scatter,
    medians_by_model,
    norms_by_layer,
    outside_by_layer,
)
from circuitcut.reports.whereabouts import probe_by_layer, redistribution_by_layer
from circuitcut.storage.atomic import write_bytes
from circuitcut.storage.progress import Waiting

__all__ = ["CAPTIONS", "FIGURES", "draw_all", "overview"]

FIGURE_FOLDER = "figures"
Draw = Callable[[Run], Figure | None]
FIGURES: dict[str, dict[str, Draw]] = {
    "train_mask": {
        "scores_by_method": scores_by_method,
        "score_by_size": score_by_size,
        "mask_by_layer": mask_by_layer,
        "heads_by_layer": heads_by_layer,
        "training_curves": training_curves,
    },
    "relearn": {
        "relearning_curves": relearning_curves,
        "recovery_by_examples": recovery_by_examples,
        "redistribution_by_layer": redistribution_by_layer,
        "probe_by_layer": probe_by_layer,
    },
    "evaluate": {
        "scores_by_method": scores_by_method,
        "score_by_size": score_by_size,
        "heads_by_layer": heads_by_layer,
    },
    "attribute": {"score_by_size": score_by_size},
    "import_mask": {"mask_by_layer": mask_by_layer},
    "select_mask": {"mask_by_layer": mask_by_layer},
    "knowledge": {
        "units_by_layer": knowledge.units_by_layer,
        "relation_overlap": of_facts.relation_overlap,
        "language_overlap": of_facts.language_overlap,
        "unit_activity": of_facts.unit_activity,
    },
    "faithfulness": {"faithfulness": faithfulness_curves},
    "stability": {},
    "trace": {"trace_map": trace_map},
    "class_effects": {},
    "relearn_stages": of_stages.FIGURES,
    "weight_classes": {
        "class_shares": class_shares,
        "cosine_histograms": cosine_histograms,
        "cosine_scatter": cosine_scatter,
        "cosine_density": cosine_density,
        "medians_by_model": medians_by_model,
        "norms_by_layer": norms_by_layer,
        "outside_by_layer": outside_by_layer,
        "change_by_layer": change_by_layer,
    },
}
"""Kind of run -> its figures in the order of the report."""

CAPTIONS = of_stages.CAPTIONS | {
    **of_facts.CAPTIONS,
    "units_by_layer": knowledge.CAPTION,
    "mask_by_layer": "Units that the frozen mask ablates in each layer: number, and "
    "share of the layer's units where there are few layers.",
    "trace_map": "Share of the lost probability of the object that comes back when a "
    "state of the clean run is restored at one token, by the layer (of MLPs and "
    "attention the centre of a window of layers) and the class of the token: sum over "
    "prompts of the indirect effect by that of the total effect, means over tokens and "
    "draws of noise. Blue: the state lowers the probability further.",
    "heads_by_layer": "Every head of the model by layer and number. Crosses: ablated "
    "heads. Colour: score of the ranking, low is ablated first; grey: no score.",
    "training_curves": "Training of the mask: losses of the concept and of the rest, "
    "before their weights. With a budget every step draws its own number k of units, "
    "and the loss jumps with it; so the lines are means over the steps with a small, a "
    "middle and a large k. Dots: single steps; the highest 2 % may lie above the axis. "
    "Right, where it was logged: units ablated (of a circuit: kept) in the sample of "
    "each step, as expected by the gates, as asked for, and in the frozen mask.",
    "scores_by_method": "Scores of the uncut model, of the learned cut and of controls "
    "that ablate as many units, on held-out data. Dotted line: uncut model; "
    "dashed line: chance, where it is not 0. Bars: 95 % bootstrap intervals over "
    "documents, where they were computed.",
    "score_by_size": "Scores on held-out data against the number of ablated units. "
    "Bands: 95 % bootstrap intervals over documents; of several seeds of one method, "
    "from the lowest to the highest seed. Dotted line: uncut model.",
    "faithfulness": "Circuits made of the highest-ranked units; everything else is "
    "ablated. Faithfulness is the share of the concept's margin between the model with "
    "everything ablated (0) and the uncut model (1). Top right: the same share when "
    "the circuit is ablated and the rest is kept; a complete circuit gives 0. Bottom: "
    "score of the concept, and divergence from the uncut model. Bands: from the lowest "
    "to the highest seed.",
    "relearning_curves": "Scores on held-out data during relearning, mean over seeds. "
    "Top: the concept. Bottom: the rest, on an axis of its own. Step 0 is right after "
    "the cut. Each step trains on one batch; examples are repeated where there are "
    "few. Bands: 95 % bootstrap intervals over seeds and documents.",
    "recovery_by_examples": "Recovery after the last step. Left: score of the cut "
    "model divided by that of the uncut model after the same fine-tuning. Right: score "
    "regained since the cut, divided by the distance from the fresh cut to the uncut "
    "model. Bars: 95 % bootstrap intervals over seeds and documents; a missing point "
    "is undefined: that cut broke nothing, or the denominator is too small.",
    "redistribution_by_layer": "Layers of the units that rank highest for the concept "
    "(mean difference), before the cut and after relearning, and of the units that the "
    "mask ablates. In percent of each set, mean over seeds.",
    "probe_by_layer": "Linear probes trained on the hidden states right after the cut. "
    "1: the concept can be decoded, .5: chance. Dotted, in the same colours: control "
    "with shuffled training labels. Bands: from the lowest to the highest random cut. "
    "Points are moved sideways so that equal values can be seen.",
    "class_shares": "Classes of the neurons in each layer, typical and atypical ones "
    "together. Left: shares of the layer's neurons. Right: numbers, on an axis that is "
    "logarithmic above 1.",
    "cosine_histograms": "Distribution of each cosine in each layer, in cells of .02; "
    "the colour is logarithmic. Line: median. cos(w_gate, w_in) is never negative "
    "after the refactor.",
    "cosine_scatter": "Every neuron by its cosines with w_out, one panel a layer. "
    "Lines: the threshold tau. Right of both: what it writes is what it reads "
    "(strengthening); left: its opposite (weakening).",
    "cosine_density": "The same, as the number of neurons in cells of .04.",
    "medians_by_model": "Median of each cosine in each layer over relative depth. "
    "Band, of one model alone: quartiles.",
    "norms_by_layer": "Norms of the vectors of each layer's neurons: median, and "
    "quartiles as a band. In the convention folded the reading vectors contain the "
    "gain of the norm before the MLP.",
    "outside_by_layer": "Neurons whose cosine is larger than chance gives: outside the "
    "region of independent Gaussian vectors (beta), outside that of vectors of two "
    "different neurons (mismatched pairs), and outside the beta region at alpha "
    "divided by the number of the model's neurons (corrected).",
    "change_by_layer": "Left: neurons of each class along the training series. Right: "
    "cosine of the same vector in the first and in the last revision, median and "
    "quartiles of each layer; 1 is a vector that has not turned.",
}
"""Figure -> what it shows."""


def draw_all(run: Run) -> dict[str, Path]:
    """Draw every figure that the run has data for, as PNG and SVG in `figures/`.

    Returns:
        The PNG files by name.
    """
    written = {}
    with Waiting("drawing the figures"):
        for name, draw in FIGURES[run.kind].items():
            with matplotlib.rc_context(STYLE):
                figure = draw(run)
                if figure is None:
                    continue
                path = run.path / FIGURE_FOLDER / f"{name}.png"
                write_bytes(path, png(figure))
                write_bytes(path.with_suffix(".svg"), svg(figure))
            written[name] = path
    return written
