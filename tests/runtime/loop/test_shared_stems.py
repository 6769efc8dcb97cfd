"""A stem runs once for a frame, whichever queries need it, and answers are those of whole models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gemel.bundles.reader import Bundle
from gemel.errors import BackendError
from gemel.frames.frame import Frame
from gemel.runtime.backends import Backend
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.share_stems import shared_stems
from gemel.runtime.decode.results import Embedding
from gemel.runtime.loop.bundle_session import BundleSession
from gemel.runtime.loop.inference import Inference
from gemel.runtime.run import RunOptions, run_bundle


class Device:
    """Backend that notes runs as (model, stage, number of images), on an open backend."""

    def __init__(self, inner: OrtCpu) -> None:
        self.inner = inner
        self.runs: list[tuple[str, str, int]] = []
        self.refuses: set[tuple[str, int]] = set()
        """Stages and numbers of images that fail."""
        self.loses_rows = False

    def run(self, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = len(next(iter(inputs.values())))
        if (stage, count) in self.refuses:
            raise BackendError("refused")
        self.runs.append((model, stage, count))
        outputs = self.inner.run(model, stage, inputs)
        lost = self.loses_rows and stage == "stem"
        return {name: array[:1] if lost else array for name, array in outputs.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def stages(self) -> Counter[tuple[str, str]]:
        return Counter((model, stage) for model, stage, _ in self.runs)


def frames(*indices: int, feed: str = "yard") -> list[Frame]:
    random = {index: np.random.default_rng(index).integers(0, 256, (20, 24, 3), np.uint8) for index in indices}
    return [Frame(feed, index, random[index], 0.0, 0.0) for index in indices]


def vectors(outcomes: Any) -> NDArray[np.float32]:
    found = list(outcomes)
    assert all(isinstance(each, Embedding) for each in found), found
    return np.array([each.values for each in found], np.float32)


def turns(infer: Inference, queries: str, turn: Sequence[Frame]) -> NDArray[np.float32]:
    """Answer one query after the other on the same frames."""
    return np.concatenate([vectors(infer([(query, frame) for frame in turn])) for query in queries])


def counted(infer: Inference) -> list[tuple[int, int]]:
    """Return the runs of each stem, and the frames of these runs."""
    return [(counts["runs"], counts["frames"]) for counts in infer.stems.values()]


def opened(stems: Bundle, backend: OrtCpu, **settings: Any) -> tuple[Device, Inference]:
    device = Device(backend)
    shared = shared_stems(stems.manifest, backend.stems, stems.manifest.queries)
    assert set(shared) == {"a", "b"}
    return device, Inference(stems, cast(Backend, device), stems=shared, **settings)


def test_a_stem_runs_once_for_a_frame(stems: Bundle, faster: None) -> None:
    with OrtCpu(stems) as backend:
        whole = turns(Inference(stems, backend), "abc", frames(0, 1, 2))
        device, infer = opened(stems, backend, depths={"yard": 3})
        np.testing.assert_allclose(turns(infer, "abc", frames(0, 1, 2)), whole, rtol=1e-4)
        assert device.stages == {("a", "stem"): 3, ("a", "rest"): 3, ("b", "rest"): 3, ("c", "main"): 3}
        (counts,) = infer.stems.values()
        assert counts == {"queries": ["a", "b"], "runs": 3, "frames": 3}


def test_whoever_comes_first_runs_it(stems: Bundle, faster: None) -> None:
    with OrtCpu(stems) as backend:
        device, infer = opened(stems, backend)
        turns(infer, "ba", frames(0))
        assert device.runs == [("b", "stem", 1), ("b", "rest", 1), ("a", "rest", 1)]


def test_batches_run_the_stem_on_stacked_frames(stems: Bundle, faster: None) -> None:
    with OrtCpu(stems) as backend:
        whole = turns(Inference(stems, backend), "ab", frames(0, 1, 2, 3))
        sizes = dict.fromkeys("ab", (2, 4))
        device, infer = opened(stems, backend, depths={"yard": 4}, batches=sizes)
        np.testing.assert_allclose(turns(infer, "ab", frames(0, 1, 2, 3)), whole, rtol=1e-4)
        assert device.runs == [("a", "stem", 4), ("a", "rest", 4), ("b", "rest", 4)]
        assert counted(infer) == [(1, 4)]
        # Frames 2 and 3 are known, and only 4 and 5 are not.
        device.runs.clear()
        turns(infer, "b", frames(2, 3, 4, 5))
        assert device.runs == [("b", "stem", 2), ("b", "rest", 4)]


def test_outputs_of_as_many_frames_as_of_prepared_ones_are_kept(stems: Bundle, faster: None) -> None:
    with OrtCpu(stems) as backend:
        _, infer = opened(stems, backend, depths={"yard": 2})
        for index in range(9):
            turns(infer, "a", frames(index))
        turns(infer, "b", frames(8, 7))
        assert counted(infer) == [(9, 9)]
        turns(infer, "b", frames(6))
        assert counted(infer) == [(10, 10)]
        assert [len(kept) for kept in infer._stems._kept.values()] == [2]


def test_frames_of_a_feed_without_sharing_run_whole(stems: Bundle, faster: None) -> None:
    with OrtCpu(stems) as backend:
        device, infer = opened(stems, backend)
        turns(infer, "a", frames(0, feed="gate"))
        assert device.runs == [("a", "main", 1)]


@pytest.mark.parametrize(("refused", "runs"), [(("stem", 2), 4), (("rest", 2), 3)])
def test_frames_run_one_by_one_after_a_batch_failed(
    stems: Bundle, faster: None, refused: tuple[str, int], runs: int
) -> None:
    with OrtCpu(stems) as backend:
        whole = turns(Inference(stems, backend), "a", frames(0, 1))
        device, infer = opened(stems, backend, depths={"yard": 2}, batches={"a": (2,)})
        device.refuses = {refused}
        np.testing.assert_allclose(turns(infer, "a", frames(0, 1)), whole, rtol=1e-4)
        assert len(device.runs) == runs


def test_a_stem_that_loses_rows_is_noticed(stems: Bundle, faster: None) -> None:
    with OrtCpu(stems) as backend:
        whole = turns(Inference(stems, backend), "a", frames(0, 1))
        device, infer = opened(stems, backend, depths={"yard": 2}, batches={"a": (2,)})
        device.loses_rows = True
        np.testing.assert_allclose(turns(infer, "a", frames(0, 1)), whole, rtol=1e-4)
        assert [count for _, _, count in device.runs] == [2, 1, 1, 1, 1]


def rows(path: Path) -> dict[tuple[str, int], NDArray[np.float32]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["query"], row["frame"]): np.array(row["result"], np.float32) for row in found}


def test_offline_runs_give_equal_answers(
    stems: Bundle, tmp_path: Path, faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[tuple[str, str]] = Counter()
    run = OrtCpu.run

    def noted(self: OrtCpu, model: str, stage: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        runs[model, stage] += 1
        return run(self, model, stage, inputs)

    monkeypatch.setattr(OrtCpu, "run", noted)
    summary = run_bundle(stems, RunOptions(offline=True, results=tmp_path / "parts.jsonl")).to_json()
    assert list(summary["stems"].values()) == [{"queries": ["a", "b"], "runs": 12, "frames": 12}]
    assert sum(count for (_, stage), count in runs.items() if stage == "stem") == 12
    assert {key: count for key, count in runs.items() if key[1] != "stem"} == {
        ("a", "rest"): 12,
        ("b", "rest"): 12,
        ("c", "main"): 12,
    }
    runs.clear()
    monkeypatch.setattr(OrtCpu, "stems", {})
    summary = run_bundle(stems, RunOptions(offline=True, results=tmp_path / "whole.jsonl")).to_json()
    assert summary["stems"] == {}
    assert {stage for _, stage in runs} == {"main"}
    parts, whole = rows(tmp_path / "parts.jsonl"), rows(tmp_path / "whole.jsonl")
    assert parts.keys() == whole.keys()
    for key, vector in whole.items():
        np.testing.assert_allclose(parts[key], vector, rtol=1e-4, atol=1e-6)


def test_a_session_shares_stems_of_one_image(stems: Bundle, faster: None) -> None:
    (frame,) = frames(0)
    with BundleSession(stems) as session:
        found = session.answer_feed("yard", frame.image)
        assert set(found) == {"a", "b", "c"}
        assert counted(session._infer) == [(1, 1)]
