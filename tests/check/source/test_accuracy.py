"""Accuracy of a bundle beside its source models; a query that is worse fails by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gemel.bundles.reader import open_bundle
from gemel.check.source.accuracy import QueryAccuracy, UnjudgedQuery, verify_accuracy
from gemel.cli import app
from gemel.compiler import compile_workload
from gemel.errors import BundleError, DataError, InputError, RetrainError
from gemel.merging.merge import MergeOptions, merge_workload
from gemel.merging.strategies import SearchSettings
from gemel.merging.tasks import task_of
from gemel.workload import load_workload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def _compiled(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(_trained, tmp_path_factory.mktemp("verify") / "w"))
    settings = SearchSettings(steps=24, batch=50)
    merge_workload(
        load_workload(folder / "workload.yaml"), folder / "merged", MergeOptions(settings=settings, device="cpu")
    )
    compile_workload(load_workload(folder / "merged" / "workload.yaml"), folder / "bundle")
    return folder


@pytest.fixture
def compiled(_compiled: Path, tmp_path: Path) -> Path:
    """Return a folder with images, ``merged/workload.yaml`` and ``bundle/`` that a test may change."""
    return Path(shutil.copytree(_compiled, tmp_path / "w"))


def judged(folder: Path) -> dict[str, QueryAccuracy | UnjudgedQuery]:
    found = verify_accuracy(open_bundle(folder / "bundle"), load_workload(folder / "merged" / "workload.yaml"))
    return {each.query: each for each in found}


def check(folder: Path, *flags: str) -> tuple[int, str, dict[str, Any]]:
    arguments = ["check", folder / "bundle", "--against", folder / "merged/workload.yaml", "--accuracy", *flags]
    done = CliRunner().invoke(app, [*map(str, arguments), "--json", str(folder / "check.json")])
    return done.exit_code, done.output, json.loads((folder / "check.json").read_text())


def swap_classes(path: Path) -> None:
    """Make a model mistake its first two classes for each other."""
    state = load_file(path)
    for name in ("linear.weight", "linear.bias"):
        state[name] = state[name].flip(0)
    save_file(state, path)


def test_a_bundle_is_as_accurate_as_its_models(compiled: Path) -> None:
    code, text, report = check(compiled)
    assert code == 0, text
    reached = json.loads((compiled / "merged" / "merge.json").read_text())["queries"]
    for name in ("direction", "colour"):
        found = report["accuracy"][name]
        assert found["bundle"] == pytest.approx(found["source"]) == pytest.approx(reached[name]["reached"])
        # Of 200 images, half of each class choose and the others confirm.
        assert (found["labelled"], found["passed"]) == (True, True)
        assert 98 <= found["images"] <= 100
        low, high = found["interval"]
        assert 0.9 < low < 1 <= high
        assert f"({found['images']} images, {low:.3f} to {high:.3f} of the source" in text
        own = reached[name]["own"]
        # The donor of all weights is unchanged, which takes no images to prove.
        if own["images"]:
            merged = f"merge.json: {own['value']:.3f} of the original, {own['low']:.3f} to {own['high']:.3f}"
            assert f"; {merged}, n={own['images']})" in text
        assert f"accuracy  {name}: {found['bundle']:.2%}, source {found['source']:.2%}, merge.json" in text
    assert any(reached[name]["own"]["images"] == found["images"] for name, found in report["accuracy"].items())
    assert text.splitlines()[-1].startswith("Next: ")


def test_images_to_train_on_are_not_read(compiled: Path) -> None:
    images = [path for path in (compiled / "data" / "colour" / "train").rglob("*") if path.is_file()]
    assert images
    for path in images:
        path.write_bytes(b"no image")
    found = judged(compiled)["colour"]
    assert isinstance(found, QueryAccuracy) and found.passed


def test_a_source_that_changed_fails_by_name(compiled: Path) -> None:
    swap_classes(next((compiled / "merged" / "weights").glob("colour-*")))
    code, text, report = check(compiled, "--rtol", "1000")
    assert code == 1
    assert text.splitlines()[-1] == "failed: answers of colour, accuracy of colour"
    assert report["accuracy"]["direction"]["passed"]
    assert report["accuracy"]["colour"]["source"] < 0.5 < report["accuracy"]["colour"]["bundle"]


def test_a_bundle_without_what_the_merge_reached_fails(compiled: Path) -> None:
    for path in (compiled / "merged" / "weights").glob("colour-*"):
        swap_classes(path)
    # Heads are private, so sharing is unchanged and only the accuracy differs.
    compile_workload(load_workload(compiled / "merged" / "workload.yaml"), compiled / "bundle")
    code, text, report = check(compiled)
    assert code == 1
    assert "failed: accuracy of colour" in text
    found = report["accuracy"]["colour"]
    assert found["bundle"] == pytest.approx(found["source"])
    assert found["reached"] > 0.5 > found["bundle"]


def test_without_labels_the_source_is_what_is_agreed_with(compiled: Path) -> None:
    path = compiled / "merged" / "workload.yaml"
    document = yaml.safe_load(path.read_text())
    del document["queries"][1]["data"]
    path.write_text(json.dumps(document))
    code, text, report = check(compiled)
    assert code == 0, text
    found = report["accuracy"]["colour"]
    assert found["labelled"] is False
    assert found["reached"] is None
    assert found["bundle"] == found["source"] == 1.0
    assert "accuracy  colour: agrees with the source by 100.00%" in text


def test_what_cannot_be_judged_is_told(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_measure(network: Any, query: Any) -> Any:
        if query.name == "direction":
            raise RetrainError("no measure for [this]")
        task = task_of(network, query)
        monkeypatch.setattr(task, "evidence", nothing_to_see)
        return task

    def nothing_to_see(*_: Any) -> float:
        raise DataError("there is no object")

    monkeypatch.setattr("gemel.check.source.accuracy.task_of", no_measure)
    code, text, report = check(compiled)
    assert code == 0, text
    assert "accuracy  direction: not judged: no measure for [this]" in text
    assert report["accuracy"] == {
        "direction": {"passed": None, "reason": "no measure for [this]"},
        "colour": {"passed": None, "reason": "there is no object"},
    }


def test_models_that_cannot_be_retrained_are_not_judged(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(query: Any, workload: Any) -> Any:
        raise RetrainError(f"query {query.name}: cannot be retrained")

    monkeypatch.setattr("gemel.merging.models.networks._cut", refuse)
    reasons = {name: f"query {name}: cannot be retrained" for name in ("direction", "colour")}
    assert judged(compiled) == {name: UnjudgedQuery(name, reason) for name, reason in reasons.items()}


def test_another_workload_is_refused(compiled: Path) -> None:
    path = compiled / "merged" / "workload.yaml"
    text = path.read_text()
    path.write_text(text.replace("name: colour", "name: color"))
    with pytest.raises(BundleError, match="has no query 'colour', which the bundle has"):
        judged(compiled)
    path.write_text(text.replace("- 16\n", "- 8\n"))
    with pytest.raises(BundleError, match="query direction: the bundle was compiled for another input"):
        judged(compiled)


def test_images_are_needed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--accuracy"])
    assert isinstance(done.exception, InputError)
    assert "--accuracy: --against WORKLOAD.YAML is needed with it" in str(done.exception)


@pytest.mark.parametrize(
    ("bundle", "source", "reached", "images", "passed"),
    [
        (0.9, 0.9, 0.9, 4000, True),
        (0.9005, 0.9, 0.8998, 4000, True),
        (0.9, 0.902, None, 4000, False),
        (0.9, 0.9, 0.902, 4000, False),
        (0.9, 0.91, None, 100, True),
        (0.9, 0.92, None, 100, False),
        (float("nan"), 0.9, None, 100, False),
    ],
)
def test_what_passes(bundle: float, source: float, reached: float | None, images: int, passed: bool) -> None:
    assert QueryAccuracy("a", bundle, source, reached, images, (1.0, 1.0), labelled=True).passed == passed
