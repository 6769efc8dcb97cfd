"""Tests of merges that go on from an earlier merge with the frames that boxes have sampled."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drift_samples import put_sample
from helpers import edit_json, single_thread
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from trained_models import stripes

from gemel.bundles.merge_report import MergeReport, read_report
from gemel.errors import InputError
from gemel.merging.merge import Listener, MergeOptions, merge_workload
from gemel.merging.strategies import SearchSettings
from gemel.workload import load_workload

SHORT = SearchSettings(steps=24, batch=50)


def night(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame as it looks at night."""
    return np.asarray(255 * (image / 255) ** 3, np.uint8)


def put_frames(folder: Path, first: int, feed: str, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    """Write 100 samples of a feed whose frames a function has changed."""
    for number, image in enumerate(stripes("direction", 100)[0], first):
        data = cv2.imencode(".jpg", change(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        digest = hashlib.sha256(data).hexdigest()
        put_sample(folder, number, "0" * 64, data=data, sha256=digest, size=[16, 16], feed=feed, answers={})


@pytest.fixture(scope="module")
def merged(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small trained models on two feeds, merged, with samples: of one feed as ever, of the other dark."""
    folder = shutil.copytree(_trained, tmp_path_factory.mktemp("merged") / "trained")
    document = json.loads((folder / "workload.yaml").read_text())
    document["feeds"] = dict.fromkeys(("yard", "gate"), document["feeds"]["yard"])
    document["queries"][1]["feed"] = "gate"
    (folder / "workload.yaml").write_text(json.dumps(document))
    with single_thread():
        merge_workload(load_workload(folder / "workload.yaml"), folder / "merged", MergeOptions(settings=SHORT))
    put_frames(folder / "same", 0, "yard", lambda image: image)
    put_frames(folder / "drift", 0, "yard", lambda image: image)
    put_frames(folder / "drift", 100, "gate", night)
    return folder


class Heard(Listener):
    """Listener that keeps what it is told, and stops the merge after ``stop`` verdicts."""

    def __init__(self, stop: int | None = None) -> None:
        self.verdicts: list[Any] = []
        self._stop = stop

    def verdict(self, verdict: Any, report: MergeReport) -> None:
        self.verdicts.append(verdict)
        if len(self.verdicts) == self._stop:
            raise KeyboardInterrupt


def go_on(
    folder: Path, output: Path, samples: str = "drift", heard: Listener | None = None, **changes: Any
) -> MergeReport:
    """Go on from the merge in a folder."""
    options = {"settings": SHORT, "device": "cpu", "earlier": folder / "merged", "samples": str(folder / samples)}
    return merge_workload(
        load_workload(folder / "workload.yaml"), output, MergeOptions(**{**options, **changes}), heard
    )


def comparable(report: MergeReport) -> dict[str, Any]:
    """Return a report's fields without durations."""
    return report.model_dump(exclude={"trials": {"__all__": {"seconds"}}})


def weight_files(output: Path) -> dict[str, bytes]:
    """Return query -> content of its weight file."""
    return {path.name.rpartition("-")[0]: path.read_bytes() for path in (output / "weights").iterdir()}


def test_the_query_of_a_new_scene_joins_again_and_the_other_stays(merged: Path, tmp_path: Path) -> None:
    heard = Heard()
    report = go_on(merged, tmp_path / "on", heard=heard)
    assert report.finished
    groups = [verdict.trial.group for verdict in heard.verdicts]
    assert groups[:3] == ["colour, judged again", "direction, judged again", "original weights of colour"]
    # The merged model has lost its accuracy in the new scene, and only there.
    assert heard.verdicts[0].outcome.relative["colour"] < 0.9 and not heard.verdicts[0].outcome.met
    assert heard.verdicts[1].outcome.met == {"direction"}
    found = report.queries["colour"]
    assert found.samples is not None and found.samples.images > 10 and found.samples.value >= 0.95
    assert found.own is not None and found.own.low >= 0.95
    assert found.notes == ()
    before, after = (weight_files(folder) for folder in (merged / "merged", tmp_path / "on"))
    assert before["direction"] == after["direction"] and before["colour"] != after["colour"]
    assert report.shared == read_report(merged / "merged" / "merge.json").shared
    load_workload(tmp_path / "on" / "workload.yaml")


def test_a_merge_that_goes_on_and_was_stopped_goes_on(merged: Path, tmp_path: Path) -> None:
    whole = go_on(merged, tmp_path / "whole")
    shutil.copytree(merged / "drift", tmp_path / "samples")
    at = str(tmp_path / "samples")
    with pytest.raises(KeyboardInterrupt):
        go_on(merged, tmp_path / "on", heard=Heard(3), samples=at)
    stopped = read_report(tmp_path / "on" / "merge.json")
    assert not stopped.finished and stopped.shared == ()
    assert weight_files(tmp_path / "on")["direction"] == weight_files(merged / "merged")["direction"]
    with pytest.raises(InputError, match="was begun with another --from"):
        options = MergeOptions(settings=SHORT, device="cpu", resume=True)
        merge_workload(load_workload(merged / "workload.yaml"), tmp_path / "on", options)
    # Boxes delete old samples; the merge has kept those that it was begun with.
    shutil.rmtree(tmp_path / "samples")
    resumed = go_on(merged, tmp_path / "on", resume=True, samples=at)
    assert comparable(resumed) == comparable(whole)
    assert weight_files(tmp_path / "on") == weight_files(tmp_path / "whole")


def test_where_all_queries_hold_every_byte_stays(merged: Path, tmp_path: Path) -> None:
    heard = Heard()
    report = go_on(merged, tmp_path / "on", "same", heard)
    assert [verdict.trial.again for verdict in heard.verdicts] == [True, True]
    assert weight_files(tmp_path / "on") == weight_files(merged / "merged")
    assert report.shared == read_report(merged / "merged" / "merge.json").shared
    # A feed without samples is judged as before.
    assert report.queries["colour"].samples is None


def test_a_query_that_stays_private_says_what_would_help(
    merged: Path, tmp_path: Path, gemel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[tuple[str, bool]] = []

    def publish(moment: str) -> str:
        """Note when it is called, and whether the query is private in what is written."""
        published.append((moment, bool(read_report(tmp_path / "on" / "merge.json").shared)))
        return ""

    monkeypatch.setattr("gemel.cli.merge.publish_steps", lambda *_: publish)
    code, out, err = gemel(
        "merge", merged / "workload.yaml", "-o", tmp_path / "on", "--from", merged / "merged",
        "--samples", merged / "drift", "--no-retrain", "--device", "cpu",
        "--publish", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    lines = out.splitlines()
    again = [line.split(maxsplit=3)[3] for line in lines if line.split()[0] == "again"]
    assert again[0].startswith("colour: keeps ") and again[0].endswith("(target 95%): loses its shared weights")
    assert again[1] == "direction: keeps 100.0% of the original (target 95%): holds, and stays as it is"
    assert again[2].startswith("original weights of colour; all others keep theirs")
    assert any("feed gate: 100 samples" in line for line in lines)
    assert any("colour: private: it missed its target" in line and "more samples" in line for line in lines)
    # Before the search, after the query went back, and at the end.
    assert published == [("begin", False), ("step", False), ("end", False)]
    original, kept = load_file(merged / "colour.safetensors"), load_workload(tmp_path / "on" / "workload.yaml")
    assert kept.queries[1].model.weights is not None
    found = load_file(tmp_path / "on" / kept.queries[1].model.weights)
    assert all(bool((found[key] == value).all()) for key, value in original.items())


def test_a_merge_from_the_originals_may_use_samples_too(merged: Path, tmp_path: Path) -> None:
    heard = Heard()
    report = go_on(merged, tmp_path / "anew", heard=heard, earlier=None)
    assert not any(verdict.trial.again for verdict in heard.verdicts)
    assert {query: found.samples is not None for query, found in report.queries.items()} == {
        "direction": True,
        "colour": True,
    }


@pytest.fixture
def copied(merged: Path, tmp_path: Path) -> Path:
    """Return a copy of the workload and its merge, which a test may damage."""
    return Path(shutil.copytree(merged, tmp_path / "copy"))


def change_weights(folder: Path, rename: bool) -> None:
    """Change one merged weight, and perhaps give its file the name that its content asks for."""
    (path,) = (folder / "merged" / "weights").glob("colour-*")
    state = load_file(path)
    state["conv1.weight"] = state["conv1.weight"] + 1
    save_file(state, path)
    if rename:
        name = f"colour-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.safetensors"
        workload = folder / "merged" / "workload.yaml"
        workload.write_text(workload.read_text().replace(path.name, name))
        path.rename(path.with_name(name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "merged" / "merge.json").unlink(), "holds no merge: merge.json is missing"),
        (lambda folder: (folder / "merged" / "merge.json").write_text("{"), r"merge\.json"),
        (
            lambda folder: edit_json(folder / "merged" / "merge.json", lambda each: each.update(schema_version="2.0")),
            r"merge\.json: version 2\.0; this gemel goes on from 1\.x",
        ),
        (lambda folder: (folder / "merged" / "workload.yaml").unlink(), r"workload\.yaml"),
        (
            lambda folder: edit_json(folder / "workload.yaml", lambda each: each["queries"][1].update(name="shade")),
            "is a merge of another workload: query colour",
        ),
        (
            lambda folder: edit_json(folder / "workload.yaml", lambda each: each["queries"][1].update(feed="yard")),
            "is a merge of another workload: query colour has another feed, task or model there",
        ),
        (lambda folder: change_weights(folder, rename=False), "damaged: it is not the file that its name says"),
        (lambda folder: change_weights(folder, rename=True), "is not what merge.json says"),
        (
            lambda folder: next((folder / "merged" / "weights").glob("colour-*")).unlink(),
            "colour-.* cannot be read",
        ),
    ],
)
def test_an_earlier_merge_that_cannot_be_used(
    damage: Callable[[Path], Any], message: str, copied: Path, tmp_path: Path
) -> None:
    damage(copied)
    with pytest.raises(InputError, match=message):
        go_on(copied, tmp_path / "on")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": None}, "--from: give the frames"),
        ({"strategy": "heaviest"}, "--strategy: 'heaviest' does not go on"),
        ({"settings": SearchSettings(compress=True)}, "--compress: does not go on"),
        ({"earlier": Path("nowhere")}, "--from: nowhere: holds no merge"),
        ({"samples": "nowhere"}, "nowhere: there is no such folder"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, Any], message: str, merged: Path, tmp_path: Path) -> None:
    options = {"device": "cpu", "earlier": merged / "merged", "samples": str(merged / "drift"), **changes}
    with pytest.raises(InputError, match=message):
        merge_workload(load_workload(merged / "workload.yaml"), tmp_path / "on", MergeOptions(**options))
    assert not (tmp_path / "on").exists()
