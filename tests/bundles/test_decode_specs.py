"""Decode specs: what older bundles hold still opens, and every kind has one decoder and one spec."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from gemel.bundles.decode_specs import DecodeSpec
from gemel.bundles.manifest import QuerySpec
from gemel.runtime.decode import DECODERS

SPEC: TypeAdapter[Any] = TypeAdapter(DecodeSpec)

BOXES = {"classes": 2, "score_threshold": 0.1, "nms_threshold": 0.5, "max_detections": 9, "topk": 7}
OLD: list[dict[str, Any]] = [
    {"kind": "classification", "activation": "softmax", "classes": 10, "top_k": 5},
    {"kind": "embedding", "normalize": True},
    BOXES | {"kind": "ssd", "anchors": "a", "activation": "softmax", "background": True, "box_weights": [10, 10, 5, 5]},
    BOXES | {"kind": "faster-rcnn", "anchors": ["a"], "roi_levels": [0], "roi_scales": [0.25]},
    BOXES | {"kind": "yolo", "heads": [{"output": "o", "stride": 32, "anchors": [[1, 2]]}]},
    BOXES | {"kind": "centerface", "heatmap": "h", "scale": "s", "offset": "o"},
]
"""Specs as the first version of the manifest has them."""


@pytest.mark.parametrize("document", OLD, ids=lambda document: document["kind"])
def test_specs_of_older_bundles_open(document: dict[str, Any]) -> None:
    spec = SPEC.validate_python(document)
    assert document.items() <= spec.model_dump(mode="json").items()
    assert getattr(spec, "first_class", 0) == 0 and SPEC.validate_json(spec.model_dump_json()) == spec


def test_queries_of_older_bundles_open() -> None:
    assert QuerySpec(feed="street", model="cars", task="detection").classes is None


def test_every_kind_has_a_decoder() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(DecodeSpec)[0])}
    assert kinds == set(DECODERS)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValidationError, match=r"Input tag 'palmistry' .* does not match any of the expected tags"):
        SPEC.validate_python({"kind": "palmistry"})
