"""Sinks: results files, annotated videos and the live table."""

from __future__ import annotations

import io
import json
import math
from itertools import pairwise
from pathlib import Path
from threading import Thread, current_thread, main_thread

import av
import numpy as np
import pytest
from rich.console import Console

from gemel.errors import GemelError, InputError
from gemel.frames.frame import Frame, Image
from gemel.frames.source import resolve
from gemel.runtime.decode.results import (
    Class,
    Detection,
    Embedding,
    Mask,
    Raw,
    Result,
    Segmentation,
    SegmentedClass,
    Text,
)
from gemel.runtime.feeds import Feed
from gemel.runtime.sinks import LiveTable, ResultsSink, VideoSink, video
from gemel.runtime.sinks import pen as pen_module
from gemel.runtime.sinks.draw import annotate, clock, palette
from gemel.runtime.sinks.encoder import Encoder, fit_image
from gemel.runtime.sinks.overlays import class_color, spread_color
from gemel.runtime.sinks.pen import Pen
from gemel.runtime.sinks.words import words

QUERIES = {"people": "yard", "scene": "yard", "faces": "gate"}
BOX = (40.0, 60.0, 120.0, 140.0)
PEOPLE = (Detection(BOX, 0.87, "person"),)


def part_mask(rows: slice, columns: slice, size: tuple[int, int] = (180, 240)) -> Mask:
    """Return a mask of a rectangle in a frame."""
    inside = np.zeros(size, np.bool_)
    inside[rows, columns] = True
    return Mask.of(inside)


def scene(size: tuple[int, int] = (180, 240)) -> Segmentation:
    """Return a frame whose right half is road, but for a car."""
    half = size[1] // 2
    road = part_mask(slice(None), slice(half, None), size).array()
    road[-2:, -2:] = False
    car = part_mask(slice(-2, None), slice(-2, None), size)
    return Segmentation(size, (SegmentedClass("road", 1, Mask.of(road)), SegmentedClass("car", -1, car)))


BODY = Detection(
    (20.0, 90.0, 90.0, 170.0), 0.8, "person", keypoints=tuple((30.0 + 3 * i, 100.0 + 4 * i, 0.9) for i in range(17))
)
FACE = Detection((150.0, 90.0, 200.0, 140.0), 0.8, "face", landmarks=((160.0, 100.0), (math.nan, 1e30), (190.0, 100.0)))
MASKED = Detection((100.0, 90.0, 140.0, 130.0), 0.8, "cup", mask=part_mask(slice(95, 125), slice(105, 135)))
EVERYTHING: dict[str, Result | None] = {
    "boxes": (BODY, FACE, MASKED, *PEOPLE),
    "scene": scene(),
    "text": Text("北京 \n4711", 0.9),
    "weather": (Class("rain", 0.9), Class("night", 0.8)),
    "vector": Embedding((0.5, 0.5)),
    "raw": Raw({"out": np.zeros((1, 84, 8400), np.float32), "one": np.float32(1).reshape(())}),
    "silent": None,
}


def frame(index: int, *, feed: str = "yard", size: tuple[int, int] = (180, 240), time: float | None = None) -> Frame:
    image = np.full((*size, 3), 100, np.uint8)
    image.flags.writeable = False
    return Frame(feed, index, image, index / 10 if time is None else time, 0.0)


def decoded(path: Path) -> list[tuple[float, Image]]:
    with av.open(str(path)) as container:
        return [(float(item.time or 0), item.to_ndarray(format="bgr24")) for item in container.decode(video=0)]


def near(image: Image, color: tuple[int, int, int], tolerance: int = 60) -> int:
    """Return the number of pixels of about this colour."""
    return int((np.abs(image.astype(int) - color).max(axis=-1) < tolerance).sum())


class TestResults:
    def test_a_line_for_each_result(self, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        sink = ResultsSink(path)
        sink.on_result("people", frame(3), PEOPLE, 12.34567)
        # Written at once and whole, so that a killed run leaves a readable file.
        assert json.loads(path.read_text()) == {
            "query": "people",
            "feed": "yard",
            "frame": 3,
            "time": 0.3,
            "latency_ms": 12.346,
            "result": [{"box": list(BOX), "score": 0.87, "label": "person"}],
        }
        sink.on_result("scene", frame(4), (Class("Straße\n", 0.5),), 1.0)
        sink.on_result("scene", frame(5), Embedding((0.25, -1.0)), 1.0)
        sink.close()
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [line["result"] for line in lines[1:]] == [[{"label": "Straße\n", "score": 0.5}], [0.25, -1.0]]

    def test_what_json_does_not_have_becomes_null(self, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        sink = ResultsSink(path)
        sink.on_result("scene", frame(0), Embedding((math.nan, 1.0, math.inf)), 1.0)
        sink.close()
        assert json.loads(path.read_text())["result"] == [None, 1.0, None]

    def test_large_outputs_are_files_beside_the_results(self, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        sink = ResultsSink(path)
        large = np.arange(5000, dtype=np.float32).reshape(1, 5000)
        words = np.array(["x"] * 5000, object)
        raw = Raw({"small": np.array([1.5]), "../large/a": large, "../large/b": large * 2, "words": words})
        sink.on_result("../q", frame(3), raw, 1.0)
        sink.close()
        result = json.loads(path.read_text())["result"]
        assert result["small"] == {"dtype": "float64", "shape": [1], "values": [1.5]}
        files = {name: tmp_path / each["file"] for name, each in result.items() if "file" in each}
        assert {file.parent for file in files.values()} == {tmp_path / "results-raw"}
        assert sorted((tmp_path / "results-raw").iterdir()) == sorted(files.values())
        assert (np.load(files["../large/a"]) == large).all()
        assert (np.load(files["../large/b"]) == large * 2).all()
        assert np.load(files["words"]).tolist() == words.tolist()

    def test_outputs_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "results-raw").write_text("in the way")
        sink = ResultsSink(tmp_path / "results.jsonl")
        with pytest.raises(InputError, match="cannot write results: File exists"):
            sink.on_result("q", frame(0), Raw({"large": np.zeros(5000)}), 1.0)
        sink.close()

    def test_unwritable(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"missing/results.jsonl: cannot write results: No such file"):
            ResultsSink(tmp_path / "missing" / "results.jsonl")


class TestWords:
    @pytest.mark.parametrize(
        ("result", "expected"),
        [
            ((), "nothing"),
            ((*PEOPLE, *PEOPLE, Detection(BOX, 0.5, "car")), "2 person, 1 car"),
            ((Class("cat", 0.931), Class("dog", 0.05)), "cat 0.93"),
            ((Class("rain", 0.9), Class("night", 0.6), Class("snow", 0.4)), "rain 0.90, night 0.60"),
            ((Class("a", 0.4), Class("b", 0.3)), "a 0.40"),
            (Embedding((0.6, 0.8)), "2 values"),
            (Text("GO 4711", 0.987), '"GO 4711" 0.99'),
            (Text("", 0.0), "no text"),
            (scene(), "road 50 %, car < 1 %"),
            (Segmentation((180, 240), ()), "nothing"),
            (EVERYTHING["raw"], "out 1x84x8400, one scalar"),
            (Raw({f"o{i}": np.zeros(i) for i in range(5)}), "o0 0, o1 1, o2 2, + 2"),
        ],
    )
    def test_words(self, result: Result, expected: str) -> None:
        assert words(result) == expected


class TestDraw:
    def test_a_stable_colour_for_each_query(self) -> None:
        names = [f"q{i}" for i in range(30)]
        colors = palette(names)
        assert colors == palette(names)
        assert len(set(colors.values())) == 30
        assert palette(names[:3]) == {name: colors[name] for name in names[:3]}

    def test_boxes_have_the_colour_of_their_query(self) -> None:
        image = frame(0).image
        colors = palette(("people", "cars"))
        cars: Result = (Detection((150, 60, 220, 140), 0.5, "car"),)
        drawn = annotate(image, {"people": PEOPLE, "cars": cars}, colors)
        assert (image == 100).all()
        assert drawn.shape == image.shape
        assert tuple(drawn[100, 40]) == colors["people"]
        assert tuple(drawn[100, 120]) == colors["people"]
        assert tuple(drawn[100, 150]) == colors["cars"]
        assert tuple(drawn[100, 80]) == (100, 100, 100)

    def test_queries_without_boxes_are_lines_at_the_top_left(self) -> None:
        colors = palette(("scene", "vector", "silent"))
        results: dict[str, Result | None] = {
            "scene": (Class("street", 0.9),),
            "vector": Embedding((1.0,)),
            "silent": None,
        }
        drawn = annotate(frame(0).image, results, colors)
        corner = drawn[:90]
        assert all(near(corner, color, 2) > 20 for color in colors.values())
        assert (drawn[100:] == 100).all()

    def test_masks_have_the_colour_of_their_query(self) -> None:
        colors = palette(("cups",))
        drawn = annotate(frame(0).image, {"cups": (MASKED,)}, colors)
        tint = 0.6 * 100 + 0.4 * np.array(colors["cups"])
        assert np.abs(drawn[110, 120] - tint).max() <= 1
        assert tuple(drawn[110, 102]) == (100, 100, 100)  # in the box, not in the mask

    def test_classes_of_pixels_have_colours_of_their_own(self) -> None:
        drawn = annotate(frame(0).image, {"scene": scene()}, palette(("scene",)))
        road, car = (class_color(each) for each in scene().classes)
        assert np.abs(drawn[100, 200] - (50 + 0.5 * np.array(road))).max() <= 1
        assert np.abs(drawn[179, 239] - (50 + 0.5 * np.array(car))).max() <= 1
        assert tuple(drawn[100, 60]) == (100, 100, 100)
        # The legend has a square of each.
        assert all(near(drawn[:90, :120], color, 2) > 20 for color in (road, car))

    def test_colours_of_classes_differ(self) -> None:
        colors = [spread_color(number) for number in range(40)]
        assert len(set(colors)) == 40
        for first, second in pairwise(colors):
            assert np.abs(np.subtract(first, second)).max() > 60

    def test_results_of_a_frame_of_another_size_do_not_fail(self) -> None:
        image = frame(0, size=(90, 120)).image
        drawn = annotate(image, {"scene": scene(), "cups": (MASKED,)}, palette(("scene", "cups")))
        assert drawn.shape == image.shape

    def test_skeletons_and_landmarks(self) -> None:
        colors = palette(("bodies", "faces"))
        drawn = annotate(frame(0).image, {"bodies": (BODY,), "faces": (FACE,)}, colors)
        for x, y, _ in BODY.keypoints:
            assert near(drawn[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3], (255, 255, 255)) > 0
        # A bone joins the left knee and the left ankle.
        assert near(drawn[156:160, 71:74], colors["bodies"]) > 0
        for x, y in (FACE.landmarks[0], FACE.landmarks[2]):
            assert near(drawn[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3], colors["faces"]) > 0

    def test_keypoints_that_are_unsure_are_not_drawn(self) -> None:
        hidden = Detection(BODY.box, 0.8, "person", keypoints=tuple((x, y, 0.1) for x, y, _ in BODY.keypoints))
        without = Detection(BODY.box, 0.8, "person")
        colors = palette(("bodies",))
        drawn, expected = (annotate(frame(0).image, {"bodies": (each,)}, colors) for each in (hidden, without))
        assert (drawn == expected).all()

    def test_other_points_than_cocos_are_not_joined(self) -> None:
        points = ((30.0, 100.0, 0.9), (80.0, 100.0, 0.9))
        drawn = annotate(frame(0).image, {"a": (Detection(BODY.box, 0.8, "x", keypoints=points),)}, palette(("a",)))
        assert near(drawn[98:103, 28:33], palette(("a",))["a"]) > 0
        assert (drawn[100, 40:70] == 100).all()

    def test_time(self) -> None:
        image = frame(0).image
        drawn = annotate(image, {}, {}, 83.4)
        assert (annotate(image, {}, {}) == image).all()
        changed = np.argwhere((drawn != image).any(axis=-1))
        assert changed[:, 0].min() > 150
        assert changed[:, 1].max() < 80
        assert [clock(seconds) for seconds in (0, 0.3, 59.99, 3599.9, 36_000.05)] == [
            "0:00.0",
            "0:00.3",
            "0:59.9",
            "59:59.9",
            "10:00:00.0",
        ]

    def test_crowded_labels_do_not_cover_each_other(self) -> None:
        crowd = tuple(Detection((40.0 + i, 90.0, 100.0 + i, 150.0), 0.9 - i / 100, "person") for i in range(30))
        drawn = annotate(frame(0).image, {"people": crowd}, palette(("people",)))
        first = annotate(frame(0).image, {"people": crowd[:1]}, palette(("people",)))
        # The label of the highest score is whole.
        assert (drawn[70:86, 40:100] == first[70:86, 40:100]).all()

    def test_texts_that_do_not_fit_are_cut(self) -> None:
        pen = Pen(np.array(frame(0).image))
        text = "a query with a very long name"
        assert pen.fit(text, 1000) == text
        cut = pen.fit(text, 80)
        assert cut.endswith("...")
        assert text.startswith(cut[:-3])
        assert pen.text_width(cut) <= 80
        assert pen.fit(text, 1) == ""

    def test_other_letters_where_opencv_draws_ascii_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pen_module, "_ONLY_ASCII", True)
        pen = Pen(np.array(frame(0).image))
        for text, plain in (("žluť", "zlut"), ("北京 4711", "?? 4711"), ("a\nb", "a b")):
            assert pen.text_width(text) == pen.text_width(plain)

    @pytest.mark.parametrize("size", [(1, 1), (7, 9), (30, 400), (144, 176), (180, 240), (1081, 1921)])
    def test_any_size(self, size: tuple[int, int]) -> None:
        colors = palette(tuple(QUERIES))
        image = frame(0, size=size).image
        assert annotate(image, EVERYTHING, palette(tuple(EVERYTHING)), 1.0).shape == image.shape
        own = {"scene": scene(size)} if min(size) > 4 else {}
        assert annotate(image, own, palette(tuple(own)), 1e9).shape == image.shape
        many: dict[str, Result | None] = {f"query {i}": PEOPLE for i in range(50)}
        assert annotate(image, many, palette(tuple(many))).shape == image.shape
        assert annotate(image, {"people": PEOPLE * 30, "scene": (Class("a", 1.0),)}, colors).shape == image.shape
        assert (annotate(image, {}, {}) == image).all()

    @pytest.mark.parametrize("box", [(math.nan,) * 4, (-1e30, math.inf, 1e30, 5.0), (50.0, 50.0, 10.0, 10.0)])
    def test_any_box(self, box: tuple[float, float, float, float]) -> None:
        annotate(frame(0).image, {"people": (Detection(box, math.nan, ""),)}, palette(("people",)))


class TestVideo:
    def test_frames_times_and_boxes(self, tmp_path: Path) -> None:
        sink = VideoSink(tmp_path / "out", QUERIES)
        times = [0.0, 0.1, 0.4, 0.5, 1.7]
        for i, time in enumerate(times):
            sink.on_frame(frame(i, time=time), {"people": PEOPLE, "scene": (Class("street", 0.9),)})
            sink.on_frame(frame(i, feed="gate"), {})
        sink.close()
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"yard.mp4", "gate.mp4"}
        yard = decoded(tmp_path / "out" / "yard.mp4")
        assert [time for time, _ in yard] == pytest.approx(times, abs=2e-3)
        color = palette(tuple(QUERIES))["people"]
        for _, image in yard:
            assert image.shape == (180, 240, 3)
            assert near(image[55:145, 35:125], color) > 150
        gate = decoded(tmp_path / "out" / "gate.mp4")
        assert len(gate) == len(times)
        assert near(gate[0][1][55:145, 35:125], color) == 0

    def test_odd_and_changing_sizes(self, tmp_path: Path) -> None:
        sink = VideoSink(tmp_path, QUERIES)
        for i, size in enumerate([(91, 121), (91, 121), (60, 200), (180, 240)]):
            # Equal time stamps, as after a failure, must not stop the encoder.
            sink.on_frame(frame(i, size=size, time=0.0), {})
        sink.close()
        frames = decoded(sink.path("yard"))
        assert [image.shape for _, image in frames] == [(92, 122, 3)] * 4

    def test_drawing_is_off_the_models_thread(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        threads = []

        def spy(image: Image, *_: object) -> Image:
            threads.append(current_thread())
            return image

        monkeypatch.setattr(video, "annotate", spy)
        sink = VideoSink(tmp_path, QUERIES)
        for i in range(20):
            sink.on_frame(frame(i), {})
        sink.close()
        assert len(threads) == 20
        assert main_thread() not in threads

    def test_a_failure_of_any_kind_ends_the_run_and_does_not_block_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> Image:
            raise KeyError("unexpected")

        monkeypatch.setattr(video, "annotate", fail)
        sink = VideoSink(tmp_path, QUERIES, depth=1)

        caught: list[GemelError] = []

        def feed_it() -> None:
            try:
                for i in range(50):
                    sink.on_frame(frame(i), {})
            except GemelError as error:
                caught.append(error)

        # On a thread, because a broken sink would block here without end.
        thread = Thread(target=feed_it, daemon=True)
        thread.start()
        thread.join(10)
        assert "cannot write the video" in str(caught[0])
        with pytest.raises(GemelError, match="cannot write the video: 'unexpected'"):
            sink.close()

    def test_names_do_not_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        sink = VideoSink(tmp_path, {})
        for name in ("../up", "/etc/x", "..", "a/../../b", "a\0b"):
            assert sink.path(name).parent == tmp_path
            assert sink.path(name).suffix == ".mp4"
        sink.close()

    def test_a_full_disk_is_reported_and_nobody_waits_for_ever(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(Encoder, "write", full)
        sink = VideoSink(tmp_path, QUERIES, depth=1)
        with pytest.raises(GemelError, match=r"yard.mp4: cannot write the video: no space left"):
            for i in range(1000):
                sink.on_frame(frame(i), {})
        with pytest.raises(GemelError, match="no space left"):
            sink.close()

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot make the folder"):
            VideoSink(tmp_path / "file" / "out", QUERIES)

    def test_without_h264(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str, mode: str) -> None:
            raise ValueError(name)

        monkeypatch.setattr(av, "Codec", missing)
        sink = VideoSink(tmp_path, QUERIES)
        for i in range(5):
            sink.on_frame(frame(i), {"people": PEOPLE})
        sink.close()
        with av.open(str(sink.path("yard"))) as container:
            assert container.streams.video[0].codec_context.name == "mpeg4"
        assert len(decoded(sink.path("yard"))) == 5

    def test_fit_keeps_the_aspect_ratio(self) -> None:
        image = np.full((10, 40, 3), 200, np.uint8)
        fitted = fit_image(image, (20, 20))
        assert fitted.shape == (20, 20, 3)
        assert (fitted[8:12] == 200).all()
        assert (fitted[:7] == 0).all()


class TestLiveTable:
    def test_on_a_terminal(self) -> None:
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=110)
        feeds = {"gate": Feed("gate", resolve("gate", "rtsp://camera"))}
        feeds["gate"].error, feeds["gate"].restarts = "connection reset", 2
        table = LiveTable(QUERIES, feeds=feeds, console=console)
        for i in (0, 4, 5):
            table.on_result("people", frame(i), PEOPLE, 12.0 + i)
        table.on_error("scene", frame(0), "ValueError: [no] markup")
        table.close()
        plain = io.StringIO()
        Console(file=plain, width=110).print(table.table())
        rows = [line.split() for line in plain.getvalue().splitlines()]
        assert rows[1][:2] == ["people", "yard"]
        assert rows[1][3:] == ["3", "3", "16.0", "1", "person"]
        assert rows[2][-3:] == ["ValueError:", "[no]", "markup"]
        assert "feed gate: 2 restarts, connection reset" in plain.getvalue()
        assert "person" in out.getvalue()

    def test_silent_elsewhere(self) -> None:
        out = io.StringIO()
        table = LiveTable(QUERIES, console=Console(file=out))
        table.on_result("people", frame(0), PEOPLE, 1.0)
        table.close()
        assert out.getvalue() == ""
