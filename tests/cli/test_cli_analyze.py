"""Command ``gemel analyze``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import call, query, save, without
from safetensors.torch import load_file, save_file
from tiny_models import tiny

from gemel.errors import install_hint
from gemel.workload import Workload

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(workload_in: Callable[..., Workload]) -> Path:
    """Return a workload of three queries and two models that share all but BatchNorm and the classifier."""
    again = {**query("a"), "name": "again"}
    root = workload_in(query("a"), again, query("b")).root
    save(tiny(0), root / "a.safetensors")
    save(tiny(1), root / "b.safetensors")
    return root / "workload.yaml"


@pytest.fixture
def analyze(gemel: Call) -> Call:
    return partial(gemel, "analyze")


def test_table_json_and_page(path: Path, analyze: Call, tmp_path: Path) -> None:
    figures, page = tmp_path / "out" / "analysis.json", tmp_path / "out" / "analysis.html"
    code, out, err = analyze(path, "--json", figures, "--html", page)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "a: 4 layers, 0.01 MB" in lines[0]
    assert "b: 4 layers, 0.01 MB" in lines[1]
    assert "Conv2d 32x16x1x1" in out
    assert "Linear" not in out
    assert "pairs of models that share: 1 of 1" in lines
    found: dict[str, Any] = json.loads(figures.read_text())
    assert any(line.startswith(f"potential: {found['potential']:.1%} (") for line in lines)
    assert {"models", "bytes", "potential_bytes", "potential", "pairs", "groups"} <= set(found)
    assert f"{page}, " in lines[-2]
    assert lines[-1] == f"Next: gemel merge {path} -o merged/"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.fixture
def tuned(trained: Path) -> Path:
    """Return a workload of two models whose kernels are a hundredth of their norm apart."""
    document = json.loads((trained / "workload.yaml").read_text())
    state = load_file(trained / "direction.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name, value in state.items() if value.ndim == 4]:
        state[name] += 0.01 * state[name].std() * torch.randn(state[name].shape, generator=generator)
    save_file(state, trained / "again.safetensors")
    first = document["queries"][0]
    document["queries"][1] = {
        **first,
        "name": "again",
        "model": {**first["model"], "weights": "again.safetensors"},
    }
    (trained / "workload.yaml").write_text(json.dumps(document))
    return trained / "workload.yaml"


def test_fine_tunes_are_named_and_their_differences_listed(tuned: Path, analyze: Call, tmp_path: Path) -> None:
    code, out, err = analyze(tuned, "--json", tmp_path / "figures.json")
    assert (code, err) == (0, "")
    assert "direction, again: fine-tunes of one checkpoint" in out
    assert "low rank" in out
    (family,) = json.loads((tmp_path / "figures.json").read_text())["fine_tunes"]
    assert family["base"] is None
    plain = sum(2 * 4 * math.prod(layer["shape"]) for layer in family["layers"])
    # The base is in codes of 8 bits, with a scale of 4 bytes for each channel.
    bases = [layer["base_bytes"] for layer in family["layers"]]
    assert bases == [math.prod(layer["shape"]) + 4 * layer["shape"][0] for layer in family["layers"]]
    assert family["saving"]["0"] == pytest.approx(1 - sum(bases) / plain)
    assert "saved, base included" in out
    assert family["saving"]["1"] > family["saving"]["2"] > family["saving"]["8"]
    for layer in family["layers"]:
        errors = [layer["errors"][bits] for bits in ("0", "1", "2", "4", "8")]
        assert errors == sorted(errors, reverse=True)
        assert layer["members"] == 2


def test_accuracy_that_is_kept_without_training(tuned: Path, analyze: Call, tmp_path: Path) -> None:
    code, out, _ = analyze(tuned, "--accuracy", "--device", "cpu", "--json", tmp_path / "figures.json")
    assert code == 0
    assert "accuracy kept without training" in out
    rows = json.loads((tmp_path / "figures.json").read_text())["accuracies"]
    assert [(row["kind"], row["bits"]) for row in rows] == [
        *(("difference", bits) for bits in (0, 1, 2, 4, 8)),
        *(("own", bits) for bits in (4, 8)),
    ]
    assert all(row["relative"].keys() == {"direction", "again"} for row in rows)
    assert rows[3]["relative"]["again"] > 0.95


def test_a_base_that_is_no_ancestor(tuned: Path, analyze: Call) -> None:
    document = json.loads(tuned.read_text())
    document["base"] = "colour.safetensors"
    tuned.write_text(json.dumps(document))
    code, _, err = analyze(tuned)
    assert code == 2
    assert "base: colour.safetensors is no ancestor of the model" in err


def test_heads_and_strict(path: Path, analyze: Call) -> None:
    code, out, _ = analyze(path, "--heads", "--definition", "strict")
    assert code == 0
    assert "Linear(in_features=32, out_features=3, bias=True)" in out


def test_a_workload_where_nothing_can_be_shared(workload_in: Callable[..., Workload], analyze: Call) -> None:
    root = workload_in(query("a")).root
    save(tiny(0), root / "a.safetensors")
    code, out, _ = analyze(root / "workload.yaml")
    assert code == 0
    assert "potential: 0.0% (0.00 MB) between models, 0.0% (0.00 MB) and inside them" in out


def test_more_groups_than_the_table_has_rows(workload_in: Callable[..., Workload], analyze: Call) -> None:
    deep = {**query("a", "many_layers:deep"), "name": "a"}
    del deep["model"]["weights"]
    root = workload_in(deep, {**deep, "name": "b", "task": "embedding"}).root
    lines = ["from torch import nn", "def deep():", "    convs = [nn.Conv2d(n, n + 1, 1) for n in range(3, 27)]"]
    lines += ["    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(27, 2))"]
    (root / "many_layers.py").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="no weights given"):
        code, out, _ = analyze(root / "workload.yaml")
    assert code == 0
    assert "\n  4 more " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["workload.yaml", "--definition", "weights"], "--definition: 'weights' is not allowed: shape or strict\n"),
        (["workload.yaml", "--html", "."], ".: cannot be written: Is a directory\n"),
        (["workload.yaml", "--json", "a.safetensors/x.json"], "a.safetensors/x.json: cannot be written: "),
    ],
)
def test_mistakes_are_one_line(
    path: Path, analyze: Call, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(path.parent)
    code, out, err = analyze(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_missing_weights_are_one_line(path: Path, analyze: Call) -> None:
    for file in path.parent.glob("*.safetensors"):
        file.unlink()
    code, _, err = analyze(path)
    assert code == 2
    assert err == f"error: query a: weights: {path.parent}/a.safetensors: no such file\n"


def test_a_model_that_cannot_be_built_is_left_out_by_name(path: Path, analyze: Call) -> None:
    (path.parent / "b.safetensors").unlink()
    code, out, _ = analyze(path)
    assert code == 0
    assert f"b: query b: weights: {path.parent}/b.safetensors: no such file" in out


@pytest.mark.parametrize(("missing", "page"), [("torch", None), ("matplotlib", "page.html")])
def test_packages_that_are_not_installed(path: Path, tmp_path: Path, missing: str, page: str | None) -> None:
    arguments = ["--html", str(tmp_path / page)] if page else []
    done = call("gemel", "analyze", path, *arguments, **without(missing, path=tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: gemel analyze needs packages that are not installed: {install_hint('merge')}\n"
    assert not (tmp_path / "page.html").exists()


def test_help_has_an_example(analyze: Call) -> None:
    code, out, _ = analyze("--help")
    assert code == 0
    assert "gemel analyze examples/" in out
