"""Annotated videos: files of limited length that can be played after a kill, in a folder of limited size."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import deque
from itertools import pairwise
from pathlib import Path
from threading import Event as Flag
from threading import current_thread, main_thread

import av
import numpy as np
import pytest
from sink_events import BOX, INFO, PEOPLE, QUERIES, decoded, frame, wait_until

from gemel.bundles.output_specs import VideoSpec
from gemel.frames.frame import Frame, Image
from gemel.runtime.decode.results import Class, Result
from gemel.runtime.sinks import OutputSink, RunInfo, queued, video
from gemel.runtime.sinks.draw import Palette
from gemel.runtime.sinks.encoder import Encoder, fit_image
from gemel.runtime.sinks.events import SinkEvent
from gemel.runtime.sinks.video import VideoWriter


def shown(frame: Frame, results: dict[str, Result] | None = None) -> SinkEvent:
    """Return the event of a frame that no query takes any more."""
    return SinkEvent("frame", INFO, frame, results=results or {})


def write(folder: Path, *events: SinkEvent, **spec: object) -> list[Path]:
    """Write events to videos, and return their files, sorted by name."""
    writer = VideoWriter(VideoSpec(folder=str(folder), **spec), QUERIES)
    for each in events:
        writer.write(deque([each]))
    writer.close()
    return sorted(folder.iterdir())


def test_frames_times_and_boxes(tmp_path: Path) -> None:
    events = []
    for i in range(10):
        results: dict[str, Result] = {"people": PEOPLE, "scene": (Class("street", 0.9),)} if i >= 5 else {}
        events += [shown(frame(i), results), shown(frame(i, feed="gate", time=i / 20), {})]
    gate, yard = write(tmp_path / "new", *events)
    assert (gate.name, yard.name) == ("gate.mp4", "yard.mp4")
    frames = decoded(yard)
    assert [round(time, 3) for time, _ in frames] == [i / 10 for i in range(10)]
    assert round(decoded(gate)[-1][0], 3) == 9 / 20
    edge = (slice(90, 130), slice(int(BOX[0]) - 1, int(BOX[0]) + 1))
    color = np.array(Palette(QUERIES)["people"])
    near_color = [(np.abs(image[edge].astype(int) - color).max(axis=-1) < 70).mean() for _, image in frames]
    assert max(near_color[:5]) < 0.1 and min(near_color[5:]) >= 0.5
    # The lower left corner has the time of day, in light letters.
    assert all((image[-20:, :140] > 200).any() for _, image in frames)


def test_odd_and_changing_sizes(tmp_path: Path) -> None:
    sizes = [(91, 121), (91, 121), (300, 400), (40, 41)]
    # Equal time stamps, as after a failure, must not stop the encoder.
    (path,) = write(tmp_path, *(shown(frame(i, size=size, time=0.0)) for i, size in enumerate(sizes)))
    assert [image.shape for _, image in decoded(path)] == [(92, 122, 3)] * 4


def test_files_of_limited_length(tmp_path: Path) -> None:
    paths = write(tmp_path, *(shown(frame(i, time=i / 2)) for i in range(25)), segment=5.0)
    assert [re.sub(r"\d{8}T\d{6}\.\d{3}Z", "TIME", path.name) for path in paths] == [
        "yard-TIME.mp4",
        "yard-TIME.mp4",
        "yard.mp4",
    ]
    lengths = [[time for time, _ in decoded(path)] for path in paths]
    assert [len(times) for times in lengths] == [10, 10, 5]
    assert [times[0] for times in lengths] == [0, 0, 0]
    # After a silence that is longer than a file, a new one begins.
    paths = write(tmp_path / "gap", shown(frame(0, time=0)), shown(frame(1, time=3600)), segment=5.0)
    assert [len(decoded(path)) for path in paths] == [1, 1]


def test_no_file_is_written_over(tmp_path: Path) -> None:
    for count in range(1, 4):
        paths = write(tmp_path, *(shown(frame(i)) for i in range(count)))
    assert [len(decoded(path)) for path in paths] == [1, 2, 3]
    assert paths[-1].name == "yard.mp4"


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    first, second = (VideoWriter(VideoSpec(folder=str(tmp_path)), QUERIES) for _ in range(2))
    first.write(deque([shown(frame(0))]))
    with pytest.raises(OSError, match=r"another run writes to this file.*yard\.mp4"):
        second.write(deque([shown(frame(0))]))
    first.close()
    second.write(deque([shown(frame(0))]))
    second.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_oldest_files_go_first(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"x" * 100_000)
    for day in range(1, 6):
        (tmp_path / f"{'az'[day % 2]}-2026110{day}T000000.000Z.mp4").write_bytes(b"x" * 1000)
    paths = write(tmp_path, shown(frame(0)), keep=2500)
    assert [path.name for path in paths] == [
        "a-20261104T000000.000Z.mp4",
        "holiday.mp4",
        "yard.mp4",
        "z-20261105T000000.000Z.mp4",
    ]


KILLED = """
import json, sys
sys.path[:0] = sys.argv[2:]
from collections import deque
from sink_events import QUERIES, INFO, frame
from gemel.bundles.output_specs import VideoSpec
from gemel.runtime.sinks.events import SinkEvent
from gemel.runtime.sinks.video import VideoWriter
writer = VideoWriter(VideoSpec(folder=sys.argv[1], segment=10), QUERIES)
index = 0
while True:
    writer.write(deque([SinkEvent("frame", INFO, frame(index))]))
    print(index, flush=True)
    index += 1
"""


@pytest.mark.parametrize("frames", [3, 57, 133])
def test_a_kill_loses_less_than_two_seconds(tmp_path: Path, frames: int) -> None:
    tests = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), tests], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= frames:
                break
        process.send_signal(signal.SIGKILL)
        seen = max([int(line), *map(int, process.stdout.read().split())])
    found = []
    for path in sorted(tmp_path.iterdir()):
        # A file whose first fragment was not written yet holds only its header.
        if path.stat().st_size > 2000:
            found += decoded(path)
    assert len(found) >= seen - 20
    if frames > 100:
        assert len(list(tmp_path.iterdir())) >= 2


def test_a_key_frame_every_five_seconds(tmp_path: Path) -> None:
    (path,) = write(tmp_path, *(shown(frame(i)) for i in range(160)))
    with av.open(str(path)) as container:
        keys = [float(item.time or 0) for item in container.decode(video=0) if item.key_frame]
    assert max(after - before for before, after in pairwise([*keys, 16.0])) <= 6.1


def test_a_slow_encoder_drops_frames_and_does_not_hold_up_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, release = set(), Flag()

    def stuck(image: Image, *_: object) -> Image:
        threads.add(current_thread())
        release.wait(20)
        return image

    monkeypatch.setattr(queued, "_GRACE_S", 0.2)
    monkeypatch.setattr(video, "annotate", stuck)
    outputs = OutputSink(RunInfo(), {"video": VideoWriter(VideoSpec(folder=str(tmp_path)), QUERIES)})
    for i in range(200):
        outputs.on_frame(frame(i), {})
    wait_until(lambda: bool(threads), "the output's thread draws")
    assert main_thread() not in threads
    assert outputs.counts()["video"].dropped >= 160
    outputs.close()
    counts = outputs.counts()["video"]
    assert counts.offered == 200 and counts.waiting == 0
    release.set()


def test_a_full_disk_is_tried_again_with_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = VideoWriter(VideoSpec(folder=str(tmp_path)), QUERIES)
    writer.write(deque([shown(frame(0))]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Encoder, "write", full)
    batch = deque([shown(frame(1))])
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            writer.write(batch)
    monkeypatch.undo()
    writer.write(batch)
    writer.close()
    assert not batch
    assert [len(decoded(path)) for path in sorted(tmp_path.iterdir()) if path.stat().st_size > 1000] == [1, 1]


def test_a_really_full_disk(tmp_path: Path) -> None:
    writer = VideoWriter(VideoSpec(folder=str(tmp_path)), QUERIES)
    path = tmp_path / "yard.mp4"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="is a link, which is not written to"):
        writer.write(deque([shown(frame(0))]))
    writer.close()
    with pytest.raises(OSError, match="No space left"):
        encoder = Encoder(path, frame(0).image)
        for i in range(40):
            encoder.write(frame(i).image, i / 10)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write(tmp_path / "file" / "out", shown(frame(0)))


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    for name in ("../up", "/etc/x", "..", "a/../../b", "a\0b", "x" * 300, ""):
        write(inside, shown(frame(0, feed=name)))
    assert [each.name for each in tmp_path.iterdir()] == ["in"]
    assert len(list(inside.iterdir())) == 7


def test_without_h264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, mode: str) -> None:
        raise ValueError(name)

    monkeypatch.setattr(av, "Codec", missing)
    (path,) = write(tmp_path, *(shown(frame(i), {"people": PEOPLE}) for i in range(5)))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert len(decoded(path)) == 5


def test_fit_keeps_the_aspect_ratio() -> None:
    image = np.full((10, 40, 3), 200, np.uint8)
    fitted = fit_image(image, (20, 20))
    assert fitted.shape == (20, 20, 3)
    assert (fitted[8:12] == 200).all()
    assert (fitted[:7] == 0).all()


def test_counts_can_be_written_as_json(tmp_path: Path) -> None:
    outputs = OutputSink(RunInfo(), {"video": VideoWriter(VideoSpec(folder=str(tmp_path)), QUERIES)})
    outputs.close()
    assert json.loads(json.dumps(outputs.counts()["video"].to_json()))["written"] == 0
