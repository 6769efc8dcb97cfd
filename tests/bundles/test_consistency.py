"""Places in manifests and device caches: tensors in their segments, segments apart, weights in the model's segments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import pytest
from hypothesis import given

from gemel.bundles.blob import PAGE, TENSOR_ALIGNMENT, layout
from gemel.bundles.consistency import check_spans, check_weights
from gemel.bundles.manifest import SegmentSpec, TensorSpec
from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.errors import BundleError
from gemel.runtime.ort import baked
from gemel.runtime.ort.bake import bake
from gemel.runtime.ort.baked import CACHE_RECORD, load_cache

SHAPES = st.dictionaries(
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.tuples(
        st.sampled_from(["float32", "float16", "int8"]), arrays.array_shapes(min_dims=0, min_side=0, max_side=70)
    ),
    max_size=8,
)


@given(shapes=SHAPES, data=st.data())
def test_every_layout_of_the_compiler_is_accepted(shapes: dict[str, tuple[str, tuple[int, ...]]], data: Any) -> None:
    models = st.sets(st.sampled_from("abc"), min_size=1)
    users = {tensor: data.draw(models) for tensor in shapes}
    placed = layout(shapes, users)
    check_spans("m", placed.bytes, placed.tensors, placed.segments)
    for model in "abc":
        weights = [tensor for tensor, names in users.items() if model in names]
        segments = [name for name, segment in placed.segments.items() if model in segment.models]
        check_weights("m", weights, segments, placed.segments)


Document = dict[str, Any]


def first_of(document: Document, segment: str) -> Document:
    """Return the place of a segment's first tensor."""
    place: Document = document["tensors"][document["segments"][segment]["tensors"][0]]
    return place


def into_another_segment(document: Document) -> None:
    first_of(document, "s1")["offset"] = document["segments"]["s0"]["offset"]


def behind_its_segment(document: Document) -> None:
    first_of(document, "s0")["offset"] += PAGE


def in_front_of_its_segment(document: Document) -> None:
    first_of(document, "s1")["offset"] -= TENSOR_ALIGNMENT


def over_the_end_of_its_segment(document: Document) -> None:
    document["segments"]["s0"]["length"] -= 1


def between_two_cache_lines(document: Document) -> None:
    first_of(document, "s0")["offset"] += 4


def between_two_pages(document: Document) -> None:
    document["segments"]["s1"]["offset"] += TENSOR_ALIGNMENT


def over_the_next_segment(document: Document) -> None:
    document["segments"]["s0"]["length"] = document["segments"]["s1"]["offset"] + 1


def with_a_tensor_that_is_not_listed(document: Document) -> None:
    document["segments"]["s0"]["tensors"].append("0" * 32)


def without_a_tensor(document: Document) -> None:
    document["segments"]["s0"]["tensors"].pop()


PLACES: list[tuple[Callable[[Document], None], str]] = [
    (into_another_segment, r"tensors\.\w{32} lies at 0\+\d+, outside its segment s1 at \d+\+\d+$"),
    (behind_its_segment, r"tensors\.\w{32} lies at 4096\+\d+, outside its segment s0 at 0\+\d+$"),
    (in_front_of_its_segment, r"tensors\.\w{32} lies at \d+\+\d+, outside its segment s1 at \d+\+\d+$"),
    (over_the_end_of_its_segment, r"tensors\.\w{32} lies at \d+\+\d+, outside its segment s0 at 0\+\d+$"),
    (between_two_cache_lines, r"tensors\.\w{32}: offset 4 is not allowed: a multiple of 64 is expected$"),
    (between_two_pages, r"segments\.s1: offset \d+ is not allowed: a multiple of 4096 is expected$"),
    (over_the_next_segment, r"segments s0 at 0\+\d+ and s1 at \d+\+\d+ overlap$"),
    (with_a_tensor_that_is_not_listed, r"segments\.s0: tensor '0{32}' is not listed$"),
    (without_a_tensor, r"models\.\w: weight '\w{32}' lies in none of the model's segments, which are s0, s\d$"),
]
places = pytest.mark.parametrize(("change", "message"), PLACES, ids=[change.__name__ for change, _ in PLACES])


def edit(path: Path, change: Callable[[Document], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    if path.name == CACHE_RECORD:
        # Someone who changes the record on purpose can state its hash, too.
        document["digest"] = baked._digest(document)
    path.write_text(json.dumps(document))


@places
def test_a_bundle(change: Callable[[Document], None], message: str, bundle: Path) -> None:
    open_bundle(bundle)
    edit(bundle / MANIFEST, change)
    with pytest.raises(BundleError, match=rf"manifest\.json: {message}") as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


@places
def test_a_device_cache(change: Callable[[Document], None], message: str, bundle: Path) -> None:
    opened = open_bundle(bundle)
    folder = bake(opened).folder
    edit(folder / CACHE_RECORD, change)
    with pytest.raises(BundleError, match=rf"cache\.json: {message}"):
        load_cache(folder, opened)
    # A cache that is refused is made again.
    assert bake(opened) == load_cache(folder, opened)


@pytest.mark.parametrize("segment", ["s0", "s1"])
def test_a_model_without_one_of_its_segments(segment: str, bundle: Path) -> None:
    edit(bundle / MANIFEST, lambda document: document["models"]["a"]["segments"].remove(segment))
    (left,) = {"s0", "s1"} - {segment}
    message = rf"models\.a: weight '\w{{32}}' lies in none of the model's segments, which are {left}$"
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_a_model_without_segments(bundle: Path) -> None:
    edit(bundle / MANIFEST, lambda document: document["models"]["a"].update(segments=[]))
    with pytest.raises(BundleError, match=r"models\.a: weight .* the model's segments, which are none$"):
        open_bundle(bundle)


def test_a_device_cache_whose_model_has_lost_a_segment(bundle: Path) -> None:
    opened = open_bundle(bundle)
    folder = bake(opened).folder
    edit(folder / CACHE_RECORD, lambda document: document["segments_of"]["b"].pop())
    with pytest.raises(BundleError, match=r"cache\.json: models\.b: weight '\w{32}' lies in none"):
        load_cache(folder, opened)


def test_segments_may_touch() -> None:
    first, second = "a" * 32, "b" * 32
    place = {"length": PAGE, "dtype": "int8", "shape": (PAGE,)}
    tensors = {first: TensorSpec(offset=0, **place), second: TensorSpec(offset=PAGE, **place)}
    segments = {
        name: SegmentSpec(models=(name,), offset=tensors[name].offset, length=PAGE, tensors=(name,)) for name in tensors
    }
    check_spans("m", 2 * PAGE, tensors, segments)
