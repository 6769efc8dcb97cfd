"""The drill of the loop: its timeline, figures and picture, what it reads from the commands' lines, and their ends."""

from __future__ import annotations

from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any

import cv2
import loop_story
import pytest
from commands import CommandError, Commands
from loop_report import reload_rows, report_lines, trained_until
from loop_story import Story
from loop_timeline import Answer, Happening, Timeline, draw, missed, windows

from gemel.cli.apply import applied_lines


def timeline() -> Timeline:
    """Return two minutes with ten frames a second: one query falls at 40 s, the other misses frames."""
    made = Timeline({"shoes": "north", "bags": "south"}, {"shoes": 0.9, "bags": 0.9}, figures={"samples": 12})
    made.answers["shoes"] = [Answer(n / 10, n, not 400 <= n < 600 or n % 2 == 0, True) for n in range(1200)]
    made.answers["bags"] = [Answer(n / 10, n, True, n % 4 > 0) for n in range(1200) if n not in (305, 306, 900)]
    made.happenings = [
        Happening("reload", 60.0, 61.5, "revert"),
        Happening("merging", 0.0, 29.0, "merged", {"saving": 0.5, "images": 1000}),
        Happening("published", 29.0, None, "", {"bytes": 500_000}),
        Happening("applied", 30.0, None, "", {"bytes": 500_000}),
        Happening("reload", 30.2, 31.0, "delta"),
        Happening("bundle", 31.0, None, "", {"weights": 700_000, "files": 2_000_000}),
        Happening("verdict", 32.0, 50.0, "", {"verdict": "holds"}),
        Happening("scene", 40.0, None, "north"),
        Happening("reverted", 59.0, None, "shoes"),
        Happening("bundle", 61.5, None, "", {"weights": 900_000, "files": 2_000_000}),
        Happening("merging", 70.0, 100.0, "merged-on", {"saving": 0.4, "images": 300}),
        Happening("back", 100.0, None, "shoes"),
    ]
    return made


def test_figures(tmp_path: Path) -> None:
    timeline().write(tmp_path / "timeline.json")
    made = Timeline.read(tmp_path / "timeline.json")
    assert made == timeline()
    assert [row[1] for row in windows(made.answers["shoes"])][3:7] == [1.0, 0.5, 0.5, 1.0]
    assert missed(made.answers["bags"]) == pytest.approx([30.5, 30.6, 90.0])
    delta, revert = reload_rows(made)
    assert (delta["why"], delta["sent"], delta["weights"], revert["weights"]) == ("delta", 500_000, 700_000, 900_000)
    assert (delta["missed"], revert["missed"]) == ({"shoes": 0, "bags": 2}, {"shoes": 0, "bags": 0})
    assert delta["frames"] == 2 * 34
    lines = report_lines(made, "shoes")
    assert lines[0].startswith("shoes: 19.0 s from the first dark frame to the revert, or 12 samples; 21.5 s until")
    assert "| merged, at night | 0.535 | 1.000 | 215 |" in lines
    assert "| the revert | 0.000 | 0.90 | 1.5 | 82 | 0 |" in lines
    assert "Of 2,400 answers in all, 3 were missed." in lines[-1]


def test_images_until_all_that_is_saved_is_confirmed() -> None:
    lines = ["average: measured (start); worst query a keeps 89.4%; 0.0% saved; 0 images in 6 s; left: 6 looks", "step"]
    lines += [f"round {n}: accepted; worst query a keeps 93%; {saved}% saved; 100 images in 9 s" for n, saved in
              enumerate((40.7, 81.5, 81.5))]  # fmt: skip
    assert trained_until(lines) == 200 and trained_until([]) == 0


def test_picture(tmp_path: Path) -> None:
    draw(timeline(), tmp_path / "loop.png")
    picture = cv2.imread(str(tmp_path / "loop.png"))
    assert picture is not None and picture.std() > 10


def test_lines_of_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ("a" * 32 + ".delta")).write_bytes(b"12345")
    story = Story(tmp_path / "bundle", tmp_path, 1000.0)
    # What runs from the start is a bundle with a reverted query.
    originals = SimpleNamespace(merged="a" * 64)
    runs = SimpleNamespace(id="d" * 64, manifest=SimpleNamespace(originals=originals, files={}))
    monkeypatch.setattr(loop_story, "open_bundle", lambda path: runs)
    monkeypatch.setattr(loop_story, "unique_bytes", lambda manifest: 7)
    manifest = SimpleNamespace(originals=None, reverted=frozenset(), queries={})
    bundle: Any = SimpleNamespace(path="box/bundle", id="b" * 64, manifest=manifest)
    done: Any = SimpleNamespace(bundle=bundle, before="d" * 64, new_bytes=4, kept_bytes=2, bytes=5)
    for at, name, line in (
        (1001.0, "box", " serving  http://127.0.0.1:4711"),
        (1002.0, "merger", f" publish   8.1 s  deltas/{'a' * 32}.delta: 0.00 MB, from bundle aaa to bbb"),
        (1003.0, "pull", next(applied_lines(done))),
        (1005.0, "box", "box/bundle runs now, after 1.5 s"),
        (1005.0, "pull", "box/bundle runs now, after 1.5 s"),
        (1006.0, "drift", "query shoes: holds (before: unknown)"),
        (1007.0, "drift", "query bags: holds (before: unknown)"),
        (1008.0, "drift", "query shoes: revert (before: holds)"),
        (1008.0, "drift", "query shoes: its loss began about T; gemel merge --from MERGED --samples DIR --since T"),
        (1009.0, "drift", "box/bundle: shoes now with original weights; bundle bbb is now ccc, with 0.90 MB"),
        (1009.5, "merger", "deltas/bundle: shoes now with original weights; bundle bbb is now ccc, with 0.90 MB"),
        (1010.0, "drift", "box/bundle runs now, after 0.5 s"),
    ):
        story.heard(name, at, line)
    story.close_verdict(11.0)
    kinds = [(each.kind, each.begin, each.end) for each in story.timeline.happenings]
    assert kinds == [
        ("bundle", 1.0, None),
        ("published", 2.0, None),
        ("applied", 3.0, None),
        ("reload", 3.5, 5.0),
        ("bundle", 5.0, None),
        ("verdict", 6.0, 8.0),
        ("verdict", 8.0, 11.0),
        ("reverted", 9.0, None),
        ("reload", 9.5, 10.0),
        ("bundle", 10.0, None),
    ]
    assert (story.url, story.since, story.bundle) == ("http://127.0.0.1:4711", "T", "d" * 12)
    assert [each.more["bytes"] for each in story.timeline.happenings[1:3]] == [5, 5]


def test_commands_end_with_the_block(tmp_path: Path) -> None:
    heard: list[str] = []
    waits = "import sys, time; print('here'); sys.stdout.flush(); time.sleep(60)"
    with Commands(tmp_path, lambda name, at, line: heard.append(f"{name} {line} {at <= time()}")) as commands:
        waiting = commands.start("waits", "python", "-c", waits)
        commands.run("works", "python", "-c", "print('done')", until=30)
        commands.wait_for(lambda: len(heard) == 2, 30, "two lines", poll=0.01)
        assert sorted(heard) == ["waits here True", "works done True"]
        with pytest.raises(CommandError, match=r"no sign of rain within 0 s; the last lines are\n  waits:\n    here"):
            commands.wait_for(lambda: False, 0, "rain", poll=0.01)
        with pytest.raises(CommandError, match=r"fails: ended with status 1:\n(.|\n)*    ValueError: no"):
            commands.run("fails", "python", "-c", "raise ValueError('no')", until=30)
    assert waiting.process.returncode == -15
    assert "here" in (tmp_path / "logs" / "waits.log").read_text()


def test_a_command_that_ends_too_early(tmp_path: Path) -> None:
    with Commands(tmp_path, lambda *_: None) as commands:
        commands.start("box", "python", "-c", "print('no camera'); raise SystemExit(2)")
        with pytest.raises(CommandError, match=r"box: ended with status 2, too early:\n    no camera"):
            commands.wait_for(lambda: False, 30, "rain", poll=0.01)
