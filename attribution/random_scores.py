"""A control: a random ranking of the units of all sites and layers."""

import torch

from circuitcut.attribution.subject import Scores, Subject
from circuitcut.models.sites import split_by_site


def random_scores(subject: Subject) -> Scores:
    """Independent uniform numbers in [0, 1); they depend on the seed only."""
    rng = torch.Generator().manual_seed(subject.seed)
    n_units = sum(site.n_units for site in subject.sites)
    return split_by_site(
        torch.rand(n_units, generator=rng, dtype=torch.float64), subject.sites
    )
