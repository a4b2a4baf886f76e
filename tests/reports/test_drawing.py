"""Drawing pieces: what a figure looks like whatever the numbers are."""

import pytest

from circuitcut.reports.drawing import known_points, panels, png, spread


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


def test_points_without_a_value_are_dropped_and_half_intervals_closed():
    given = [
        (1, None, [0, 1]),
        (2, 0.5, [0.4, 0.6]),
        (3, 0.7, [None, 0.9]),
        (4, 1.0, None),
    ]
    assert known_points(given) == [
        (2, 0.5, (0.4, 0.6)),
        (3, 0.7, (0.7, 0.7)),
        (4, 1.0, (1.0, 1.0)),
    ]


def test_ticks_keep_both_ends_and_stay_apart():
    assert spread([8, 12, 16, 24, 50, 200], 8)[0] == 8
    assert spread([8, 9, 10, 200], 8) == [8, 200]
    assert spread([0, 1, 3, 8, 22, 60], 7) == [0, 1, 3, 8, 22, 60]
    assert spread([5], 8) == [5]
