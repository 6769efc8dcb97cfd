"""Raw outputs are kept as they are."""

from __future__ import annotations

import numpy as np

from gemel.bundles.decode_specs import RawDecode
from gemel.frames.preprocess import Geometry
from gemel.runtime.decode import DecodeContext, FloatArray, build_decoder
from gemel.runtime.decode.results import Raw

GEOMETRY = Geometry((48, 320), (48, 320), (48, 320))


def no_tensor(name: str) -> FloatArray:
    raise AssertionError(f"{name} was asked for")


def no_stage(name: str, inputs: object) -> dict[str, FloatArray]:
    raise AssertionError(f"stage {name} was run")


def test_every_output_is_copied() -> None:
    outputs = {"boxes": np.arange(8, dtype=np.float32).reshape(1, 2, 4), "count": np.array([2])}
    kept = {name: values.copy() for name, values in outputs.items()}
    result = build_decoder(RawDecode(), DecodeContext(no_tensor))(outputs, GEOMETRY, no_stage)
    assert isinstance(result, Raw)
    # A backend runs the next frame into the same buffers.
    outputs["boxes"][:] = 0
    assert list(result.outputs) == ["boxes", "count"]
    for name, values in result.outputs.items():
        assert values.dtype == kept[name].dtype
        assert (values == kept[name]).all()
