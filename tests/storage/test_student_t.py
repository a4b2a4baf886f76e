"""The mean of a few numbers and its interval, against numbers by hand."""

import pytest

from circuitcut.storage.statistics.student_t import mean_and_interval


def test_an_interval_over_seeds_is_students():
    mean, (low, high) = mean_and_interval([1.0, 2.0, 3.0, None])
    assert (mean, low) == (2.0, pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4))
    assert high == pytest.approx(4 - low)
    assert mean_and_interval([1.0]) == (1.0, [None, None])
    assert mean_and_interval([None]) == (None, [None, None])
