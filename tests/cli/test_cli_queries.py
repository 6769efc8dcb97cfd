"""Keys of a query from the workload file to the results: labels from a file, classes, activation, threshold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import query, save, write_video
from tiny_models import tiny

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def results(gemel: Call, tmp_path: Path) -> Callable[..., list[Any]]:
    """Return a function that compiles and runs one query with some keys, and returns its results."""

    def run(**changes: Any) -> list[Any]:
        write_video(tmp_path / "yard.mp4", frames=2)
        save(tiny(0), tmp_path / "a.safetensors")
        document = {
            "schema_version": "1",
            "feeds": {"yard": {"source": "yard.mp4"}},
            "queries": [query("a", **changes)],
        }
        (tmp_path / "workload.yaml").write_text(json.dumps(document))
        code, out, err = gemel("compile", tmp_path / "workload.yaml", "-o", tmp_path / "bundle")
        assert code == 0, err
        assert ("  labels  a: none given; classes are reported by number" in out.splitlines()) == (
            "labels" not in changes
        )
        code, _, err = gemel("run", tmp_path / "bundle", "--offline", "--results", tmp_path / "r.jsonl")
        assert code == 0, err
        rows = (tmp_path / "r.jsonl").read_text().splitlines()
        assert len(rows) == 2
        return [json.loads(row)["result"] for row in rows]

    return run


def test_labels_of_a_file_and_classes(results: Callable[..., list[Any]], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    for result in results(labels="names.txt", classes=["cow", 0]):
        assert {each["label"]: each["class_id"] for each in result} == {"cow": 2, "cat": 0}


def test_numbers_without_labels(results: Callable[..., list[Any]]) -> None:
    for result in results(classes=[1]):
        assert [each["label"] for each in result] == ["1"]


def test_activation(results: Callable[..., list[Any]]) -> None:
    (first, *_) = results(activation="softmax")
    assert sum(each["score"] for each in first) == pytest.approx(1, abs=1e-3)
