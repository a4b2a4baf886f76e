"""Grids of integrated gradients: shares of the path from 0 to 1 and their weights."""

import numpy as np

from circuitcut.attribution.integrated import midpoints
from circuitcut.storage.errors import UserError


def grid_of(grid: str, n_steps: int) -> tuple[list[float], list[float]]:
    """Shares s_k and weights w_k of a sum that approximates an integral from 0 to 1.

    `midpoints`: s = (k + 1/2) / m. `original` (Dai et al. 2022): s = k / m, which
    begins at 0. `both_ends` (EleutherAI's code): m points from 0 to 1, both included,
    divided by m; the weights of a linear function's ends are therefore too small.
    `gauss`: Gauss-Legendre nodes, exact for polynomials of degree 2 m - 1.

    Raises:
        UserError: When there is no such grid, or `n_steps` is below 1.
    """
    if n_steps < 1:
        raise UserError(f"argument n_steps must be at least 1, got {n_steps}")
    equal = [1.0 / n_steps] * n_steps
    match grid:
        case "midpoints":
            return midpoints(n_steps), equal
        case "original":
            return [step / n_steps for step in range(n_steps)], equal
        case "both_ends":
            return np.linspace(0.0, 1.0, n_steps).tolist(), equal
        case "gauss":
            nodes, weights = np.polynomial.legendre.leggauss(n_steps)
            return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    raise UserError(
        f"argument grid must be midpoints, original, both_ends or gauss, got {grid!r}"
    )
