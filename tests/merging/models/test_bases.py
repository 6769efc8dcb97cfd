"""Tests of the bases that a workload gives: which models they are for, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import query, save
from onnx import numpy_helper
from onnx_graphs import N, weight, write_graph
from tiny_models import tiny

from gemel.errors import InputError, ModelError
from gemel.merging.models.bases import check_bases, given_bases
from gemel.workload import Workload

Make = Callable[..., Workload]
SHAPES = {"pointwise.weight": (32, 16, 1, 1), "stem.weight": (16, 3, 3, 3)}


def test_a_models_own_base_goes_before_that_of_the_workload(workload_in: Make, tmp_path: Path) -> None:
    first = query("a")
    first["model"]["base"] = "own.safetensors"
    workload = workload_in(first, query("b"), base="all.safetensors")
    for seed, name in enumerate(("own", "all")):
        save(tiny(seed), tmp_path / f"{name}.safetensors")
    found = given_bases(workload, dict.fromkeys("ab", SHAPES))
    assert {name: path for name, (path, _) in found.items()} == {"a": "own.safetensors", "b": "all.safetensors"}
    assert torch.equal(found["b"][1]["stem.weight"], tiny(1).stem.weight)


def test_the_base_of_the_workload_is_for_models_that_it_fits(workload_in: Make, tmp_path: Path) -> None:
    workload = workload_in(query("a"), query("b"), base="all.safetensors")
    save(tiny(0), tmp_path / "all.safetensors")
    assert set(given_bases(workload, {"a": SHAPES, "b": {"stem.weight": (8, 3, 3, 3)}})) == {"a"}
    with pytest.raises(InputError, match=r"base: all\.safetensors fits no model"):
        given_bases(workload, {"a": {"other.weight": (16, 3, 3, 3)}})


def test_without_a_base_nothing_is_read(workload_in: Make) -> None:
    assert given_bases(workload_in(query("a")), {"a": SHAPES}) == {}


def test_models_that_are_not_merged_have_no_base(workload_in: Make) -> None:
    assert given_bases(workload_in(query("a"), base="gone.safetensors"), {}) == {}


@pytest.mark.parametrize(
    ("name", "content", "message"), [("gone.pt", None, "no such file"), ("bad.pt", b"bad", "read")]
)
def test_a_base_that_cannot_be_read_is_named(
    name: str, content: bytes | None, message: str, workload_in: Make, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: .*{message}"):
        given_bases(workload_in(query("a"), base=name), {"a": SHAPES})


def test_a_base_that_is_missing_is_told_before_anything_is_loaded(workload_in: Make) -> None:
    with pytest.raises(ModelError, match=r"query a: base: .*gone\.pt: no such file"):
        check_bases(workload_in(query("a"), base="gone.pt"))
    check_bases(workload_in(query("a")))


def test_the_base_of_an_onnx_model_is_an_onnx_file(workload_in: Make, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "base")):
        write_graph(
            tmp_path / f"{name}.onnx",
            [
                N("Conv", ["image", "kernel"], ["found"]),
                N("GlobalAveragePool", ["found"], ["pooled"]),
                N("Flatten", ["pooled"], ["features"]),
            ],
            [weight("kernel", 8, 3, 3, 3, seed=seed)],
            outputs={"features": ("N", 8)},
            image=("N", 3, 16, 16),
        )
    model = {"onnx": "a.onnx", "input": {"size": [16, 16]}, "base": "base.onnx"}
    workload = workload_in(query("a", task="embedding", model=model))
    (_, state) = given_bases(workload, {"a": SHAPES})["a"]
    (value,) = (each for each in state.values() if each.ndim == 4)
    assert torch.equal(value, torch.tensor(numpy_helper.to_array(weight("kernel", 8, 3, 3, 3, seed=1))))
