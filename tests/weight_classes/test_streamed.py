"""Streamed means, intervals and quantiles against those of all numbers at once."""

import numpy as np
import pytest
import torch

from circuitcut.weight_classes.tokens.streamed import QUANTILES, Quantiles, Stream


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e4])
def test_quantiles_are_within_one_percent_of_those_of_all_numbers(scale: float):
    rng = torch.Generator().manual_seed(0)
    parts = [
        scale * torch.randn(977, generator=rng, dtype=torch.float64) ** 3,
        torch.zeros(50, dtype=torch.float64),
        scale * torch.rand(501, generator=rng, dtype=torch.float64),
    ]
    sketch = Quantiles()
    for part in parts:
        sketch.add(part)
    every = torch.cat(parts).numpy()
    for share in QUANTILES:
        exact = np.quantile(every, share, method="inverted_cdf")
        assert sketch.at(share) == pytest.approx(exact, rel=0.01, abs=1e-7)
    assert (sketch.least, sketch.greatest) == (every.min(), every.max())
    assert sketch.at(1.0) == pytest.approx(every.max(), rel=0.01)


def test_numbers_beyond_the_bins_keep_least_and_greatest():
    sketch = Quantiles()
    sketch.add(torch.tensor([-1e30, 1e-20, 5.0, 1e30]))
    assert sketch.least == pytest.approx(-1e30)
    assert sketch.at(0.5) == 0.0
    assert sketch.at(0.75) == pytest.approx(5.0, rel=0.01)


def test_a_stream_has_the_mean_over_tokens_and_its_error_over_texts():
    """The variance of a ratio of sums, written out over all texts."""
    rng = torch.Generator().manual_seed(1)
    lengths = [3, 8, 1, 20, 5, 0, 7]
    texts = [torch.randn(n, generator=rng) + n for n in lengths]
    stream = Stream()
    for batch in (texts[:3], texts[3:]):
        numbers = [torch.full((len(t),), i) for i, t in enumerate(batch)]
        stream.add(torch.cat(batch), torch.cat(numbers))
    every = torch.cat(texts).double()
    mean = every.mean().item()
    assert stream.mean == pytest.approx(mean)
    residuals = [float(t.double().sum()) - mean * len(t) for t in texts if len(t)]
    k, n = len(residuals), len(every)
    error = (sum(r * r for r in residuals) * k / (k - 1)) ** 0.5 / n
    assert stream.interval() == pytest.approx(
        (mean - 1.96 * error, mean + 1.96 * error)
    )
    one = Stream()
    one.add(torch.ones(3), torch.zeros(3, dtype=torch.long))
    assert one.described()["interval"] == [None, None]
