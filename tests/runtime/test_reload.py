"""Exchanging the bundle of a run: what stays, what is loaded, what a query misses, and what happens if it fails."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import pytest
from helpers import write_video
from reloads import FPS, Run, compiled

from gemel.bundles.reader import open_bundle
from gemel.errors import BackendError
from gemel.runtime.backends.prepare_apart import prepare_apart
from gemel.runtime.decode.results import Result
from gemel.runtime.loop import running_bundle

pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
NAMES = "abcde"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return bundles: ``first``; ``second``, of which model e is another one; and ``third``, which has f and not a."""
    folder = tmp_path_factory.mktemp("bundles")
    write_video(folder / "yard.mp4", 50, fps=FPS)
    return {
        "first": compiled(folder / "first", NAMES),
        "second": compiled(folder / "second", NAMES, changed="e"),
        "third": compiled(folder / "third", "bcdef"),
    }


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    """Return a function that starts a run."""
    begun: list[Run] = []

    def begin(bundle: Path, **options: Any) -> Run:
        begun.append(Run(bundle, **options))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


def test_one_of_five_models_is_exchanged(run: Callable[..., Run], bundles: dict[str, Path]) -> None:
    box = run(bundles["first"])
    for name in NAMES:
        box.wait_for(name)
    before = box.status
    code, changed = box.ask("POST", "/reload", {"bundle": str(bundles["second"])})
    answered = {name: box.sink.count(name) for name in NAMES}
    assert code == 200 and changed["error"] is None
    assert changed["queries"] == {"added": [], "removed": [], "changed": ["e"]}
    for name in NAMES:
        box.wait_for(name)
    after = box.status
    # Exactly the bytes that are not in the bundle before were loaded.
    assert changed["new_bytes"] > 0 and changed["kept_bytes"] > 3 * changed["new_bytes"]
    assert (before["swaps"]["bytes"], after["swaps"]["bytes"]) == (0, changed["new_bytes"])
    assert after["bundle"] == str(bundles["second"])
    assert (after["reloads"]["done"], after["reloads"]["failed"]) == (1, 0)
    summary = box.end()
    assert not box.sink.errors and not summary.failures
    for name in NAMES:
        # Runs before the reload count, too. Each had one frame, because nothing is planned.
        stats = summary.run.queries[name]
        assert (stats.ran.runs, stats.ran.frames) == (stats.processed, stats.processed)
        frames = [index for index, _ in box.sink.answers[name]]
        assert frames == sorted(set(frames))
        # A looping clip of 50 frames: the same frame has the same answer before and after, but for the new model.
        first: dict[int, Result] = {}
        second: dict[int, Result] = {}
        for number, (index, result) in enumerate(box.sink.answers[name]):
            (first if number < answered[name] else second)[index % 50] = result
        common = first.keys() & second.keys()
        assert common or name == "e"
        if name != "e":
            assert all(first[index] == second[index] for index in common)


def test_queries_come_and_go(run: Callable[..., Run], bundles: dict[str, Path]) -> None:
    box = run(bundles["first"], memory="min")
    box.wait_for("a")
    assert box.ask("POST", "/reload", {"bundle": str(bundles["third"])})[1]["queries"] == {
        "added": ["f"],
        "removed": ["a"],
        "changed": [],
    }
    count = box.sink.count("a")
    for name in "bcdef":
        box.wait_for(name)
    assert box.sink.count("a") == count
    assert list(box.status["queries"]) == list("bcdef")
    assert box.status["memory"]["peak"] <= box.status["memory"]["budget"]
    box.ask("POST", "/reload", {"bundle": str(bundles["first"])})
    box.wait_for("a")
    assert not box.end().failures


def test_many_reloads_in_a_row(run: Callable[..., Run], bundles: dict[str, Path]) -> None:
    box = run(bundles["first"])
    for turn in range(20):
        code, _ = box.ask("POST", "/reload", {"bundle": str(bundles["second" if turn % 2 else "third"])})
        assert code == 200
    box.wait_for("e")
    assert not box.sink.errors and not box.end().failures


def test_the_same_bundle_again(run: Callable[..., Run], bundles: dict[str, Path], tmp_path: Path) -> None:
    """gemel-compile replaces a bundle; SIGHUP or an empty request then make a run go on with what is there."""
    here = Path(shutil.copytree(bundles["first"], tmp_path / "bundle"))
    box = run(here)
    box.wait_for("a")
    here.rename(tmp_path / "old")
    shutil.copytree(bundles["second"], here)
    box.reload.set()
    box.wait(lambda: box.status["reloads"]["done"] == 1)
    assert box.status["reloads"]["last"]["queries"]["changed"] == ["e"]
    shutil.rmtree(tmp_path / "old")
    box.wait_for("e")


def break_weights(bundle: Path) -> str:
    blob = next(bundle.glob("weights*"))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 255
    blob.write_bytes(data)
    shutil.rmtree(bundle / "device-cache", ignore_errors=True)
    return "content is damaged"


def cut_weights(bundle: Path) -> str:
    blob = next(bundle.glob("weights*"))
    blob.write_bytes(blob.read_bytes()[:-100])
    return "bytes"


def newer_version(bundle: Path) -> str:
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "schema_version": "3.0"}))
    return "3.0"


def no_bundle(bundle: Path) -> str:
    shutil.rmtree(bundle)
    return "not a bundle"


@pytest.mark.parametrize("damage", [break_weights, cut_weights, newer_version, no_bundle])
def test_a_bundle_that_cannot_be_opened_changes_nothing(
    damage: Callable[[Path], str], run: Callable[..., Run], bundles: dict[str, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(bundles["second"], tmp_path / "broken"))
    reason = damage(broken)
    box = run(bundles["first"])
    code, answer = box.ask("POST", "/reload", {"bundle": str(broken)})
    assert code == 400 and reason in answer["error"] and "\n" not in answer["error"]
    status = box.status
    assert status["bundle"] == str(bundles["first"]) and reason in status["reloads"]["last"]["error"]
    assert (status["reloads"]["done"], status["reloads"]["failed"]) == (0, 1)
    box.wait_for("e")
    assert box.ask("POST", "/reload", {"bundle": str(bundles["second"])})[0] == 200
    assert not box.end().failures


def test_feeds_that_do_not_change_are_not_opened_again(
    run: Callable[..., Run], bundles: dict[str, Path], tmp_path: Path
) -> None:
    yard = {"source": str(bundles["first"].parent.parent / "yard.mp4"), "fps": FPS, "loop": True}
    other = compiled(tmp_path / "other", "ab", feeds={"yard": yard, "gate": {**yard, "fps": 5}})
    slower = compiled(tmp_path / "slower", "ab", feeds={"yard": {**yard, "fps": 10}})
    box = run(bundles["first"])
    box.wait_for("a")
    count = box.status["feeds"]["yard"]["frames"]
    assert box.ask("POST", "/reload", {"bundle": str(other)})[0] == 200
    assert box.status["feeds"]["yard"]["frames"] >= count
    frames = box.status["queries"]["a"]["frames"]
    assert box.ask("POST", "/reload", {"bundle": str(slower)})[0] == 200
    # Another rate is another feed, whose frames are counted from 0 on.
    assert box.status["queries"]["a"]["frames"] < frames
    box.wait_for("b")


def test_pause_and_resume(run: Callable[..., Run], bundles: dict[str, Path]) -> None:
    box = run(bundles["first"])
    box.wait_for("a")
    assert box.ask("POST", "/queries/a/pause") == (200, {"queries": {"a": {"paused": True}}})
    box.wait_for("b")
    count = box.sink.count("a")
    box.wait_for("b")
    assert box.sink.count("a") == count and box.status["queries"]["a"]["paused"]
    # A pause outlives a reload.
    box.ask("POST", "/reload", {"bundle": str(bundles["second"])})
    box.wait_for("b")
    assert box.sink.count("a") == count
    box.ask("POST", "/queries/a/resume")
    box.wait_for("a")
    assert box.ask("POST", "/feeds/yard/pause")[0] == 200
    box.wait(lambda: bool(box.status["feeds"]["yard"]["state"] == "paused"))
    count = box.sink.count("b")
    sleep(0.3)
    assert box.sink.count("b") <= count + 1
    box.ask("POST", "/feeds/yard/resume")
    box.wait_for("b")
    assert box.status["feeds"]["yard"]["restarts"] == 0
    assert box.ask("POST", "/queries/nobody/pause")[0] == 404
    assert not box.end().failures


def test_an_offline_run_cannot_be_changed(run: Callable[..., Run], bundles: dict[str, Path]) -> None:
    box = run(bundles["first"], offline=True, frames=100_000)
    for path in ("/reload", "/queries/a/pause"):
        code, answer = box.ask("POST", path)
        assert code == 400 and answer["error"] == "an offline run cannot be changed"


def test_a_signal_waits_for_another_reload(
    run: Callable[..., Run], bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = run(bundles["first"])
    entered, go_on = Event(), Event()

    def prepare_slowly(*_: object) -> None:
        entered.set()
        assert go_on.wait(60)

    monkeypatch.setattr(running_bundle, "prepare_apart", prepare_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(box.ask, "POST", "/reload", {"bundle": str(bundles["second"])})
        assert entered.wait(60)
        box.reload.set()
        box.wait(lambda: not box.reload.is_set())
        sleep(0.1)
        assert box.ask("POST", "/reload") == (400, {"error": "another reload is going on"})
        go_on.set()
        assert first.result(60)[0] == 200
    box.wait(lambda: box.status["reloads"]["done"] == 2)
    assert box.status["bundle"] == str(bundles["second"])


def test_the_end_of_the_run_gives_a_reload_up(
    run: Callable[..., Run], bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered = Event()

    def prepare_for_ever(bundle: object, backend: str, over: Callable[[], bool]) -> None:
        entered.set()
        while not over():
            sleep(0.01)
        raise BackendError("the run has ended")

    monkeypatch.setattr(running_bundle, "prepare_apart", prepare_for_ever)
    box = run(bundles["first"])
    box.reload.set()
    assert entered.wait(60)
    with caplog.at_level(logging.WARNING, "gemel"):
        assert not box.end().failures
    assert f"reload: {bundles['first']} is given up, because the run ends" in caplog.text
    assert "runs on" not in caplog.text


def test_a_cache_that_is_no_longer_wanted_is_given_up(bundles: dict[str, Path], tmp_path: Path) -> None:
    here = Path(shutil.copytree(bundles["first"], tmp_path / "bundle"))
    shutil.rmtree(here / "device-cache", ignore_errors=True)
    with pytest.raises(BackendError, match="no longer prepared, because the run has ended"):
        prepare_apart(open_bundle(here), "ort-cpu", lambda: True)


def test_another_backend_needs_a_new_start(
    run: Callable[..., Run], bundles: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Path(shutil.copytree(bundles["second"], tmp_path / "other"))
    document = json.loads((other / "manifest.json").read_text())
    document["device"]["backend"] = "ort-cuda"
    (other / "manifest.json").write_text(json.dumps(document))
    box = run(bundles["first"])
    assert box.ask("POST", "/reload", {"bundle": str(other)})[0] == 200
    assert box.status["backend"] == "ort-cpu"
    assert "the bundle names the backend ort-cuda; the run stays on ort-cpu" in caplog.text
