"""Fixtures of the tests that need an NVIDIA card. ``pytest -m gpu -rs`` runs only these and says why any is skipped."""

from __future__ import annotations

import ctypes
import importlib.util

import pytest


def missing() -> str | None:
    """Return what these tests need and this machine lacks; None if it has everything."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    if (status := cuda.cuInit(0)) != 0:
        return f"no NVIDIA card that can be used: cuInit gives {status}"
    return None if importlib.util.find_spec("pycuda") else "pycuda is not installed"


@pytest.fixture(autouse=True, scope="session")
def card() -> None:
    """Skip the tests where the driver itself finds no card: a bug in gemel's own check must not skip its tests."""
    if reason := missing():
        pytest.skip(reason)
