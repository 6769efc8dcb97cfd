"""A calibration is applied to the models that it names, and the progress lines say what stays float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from precision_cases import drawn, initializer

from gemel.bundles.blob import tensor_id
from gemel.bundles.decode_specs import ClassificationDecode
from gemel.bundles.manifest import InputSpec
from gemel.calib.apply import apply_calibration, in_precision
from gemel.calib.record import Calibration, ModelRecord
from gemel.calib.weights import WeightUse
from gemel.compiler.lowering.lower import Lowered

LAYERS = 6
KERNELS = {
    f"k{index}": np.random.default_rng(index).normal(0, 1, (2, 2, 1, 1)).astype(np.float32) for index in range(LAYERS)
}
FP16 = ModelRecord(precision="fp16", model="", data="", frames=1, peaks={})


def model(name: str) -> Lowered:
    """Return six convolutions, one after the other."""
    nodes = [f"x{index} = Conv(x{index - 1}, k{index})" for index in range(LAYERS)]
    text = "\n".join(nodes).replace("x-1", "image").replace(f"x{LAYERS - 1} =", "out =")
    graph = drawn(text, (2, 4, 4), ("out",), **KERNELS)
    return Lowered(name, {"main": graph}, ClassificationDecode(classes=2), InputSpec(size=(4, 4)))


def test_models_without_a_record_stay_as_they_are() -> None:
    models = [model("a"), model("b")]
    graph = models[1].stages["main"]
    told: list[str] = []
    calibration = Calibration(method="min-max", models={"a": FP16}, kept={}, queries={}, refused={"b": "no measure"})
    apply_calibration(models, WeightUse(models), calibration, lambda name, what: told.append(f"{name} {what}"))
    assert [each.precision for each in models] == ["fp16", "fp32"]
    assert models[1].stages["main"] is graph
    assert told == ["convert a: fp16, 0 of 6 layers stay float32", "convert b: stays float32: no measure"]


def test_kept_kernels_stay_float32_and_four_of_them_are_named() -> None:
    models = [model("a")]
    told: list[str] = []
    kept = {tensor_id(KERNELS[name]): "why" for name in ("k5", "k0", "k3", "k2", "k1")}
    calibration = Calibration(method="min-max", models={"a": FP16}, kept=kept, queries={})
    apply_calibration(models, WeightUse(models), calibration, lambda name, what: told.append(what))
    assert told == ["a: fp16, 5 of 6 layers stay float32: k0, k1, k2, k3, ..."]
    types = {name: initializer(models[0].stages["main"], name).dtype.name for name in KERNELS}
    assert types == {**dict.fromkeys(KERNELS, "float32"), "k4": "float16"}


def test_the_float32_graph_is_not_changed() -> None:
    graph = model("a").stages["main"]
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    peaks = dict.fromkeys(("image", *(f"x{index}" for index in range(LAYERS - 1)), "out"), 1.0)
    for record in (FP16, ModelRecord(precision="int8", model="", data="", frames=1, peaks=peaks)):
        assert in_precision(graph, record, {"k0"}) is not graph
        assert ir.to_proto(graph).SerializeToString(deterministic=True) == before
