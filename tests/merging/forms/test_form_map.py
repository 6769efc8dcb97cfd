"""Tests of form maps: bytes that forms save, and which layers may have a form."""

from __future__ import annotations

import pytest

from gemel.merging.forms.form_map import Form, FormMap, can_have_form, saved_bytes
from gemel.merging.layers.layers import Layer
from gemel.merging.layers.problem import Problem
from gemel.merging.layers.sharing import SharingMap, Use

SHAPE, SIZE = (8, 8, 3, 3), 8 * 8 * 9 * 4
PROBLEM = Problem({name: (Layer(name, "conv", "conv", SHAPE, SIZE, False),) for name in "abc"})
USES = {name: Use(name, "conv.weight") for name in "abc"}


def forms(**bits: int) -> FormMap:
    """Return differences to one base, with the given bits for each model."""
    return FormMap().joined({USES[name]: Form(count, "base") for name, count in bits.items()})


def test_a_base_counts_once() -> None:
    codes = 8 * 8 * 9 * 2 // 8 + 32
    assert saved_bytes(PROBLEM, SharingMap(), forms(a=2, b=2, c=2)) == 2 * SIZE - 3 * codes
    assert saved_bytes(PROBLEM, SharingMap(), forms(a=2)) == -codes
    assert saved_bytes(PROBLEM, SharingMap(), forms(a=0, b=0, c=2)) == 2 * SIZE - codes


def test_a_base_in_codes_counts_as_its_codes_and_scales() -> None:
    coded = FormMap().joined({use: Form(2 * (name == "c"), "base", 8) for name, use in USES.items()})
    codes, base = 8 * 8 * 9 * 2 // 8 + 32, 8 * 8 * 9 + 32
    assert saved_bytes(PROBLEM, SharingMap(), coded) == 3 * SIZE - base - codes
    assert saved_bytes(PROBLEM, SharingMap(), coded.plain_differences) == 2 * SIZE - codes


def test_codes_of_a_shared_tensor_count_once() -> None:
    sharing = SharingMap().joined([(USES["a"], USES["b"])])
    own = FormMap().joined({USES["a"]: Form(8), USES["b"]: Form(8)})
    codes = 8 * 8 * 9 + 32
    assert saved_bytes(PROBLEM, sharing, FormMap()) == SIZE
    assert saved_bytes(PROBLEM, sharing, own) == SIZE + SIZE - codes


def test_weights_that_are_their_base_are_one_slot() -> None:
    assert forms(a=0, b=2, c=0).slots == ((USES["a"], USES["c"]),)
    assert forms(a=0, b=2).slots == ()


def test_models_keep_their_forms_apart() -> None:
    mixed = forms(a=2, b=4)
    assert mixed.of({"a"}) == forms(a=2)
    assert mixed.without({"a"}) == forms(b=4)
    assert mixed.joined(forms(a=1)) == forms(a=1, b=4)
    own = mixed.joined({USES["c"]: Form(8)})
    assert own.differences == mixed
    assert own.own.models == {"c"}


@pytest.mark.parametrize(
    ("shape", "definition", "allowed"),
    [
        ((64, 32, 3, 3), "Conv2d 64x32x3x3", True),
        ((512, 512), "Linear 512x512", True),
        ((512, 1, 3, 3), "Conv2d 512x1x3x3 groups 512", False),
        ((8, 3, 3, 3), "Conv2d 8x3x3x3", False),
        ((64, 32, 3, 3), "ConvTranspose2d 64x32x3x3", False),
    ],
)
def test_small_and_transposed_kernels_have_no_form(shape: tuple[int, ...], definition: str, allowed: bool) -> None:
    size = 4
    for each in shape:
        size *= each
    assert can_have_form(Layer("a", "conv", definition, shape, size, False)) is allowed
