"""Needs of the queries of bundles: weights that are shared, private copies, computed kernels, loads and feeds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import edited_bundle

from gemel.bundles.reader import Bundle, open_bundle
from gemel.errors import InputError
from gemel.fleet.boxes_file import BoxSettings
from gemel.fleet.bundle_needs import case_of, check_bundles, loads_of, seen_feeds
from gemel.runtime.planning.profile import Profile, parse_profile

BOXES = (BoxSettings(name="one", memory="1MiB"), BoxSettings(name="two", memory="1MiB", feeds=["gate"]))


def renamed(bundle: Path, output: Path) -> Bundle:
    """Copy a bundle, and open it with the queries ``other-a``, ``other-b`` and ``other-c``."""

    def rename(document: Any) -> None:
        document["queries"] = {f"other-{name}": query for name, query in document["queries"].items()}

    return edited_bundle(bundle, output, rename)


def profile(**changes: Any) -> Profile:
    return parse_profile(
        {
            "segments": {"s": {"bytes": 1}},
            "models": {"m": {"segments": ["s"], "run_ms": {1: 20.0, 4: 50.0}}},
            "queries": {
                "a": {"model": "m", "fps": 10, "min_fps": 5},
                "b": {"model": "m", "fps": 30},
                "c": {"model": "m", "fps": 1},
                "of-another-bundle": {"model": "m", "fps": 1},
            },
            **changes,
        }
    )


def test_weights_by_tensor_and_homes_by_feed(bundle: Path, tmp_path: Path) -> None:
    bundles = [open_bundle(bundle), renamed(bundle, tmp_path / "again")]
    content = bundles[0].manifest
    case = case_of(bundles, BOXES, {"a": 0.5})
    assert [query.name for query in case.queries] == ["a", "b", "c", "other-a", "other-b", "other-c"]
    assert case.alone == tuple(content.models[name].bytes for name in "abaaba")
    everything = sum(tensor.length for tensor in content.tensors.values())
    assert case.held(range(6)) == case.held([0, 1]) == everything
    assert case.held([0, 2, 3, 5]) == content.models["a"].bytes
    assert everything < case.alone[0] + case.alone[1]
    # The feed gate, which c sees, must stay on the second box.
    assert [sorted(query.boxes) for query in case.queries[:3]] == [[0, 1], [0, 1], [1]]
    assert [query.load for query in case.queries[:2]] == [0.5, 0.0]
    assert [(box.name, box.memory) for box in case.boxes] == [("one", 1 << 20), ("two", 1 << 20)]
    assert seen_feeds(bundles) == {"yard", "gate"}


def test_a_private_copy_is_shared_by_queries_of_one_model_only(bundle: Path, tmp_path: Path) -> None:
    def constant(document: Any) -> None:
        document["models"]["a"]["mode"] = "constant"

    opened = edited_bundle(bundle, tmp_path / "constant", constant)
    case, sizes = case_of([opened], BOXES, {}), opened.manifest.models
    assert case.held([0, 2]) == sizes["a"].bytes
    assert case.held([0, 1]) == sizes["a"].bytes + sizes["b"].bytes


def test_a_computed_kernel_counts_beside_what_it_is_computed_from(form_folder: Path) -> None:
    opened = open_bundle(form_folder / "bundle")
    content = opened.manifest
    case = case_of([opened], BOXES[:1], {})
    stored = sum(tensor.length for tensor in content.tensors.values())
    computed = sum(form.bytes for form in content.forms.values())
    assert computed
    assert case.held(range(len(case.queries))) == stored + computed


def test_loads(bundle: Path) -> None:
    bundles = [open_bundle(bundle)]
    assert loads_of(bundles, [profile()], "feed") == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.02})
    assert loads_of(bundles, [profile()], "min") == pytest.approx({"a": 0.1, "b": 0.6, "c": 0.02})


def test_loads_that_are_missing_or_there_twice(bundle: Path) -> None:
    bundles = [open_bundle(bundle)]
    some = {"a": {"model": "m", "fps": 10}}
    message = f"no run times of b, c: measure them with gemel profile {bundle} -o profile.yaml and give --profile"
    with pytest.raises(InputError, match=f"^{re.escape(message)} profile.yaml, or --memory-only$"):
        loads_of(bundles, [profile(queries=some)], "feed")
    with pytest.raises(InputError, match=r"^query 'a' is in two profiles; one is expected$"):
        loads_of(bundles, [profile(), profile(queries=some)], "feed")


def test_names_mean_one_thing(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(InputError, match=r"^query 'a' is in .*/bundle and in .*/copy; names must be unique$"):
        check_bundles([opened, open_bundle(shutil.copytree(bundle, tmp_path / "copy"))])
    with pytest.raises(InputError, match=r"/bundle: is given twice$"):
        check_bundles([opened, open_bundle(bundle)])

    def move(document: Any) -> None:
        document["queries"] = {"x": document["queries"]["a"]}
        document["feeds"]["yard"]["source"] = "other.mp4"

    moved = edited_bundle(bundle, tmp_path / "moved", move)
    message = r"^feed 'yard' of .*/moved is another one than that of .*/bundle; feeds of one name must be equal$"
    with pytest.raises(InputError, match=message):
        check_bundles([opened, moved])

    empty = edited_bundle(bundle, tmp_path / "empty", lambda document: document.update(queries={}))
    with pytest.raises(InputError, match=r"/empty: has no queries$"):
        check_bundles([empty])
    check_bundles([opened, renamed(bundle, tmp_path / "again")])
