"""ONNX Runtime's telemetry is off in every process; it would leave an event store and a device id on the disk."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import BIN

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    "gemel.runtime.backends.ort_cpu",
    "gemel.compiler.lowering.onnx_run",
    "gemel.check.bench.worker",
    "gemel.check.source.source_model",
]


def environment(folder: Path) -> dict[str, str]:
    """Return this process's environment with ``folder`` as the cache folder, and without a setting of telemetry."""
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return {**kept, "XDG_CACHE_HOME": str(folder), "HOME": str(folder)}


def traces(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if "microsoft" in str(path).lower() or "deviceid" in path.name]


@pytest.mark.parametrize("module", MODULES)
def test_importing_leaves_nothing_behind(module: str, tmp_path: Path) -> None:
    code = f"import {module}, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)
    assert not traces(tmp_path)


def test_a_run_leaves_nothing_behind(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command: list[str | Path] = [BIN / "gemel-run", bundle, "--offline", "--frames", "1"]
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not traces(cache)


def test_a_user_may_turn_it_on(tmp_path: Path) -> None:
    code = "import gemel, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    chosen = {**environment(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=chosen, capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n"


def imported(path: Path) -> Iterator[str]:
    """Yield the names of the packages that a file imports, in order."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def test_the_tools_turn_it_off_first() -> None:
    # The cases of the coverage page are modules of a package whose first import is gemel's.
    for path in (ROOT / "tools").glob("*.py"):
        names = list(imported(path))
        if "onnxruntime" in names:
            assert {"gemel", "no_telemetry"} & set(names[: names.index("onnxruntime")]), path
