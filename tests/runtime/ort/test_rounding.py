"""Outputs that differ by rounding count as equal, others do not."""

from __future__ import annotations

import numpy as np
import pytest

from gemel.runtime.ort.rounding import equal_but_for_rounding


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ([1.0, 100.0], [1.05, 100.0], True),
        ([1.0, 100.0], [1.2, 100.0], False),
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([np.nan, 1.0], [0.0, 1.0], False),
        ([np.inf, 1.0], [np.inf, 1.0], True),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([np.inf, 1.0], [np.inf, 1.2], False),
        ([0.0], [0.0], True),
        ([], [], True),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_outputs_may_differ_by_rounding(found: list[float], expected: list[float], equal: bool) -> None:
    assert equal_but_for_rounding(np.array(found, np.float32), np.array(expected, np.float32)) is equal
