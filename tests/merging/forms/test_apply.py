"""Tests of weights with forms in modules, also while they are trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gemel.merging.forms.apply import FormCoder
from gemel.merging.forms.form_map import Form, FormMap
from gemel.merging.forms.quantize import Base, materialize, quantize_kernel
from gemel.merging.layers.sharing import SharingMap, Use, bind

WEIGHT = Use("a", "0.weight")


def modules(*names: str) -> dict[str, nn.Module]:
    """Return models of one convolution, each with weights of its own."""
    torch.manual_seed(0)
    return {name: nn.Sequential(nn.Conv2d(8, 8, 3)) for name in names}


def weight(model: nn.Module) -> torch.Tensor:
    """Return a copy of the model's kernel."""
    return model.get_parameter("0.weight").detach().clone()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_get_the_values_of_their_codes(bits: int) -> None:
    made = modules("a")
    base = weight(made["a"]) + 0.01 * torch.randn(8, 8, 3, 3)
    coder = FormCoder(made, FormMap().joined({WEIGHT: Form(bits, "base")}), {"base": Base(base)})
    assert torch.equal(weight(made["a"]), materialize(coder.codes[WEIGHT], base))


def test_without_bits_a_weight_is_its_base() -> None:
    made, coded = modules("a"), quantize_kernel(torch.randn(8, 8, 3, 3), 8)
    base = Base(materialize(coded), coded)
    coder = FormCoder(made, FormMap().joined({WEIGHT: Form(0, "base", 8)}), {"base": base})
    assert torch.equal(weight(made["a"]), base.kernel)
    assert coder.codes == {}


def test_a_shared_parameter_is_coded_once() -> None:
    made = modules("a", "b")
    other = Use("b", "0.weight")
    bind(made, SharingMap().joined([(WEIGHT, other)]))
    coder = FormCoder(made, FormMap().joined({WEIGHT: Form(4), other: Form(4)}), {})
    assert torch.equal(weight(made["b"]), materialize(coder.codes[other]))
    assert coder.codes[WEIGHT] is coder.codes[other]


@pytest.mark.parametrize("bits", [1, 4])
def test_steps_change_the_plain_values(bits: int) -> None:
    made = modules("a")
    before = weight(made["a"])
    coder = FormCoder(made, FormMap().joined({WEIGHT: Form(bits)}), {})
    # Many steps that are too small to change a code add up.
    for _ in range(50):
        with coder.plain():
            made["a"].get_parameter("0.weight").data.add_(0.01)
    with coder.plain():
        assert torch.allclose(weight(made["a"]), before + 0.5, atol=1e-5)
    assert torch.equal(weight(made["a"]), materialize(coder.codes[WEIGHT]))
    assert (coder.codes[WEIGHT].codes > 0).all()
