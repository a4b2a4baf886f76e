"""Names of grids, aggregations and rules; this module does not import torch."""

from typing import Literal

Grid = Literal["midpoints", "original", "both_ends", "gauss"]
Aggregation = Literal["start", "end", "sum", "mean", "max"]
Measure = Literal["integrated_gradients", "activations"]
Word = Literal["gold", "predicted"]
Operation = Literal["suppress", "enhance", "erase", "erase_unk"]
EditFormula = Literal["relative", "plain"]
