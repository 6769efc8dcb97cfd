"""Test the copying of modules beside the workload that make its models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import query

from gemel.merging.models.networks import networks_of
from gemel.merging.output.modules import imported_beside, modules_beside
from gemel.workload import Workload, load_workload

NET = """
from torch import nn
from {sibling} import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, image):
        return self.head(self.conv(image).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Remove the modules that a test imported, and restore the import path."""
    path, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name.startswith("yard_"):
            del sys.modules[name]


def build(workload: Workload) -> None:
    """Build the workload's models, which imports their modules."""
    with pytest.warns(UserWarning, match="no weights given"):
        networks_of(workload)


def at(root: Path, factory: str) -> Workload:
    """Write and load a workload in ``root`` with one model from a factory."""
    document = {
        "schema_version": "1",
        "feeds": {"yard": {"source": "yard.mp4"}},
        "queries": [query("a", model={"factory": factory, "input": {"size": [16, 16]}})],
    }
    (root / "workload.yaml").write_text(json.dumps(document))
    return load_workload(root / "workload.yaml")


def test_a_module_and_what_it_imports_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "yard_net.py").write_text(NET.format(sibling="yard_sizes"))
    (tmp_path / "yard_sizes.py").write_text("WIDTH = 4\n")
    (tmp_path / "yard_other.py").write_text("nobody imports this\n")
    workload = at(tmp_path, "yard_net:Net")
    build(workload)
    found = modules_beside(workload)
    assert set(found) == {"yard_net.py", "yard_sizes.py"}
    assert found["yard_sizes.py"] == b"WIDTH = 4\n"
    assert {module.__name__ for module in imported_beside(workload)} == {"yard_net", "yard_sizes"}


def test_a_package_is_taken_as_a_whole(tmp_path: Path) -> None:
    package = tmp_path / "yard_nets"
    (package / "parts").mkdir(parents=True)
    for name in ("__init__.py", "parts/__init__.py", "parts/late.py"):
        (package / name).touch()
    (package / "sizes.py").write_text("WIDTH = 4\n")
    (package / "net.py").write_text(NET.format(sibling=".sizes"))
    (package / "weights.pt").write_bytes(b"large")
    workload = at(tmp_path, "yard_nets.net:Net")
    build(workload)
    files = {"__init__.py", "net.py", "sizes.py", "parts/__init__.py", "parts/late.py"}
    assert set(modules_beside(workload)) == {f"yard_nets/{name}" for name in files}
    assert {module.__name__ for module in imported_beside(workload)} == {
        "yard_nets",
        "yard_nets.net",
        "yard_nets.sizes",
    }


def test_a_folder_without_init_is_a_package_too(tmp_path: Path) -> None:
    (tmp_path / "yard_space").mkdir()
    (tmp_path / "yard_space" / "net.py").write_text(NET.format(sibling=".sizes"))
    (tmp_path / "yard_space" / "sizes.py").write_text("WIDTH = 4\n")
    workload = at(tmp_path, "yard_space.net:Net")
    build(workload)
    assert set(modules_beside(workload)) == {"yard_space/net.py", "yard_space/sizes.py"}


def test_installed_modules_stay_where_they_are(workload_in: Callable[..., Workload]) -> None:
    assert modules_beside(workload_in(query("a"), query("b", "torchvision.models:resnet18"))) == {}


def test_what_lies_below_but_was_imported_from_elsewhere_is_not_taken(tmp_path: Path) -> None:
    """Check that modules in a virtual environment inside the workload's folder count as installed."""
    installed = tmp_path / ".venv" / "lib"
    installed.mkdir(parents=True)
    (installed / "yard_installed.py").write_text(NET.format(sibling="yard_sizes"))
    (installed / "yard_sizes.py").write_text("WIDTH = 4\n")
    sys.path.append(str(installed))
    workload = at(tmp_path, "yard_installed:Net")
    build(workload)
    assert modules_beside(workload) == {}
    assert imported_beside(workload) == []


def test_onnx_models_have_no_modules(workload_in: Callable[..., Workload]) -> None:
    assert modules_beside(workload_in(query("a", model={"onnx": "a.onnx"}))) == {}
