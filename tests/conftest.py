"""Fixtures of several tests: small workloads on disk, a compiled bundle, and the command ``gemel``."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import precision_cases
import pytest
from form_bundles import form_workload
from helpers import query, save, single_thread, write_video
from hypothesis import settings
from tiny_models import tiny

from gemel.bundles.reader import Bundle
from gemel.cli import main
from gemel.compiler import compile_workload
from gemel.runtime.backends import Backend
from gemel.runtime.loop import device_profile
from gemel.runtime.loop.measure_times import Times
from gemel.workload import Workload, load_workload

pytest_plugins = ["trained_models"]

# Use the same hypothesis examples in every run, so that results only change with the code.
# `HYPOTHESIS_PROFILE=default` tries new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_LONGEST = ("test_readme.py", "test_ci_example.py", "test_merge.py")
"""Test files of which single tests take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: last, they would run on one worker while the others have nothing left to do."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(autouse=True)
def _same_noise(request: pytest.FixtureRequest) -> None:
    """Start the test module's random generators anew, so that a test's data do not depend on which tests ran before."""
    for module in (precision_cases, request.module):
        for each in vars(module).values():
            if isinstance(each, np.random.Generator):
                each.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of times: a run takes 2 ms, and a load 30 ms."""

    def measure_times(bundle: Bundle, backend: Backend, *_: object) -> Times:
        return Times(
            load=dict.fromkeys(backend.segments, 30.0), run={name: {1: 2.0} for name in bundle.manifest.models}
        )

    monkeypatch.setattr(device_profile, "measure_times", measure_times)


@pytest.fixture
def workload_in(tmp_path: Path) -> Callable[..., Workload]:
    """Return a function that writes a workload with given queries into ``tmp_path`` and loads it."""

    def make(*queries: dict[str, Any], **changes: Any) -> Workload:
        """Write and load a workload; ``changes`` are other top-level keys."""
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
    """Compile a bundle of three queries and two models with equal kernels and own BatchNorms; return its folder.

    The third query uses the first model.
    """
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
    """Return a copy of a compiled folder (``workload.yaml``, weights, ``bundle/``) that a test may damage."""
    return Path(shutil.copytree(_shared_bundle, tmp_path / "work"))


@pytest.fixture
def bundle(bundle_folder: Path) -> Path:
    """Return a copy of a compiled bundle that a test may damage.

    The feeds have absolute paths into the folder that the bundle was compiled in, which still exists.
    """
    return bundle_folder / "bundle"


@pytest.fixture(scope="session")
def _shared_form_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a bundle of two models that keep kernels as codes; return its folder."""
    folder = tmp_path_factory.mktemp("forms")
    compile_workload(form_workload(folder), folder / "bundle")
    return folder


@pytest.fixture
def form_folder(_shared_form_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of a compiled folder whose models keep kernels as codes, which a test may damage."""
    return Path(shutil.copytree(_shared_form_bundle, tmp_path / "forms"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread during a test of small models; see :func:`helpers.single_thread`."""
    with single_thread():
        yield


@pytest.fixture
def gemel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command ``gemel`` in this process, whose priority stays."""
    monkeypatch.setattr(os, "nice", lambda more: 0)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        """Run ``gemel`` with some arguments; return exit code, and what it alone printed to stdout and stderr."""
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["gemel", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run
