"""The benchmark of the loop trains the same policy in both of its ways."""

import pytest

from bench.loop import bare, method


def test_both_ways_end_at_the_same_weights():
    sums = [
        sum(float(p.detach().double().square().sum()) for p in way("tiny", 3, 1)[1].parameters())
        for way in (bare, method)
    ]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)
