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
    code, _, err = simulate(PAPER, "--memory", "10MB")
    assert (code, "553400000 bytes" in err) == (2, True)


def test_the_base_install_simulates(tmp_path: Path) -> None:
    done = call("gemel", "simulate", PAPER, "--seconds", "1", **without("torch", "onnx", path=tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "nexus" in done.stdout
