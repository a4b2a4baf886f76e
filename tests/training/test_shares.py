"""Shares of a batch together are the batch: same loss, same gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from circuitcut.training.shares import own_share


def counted(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["targets"] != -100).float()


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9), n=st.integers(1, 4))
def test_weighted_losses_of_all_shares_average_to_the_loss_of_the_batch(
    lengths: list[int], n: int
):
    rng = torch.Generator().manual_seed(len(lengths))
    logits = torch.randn(len(lengths), 5, 3, generator=rng, dtype=torch.float64)
    targets = torch.randint(3, (len(lengths), 5), generator=rng)
    targets[torch.arange(5) >= torch.tensor(lengths)[:, None]] = -100
    batch = {"logits": logits, "targets": targets}

    def loss(part: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(
            part["logits"].flatten(0, 1), part["targets"].flatten()
        )

    parts = [own_share(batch, counted(batch), index, n) for index in range(n)]
    together = sum(weight * loss(part) for part, weight in parts) / n
    torch.testing.assert_close(together, loss(batch))


@given(n_examples=st.integers(1, 9), n=st.integers(1, 4))
def test_positions_that_count_more_count_more_in_every_share(n_examples: int, n: int):
    rng = torch.Generator().manual_seed(n_examples)
    losses = torch.rand(n_examples, 5, generator=rng, dtype=torch.float64)
    weights = 4.0 * torch.rand(n_examples, 5, generator=rng, dtype=torch.float64)
    weights[torch.rand(n_examples, 5, generator=rng) < 0.5] = 0
    weights[0, 0] = 1
    batch = {"losses": losses, "weights": weights}

    def loss(part: dict[str, torch.Tensor]) -> torch.Tensor:
        return (part["losses"] * part["weights"]).sum() / part["weights"].sum()

    parts = [own_share(batch, weights, index, n) for index in range(n)]
    together = sum(weight * loss(part) for part, weight in parts) / n
    torch.testing.assert_close(together, loss(batch))


def test_shares_are_disjoint_and_complete():
    batch = {"targets": torch.arange(7)}
    parts = [own_share(batch, counted(batch), index, 3)[0] for index in range(3)]
    assert [part["targets"].tolist() for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize("targets", [[4, 5], [4, -100, 5]])
def test_a_batch_that_leaves_a_process_without_targets_goes_to_all(targets: list[int]):
    batch = {"targets": torch.tensor(targets)}
    n = 3
    for index in range(n):
        share, weight = own_share(batch, counted(batch), index, n)
        assert share["targets"].tolist() == targets
        assert weight == 1.0
