"""Command ``gemel simulate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers import call, without

Call = Callable[..., tuple[int, str, str]]
PAPER = Path(__file__).parents[2] / "examples" / "profiles" / "paper.yaml"


@pytest.fixture
def simulate(gemel: Call) -> Call:
    return partial(gemel, "simulate")


def test_policies_side_by_side(simulate: Call, tmp_path: Path) -> None:
    figures = tmp_path / "out" / "simulation.json"
    code, out, err = simulate(PAPER, "--memory", "75%", "--seconds", "20", "--json", figures)
    assert (code, err) == (0, "")
    found = json.loads(figures.read_text())
    assert found["budget"] == int(0.75 * 1_179_600_000)
    assert list(found["policies"]) == ["gemel", "nexus", "nexus+shared", "lru"]
    for name, each in found["policies"].items():
        assert each["memory"]["peak"] <= found["budget"]
        assert all(query["frames"] == query["processed"] + query["skipped"] for query in each["queries"].values())
        assert any(line.split()[:1] == [name] and "%" in line for line in out.splitlines())
    processed = {
        name: sum(query["processed"] for query in each["queries"].values()) for name, each in found["policies"].items()
    }
    assert processed["gemel"] > 1.44 * processed["nexus"]


def test_one_policy_and_the_same_clocks_give_the_same(simulate: Call, tmp_path: Path) -> None:
    said = []
    for name in ("a.json", "b.json"):
        code, _, _ = simulate(PAPER, "--policy", "nexus", "--seconds", "5", "--seed", "3", "--json", tmp_path / name)
        assert code == 0
        said.append(json.loads((tmp_path / name).read_text()))
    assert said[0] == said[1]
    assert list(said[0]["policies"]) == ["nexus"]


def with_goals(path: Path, **goals: str) -> Path:
    """Write the paper's profile with goals for some queries, in YAML; return the path of the file."""
    text = PAPER.read_text()
    for query, words in goals.items():
        begin = f"  {query}: {{model: "
        assert text.count(begin) == 1
        text = text.replace(begin, f"  {query}: {{{words}, model: ")
    path.write_text(text)
    return path


def test_what_a_plan_promises(simulate: Call, tmp_path: Path) -> None:
    figures = tmp_path / "simulation.json"
    known = with_goals(tmp_path / "profile.yaml", plates="min_fps: 1, weight: 2")
    code, out, err = simulate(known, "--memory", "75%", "--policy", "gemel", "--seconds", "20", "--json", figures)
    assert (code, err) == (0, "")
    found = json.loads(figures.read_text())["policies"]["gemel"]["plan"]["promised"]
    assert {name: (each["feed_fps"], each["min_fps"]) for name, each in found.items()} == {
        name: (30.0, 1.0 if name == "plates" else 0.0) for name in ("crossing", "plates", "cars", "people", "gate")
    }
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[:1] and "%" not in line}
    assert rows["plates"] == ["30", "1", f"{found['plates']['fps']:.2f}"]
    assert rows["cars"] == ["30", "-", f"{found['cars']['fps']:.2f}"]
    # Weight 2 gives about twice the share of a query that gets little.
    assert found["plates"]["fps"] > 1.5 * found["people"]["fps"]
    assert "min_fps is not reached" not in out


def test_the_objective(simulate: Call, tmp_path: Path) -> None:
    """Check that the profile's objective counts for gemel, --objective replaces it, and baselines keep their own."""
    known = tmp_path / "profile.yaml"
    known.write_text("objective: sum\n" + PAPER.read_text())
    code, out, _ = simulate(known, "--seconds", "1")
    assert code == 0
    assert [line.split()[-3:] for line in out.splitlines() if line.startswith("  policy ") and " for " in line] == [
        ["gemel,", "for", "sum"],
        ["nexus,", "for", "max-min"],
        ["nexus+shared,", "for", "max-min"],
        ["lru,", "for", "sum"],
    ]
    code, out, _ = simulate(known, "--seconds", "1", "--objective", "max-min", "--policy", "gemel")
    assert (code, "gemel, for max-min" in out) == (0, True)


def test_accuracy_is_promised_too(simulate: Call, tmp_path: Path) -> None:
    curve = "staleness: [0.99, 0.9, 0.8]"
    known = with_goals(tmp_path / "p.yaml", **dict.fromkeys(("crossing", "plates", "cars", "people", "gate"), curve))
    figures = tmp_path / "simulation.json"
    flags = ("--policy", "gemel", "--seconds", "1", "--objective", "accuracy", "--json", figures)
    code, out, _ = simulate(known, *flags)
    assert (code, "% accurate)" in out) == (0, True)
    promised = json.loads(figures.read_text())["policies"]["gemel"]["plan"]["promised"]
    assert all(0.8 <= each["accuracy"] <= 1 for each in promised.values())


def test_a_minimum_rate_that_cannot_be_had(simulate: Call, tmp_path: Path) -> None:
    known = with_goals(tmp_path / "profile.yaml", people="min_fps: 20")
    # A baseline's plans are made fast, and here it is what the user asked for.
    code, out, _ = simulate(known, "--memory", "75%", "--policy", "nexus", "--seconds", "1")
    assert code == 0
    words = " ".join(out.split())
    assert "short min_fps is not reached: people gets " in words
    assert " of 20 frames per second; enough would be " in words


def test_a_model_that_cannot_keep_to_the_sla_is_named(simulate: Call, tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text(PAPER.read_text().replace("{1: 24.8}", "{1: 124.8}"))
    code, out, _ = simulate(slow, "--seconds", "2")
    assert code == 0
    assert "plates: a run takes 124.8 ms, longer than the SLA of 100 ms" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("segments: [", "not YAML"),
        ("just words", "Input should be a valid dictionary"),
        ("segments: {}\nmodels: {}\nqueries: {}", "queries: there are none"),
        ("objective: fair\n" + PAPER.read_text(), "objective: Input should be 'max-min', 'sum'"),
        (
            PAPER.read_text().replace("  cars: {", "  cars: {weight: -1, "),
            "queries.cars.weight: Input should be greater",
        ),
        (
            PAPER.read_text().replace("  cars: {", "  cars: {min_fps: 31, "),
            "queries.cars: min_fps 31 is more than the 30 frames per second of the feed",
        ),
    ],
)
def test_files_that_are_no_profiles(text: str, expected: str, simulate: Call, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    code, out, err = simulate(path)
    assert (code, out) == (2, "")
    assert str(path) in err
    assert expected in err


def test_bad_flags(simulate: Call, tmp_path: Path) -> None:
    assert "no.yaml: cannot be read: No such file" in simulate(tmp_path / "no.yaml")[2]
    code, _, err = simulate(PAPER, "--policy", "luck")
    assert (code, "'luck' is not allowed: one of gemel, nexus" in err) == (2, True)
    code, _, err = simulate(PAPER, "--objective", "fair")
    assert (code, "--objective: 'fair' is not allowed: one of max-min, sum" in err) == (2, True)
    code, _, err = simulate(PAPER, "--policy", "nexus", "--policy", "lru", "--objective", "accuracy")
    assert (code, "nexus serves max-min, lru serves sum only" in err) == (2, True)
    code, _, err = simulate(PAPER, "--objective", "accuracy", "--seconds", "1")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "objective accuracy: query crossing has no staleness curve" in err
    code, _, err = simulate(PAPER, "--memory", "10MB")
    assert (code, "553400000 bytes" in err) == (2, True)


def test_the_base_install_simulates(tmp_path: Path) -> None:
    done = call("gemel", "simulate", PAPER, "--seconds", "1", **without("torch", "onnx", path=tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "nexus" in done.stdout
