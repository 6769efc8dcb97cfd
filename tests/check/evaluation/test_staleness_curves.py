"""Staleness curves that are measured on answers, and on a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import write_video
from hypothesis import given
from hypothesis import strategies as st

from gemel.bundles.reader import Bundle, open_bundle
from gemel.bundles.staleness import Staleness, read_curves
from gemel.check.evaluation import staleness_curves as module
from gemel.check.evaluation.answers import Answer, Recorder
from gemel.check.evaluation.reference import AnswerCount, OfflineSettings
from gemel.check.evaluation.staleness_curves import CurveMeasurement, curves_text, measure_curves, without_noise
from gemel.errors import FeedError
from gemel.runtime.decode.agreement import TaskName
from gemel.runtime.decode.results import Class, Detection, Embedding, Raw, Result, Segmentation, Text

Curves = Callable[..., CurveMeasurement]


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder / "bundle")


@pytest.fixture
def measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Curves:
    """Return a function that measures the curve of query ``a`` from given results, at 10 frames per second."""

    def measure(
        results: Sequence[Result], task: TaskName, fps: float = 10.0, stated: float | None = 10
    ) -> CurveMeasurement:
        def answer_all(*_: object, **__: object) -> Recorder:
            recorder = Recorder()
            recorder.answers["a"] = [Answer(at, at / fps, 0.0, 0.0, each) for at, each in enumerate(results)]
            return recorder

        monkeypatch.setattr(module, "answer_all", answer_all)
        content = bundle.manifest
        queries = {"a": content.queries["a"].model_copy(update={"task": task})}
        feeds = {**content.feeds, "yard": content.feeds["yard"].model_copy(update={"fps": stated})}
        changed = content.model_copy(update={"queries": queries, "feeds": feeds})
        return measure_curves(Bundle(bundle.path, changed, bundle.id), OfflineSettings())

    return measure


def box(left: float, score: float = 0.9) -> Result:
    return (Detection((left, 0.0, left + 10.0, 10.0), score, "car"),)


def test_a_car_that_drives_away(measured: Curves) -> None:
    # 1 pixel a frame: boxes of 10 pixels overlap by half up to 3 frames later, as 7 / 13 is more than 0.5.
    found = measured([box(float(at)) for at in range(60)], "detection").curves["a"]
    assert found.staleness == Staleness(fps=10.0, frames=40, curve=(1.0,) * 3 + (0.0,) * 17)
    assert (found.objects, found.rises) == (40, False)


def test_what_stands_still_stays_right(measured: Curves) -> None:
    found = measured([box(5.0)] * 45, "detection").curves["a"]
    assert set(found.staleness.curve) == {1.0}
    assert found.staleness.frames == 25


@pytest.mark.parametrize(
    ("task", "result", "reason"),
    [
        ("detection", (), "no objects in 40 frames of feed yard, so no curve"),
        # An object that scores less than 0.3 is no truth.
        ("detection", box(0.0, 0.2), "no objects in 40 frames of feed yard, so no curve"),
        ("pose", box(0.0), "no poses in 40 frames of feed yard, so no curve"),
        ("classification", (), "no classes in 40 frames of feed yard, so no curve"),
        ("embedding", Embedding((1.0, 2.0)), "equal embeddings in 40 frames of feed yard, so no curve"),
        ("segmentation", Segmentation((4, 4), ()), "no objects in 40 frames of feed yard, so no curve"),
        ("ocr", Text("", 0.0), "no text in 40 frames of feed yard, so no curve"),
        ("raw", Raw({}), "no outputs in 40 frames of feed yard, so no curve"),
        ("raw", Raw({"y": np.array([np.nan, 1.0])}), "no outputs in 40 frames of feed yard, so no curve"),
    ],
)
def test_nothing_is_found(measured: Curves, task: TaskName, result: Result, reason: str) -> None:
    found = measured([result] * 60, task)
    assert (found.curves, found.omitted) == ({}, {"a": reason})


def test_objects_in_the_first_frames_only_are_no_truth(measured: Curves) -> None:
    found = measured([box(0.0)] * 20 + [()] * 40, "detection")
    assert found.omitted == {"a": "no objects in 40 frames of feed yard, so no curve"}


def test_too_few_frames(measured: Curves) -> None:
    assert measured([box(0.0)] * 39, "detection").omitted == {
        "a": "feed yard has 39 frames, and 40 are needed at 10 frames per second, so no curve"
    }
    assert measured([box(0.0)] * 40, "detection").curves.keys() == {"a"}
    for count, fps in ((0, 10.0), (1, 10.0), (60, 1e6), (60, 1e-4)):
        reason = f"feed yard has {count} frames, whose times give no frame rate, so no curve"
        assert measured([box(0.0)] * count, "detection", fps).omitted == {"a": reason}


def test_ages_are_frames_of_the_feed(measured: Curves) -> None:
    # 2 seconds, but at most 60 frames; a recording that is slower than the feed's fps gives fewer frames.
    results = [(Class(str(at % 7), 0.9),) for at in range(300)]
    assert [
        (len(each.curve), each.fps)
        for fps, stated in ((25.0, None), (30.0, 30), (100.0, None), (4.98, 5), (4.0, 10), (0.2, None))
        for each in (measured(results, "classification", fps, stated).curves["a"].staleness,)
    ] == [(50, 25.0), (60, 30.0), (60, 100.0), (10, 5.0), (8, 4.0), (1, 0.2)]


def test_classes_that_alternate_come_back(measured: Curves) -> None:
    results = [(Class("day" if at % 20 < 10 else "night", 0.9),) for at in range(100)]
    found = measured(results, "classification").curves["a"]
    # An answer from a whole period ago is right again, which is no noise.
    assert found.rises
    assert found.staleness.curve[9] == 0.0 and found.staleness.curve[19] == 1.0


def test_a_small_rise_is_noise() -> None:
    measured = np.array([0.9, 0.8, 0.9, 0.7, 0.7])
    values, rises = without_noise(measured, 100)
    assert not rises
    assert values.tolist() == pytest.approx([0.9, 0.85, 0.85, 0.7, 0.7])
    # On more frames, the same rise is larger than chance.
    values, rises = without_noise(measured, 1000)
    assert rises and values is measured


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_nearest_curve_that_does_not_rise(values: list[float]) -> None:
    raw = np.array(values)
    found, rises = without_noise(raw, 1)
    assert not rises
    assert (np.diff(found) <= 1e-9).all()
    assert found.mean() == pytest.approx(raw.mean())
    # No other curve that does not rise is nearer, such as the one of running minima.
    for other in (np.minimum.accumulate(raw), np.full_like(raw, raw.mean()), np.sort(raw)[::-1]):
        assert ((found - raw) ** 2).sum() <= ((other - raw) ** 2).sum() + 1e-9


def test_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", 45)
    progress: list[tuple[int, int]] = []
    settings = OfflineSettings(frames=42, threads=1, sources={"yard": str(video)})
    found = measure_curves(bundle, settings, told=lambda *done: progress.append(done))
    # The feed gate keeps its recording of 12 frames at 5 frames per second, and is played once though it loops.
    assert found.omitted == {"c": "feed gate has 6 frames, and 30 are needed at 5 frames per second, so no curve"}
    assert {name: (each.staleness.fps, each.staleness.frames) for name, each in found.curves.items()} == {
        "a": (10.0, 22),
        "b": (10.0, 22),
    }
    assert progress[-1] == (2 * 42 + 6, 3 * 42)
    for suffix in ("yaml", "json"):
        path = tmp_path / f"curves.{suffix}"
        path.write_text(curves_text(found, bundle, path))
        assert read_curves(path) == {name: each.staleness for name, each in found.curves.items()}
    text = (tmp_path / "curves.yaml").read_text()
    assert "# c: feed gate has 6 frames" in text and "# top-1 accuracy" in text


def test_a_query_that_fails(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer_all(*_: object, beside: Sequence[AnswerCount], **__: object) -> Recorder:
        beside[0].errors["b"] = "out of\norder \x07"
        return Recorder()

    monkeypatch.setattr(module, "answer_all", answer_all)
    found = measure_curves(bundle, OfflineSettings())
    assert found.omitted["b"] == "failed on a frame of feed yard: out of\norder \x07"
    path = tmp_path / "curves.yaml"
    path.write_text(curves_text(found, bundle, path))
    assert "# b: failed on a frame of feed yard: out of order ?" in path.read_text().splitlines()


def test_a_camera_beside_a_recording_is_named(bundle: Bundle, tmp_path: Path) -> None:
    content = bundle.manifest
    feeds = {**content.feeds, "gate": content.feeds["gate"].model_copy(update={"source": "rtsp://me:secret@host/1"})}
    mixed = Bundle(bundle.path, content.model_copy(update={"feeds": feeds}), bundle.id)
    video = write_video(tmp_path / "long.mp4", 45)
    found = measure_curves(mixed, OfflineSettings(threads=1, sources={"yard": str(video)}))
    assert found.curves.keys() == {"a", "b"}
    assert found.omitted == {
        "c": "feed 'gate': rtsp://host cannot be played again for the reference answers; give a recording with --feed"
        " gate=FILE"
    }
    feeds["yard"] = feeds["gate"]
    cameras = Bundle(bundle.path, content.model_copy(update={"feeds": feeds}), bundle.id)
    with pytest.raises(FeedError, match=r"feed 'yard': .* give a recording with --feed yard=FILE"):
        measure_curves(cameras, OfflineSettings())


def test_a_camera_cannot_be_measured(bundle: Bundle) -> None:
    with pytest.raises(FeedError, match="give a recording with --feed yard=FILE"):
        measure_curves(bundle, OfflineSettings(sources={"yard": "rtsp://host/1"}))
