"""Run the steps of the workflow that users copy, unchanged, on a small workload."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import call, save
from tiny_models import tiny

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = yaml.safe_load((ROOT / "examples" / "ci" / "gemel.yml").read_text())
STEPS = WORKFLOW["jobs"]["bundle"]["steps"]


def run(bundle_folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run the steps that call gemel until one fails, as the workflow does, and return the finished processes."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **WORKFLOW["env"], "PATH": path, "PYTHONPATH": str(ROOT / "tests")}
    done: list[subprocess.CompletedProcess[str]] = []
    for step in STEPS:
        if step.get("run", "").startswith("gemel"):
            command = ["bash", "-e", "-c", step["run"]]
            done.append(subprocess.run(command, cwd=bundle_folder, env=environment, capture_output=True, text=True))
            if done[-1].returncode:
                break
    return done


def test_steps(bundle_folder: Path) -> None:
    pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT for RTX is not installed; there is none for this machine's CPU"
    )
    targets = ("--backend", "tensorrt-rtx", "--target", WORKFLOW["env"]["TARGETS"])
    assert call("gemel-compile", bundle_folder / "workload.yaml", "-o", bundle_folder / "old", *targets).returncode == 0
    baseline = bundle_folder / WORKFLOW["env"]["BASELINE"]
    assert call("gemel", "check", bundle_folder / "old", "--write-baseline", baseline).returncode == 0
    done = run(bundle_folder)
    assert [each.returncode for each in done] == [0, 0, 0], done[-1].stderr
    other = tiny(1, kernels_of=tiny(0))
    other.head.weight.data += 1
    save(other, bundle_folder / "b.safetensors")
    done = run(bundle_folder)
    assert [each.returncode for each in done] == [0, 0, 1]
    assert done[-1].stdout.splitlines()[-1] == "failed: weights, b head.weight"
    assert (bundle_folder / "differences.json").exists()


def test_actions_are_pinned_to_major_versions() -> None:
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert len(used) == 4
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", each) for each in used)
    assert WORKFLOW["jobs"]["bundle"]["runs-on"] == "ubuntu-latest"


def test_what_it_installs_is_there() -> None:
    (install,) = (step["run"] for step in STEPS if step.get("name") == "Install")
    extras = re.findall(r"\./gemel\[(.*)\]", install)[0].split(",")
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in declared for extra in extras)
