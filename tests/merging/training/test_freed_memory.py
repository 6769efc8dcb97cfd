"""Freed memory that the C library keeps."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from gemel.merging.training.freed_memory import keep_freed_memory
keep_freed_memory()
for _ in range(16):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_the_pages_of_a_freed_tensor_serve_the_next_one() -> None:
    # Tensors of 64 MiB take 16,384 pages each, the first few of them new ones. A process of its own, as the setting is
    # for good.
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
