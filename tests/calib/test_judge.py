"""Accuracy in lower precision is measured on images that a model was not calibrated on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers import query
from precision_cases import asked, lower_once, passed, write_frames, write_workload

from gemel.calib.judge import Judge, judges_of
from gemel.errors import DataError, RetrainError
from gemel.workload import load_workload


def judged(path: Path) -> tuple[dict[str, Judge], dict[str, ir.Model], dict[str, str]]:
    """Return judges by model, graphs by model, and reasons by model that cannot be judged."""
    workload = load_workload(path)
    graphs = {
        model.name: model.stages["main"] for model in passed([lower_once(q, workload.root) for q in workload.queries])
    }
    refused: dict[str, str] = {}
    return dict(judges_of(workload, graphs, refused)), graphs, refused


def without_head(graph: ir.Model, factor: float = 0) -> ir.Model:
    """Return a copy of a graph whose classifier weights are multiplied by a factor."""
    made = graph.clone()
    head = made.graph.initializers["head.weight"]
    assert head.const_value is not None
    head.const_value = ir.tensor(np.asarray(head.const_value.numpy()) * np.float32(factor), name="head.weight")
    return made


def test_frames_to_calibrate_on_and_images_to_judge_by_are_different_ones(pair: Path) -> None:
    judges, graphs, refused = judged(write_workload(pair, asked("a"), asked("b")))
    assert (list(judges), refused) == (["a", "b"], {})
    for name, judge in judges.items():
        (each,) = judge.queries
        assert (len(judge.frames), len(each.images), each.labelled, each.accuracy) == (30, 15, True, 1)
        assert {frame.shape for frame in judge.frames} == {(1, 3, 32, 32)}
        pixels = {each.images.batch(torch.tensor([index])).numpy().tobytes() for index in range(15)}
        assert not pixels & {frame.tobytes() for frame in judge.frames}
        assert judge.accuracies(graphs[name]) == {name: 1}
        assert judge.error(graphs[name]) == 0
    assert judges["a"].digest != judges["b"].digest


def test_a_worse_model_is_less_accurate_and_further_away(pair: Path) -> None:
    judges, graphs, _ = judged(write_workload(pair, asked("a")))
    judge, graph = judges["a"], graphs["a"]
    broken = without_head(graph)
    assert judge.accuracies(broken)["a"] < 0.9
    # The broken model answers with its bias alone. The error is the variance of the right answers, plus how far the
    # bias is from their mean.
    assert judge.error(broken) > 0.5
    assert 0 < judge.error(without_head(graph, 1.01)) < judge.error(without_head(graph, 1.1)) < judge.error(broken)


def test_what_overflows_is_wrong_and_is_still_a_number(pair: Path) -> None:
    judges, graphs, _ = judged(write_workload(pair, asked("a")))
    broken = without_head(graphs["a"], np.nan)
    assert 0 <= judges["a"].accuracies(broken)["a"] < 0.9
    assert np.isfinite(judges["a"].error(broken))


def test_of_many_frames_128_are_taken_and_of_the_other_part_256(pair: Path) -> None:
    write_frames(pair / "many", 700)
    judges, _, _ = judged(write_workload(pair, query("a", data={"train": "many", "val": "many"})))
    assert (len(judges["a"].frames), len(judges["a"].queries[0].images)) == (128, 256)


def test_the_frames_of_two_queries_are_taken_once_where_they_are_the_same(pair: Path) -> None:
    twin = {**asked("a"), "name": "twin"}
    judges, _, _ = judged(write_workload(pair, asked("a"), twin))
    assert len(judges["a"].frames) == 30
    other = {**asked("a", data=None), "name": "other"}
    more, _, _ = judged(write_workload(pair, asked("a"), other))
    # Of 40 frames, 24 train; the first part of the others chooses.
    assert (len(more["a"].frames), len(more["a"].queries[1].images)) == (30 + 24, 7)
    assert [each.query.name for each in more["a"].queries] == ["a", "other"]
    again, _, _ = judged(write_workload(pair, asked("a"), twin, other))
    assert len({each["a"].digest for each in (judges, again, more)}) == 3


def test_models_without_a_measure_are_left_out(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(network: Any, query_: Any) -> Any:
        raise RetrainError(f"query {query_.name}: no measure")

    monkeypatch.setattr("gemel.calib.judge.task_of", refuse)
    judges, _, refused = judged(write_workload(pair, asked("a")))
    assert (judges, refused) == ({}, {"a": "query a: no measure"})
    monkeypatch.setattr("gemel.merging.models.networks._cut", lambda query_, workload: refuse(None, query_))
    assert judged(pair / "workload.yaml")[2] == {"a": "query a: no measure"}


def test_images_are_needed(pair: Path) -> None:
    with pytest.raises(DataError, match="query a: feed yard: frames of a camera are not kept"):
        judged(write_workload(pair, query("a"), feeds={"yard": {"source": "rtsp://camera/1"}}))
