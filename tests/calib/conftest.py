"""Fixtures of the calibration tests: two models that share kernels, and images that they are sure of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from precision_cases import write_pair


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Run every test of this folder on one thread."""


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(_pair: Path, tmp_path: Path) -> Path:
    """Return a folder with the weights of ``a`` and ``b``, labelled images of each, frames, and a workload of both."""
    return Path(shutil.copytree(_pair, tmp_path / "pair"))
