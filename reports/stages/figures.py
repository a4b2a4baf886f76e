"""The figures of a study in stages, in the order of the report, with their captions."""

from collections.abc import Callable

from matplotlib.figure import Figure

from circuitcut.reports.load import Run
from circuitcut.reports.stages.curves import score_by_share, score_by_stage
from circuitcut.reports.stages.levels import (
    polysemantic_by_level,
    redistribution,
    saliency_by_level,
)
from circuitcut.reports.stages.unit_maps import (
    saliency_map,
    similarity_against_saliency,
    similarity_map,
)

FIGURES: dict[str, Callable[[Run], Figure | None]] = {
    "score_by_stage": score_by_stage,
    "score_by_share": score_by_share,
    "redistribution": redistribution,
    "saliency_by_level": saliency_by_level,
    "polysemantic_by_level": polysemantic_by_level,
    "saliency_map": saliency_map,
    "similarity_map": similarity_map,
    "similarity_against_saliency": similarity_against_saliency,
}
_INTERVALS = (
    "Bars: 95 % intervals over seeds by Student's t, none with one seed; they may "
    "leave the axis."
)
_CUT = "The arm is the first cut (mask held, where there is one); the tables have all."
CAPTIONS = {
    "score_by_stage": "Scores on held-out data, mean over seeds. Top: the concept. "
    "Bottom: the rest, on an axis of its own. Pruned: right after the cut; a stage is "
    "a retraining with a new optimiser and schedule. Dotted: base model; "
    "dashed grey: a guess, where it is not 0. Bands: 95 % "
    "bootstrap intervals over seeds and documents.",
    "score_by_share": "Scores on held-out data right after pruning, without "
    "retraining, against the share of the hidden units of all levels that is pruned. "
    "The cut prunes the units that rank highest for the concept, the random cut as "
    "many at every level. Means over seeds; bands: lowest to highest seed. Vertical "
    "line: the share that was retrained.",
    "redistribution": "Where the salient units are: of all units with a saliency above "
    ".5, the share that lies at each level; the bars of one colour add up to 100 %. "
    f"Units that are held constant have no saliency. {_INTERVALS}",
    "saliency_by_level": "Means over the units of a level, held ones left out. "
    "Saliency: by the rank of a unit's score among all units, so its mean over all "
    "levels hardly moves. Effect: the difference between the concept's words and "
    "others, which is no rank. Similarity: cosine between the mean word vectors of "
    "the unit's top words at the base model and now; units with the same words are "
    f"left out. {_INTERVALS}",
    "polysemantic_by_level": "Units among whose top words (at most five) is a word of "
    "the concept, and units that have words of the concept and others as well, in "
    f"percent of the level's units that have words. {_INTERVALS}",
    "saliency_map": "Saliency of every unit by level (0: embeddings) and number within "
    "the level, which is the same dimension of the residual stream at all levels. "
    "Yellow: the unit is among the first for the concept; dark: among the last. Right: "
    "the framed part, 32 neighbouring units that changed most. Grey: units that are "
    f"held constant, or whose words have no letter. {_CUT}",
    "similarity_map": "Similarity of every unit's top words to those at the base "
    "model, drawn as the saliency above. Dark: the unit responds to other words than "
    "before. Grey: the words are the same, or there are none (units held constant). "
    f"{_CUT}",
    "similarity_against_saliency": "Each dot is a unit at one stage (first seed): its "
    "saliency for the concept, and how similar its words are to those at the base "
    "model. Red: mean in five bins of saliency, over seeds; band: lowest to highest "
    f"seed. Units with the same words as before are left out. {_CUT}",
}
"""Figure -> what it shows."""
