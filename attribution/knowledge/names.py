"""Names of grids, aggregations and measures; this module does not import torch."""

from typing import Literal

Grid = Literal["midpoints", "original", "both_ends", "gauss"]
Aggregation = Literal["start", "end", "sum", "mean", "max"]
Measure = Literal["integrated_gradients", "activations"]
Word = Literal["gold", "predicted"]
