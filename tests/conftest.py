"""What several tests need: small workloads on disk, and one compiled bundle."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import query, save, single_thread, write_video
from hypothesis import settings
from tiny_models import tiny

from gemel.cli import main
from gemel.compiler import compile_workload
from gemel.workload import Workload, load_workload

pytest_plugins = ["trained_models"]

# The same examples in every run, so that a change is judged by itself; `HYPOTHESIS_PROFILE=default` tries new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def workload_in(tmp_path: Path) -> Callable[..., Workload]:
    """Write a workload with the given queries (and other top-level keys) into ``tmp_path`` and load it."""

    def make(*queries: dict[str, Any], **changes: Any) -> Workload:
        document = {
            "schema_version": "1",
            "feeds": {"yard": {"source": "yard.mp4", "fps": 10}},
            "queries": list(queries),
            **changes,
        }
        path = tmp_path / "workload.yaml"
        path.write_text(json.dumps(document))  # JSON is YAML
        return load_workload(path)

    return make


@pytest.fixture(scope="session")
def _shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three queries, two models: equal kernels, own BatchNorm; the third query uses the first model."""
    folder = tmp_path_factory.mktemp("shared")
    first = tiny(0)
    save(first, folder / "a.safetensors")
    save(tiny(1, kernels_of=first), folder / "b.safetensors")
    write_video(folder / "yard.mp4")
    again = {**query("a"), "name": "c", "feed": "gate"}
    document = {
        "schema_version": "1",
        "feeds": {"yard": {"source": "yard.mp4", "fps": 10}, "gate": {"source": "yard.mp4", "fps": 5, "loop": True}},
        "queries": [query("a"), query("b"), again],
    }
    (folder / "workload.yaml").write_text(json.dumps(document))
    compile_workload(load_workload(folder / "workload.yaml"), folder / "bundle")
    return folder


@pytest.fixture
def bundle_folder(_shared_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the compiled folder (``workload.yaml``, weights, ``bundle/``) that a test may damage."""
    return Path(shutil.copytree(_shared_bundle, tmp_path / "work"))


@pytest.fixture
def bundle(bundle_folder: Path) -> Path:
    """Its bundle. Paths of feeds were made absolute when the shared folder was compiled; they still exist."""
    return bundle_folder / "bundle"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of small models: see :func:`helpers.single_thread`."""
    with single_thread():
        yield


@pytest.fixture
def gemel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``gemel`` in this process; returns its exit code and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemel", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run
