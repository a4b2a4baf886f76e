"""Drawing pieces: what a figure looks like whatever the numbers are."""

import pytest

from circuitcut.reports.drawing import panels, png


@pytest.mark.parametrize(
    ("values", "widened"),
    [([1.05, 1.05 + 1e-8], True), ([0.2, 0.9], False), ([0.0, 0.0], False)],
)
def test_an_axis_does_not_magnify_rounding(values: list[float], widened: bool):
    figure, (axes,) = panels(1, 4, 3)
    axes.plot([1, 2], values)
    before = axes.get_ylim()
    png(figure)
    low, high = axes.get_ylim()
    assert (before != (low, high)) is widened
    if widened:
        assert high - low == pytest.approx(0.01 * values[0], rel=1e-3)
        assert low < min(values) <= max(values) < high
