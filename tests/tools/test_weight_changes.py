"""Tests of stored changes of public weights, as the street example keeps them."""

from __future__ import annotations

from pathlib import Path

import torch
from weight_changes import apply, pack


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "fc.weight": torch.randn(5, 4, generator=generator),
        "norm.weight": torch.randn(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def test_what_changed_comes_back_and_what_is_shared_is_equal(tmp_path: Path) -> None:
    before = {"a": state(1), "b": state(2)}
    after = {name: {key: value.clone() for key, value in each.items()} for name, each in before.items()}
    after["a"]["conv.weight"] += 0.01 * torch.randn(4, 3, 3, 3)
    after["a"]["conv.weight"][2] = before["a"]["conv.weight"][2]
    after["b"]["conv.weight"] = after["a"]["conv.weight"].clone()
    after["b"]["norm.weight"] += 1
    pack(before, after, [(("b", "conv.weight"), ("a", "conv.weight"))], tmp_path / "changes.safetensors")
    found = apply(before, tmp_path / "changes.safetensors")
    assert torch.equal(found["a"]["conv.weight"], found["b"]["conv.weight"])
    # Rounding moves a value by half a step at most; a step is 1/127 of the channel's largest change.
    assert (found["a"]["conv.weight"] - after["a"]["conv.weight"]).abs().max() < 0.05 / 127
    assert torch.equal(found["a"]["conv.weight"][2], before["a"]["conv.weight"][2])
    for model, name in (("a", "fc.weight"), ("a", "norm.weight"), ("b", "norm.weight"), ("b", "fc.weight")):
        assert torch.equal(found[model][name], after[model][name])
    assert torch.equal(before["b"]["conv.weight"], state(2)["conv.weight"])
    # One weight changed: a byte per value and a scale per channel are stored, beside one BatchNorm weight.
    assert (tmp_path / "changes.safetensors").stat().st_size < 4 * 27 + 4 * 4 + 4 * 4 + 600


def test_a_model_that_did_not_change_is_left_out(tmp_path: Path) -> None:
    before = {"a": state(1), "b": state(2)}
    after = {"a": {**state(1), "norm.weight": torch.zeros(4)}, "b": state(2)}
    pack(before, after, [], tmp_path / "changes.safetensors")
    found = apply(before, tmp_path / "changes.safetensors")
    assert set(found) == {"a"}
    assert torch.equal(found["a"]["norm.weight"], torch.zeros(4))
