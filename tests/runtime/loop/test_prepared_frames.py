"""Prepared frames are kept for later queries: as many of each feed and input spec as a turn takes."""

from __future__ import annotations

import numpy as np

from gemel.bundles.manifest import InputSpec
from gemel.frames.frame import Frame
from gemel.runtime.loop.prepared_frames import PreparedFrames


def frames(feed: str, *indices: int) -> list[Frame]:
    return [Frame(feed, index, np.full((8, 8, 3), index, np.uint8), 0.0, 0.0) for index in indices]


def test_inputs_of_different_specs_do_not_mix() -> None:
    kept = PreparedFrames({"yard": 2})
    small, large = InputSpec(size=(4, 4)), InputSpec(size=(6, 6))
    for frame in frames("yard", 0, 1):
        assert kept.prepare(frame, small)[0].shape == (1, 3, 4, 4)
        assert kept.prepare(frame, large)[0].shape == (1, 3, 6, 6)
        assert kept.prepare(frame, small)[1].input == (4, 4)


def test_the_number_of_kept_frames_is_bounded() -> None:
    kept = PreparedFrames({"yard": 3})
    specs = InputSpec(size=(4, 4)), InputSpec(size=(6, 6))
    for index in (7, 3, 9, 8, 1, 20, 2, *range(21, 60)):
        for spec in specs:
            for feed in ("yard", "gate"):
                (frame,) = frames(feed, index)
                kept.prepare(frame, spec)
                assert len(kept._kept[feed, spec]) <= (3 if feed == "yard" else 1)
    assert len(kept._kept) == 4
    assert set(kept._kept["yard", specs[0]]) == {57, 58, 59}
