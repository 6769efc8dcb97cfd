"""Goals of plans, from workload.yaml through the bundle and the profile to the run and its summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import edit_json, write_video
from reloads import FPS, Run
from small_bundle import write_model

from gemel.bundles.goals import QueryGoals
from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.bundles.staleness import Staleness
from gemel.compiler import compile_workload
from gemel.errors import InputError
from gemel.runtime.loop import first_plan, running_bundle
from gemel.runtime.planning.planner import make_plan
from gemel.runtime.planning.read import read_profile
from gemel.runtime.run import RunOptions, run_bundle
from gemel.workload import load_workload

Gemel = Callable[..., tuple[int, str, str]]
GOALS: dict[str, dict[str, Any]] = {
    "a": {"weight": 2, "min_fps": 5},
    "b": {"sla": "50ms", "priority": -1},
    "c": {},
}
"""Query -> keys of workload.yaml."""
CURVE = {"fps": FPS / 2, "frames": 50, "curve": (0.8, 0.6)}
"""Staleness curve of query a, measured at half the feed's frame rate."""


@pytest.fixture(scope="module")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a bundle of three queries with goals, each of which has a model; return its folder."""
    folder = tmp_path_factory.mktemp("goals")
    write_video(folder / "yard.mp4", 50, fps=FPS)
    queries = []
    for name, goals in GOALS.items():
        write_model(folder / f"{name}.onnx", ord(name))
        model = {"onnx": f"{name}.onnx", "input": {"size": [32, 32]}}
        task = {"task": "classification", "labels": ["none", "some", "many"], "activation": "softmax"}
        queries.append({"name": name, "feed": "yard", "model": model, **task, **goals})
    feed = {"source": "yard.mp4", "fps": FPS, "loop": True}
    (folder / "staleness.yaml").write_text(json.dumps({"a": CURVE}))
    keys = {"objective": "sum", "staleness": "staleness.yaml"}
    document = {"schema_version": "1", **keys, "feeds": {"yard": feed}, "queries": queries}
    (folder / "workload.yaml").write_text(yaml.safe_dump(document))
    return compile_workload(load_workload(folder / "workload.yaml"), folder / "bundle").path


@pytest.fixture
def goals(_compiled: Path) -> Iterator[Path]:
    """Return the folder of a bundle of three queries with goals, whose manifest a test may change."""
    before = (_compiled / MANIFEST).read_text()
    yield _compiled
    (_compiled / MANIFEST).write_text(before)


def ask_for(query: str, fps: float) -> Callable[[dict[str, Any]], None]:
    """Return a change of a manifest: a minimum rate of a query."""
    return lambda document: document["queries"][query].update(min_fps=fps)


def live(bundle: Path, **options: Any) -> dict[str, Any]:
    """Run a bundle live with memory for one model, and return its summary."""
    return run_bundle(open_bundle(bundle), RunOptions(memory="min", threads=1, frames=3, **options)).to_json()


def test_the_compiler_writes_goals_into_the_manifest(goals: Path) -> None:
    content = open_bundle(goals).manifest
    assert content.objective == "sum"
    keys = set(QueryGoals.model_fields)
    assert {name: query.model_dump(include=keys) for name, query in content.queries.items()} == {
        "a": {"sla_ms": None, "min_fps": 5.0, "weight": 2.0, "priority": 0, "staleness": CURVE},
        "b": {"sla_ms": 50.0, "min_fps": 0.0, "weight": 1.0, "priority": -1, "staleness": None},
        "c": QueryGoals().model_dump(),
    }
    assert {name: content.sla_of(name) for name in content.queries} == {"a": 100.0, "b": 50.0, "c": 100.0}


@pytest.mark.usefixtures("slow")
def test_a_measured_profile_carries_them(goals: Path, gemel: Gemel, tmp_path: Path) -> None:
    code, _, err = gemel("profile", goals, "-o", tmp_path / "profile.yaml")
    assert (code, err) == (0, "")
    profile = read_profile(tmp_path / "profile.yaml")
    assert profile.objective == "sum"
    found = {name: (each.sla_ms, each.min_fps, each.weight, each.priority) for name, each in profile.queries.items()}
    assert found == {"a": (None, 5.0, 2.0, 0), "b": (50.0, 0.0, 1.0, -1), "c": (None, 0.0, 1.0, 0)}
    # The feed has twice the frame rate at which the curve was measured.
    curves = {name: each.staleness for name, each in profile.queries.items()}
    assert curves == {"a": pytest.approx((0.9, 0.8, 0.7, 0.6)), "b": None, "c": None}


@pytest.mark.usefixtures("slow")
def test_a_feed_without_a_rate_gives_what_is_asked_for(goals: Path, gemel: Gemel, tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        del document["feeds"]["yard"]["fps"]
        ask_for("a", 60.0)(document)

    edit_json(goals / MANIFEST, edit)
    code, _, err = gemel("profile", goals, "-o", tmp_path / "profile.yaml")
    assert (code, err) == (0, "")
    assert {each.fps for each in read_profile(tmp_path / "profile.yaml").queries.values()} == {60.0}


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("given", [None, "max-min"])
def test_a_run_plans_for_the_objective(goals: Path, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    served = []

    def noted(*arguments: Any) -> Any:
        served.append(arguments[2].objective)
        return make_plan(*arguments)

    monkeypatch.setattr(first_plan, "make_plan", noted)
    live(goals, objective=given)
    assert served == [given or "sum"]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Plans in the summaries of a run, the first of which is written when the run begins.

    Later the run may follow another plan, for fewer queries.
    """
    written: list[dict[str, Any]] = []
    told = running_bundle.RunningBundle.summarise

    def noted(self: running_bundle.RunningBundle, *arguments: Any, **options: Any) -> Any:
        found = told(self, *arguments, **options)
        written.append(found.to_json()["plan"])
        return found

    monkeypatch.setattr(running_bundle.RunningBundle, "summarise", noted)
    return written


@pytest.mark.usefixtures("slow")
def test_the_summary_says_what_is_promised(goals: Path, plans: list[dict[str, Any]], tmp_path: Path) -> None:
    live(goals, summary=tmp_path / "summary.json")
    promised = plans[0]["promised"]
    assert list(promised) == ["a", "b", "c"] and set(plans[0]["order"]) == {"a", "b", "c"}
    assert {name: (each["feed_fps"], each["min_fps"], each["accuracy"]) for name, each in promised.items()} == {
        "a": (FPS, 5.0, None),
        "b": (FPS, 0.0, None),
        "c": (FPS, 0.0, None),
    }
    assert all(0 <= each["fps"] <= FPS for each in promised.values()) and promised["a"]["fps"] >= 5.0


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("objective", ["accuracy", "sum"])
def test_accuracy_is_promised(goals: Path, plans: list[dict[str, Any]], tmp_path: Path, objective: str) -> None:
    # The curve of query a is in the bundle.
    given = {"b": Staleness(fps=FPS, frames=20, curve=(0.5,)), "c": Staleness(fps=FPS, frames=20, curve=(0.25,))}
    live(goals, objective=objective, staleness=given, summary=tmp_path / "summary.json")
    promised = plans[0]["promised"]
    for name, old in (("b", 0.5), ("c", 0.25)):
        part = promised[name]["fps"] / FPS
        assert promised[name]["accuracy"] == pytest.approx(part + old * (1 - part), abs=0.01)
    assert 0.6 <= promised["a"]["accuracy"] <= 1


def test_curves_of_other_queries_are_refused(goals: Path) -> None:
    with pytest.raises(InputError, match="staleness: 'd' is not a query; queries: a, b, c"):
        live(goals, staleness={"d": Staleness(fps=FPS, frames=20, curve=(0.5,))})


def test_nothing_is_promised_where_nothing_is_planned(goals: Path) -> None:
    options = RunOptions(memory="all", threads=1, frames=3)
    assert run_bundle(open_bundle(goals), options).to_json()["plan"]["promised"] == {}


@pytest.mark.usefixtures("slow")
def test_a_minimum_rate_that_is_missed_is_said_before_the_run(goals: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(goals / MANIFEST, ask_for("a", 24.5))
    edit_json(goals / MANIFEST, ask_for("c", 24.5))
    live(goals)
    (line,) = [each.getMessage() for each in caplog.records if "min_fps" in each.getMessage()]
    assert line.startswith("min_fps is not reached: ") and " of 24.5" in line and "enough would be " in line
    caplog.clear()
    # An offline run answers every frame, however long that takes.
    live(goals, offline=True)
    assert "min_fps" not in caplog.text


@pytest.mark.usefixtures("slow")
def test_rates_that_are_reached_are_not_talked_about(goals: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(goals / MANIFEST, ask_for("a", 1.0))
    live(goals)
    assert "min_fps" not in caplog.text


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "fair"}, "--objective: 'fair' is not allowed: one of max-min"),
        (
            {"objective": "sum", "policy": "nexus"},
            "'sum' is not allowed with --policy nexus: nexus serves max-min",
        ),
        ({"objective": "accuracy"}, "objective accuracy: query b has no staleness curve"),
        ({"policy": "luck"}, "--policy: 'luck' is not allowed: one of gemel"),
    ],
)
@pytest.mark.parametrize("command", [False, True], ids=["function", "command"])
def test_objectives_that_cannot_be_served(
    goals: Path, gemel: Gemel, options: dict[str, str], message: str, command: bool
) -> None:
    if not command:
        with pytest.raises(InputError, match=message):
            live(goals, **options)
        return
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    code, _, err = gemel("run", goals, "--memory", "min", "--frames", "3", *flags)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("given", [None, "sum"])
def test_a_reload_plans_for_the_new_objective(goals: Path, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    served = []

    def noted(*arguments: Any) -> Any:
        served.append(arguments[2].objective)
        return make_plan(*arguments)

    monkeypatch.setattr(first_plan, "make_plan", noted)
    pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
    run = Run(goals, memory="min", objective=given)
    try:
        run.wait_for("a", 1)
        edit_json(goals / MANIFEST, lambda document: document.update(objective="max-min"))
        code, answer = run.ask("POST", "/reload", {"bundle": str(goals)})
        assert code == 200, answer
        # The same memory and models, so that nothing but the objective is new.
        assert answer["queries"] == {"added": [], "removed": [], "changed": []}
        promised = run.status["plan"]["promised"]
        assert set(promised) <= {"a", "b", "c"}
    finally:
        run.end()
    assert served == ["sum", given or "max-min"]


def test_inspect_shows_goals(goals: Path, gemel: Gemel, tmp_path: Path) -> None:
    code, out, _ = gemel("inspect", goals, "--json", tmp_path / "bundle.json")
    assert code == 0
    assert "SLA 100 ms, objective sum" in out
    words = " ".join(out.split())
    assert "at least 5 fps" in words and "weight 2" in words and "priority -1" in words
    assert f"answers 60.0% accurate after {4 / FPS:.3g} s" in words
    found = json.loads((tmp_path / "bundle.json").read_text())
    assert found["device"]["objective"] == "sum"
    assert found["queries"]["b"]["sla_ms"] == 50.0
