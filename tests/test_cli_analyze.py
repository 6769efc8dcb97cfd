"""``gemel analyze`` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import query, save
from tiny_models import tiny

from gemel.cli import main
from gemel.workload import Workload

BIN = Path(sys.executable).parent


@pytest.fixture
def path(workload_in: Callable[..., Workload]) -> Path:
    """A workload of three queries and two models that share all but BatchNorm and the classifier."""
    again = {**query("a"), "name": "again"}
    root = workload_in(query("a"), again, query("b")).root
    save(tiny(0), root / "a.safetensors")
    save(tiny(1), root / "b.safetensors")
    return root / "workload.yaml"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``gemel analyze`` here; returns its exit code and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemel", "analyze", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


Call = Callable[..., tuple[int, str, str]]


def test_table_json_and_page(path: Path, call: Call, tmp_path: Path) -> None:
    figures, page = tmp_path / "out" / "analysis.json", tmp_path / "out" / "analysis.html"
    code, out, err = call(path, "--json", figures, "--html", page)
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


def test_heads_and_strict(path: Path, call: Call) -> None:
    code, out, _ = call(path, "--heads", "--definition", "strict")
    assert code == 0
    assert "Linear(in_features=32, out_features=3, bias=True)" in out


def test_a_workload_where_nothing_can_be_shared(workload_in: Callable[..., Workload], call: Call) -> None:
    root = workload_in(query("a")).root
    save(tiny(0), root / "a.safetensors")
    code, out, _ = call(root / "workload.yaml")
    assert code == 0
    assert "potential: 0.0% (0.00 MB) between models, 0.0% (0.00 MB) and inside them" in out


def test_more_groups_than_the_table_has_rows(workload_in: Callable[..., Workload], call: Call) -> None:
    deep = {**query("a", "many_layers:deep"), "name": "a"}
    del deep["model"]["weights"]
    root = workload_in(deep, {**deep, "name": "b", "task": "embedding"}).root
    lines = ["from torch import nn", "def deep():", "    convs = [nn.Conv2d(n, n + 1, 1) for n in range(3, 27)]"]
    lines += ["    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(27, 2))"]
    (root / "many_layers.py").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="no weights given"):
        code, out, _ = call(root / "workload.yaml")
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
    path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(path.parent)
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_missing_weights_are_one_line(path: Path, call: Call) -> None:
    (path.parent / "b.safetensors").unlink()
    code, _, err = call(path)
    assert code == 2
    assert err == f"error: query b: weights: {path.parent}/b.safetensors: no such file\n"


@pytest.mark.parametrize(("missing", "arguments"), [("torch", []), ("matplotlib", ["--html", "page.html"])])
def test_packages_that_are_not_installed(path: Path, tmp_path: Path, missing: str, arguments: list[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [BIN / "gemel", "analyze", path, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == "error: gemel analyze needs packages that are not installed: pip install 'gemel[merge]'\n"
    assert not (tmp_path / "page.html").exists()


def test_help_has_an_example(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert "gemel analyze examples/" in out
