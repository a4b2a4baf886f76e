"""Pieces of edges: all that can be changed is, within the budget of tries."""

import math

import pytest
import torch

from circuitcut.experiments.circuits.tries import Budget, budget, change_in_pieces


class Changes:
    """Edges that can be changed unless they are among the `needed` ones."""

    def __init__(self, n_edges: int, needed: set[int], tries: Budget):
        self.needed, self.tries = needed, tries
        self.is_left = torch.ones(n_edges, dtype=torch.bool)
        self.sizes: list[int] = []

    def left(self) -> torch.Tensor:
        return self.is_left.nonzero()[:, 0]

    def change(self, piece: torch.Tensor) -> bool:
        self.tries.spend()
        self.sizes.append(len(piece))
        can = not self.needed & set(piece.tolist())
        if can:
            self.is_left[piece] = False
        return can


@pytest.mark.parametrize("n_edges", [1, 2, 3, 100, 1400])
@pytest.mark.parametrize("n_needed", [0, 1, 5])
def test_all_but_the_needed_are_changed_in_logarithmically_many_tries(
    n_edges: int, n_needed: int
):
    n_needed = min(n_needed, n_edges)
    rng = torch.Generator().manual_seed(n_needed)
    needed = set(torch.randperm(n_edges, generator=rng)[:n_needed].tolist())
    with budget("test", 10**6) as tries:
        changes = Changes(n_edges, needed, tries)
        change_in_pieces(changes.left, changes.change, tries)
    assert set(changes.left().tolist()) == needed
    levels = math.ceil(math.log2(n_edges)) if n_edges > 1 else 1
    assert tries.n_done == len(changes.sizes) <= 2 + 2 * n_needed * levels + n_needed


def test_the_largest_pieces_come_first_and_the_budget_is_kept():
    with budget("test", 50) as tries:
        changes = Changes(1400, set(range(0, 1400, 3)), tries)
        change_in_pieces(changes.left, changes.change, tries)
    steps = zip(changes.sizes, changes.sizes[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert tries.n_done == 50
    assert tries.is_spent


def test_single_edges_are_tried_again_after_others_were_changed():
    """Edge 0 is needed as long as edge 1 is there, which is tried after it."""
    with budget("test", 100) as tries:
        changes = Changes(2, {0}, tries)

        def change(piece: torch.Tensor) -> bool:
            done = changes.change(piece)
            if 1 in piece.tolist():
                changes.needed = set()
            return done

        change_in_pieces(changes.left, change, tries)
    assert not changes.is_left.any()
