"""Samples: which frames are stored with which answers, the limits of their folder, the user's hook, and uploads."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sink_events import INFO, NOON, PEOPLE, QUERIES, frame, wait_until

from gemel.bundles.output_specs import OutputSpec, SamplesSpec
from gemel.errors import InputError
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Class, Embedding, Result
from gemel.runtime.sinks import open_outputs
from gemel.runtime.sinks.events import SinkEvent
from gemel.runtime.sinks.run_queries import RunQueries
from gemel.runtime.sinks.sample_folder import SampleFolder
from gemel.runtime.sinks.sample_record import SampleRecord, parse_record
from gemel.runtime.sinks.samples import SampleWriter
from gemel.runtime.sinks.sampling import Sampling, check_upload, load_hook
from gemel.runtime.sinks.upload import Uploader

SCENE = (Class("rain", 0.7),)
ANSWERS: dict[str, Result] = {"people": PEOPLE, "scene": SCENE}


def feed_to(writer: SampleWriter, *frames: tuple[float, str], feed: str = "yard") -> None:
    """Offer frames to a writer, and store those that it wants.

    Args:
        writer: writer of samples.
        frames: media time of each frame in seconds, and the first letters of the queries that answer it.
        feed: name of the feed.
    """
    standing: dict[str, Result] = {}
    for index, (moment, letters) in enumerate(frames):
        picture = frame(index, time=moment, feed=feed)
        for query, result in ANSWERS.items():
            if query[0] in letters:
                standing[query] = result
                assert not writer.wants(SinkEvent("result", INFO, picture, query, result))
        left = SinkEvent("frame", INFO, picture, results=dict(standing))
        if letters and writer.wants(left):
            batch = deque([left])
            writer.write(batch)
            assert not batch


def open_writer(folder: Path, *, sampling: Sampling | None = None, **spec: Any) -> SampleWriter:
    return SampleWriter(SamplesSpec(folder=str(folder), **spec), QUERIES, INFO, sampling or Sampling(lambda: "b" * 64))


def records(folder: Path) -> list[SampleRecord]:
    return [parse_record(path.read_bytes()) for path in SampleFolder(folder, None, None).records()]


def test_a_sample_is_a_frame_and_all_answers_on_it(tmp_path: Path) -> None:
    feed_to(open_writer(tmp_path), (0.5, "ps"), (1, "ps"), (29, "ps"), (30.5, "ps"))
    first, second = records(tmp_path)
    assert (first.run, first.bundle, first.feed, first.frame) == (INFO.run, "b" * 64, "yard", 0)
    assert (first.time, first.at, first.size, first.changed) == (0.5, NOON + 0.5, (180, 240), False)
    assert (first.schema_version, second.frame, second.time) == ("1.0", 3, 30.5)
    assert first.answers["people"][0] == {"box": [40.0, 60.0, 120.0, 140.0], "score": 0.87, "label": "person"}
    assert first.answers["scene"] == [{"label": "rain", "score": 0.7}]
    assert first.skipped == ()
    assert first.image == "yard-20261127T120000.500Z.jpg"
    picture = (tmp_path / first.image).read_bytes()
    assert hashlib.sha256(picture).hexdigest() == first.sha256
    pixels = np.asarray(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR))
    assert pixels.shape == (180, 240, 3) and abs(pixels.astype(int) - 100).max() < 3
    assert len(list(tmp_path.iterdir())) == 4


def test_a_frame_that_all_queries_answered_is_waited_for(tmp_path: Path) -> None:
    feed_to(open_writer(tmp_path), (0, "p"), (1, "s"), (2, "ps"), (3, "p"))
    (found,) = records(tmp_path)
    assert found.frame == 2 and found.answers.keys() == {"people", "scene"}


def test_answers_on_earlier_frames_are_left_out(tmp_path: Path) -> None:
    frames = [(0.5 * number, "ps"[number % 2]) for number in range(100)]
    feed_to(open_writer(tmp_path), *frames)
    found = records(tmp_path)
    assert all(len(each.answers) == 1 and len(each.skipped) == 1 for each in found)
    for query in ("people", "scene"):
        times = [each.time for each in found if query in each.answers]
        assert len(times) == 2 and times[1] - times[0] >= 30


def test_each_feed_has_its_own_samples(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    feed_to(writer, (0, "ps"))
    gate = frame(7, feed="gate")
    writer.wants(SinkEvent("result", INFO, gate, "faces", PEOPLE))
    left = SinkEvent("frame", INFO, gate, results={"faces": PEOPLE})
    assert writer.wants(left)
    writer.write(deque([left]))
    assert {each.feed for each in records(tmp_path)} == {"yard", "gate"}


def test_time_that_goes_back_begins_anew(tmp_path: Path) -> None:
    feed_to(open_writer(tmp_path), (1000, "ps"), (1001, "ps"), (2, "ps"))
    assert {each.time for each in records(tmp_path)} == {1000, 2}


def test_after_a_reload_only_answers_of_one_bundle(tmp_path: Path) -> None:
    queries = RunQueries(QUERIES)
    queries.bundle = "1" * 64
    writer = SampleWriter(SamplesSpec(folder=str(tmp_path)), queries, INFO, Sampling(lambda: queries.bundle))
    picture = frame(0)
    writer.wants(SinkEvent("result", INFO, picture, "people", PEOPLE))
    queries.bundle = "2" * 64
    writer.wants(SinkEvent("result", INFO, picture, "scene", SCENE))
    left = SinkEvent("frame", INFO, picture, results=ANSWERS)
    assert not writer.wants(left)  # a frame that both have answered is waited for
    later = frame(1, time=8.0)
    for query, result in ANSWERS.items():
        writer.wants(SinkEvent("result", INFO, later, query, result))
    left = SinkEvent("frame", INFO, later, results=ANSWERS)
    assert writer.wants(left)
    writer.write(deque([left]))
    (found,) = records(tmp_path)
    assert (found.bundle, found.answers.keys()) == ("2" * 64, ANSWERS.keys())


def test_answers_that_json_does_not_have(tmp_path: Path) -> None:
    writer, picture = open_writer(tmp_path), frame(0, feed="gate")
    diverged = Embedding((float("nan"), 1.0))
    writer.wants(SinkEvent("result", INFO, picture, "faces", diverged))
    left = SinkEvent("frame", INFO, picture, results={"faces": diverged})
    assert writer.wants(left)
    writer.write(deque([left]))
    assert records(tmp_path)[0].answers == {"faces": [None, 1.0]}


def put(folder: SampleFolder, number: int, size: int = 900) -> None:
    folder.write("yard", NOON + number, b"x" * size, lambda name: name.encode().ljust(100))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_never_holds_more_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"x" * 9000)
    folder = SampleFolder(tmp_path, 10_000, None)
    for number in range(250):
        put(folder, number)
        found = [path for path in tmp_path.iterdir() if path.name != "mine.jpg"]
        assert sum(path.stat().st_size for path in found) <= 10_000
        assert len(found) % 2 == 0
    assert names(tmp_path)[-1] == "yard-20261127T120409.000Z.json"  # the newest
    assert len(found) >= 16
    with pytest.raises(ValueError, match="a sample of 20100 bytes is larger than all samples together may be, 10000"):
        put(folder, 999, size=20_000)
    assert not any("121639" in name for name in names(tmp_path))


def test_old_samples_are_deleted(tmp_path: Path) -> None:
    now = time.time()
    folder = SampleFolder(tmp_path, None, 3600)
    for age in (7200, 3700, 3500, 0, -7200):
        folder.write("yard", now - age, b"x", lambda name: b"{}")
    folder.prune()
    assert len(folder.records()) == 3
    # What a kill has left unfinished goes, too, but nothing that another process writes now.
    old, new = (tmp_path / f".yard-2026112{day}T120000.000Z.json.part" for day in (6, 7))
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    folder.prune()
    assert not old.exists() and new.exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        if path.name.endswith(".json.part"):
            raise OSError(28, "No space left on device")
        return write(path, data)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        feed_to(open_writer(tmp_path), (0, "ps"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_tried_again_and_counted(tmp_path: Path) -> None:
    (tmp_path / "in the way").touch()
    spec = OutputSpec(samples=SamplesSpec(folder=str(tmp_path / "in the way" / "samples")))
    outputs = open_outputs([spec], QUERIES, INFO)
    outputs.on_result("faces", frame(0, feed="gate"), PEOPLE, 1.0)
    outputs.on_frame(frame(0, feed="gate"), {"faces": PEOPLE})
    wait_until(lambda: outputs.counts()["samples"].state == "failing", "the output never failed")
    outputs.close()
    counts = outputs.counts()["samples"]
    assert (counts.offered, counts.written, counts.dropped) == (1, 0, 1)


class TestHook:
    def store(self, folder: Path, hook: Any) -> None:
        feed_to(open_writer(folder, sampling=Sampling(hook=hook)), (0, "ps"))

    def test_it_changes_what_is_stored(self, tmp_path: Path) -> None:
        def black(image: Image, answers: Mapping[str, Result]) -> Image:
            assert answers == ANSWERS
            x1, y1, x2, y2 = map(int, PEOPLE[0].box)
            image[y1:y2, x1:x2] = 0
            return image

        self.store(tmp_path, black)
        (found,) = records(tmp_path)
        assert found.changed
        pixels = np.asarray(cv2.imread(str(tmp_path / found.image)))
        assert pixels[100, 80].max() < 10 and pixels[20, 20].min() > 90

    def test_it_may_refuse_a_frame(self, tmp_path: Path) -> None:
        self.store(tmp_path / "none", lambda image, answers: None)
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("hook", "message"),
        [
            (lambda image, answers: 1 / 0, "the hook failed: ZeroDivisionError: division by zero"),
            (lambda image, answers: image[:10], r"the hook gave uint8 \(10, 240, 3\), not uint8 \(180, 240, 3\)"),
            (lambda image, answers: image / 255, "the hook gave float64"),
        ],
    )
    def test_nothing_is_stored_when_it_fails(self, tmp_path: Path, hook: Any, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            self.store(tmp_path / "none", hook)
        assert not (tmp_path / "none").exists()

    def test_it_is_imported_by_name(self) -> None:
        hook: object = load_hook("os.path:join")
        assert hook is os.path.join
        for text, message in (
            ("faces", "'faces' is not allowed: module:function is expected"),
            ("no_such_module:f", "no_such_module:f: ModuleNotFoundError: No module named 'no_such_module'"),
            ("os.path:no_such", "os.path:no_such: AttributeError: "),
            ("os:name", "os:name: is not a function"),
        ):
            with pytest.raises(InputError, match=f"^--sample-hook: {message}"):
                load_hook(text)


class Store:
    """Store in memory, of which every call fails while it is away."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.away = True
        self.calls = 0

    def pipe_file(self, path: str, data: bytes) -> None:
        self.calls += 1
        if self.away:
            raise TimeoutError("no answer\nfrom the store")
        self.files[path] = data


class TestUpload:
    def test_a_store_that_is_away_costs_nothing_but_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gemel.runtime.sinks.upload._FIRST_PAUSE_S", 0.01)
        folder, store = SampleFolder(tmp_path, 10_000, None), Store()
        for number in range(3):
            put(folder, number)
        uploader = Uploader(folder, "s3://key:s3cret@bucket/box7", lambda address: (store, "bucket/box7"))
        wait_until(lambda: store.calls >= 3, "it was not tried again")
        counts = uploader.counts()
        assert (counts.state, counts.written, counts.waiting) == ("behind", 0, 3)
        assert counts.error == "TimeoutError: no answer"
        folder.remove(folder.records()[0])  # as a full folder does
        wait_until(lambda: uploader.counts().dropped == 1, "what was dropped is not counted")
        assert len(names(tmp_path)) == 4
        store.away = False
        wait_until(lambda: uploader.counts().state == "working", "it does not come back")
        wait_until(lambda: uploader.counts().written == 2, "not all was uploaded")
        put(folder, 9)
        uploader.announce()
        wait_until(lambda: uploader.counts().written == 3, "a new sample was not uploaded")
        uploader.close()
        assert not names(tmp_path)
        assert len(store.files) == 6 and "bucket/box7/yard-20261127T120009.000Z.json" in store.files
        # The picture comes first: who sees a record can read its picture.
        assert [name[-4:] for name in store.files] == [".jpg", "json"] * 3

    def test_with_fsspec(self, tmp_path: Path) -> None:
        there = tmp_path / "there"
        sampling = Sampling(upload=f"file://{there}/box7")
        spec = OutputSpec(samples=SamplesSpec(folder=str(tmp_path / "here")))
        outputs = open_outputs([spec], QUERIES, INFO, sampling=sampling)
        outputs.on_result("faces", frame(0, feed="gate"), PEOPLE, 1.0)
        outputs.on_frame(frame(0, feed="gate"), {"faces": PEOPLE})
        wait_until(lambda: outputs.counts()["samples-upload"].written == 1, "nothing was uploaded")
        outputs.close()
        assert not list((tmp_path / "here").iterdir())
        assert [each.feed for each in records(there / "box7")] == ["gate"]

    def test_what_waits_is_uploaded_by_the_next_run(self, tmp_path: Path) -> None:
        folder, store = SampleFolder(tmp_path, None, None), Store()
        put(folder, 0)
        Uploader(folder, "s3://bucket", lambda address: (store, "bucket")).close()
        assert len(names(tmp_path)) == 2
        store.away = False
        later = Uploader(folder, "s3://bucket", lambda address: (store, "bucket"))
        wait_until(lambda: len(store.files) == 2, "it was not uploaded")
        later.close()

    def test_addresses(self) -> None:
        check_upload("memory://box7")
        for address, message in (
            ("bucket/box7", "an address such as s3://bucket/folder is expected"),
            ("nosuch://bucket", "nosuch://: Protocol not known: nosuch"),
        ):
            with pytest.raises(InputError, match=f"^--sample-upload: {message}"):
                check_upload(address)
