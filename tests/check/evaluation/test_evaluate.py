"""Evaluation of a bundle under budgets and policies, and the scores of its answers."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest

from gemel.bundles.decode_specs import ClassificationDecode
from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.evaluation import evaluate as module
from gemel.check.evaluation.answers import Answer, Recorder
from gemel.check.evaluation.cases import Case
from gemel.check.evaluation.evaluate import EvaluationSettings, evaluate_bundles, judge
from gemel.check.evaluation.evaluation_report import best_run, evaluation_tables, evaluation_to_json, mean
from gemel.runtime.decode.results import Class
from gemel.runtime.loop.summary import FeedStats, MemoryUse, QueryStats, RunStats, Summary
from gemel.runtime.run import RunOptions, run_bundle


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder / "bundle")


def recorded(answers: dict[str, dict[int, tuple[float, str]]]) -> Recorder:
    """Return answers, given as query -> frame -> (latency in ms, label), at 10 frames per second from second 50."""
    recorder = Recorder()
    for query, given in answers.items():
        recorder.answers[query] = [
            Answer(frame, frame / 10, 50 + frame / 10, 50 + frame / 10 + ms / 1e3, (Class(label, 1.0),))
            for frame, (ms, label) in given.items()
        ]
    return recorder


def summary(frames: dict[str, tuple[int, int]]) -> Summary:
    queries = {name: QueryStats("yard", *counts) for name, counts in frames.items()}
    return Summary(RunStats(1.0, queries, {"yard": FeedStats(4)}), "ort-cpu", MemoryUse())


def test_the_answers_of_a_run(bundle: Bundle) -> None:
    # The SLA is 100 ms. The reference has answers to more frames than the live run delivered.
    reference = recorded({name: {frame: (0, "xxyyz"[frame]) for frame in range(5)} for name in "abc"})
    given = recorded({"a": {0: (90, "x"), 2: (90, "y")}, "b": {0: (150, "x"), 1: (90, "y")}})
    scores = judge(bundle, summary({"a": (4, 2), "b": (4, 2), "c": (0, 0)}), given, reference)
    # Query a: x stands for frame 1 too, y for frame 3 too. Query b: no answer for frame 0, and y for all later frames,
    # though x is right for frame 1.
    assert [(each.processed, each.accuracy, each.in_sla) for each in scores.values()] == [
        (0.5, 1.0, 1.0),
        (0.5, 0.5, 0.5),
        (0.0, None, None),
    ]


def test_a_query_with_an_sla_of_its_own(bundle: Bundle) -> None:
    content = bundle.manifest
    queries = {**content.queries, "b": content.queries["b"].model_copy(update={"sla_ms": 200.0})}
    patient = Bundle(bundle.path, content.model_copy(update={"queries": queries}), bundle.id)
    reference = recorded({name: {0: (0, "x")} for name in "abc"})
    given = recorded({"a": {0: (150, "x")}, "b": {0: (150, "x")}, "c": {}})
    scores = judge(patient, summary({"a": (1, 1), "b": (1, 1), "c": (0, 0)}), given, reference)
    # Both answers come after 150 ms; only that of b is in time.
    assert {name: (each.accuracy, each.in_sla) for name, each in scores.items() if name != "c"} == {
        "a": (0.0, 0.0),
        "b": (1.0, 1.0),
    }


def test_the_objective_is_for_policies_without_one_of_their_own() -> None:
    settings = EvaluationSettings(objective="sum")
    assert [settings.objective_for(name) for name in ("gemel", "nexus", "lru")] == ["sum", None, None]
    assert EvaluationSettings().objective_for("gemel") is None


def test_several_labels_are_judged_together(bundle: Bundle) -> None:
    def labelled(*labels: str) -> Recorder:
        recorder = Recorder()
        result = tuple(Class(label, 0.9) for label in labels)
        for name in "abc":
            recorder.answers[name] = [Answer(0, 0.0, 50.0, 50.0, result)]
        return recorder

    given, reference = labelled("rain", "night"), labelled("rain", "snow")
    counts = summary(dict.fromkeys("abc", (1, 1)))
    assert {each.accuracy for each in judge(bundle, counts, given, reference).values()} == {1.0}
    content = bundle.manifest
    models = {
        name: model.model_copy(update={"decode": ClassificationDecode(classes=4, multi_label=True)})
        for name, model in content.models.items()
    }
    several = Bundle(bundle.path, content.model_copy(update={"models": models}), bundle.id)
    assert {each.accuracy for each in judge(several, counts, given, reference).values()} == {0.5}


def test_a_run_without_answers_is_wrong_throughout(bundle: Bundle) -> None:
    reference = recorded({name: {0: (0, "x"), 1: (0, "y")} for name in "abc"})
    scores = judge(bundle, summary(dict.fromkeys("abc", (2, 0))), Recorder(), reference)
    assert {each.accuracy for each in scores.values()} == {0.0}


def test_against_itself(bundle: Bundle) -> None:
    stages: list[tuple[str, str, float | None]] = []
    settings = EvaluationSettings(seconds=0.6, threads=1, policies=["nexus"])
    found = evaluate_bundles(bundle, settings=settings, told=lambda *stage: stages.append(stage))
    needs = found.weights["bundle"]
    assert found.runs[0].case == Case("bundle", "min", needs.least, "nexus")
    assert found.runs[-1].case == Case("bundle", "all", needs.total, None)
    for run in found.runs:
        assert run.summary.memory.budget == run.case.budget
        assert run.summary.memory.peak <= run.case.budget
        for name, score in run.scores.items():
            stats = run.summary.run.queries[name]
            # On a busy machine, a short run may end before a feed is open.
            assert score.processed == stats.processed / max(1, stats.frames)
            assert score.accuracy is None if stats.frames == 0 else 0 <= (score.accuracy or 0.0) <= 1
    assert found.frames["gate"] == max(run.summary.run.feeds["gate"].delivered for run in found.runs)
    assert [stage for stage, _, part in stages if part is not None] == ["live"] * len(found.runs) + ["offline"]
    assert stages[-1][2] == 1
    assert len(evaluation_tables(found)) == len({run.case.memory for run in found.runs})


def test_two_bundles_in_turn(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | int | None]] = []

    def seen_and_run(each: Bundle, options: RunOptions, **rest: Any) -> Summary:
        seen.append((each.path.name, options.memory))
        return run_bundle(each, options, **rest)

    monkeypatch.setattr(module, "run_bundle", seen_and_run)
    found = evaluate_bundles(bundle, bundle, EvaluationSettings(memory=["all"], seconds=0.3, threads=1))
    assert list(found.bundles) == ["unmerged", "merged"]
    assert [run.case.bundle for run in found.runs] == ["unmerged", "merged"]
    assert len(set(seen)) == 1
    assert best_run(found).case.bundle == "merged"
    document = evaluation_to_json(found)
    assert document["reference"] == {"bundle": "unmerged", "frames": found.frames}
    assert [run["policy"] for run in document["runs"]] == [None, None]
    assert document["runs"][0]["mean"]["processed_part"] == round(mean(found.runs[0]).processed, 4)


def test_stop(bundle: Bundle) -> None:
    stop = Event()
    stop.set()

    def told(stage: str, what: str, part: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_bundles(
            bundle, settings=EvaluationSettings(memory=["all"], seconds=600, threads=1), stop=stop, told=told
        )
