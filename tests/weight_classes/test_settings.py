"""Settings out of their range are refused, naming the flag and the value."""

from typing import Any

import pytest

from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.settings import WeightSettings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 1.0}, "--tau must be a number above 0 and below 1, got 1.0"),
        ({"alpha": 0.0}, "--alpha must be a number above 0 and below 1, got 0.0"),
        ({"n_bins": 5}, "--n_bins must be even, got 5"),
        ({"n_pairs": 7}, "--n_pairs must be a whole number from 100 to 10,000,000"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(UserError) as refusal:
        WeightSettings(**change)
    assert str(refusal.value).startswith(message)
