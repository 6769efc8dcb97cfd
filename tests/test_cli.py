"""The commands as a user meets them: exit codes, one-line errors, and what they need installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program, *rest = map(str, arguments)
    # The factories of the tests' workloads are found as a user's would be.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    return subprocess.run([BIN / program, *rest], capture_output=True, text=True, env=environment, timeout=120)


def without(*modules: str, path: Path) -> dict[str, str]:
    """An environment in which importing any of ``modules`` fails as if it was not installed."""
    lines = [f"sys.modules[{name!r}] = None" for name in modules]
    (path / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    return {"PYTHONPATH": str(path)}


LIGHT = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml", "timm")


def test_the_light_runtime_runs_a_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    done = call("gemel-run", bundle_folder / "bundle", "--offline", "--json", summary, **without(*LIGHT, path=tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(summary.read_text())["queries"]["a"]["processed"] == 12


def test_the_light_runtime_says_what_the_compiler_needs(bundle_folder: Path, tmp_path: Path) -> None:
    environment = without(*LIGHT, path=tmp_path)
    done = call("gemel-compile", bundle_folder / "workload.yaml", "-o", tmp_path / "b", **environment)
    assert done.returncode == 2
    assert done.stderr == (
        "error: gemel-compile needs packages that are not installed: pip install 'gemel[compiler]'\n"
    )


@pytest.mark.parametrize("module", ["gemel.runtime", "gemel.runtime.run", "gemel.cli"])
def test_the_runtime_imports_neither_torch_nor_onnx(module: str) -> None:
    script = f"import sys, {module}; print([m for m in {LIGHT!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_compile_check_inspect(bundle_folder: Path, tmp_path: Path) -> None:
    workload, bundle = bundle_folder / "workload.yaml", tmp_path / "new"
    done = call("gemel-compile", workload, "-o", bundle, "--backend", "ort-cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Next: gemel-run {bundle}"
    assert (bundle / "device-cache").is_dir()
    done = call("gemel", "check", bundle, "--against", workload, "--json", tmp_path / "check.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "check.json").read_text())
    assert all(model["passed"] and model["relative"] < 1e-4 for model in report["models"].values())
    done = call("gemel", "inspect", bundle, "--json", tmp_path / "inspect.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "inspect.json").read_text())
    sizes = figures["bytes"]
    assert sizes["saved"] == sizes["models"] - sizes["unique"] > 0
    assert sizes["queries"] > sizes["models"]  # c uses the model of a
    assert figures["models"]["a"]["shared_bytes"] == sizes["saved"]
    assert figures["models"]["a"]["mode"] == "bound"


def test_check_fails_by_name(bundle_folder: Path) -> None:
    from helpers import save
    from tiny_models import tiny

    save(tiny(9), bundle_folder / "b.safetensors")
    done = call("gemel", "check", bundle_folder / "bundle", "--against", bundle_folder / "workload.yaml")
    assert done.returncode == 1
    assert "failed: b" in done.stdout


def test_bench(bundle_folder: Path, tmp_path: Path) -> None:
    done = call("gemel", "bench", bundle_folder / "bundle", "--rounds", "3", "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert {"p50", "p99"} == set(figures["swap_ms"]) == set(figures["plain_load_ms"])
    assert set(figures["latency_ratios"]) == {"a", "b"}
    assert figures["memory_mb"] > 0
    assert figures["plain_memory_mb"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemel-run", "nowhere"], "error: nowhere: not a bundle (no manifest.json); gemel-compile writes one\n"),
        (["gemel-compile", "nowhere.yaml", "-o", "b"], "error: {}/nowhere.yaml: cannot be read: No such file"),
        (["gemel-run", "b", "--memory", "much"], "error: --memory: 'much' is not allowed: bytes such as 64MiB"),
        (["gemel-run", "b", "--feed", "yard"], "error: --feed: 'yard' is not allowed: NAME=SOURCE is expected\n"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message.replace("{}/", "").format(tmp_path)), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_debug_shows_the_traceback() -> None:
    done = call("gemel-run", "nowhere", "--debug")
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    "command", [["gemel-compile"], ["gemel-run"], ["gemel", "inspect"], ["gemel", "check"], ["gemel", "bench"]]
)
def test_help_has_an_example(command: list[str]) -> None:
    done = call(*command, "--help")
    assert done.returncode == 0
    assert f"{' '.join(command)} " in done.stdout.partition("Usage:")[2].partition("\n")[2]
