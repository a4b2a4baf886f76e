"""The rankings of hidden units over words, by name: known before torch is imported."""

PENALTIES: dict[str, str] = {
    "linear_l1": "l1",
    "linear_l2": "l2",
    "linear_elastic": "elasticnet",
}
"""Linear probes, and the penalty of each."""
RANKINGS: tuple[str, ...] = (
    "probeless",
    "probeless_labels",
    *PENALTIES,
    "gradient_margin",
    "random",
    "learned",
)
"""`probeless` compares the concept with all other words, `probeless_labels` every pair
of labels. `gradient_margin` and `random` are those of `attribution.registry`. `learned`
is a trained mask, which `experiments` adds."""
