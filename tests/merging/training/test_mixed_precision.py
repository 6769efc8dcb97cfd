"""Where training computes in bfloat16."""

from __future__ import annotations

import pytest
import torch

from gemel.merging.training import mixed_precision as precision


@pytest.mark.parametrize(
    ("architecture", "in_onednn", "instructions", "used"),
    [
        ("x86_64", True, True, True),
        ("x86_64", True, False, False),
        ("aarch64", True, False, True),
        ("aarch64", False, False, False),
    ],
    ids=["instructions", "emulated", "arm", "arm-without"],
)
def test_bfloat16_only_where_the_cpu_has_it(
    architecture: str, in_onednn: bool, instructions: bool, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "machine", lambda: architecture)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: in_onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert precision._cpu_has_bf16() == used
