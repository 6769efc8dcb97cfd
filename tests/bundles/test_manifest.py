"""The published schema of manifest.json equals the schema of the code, and ports say whether a stage takes batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemel.bundles.manifest import Manifest, Port, Stage

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_published_schema() -> None:
    published = json.loads((DOCS / "manifest.schema.json").read_text())
    assert published == Manifest.model_json_schema(), "run: .venv/bin/python tools/write_schema.py"


@pytest.mark.parametrize(
    ("image", "outputs", "expected"),
    [
        (("batch", 3, 32, 32), [("batch", 4)], True),
        (("N", 3, 32, 32), [("N", 4), ("N", 2, 8, 8)], True),
        ((1, 3, 32, 32), [(1, 4)], False),
        (("batch", 3, 32, 32), [("batch", 4), (1, 4)], False),
        # Rows that vary with what the image shows.
        (("batch", 3, 32, 32), [("rows", 7)], False),
        (("batch", 3, 32, 32), [("batch", "rows", 6)], False),
        # The batch is the second axis, or there is none.
        (("batch", 3, 32, 32), [(40, "batch", 6)], False),
        (("batch", 3, 32, 32), [()], False),
        (("batch", 3, "height", "width"), [("batch", 4)], False),
    ],
)
def test_a_stage_takes_batches_if_the_number_of_images_is_the_first_dimension_of_all_ports(
    image: tuple[int | str, ...], outputs: list[tuple[int | str, ...]], expected: bool
) -> None:
    ports = [Port(name=f"o{index}", dtype="float32", shape=shape) for index, shape in enumerate(outputs)]
    given = Port(name="image", dtype="float32", shape=image)
    stage = Stage(file="a.onnx", program="0" * 32, inputs=(given,), outputs=tuple(ports), weights=())
    assert stage.takes_batches is expected
