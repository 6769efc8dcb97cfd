"""Tests of the file of forms: codes of weights and bases come back, and damage is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemel.bundles.merge_report import LayerReport
from gemel.errors import InputError
from gemel.merging.forms.form_map import Form, FormMap
from gemel.merging.forms.quantize import Base, Coded, materialize, quantize_kernel
from gemel.merging.layers.sharing import Use
from gemel.merging.output.forms_file import forms_file, read_codes

USE = Use("cars", "conv.weight")


def written(path: Path) -> tuple[tuple[LayerReport, ...], Coded, Coded]:
    """Write a file with one difference to a base in codes; return its entry, its codes and those of the base."""
    torch.manual_seed(0)
    base = quantize_kernel(torch.randn(4, 6, 3, 3), 8)
    codes = quantize_kernel(torch.randn(4, 6, 3, 3) / 8, 2)
    kernel = materialize(base)
    states = {USE.model: {USE.parameter: materialize(codes, kernel)}}
    made = forms_file(FormMap().joined({USE: Form(2, "base", 8)}), {USE: codes}, states, {"base": Base(kernel, base)})
    assert made is not None
    path.write_bytes(made[0])
    return made[1].layers, codes, base


def equal(first: Coded, second: Coded) -> bool:
    return torch.equal(first.codes, second.codes) and torch.equal(first.scale, second.scale)


def test_codes_of_weights_and_bases_come_back(tmp_path: Path) -> None:
    layers, codes, base = written(tmp_path / "forms.safetensors")
    found, bases = read_codes(tmp_path / "forms.safetensors", layers)
    assert found.keys() == bases.keys() == {USE}
    assert equal(found[USE], codes) and equal(bases[USE], base)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # Tensors 0 are those of the weight, tensors 1 those of the base.
        (lambda each: each.update({"1.codes": each["1.codes"][:-1]}), "1.codes: 215 bytes; 216 hold"),
        (lambda each: each.pop("1.codes"), "tensor '1.codes' is missing"),
        (lambda each: each.update({"0.scale": each["0.scale"][:-1]}), "0.scale: 4 finite float32 values"),
    ],
)
def test_damage_is_named_with_query_and_layer(
    damage: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "forms.safetensors"
    layers, *_ = written(path)
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError, match=rf"damaged: conv\.weight of query cars: {message}"):
        read_codes(path, layers)
