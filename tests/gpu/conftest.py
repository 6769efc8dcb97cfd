"""Tests that need an NVIDIA card: ``pytest -m gpu -rs`` runs them alone and says why any was skipped."""

from __future__ import annotations

import ctypes
import importlib.util

import pytest


def missing() -> str | None:
    """What these tests need and is not here."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    if (status := cuda.cuInit(0)) != 0:
        return f"no NVIDIA card that can be used: cuInit gives {status}"
    return None if importlib.util.find_spec("pycuda") else "pycuda is not installed"


@pytest.fixture(autouse=True, scope="session")
def card() -> None:
    """Asked of the driver itself: were it asked of what is tested, a broken test would be a skipped one."""
    if reason := missing():
        pytest.skip(reason)
