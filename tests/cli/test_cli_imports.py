"""What commands import: workloads of ONNX files need no PyTorch, and what is missing is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import call, query, save, without, write_video
from onnx_graphs import N, weight, write_graph
from tiny_models import tiny

from gemel.workload import Workload

HEAVY = ("torch", "torchvision", "onnx2torch")


def loaded_by(script: str, *arguments: str | Path) -> tuple[str, ...]:
    """Run a function of ``gemel.cli`` in a process of its own, and return the heavy modules that it imported."""
    program = (
        "import sys\n"
        f"from gemel.cli import {script} as run\n"
        "try: run()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        f"print('imported:', *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return tuple(done.stderr.rpartition("imported:")[2].split())


@pytest.fixture
def onnx_workload(tmp_path: Path, workload_in: Callable[..., Workload]) -> Path:
    """Return a workload of two ONNX files."""
    nodes = [
        N("Conv", ["image", "w"], ["c"]),
        N("GlobalAveragePool", ["c"], ["g"]),
        N("Flatten", ["g"], ["y"]),
    ]
    queries: list[dict[str, Any]] = []
    for seed, name in enumerate("ab"):
        write_graph(tmp_path / f"{name}.onnx", nodes, [weight("w", 5, 3, 3, 3, seed=seed)], outputs={"y": ["batch", 5]})
        queries.append({"name": name, "feed": "yard", "task": "classification", "model": {"onnx": f"{name}.onnx"}})
    write_video(tmp_path / "yard.mp4", frames=3)
    return workload_in(*queries).path


def test_a_workload_of_onnx_files_needs_no_pytorch(onnx_workload: Path) -> None:
    bundle = onnx_workload.parent / "bundle"
    assert loaded_by("compile_main", onnx_workload, "-o", bundle) == ()
    assert loaded_by("main", "inspect", bundle) == ()
    assert loaded_by("main", "check", bundle) == ()
    assert loaded_by("main", "check", bundle, "--against", onnx_workload) == ()
    assert loaded_by("main", "init", onnx_workload.parent / "a.onnx", "-o", onnx_workload.parent / "new.yaml") == ()


def test_importing_the_compiler_imports_no_pytorch() -> None:
    names = "gemel.compiler, gemel.check.source.numerics, gemel.check.source.plain_export, gemel.cli.precision"
    program = f"import {names}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_without_pytorch_files_are_compiled_and_factories_are_refused(
    onnx_workload: Path, workload_in: Callable[..., Workload]
) -> None:
    folder = onnx_workload.parent
    away = without("torch", "torchvision", path=folder)
    done = call("gemel-compile", onnx_workload, "-o", folder / "bundle", **away)
    assert done.returncode == 0, done.stderr
    save(tiny(0), folder / "a.safetensors")
    workload = workload_in(query("a"), query("b")).path
    for command in (
        ("gemel-compile", workload, "-o", folder / "other"),
        ("gemel", "check", folder / "bundle", "--against", workload),
    ):
        done = call(*command, **away)
        assert done.returncode == 2, done.stderr
        assert "needs packages that are not installed" in done.stderr and ".[compiler]" in done.stderr
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("run",), 2, "Usage: gemel run [OPTIONS] "),
        (("run", "--help"), 0, "Usage: gemel run [OPTIONS] "),
        (("run", "--nope"), 2, "Try 'gemel run -h' for help"),
        (("rum",), 2, "No such command 'rum'"),
        (("--nope",), 2, "Try 'gemel -h' for help"),
        (("--help",), 0, "Usage: gemel [OPTIONS] COMMAND"),
        (("inspect", "nowhere"), 2, "nowhere"),
    ],
)
def test_a_command_alone_looks_like_a_part_of_gemel(arguments: tuple[str, ...], code: int, text: str) -> None:
    done = call("gemel", *arguments)
    assert done.returncode == code
    assert text in done.stdout + done.stderr
