"""Bundles of some queries of other bundles: same answers, only the tensors that are used, and what cannot be joined."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from helpers import edited_bundle, write_video
from reloads import compiled
from reverts import answers, with_originals
from stem_bundles import stem_workload

from gemel.bundles.forms import source_segments
from gemel.bundles.originals import originals_bytes
from gemel.bundles.part_bundle import BundlePart, write_part
from gemel.bundles.reader import Bundle, open_bundle, verify
from gemel.bundles.revert_bundle import revert_queries
from gemel.bundles.write_delta import write_delta
from gemel.compiler import compile_workload
from gemel.errors import BundleError, InputError
from gemel.runtime.run import RunOptions, run_bundle
from gemel.workload import Workload


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Return two bundles of two models each, all of which have the same convolutions."""
    folder = tmp_path_factory.mktemp("parts")
    write_video(folder / "yard.mp4", 30, fps=25)
    return open_bundle(compiled(folder / "one", "ab")), open_bundle(compiled(folder / "two", "cd"))


def outputs(bundle: Bundle, file: str) -> list[Any]:
    """Return what ONNX Runtime computes with a file of a bundle on noise."""
    session = ort.InferenceSession(str(bundle.file(file)), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        port.name: rng.standard_normal([size if isinstance(size, int) else 1 for size in port.shape]).astype(np.float32)
        for port in session.get_inputs()
    }
    return list(session.run(None, feeds))


def check_same(part: Bundle, sources: Sequence[Bundle], models: Sequence[str]) -> None:
    """Check that a bundle is whole, and that its models have the programs, weights and outputs of the old bundles."""
    assert set(verify(part)) == set(part.manifest.files)
    assert list(part.manifest.models) == list(models)
    for name, model in part.manifest.models.items():
        (source,) = [each for each in sources if name in each.manifest.models]
        before = source.manifest.models[name]
        assert model.model_copy(update={"segments": before.segments}) == before
        for stage in model.stages.values():
            for old, new in zip(outputs(source, stage.file), outputs(part, stage.file), strict=True):
                assert np.array_equal(old, new)
    used = {tensor for segment in part.manifest.segments.values() for tensor in segment.tensors}
    assert used == set(part.manifest.tensors)


def test_of_one_bundle(bundle: Path, tmp_path: Path) -> None:
    whole = open_bundle(bundle)
    part = write_part(tmp_path / "part", [BundlePart(whole, ("b",))], 12345)
    check_same(part, [whole], ["b"])
    content = part.manifest
    assert (list(content.queries), list(content.feeds), content.device.memory) == (["b"], ["yard"], 12345)
    assert set(content.tensors) < set(whole.manifest.tensors)
    assert sum(tensor.length for tensor in content.tensors.values()) == whole.manifest.models["b"].bytes
    assert content.queries["b"] == whole.manifest.queries["b"]
    assert {each.models for each in content.programs.values()} == {("b",)}
    again = write_part(tmp_path / "all", [BundlePart(whole, tuple(whole.manifest.queries))])
    check_same(again, [whole], ["a", "b"])
    assert set(again.manifest.tensors) == set(whole.manifest.tensors)
    assert again.manifest.device == whole.manifest.device


def test_of_two_bundles_that_share(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    one, other = two
    part = write_part(tmp_path / "part", [BundlePart(one, ("a", "b")), BundlePart(other, ("d",))])
    check_same(part, two, ["a", "b", "d"])
    sizes = {each.length for each in part.manifest.tensors.values()}
    own = sum(each.manifest.models[name].bytes for each, name in ((one, "a"), (one, "b"), (other, "d")))
    assert sum(each.length for each in part.manifest.tensors.values()) < own - 2 * max(sizes)
    (program,) = part.manifest.programs.values()
    assert program.models == ("a", "b", "d")
    summary = run_bundle(part, RunOptions(frames=2, offline=True, threads=1))
    assert {name: query.processed for name, query in summary.run.queries.items()} == {"a": 2, "b": 2, "d": 2}


def test_a_delta_between_parts_carries_only_what_is_new(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    one, other = two
    before = write_part(tmp_path / "before", [BundlePart(one, ("a",))])
    after = write_part(tmp_path / "after", [BundlePart(one, ("a",)), BundlePart(other, ("c",))])
    done = write_delta(before, after, tmp_path / "step.delta")
    assert done.kept_bytes == one.manifest.models["a"].bytes
    assert done.tensor_bytes == sum(
        after.manifest.tensors[each].length for each in after.manifest.tensors.keys() - before.manifest.tensors.keys()
    )


def test_kernels_that_are_computed(form_folder: Path, tmp_path: Path) -> None:
    whole = open_bundle(form_folder / "bundle")
    part = write_part(tmp_path / "part", [BundlePart(whole, ("b",))])
    check_same(part, [whole], ["b"])
    content, model = part.manifest, part.manifest.models["b"]
    assert content.schema_version == whole.manifest.schema_version
    assert set(content.forms) == set(whole.manifest.forms) & set(model.weights) != set()
    for kernel in content.forms:
        assert np.array_equal(part.tensor(kernel), whole.tensor(kernel))
    assert source_segments(content)
    assert part.manifest.tensors.keys() < whole.manifest.tensors.keys()


def test_stems(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    workload = stem_workload(tmp_path, workload_in, (1, 2, 3), (1, 2, 4), (1, 2, 5))
    whole = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    part = write_part(tmp_path / "part", [BundlePart(whole, ("a", "c"))])
    check_same(part, [whole], ["a", "c"])
    for model in part.manifest.models.values():
        assert model.stem is not None
        for stage in (model.stem.stem, model.stem.rest):
            for old, new in zip(outputs(whole, stage.file), outputs(part, stage.file), strict=True):
                assert np.array_equal(old, new)


def test_original_weights_go_with_their_queries(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    """The merge has changed the models a and b, not c; query b was reverted before the bundle was split."""
    original = compiled(tmp_path / "original", "ab", changed="ab")
    whole = with_originals(two[0].path, original, tmp_path / "whole")
    revert_queries(whole, ["b"])
    source = open_bundle(whole)
    part = write_part(tmp_path / "a", [BundlePart(source, ("a",)), BundlePart(two[1], ("c",))])
    assert part.manifest.originals is not None and part.manifest.originals.models.keys() == {"a"}
    assert set(verify(part)) == set(part.manifest.files) and "a.original.onnx" in part.manifest.files
    assert originals_bytes(part.manifest) < originals_bytes(source.manifest)
    first = part.id
    revert_queries(part.path, ["a"])
    assert answers(part.path, "ac") == {**answers(original, "a"), **answers(two[1].path, "c")}
    assert revert_queries(part.path, ["a"], undo=True).bundle.id == first
    other = write_part(tmp_path / "b", [BundlePart(source, ("b",))])
    assert other.manifest.reverted == {"b"} and answers(other.path, "b") == answers(original, "b")
    assert revert_queries(other.path, ["b"], undo=True).bundle.manifest.reverted == set()
    assert answers(other.path, "b") == answers(two[0].path, "b")
    assert write_part(tmp_path / "c", [BundlePart(two[1], ("c",))]).manifest.originals is None


def test_an_sla_of_another_bundle_stays_with_its_queries(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    slower = edited_bundle(two[1].path, tmp_path / "slower", lambda document: document.update(sla_ms=250.0))
    part = write_part(tmp_path / "part", [BundlePart(two[0], ("a",)), BundlePart(slower, ("c",))])
    assert (part.manifest.sla_of("a"), part.manifest.sla_of("c")) == (100.0, 250.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda document: document["device"].update(backend="openvino"),
            r"^device.backend is ort-cpu in .*; they",
        ),
        (
            lambda document: document.update(objective="sum"),
            r"^objective is max-min in .* and sum in .*/new;",
        ),
        (
            lambda document: document["feeds"]["yard"].update(fps=3.0),
            r"^feeds.yard is in .*/one/bundle and in .*/new; one bundle cannot have both$",
        ),
        (lambda document: rename(document, "c", "a"), r"^models.a is in .* and in .*; one bundle cannot have both$"),
    ],
)
def test_what_cannot_be_one_bundle(
    two: tuple[Bundle, Bundle], tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    new = edited_bundle(two[1].path, tmp_path / "new", change)
    with pytest.raises(InputError, match=message):
        write_part(tmp_path / "part", [BundlePart(two[0], ("a",)), BundlePart(new, ("c",))])
    assert not (tmp_path / "part").exists()


def rename(document: Any, old: str, new: str) -> None:
    """Give a model of a manifest another name."""
    document["models"][new] = document["models"].pop(old)
    document["queries"][old]["model"] = new


def test_a_kernel_that_is_computed_here_and_stored_there(form_folder: Path, tmp_path: Path) -> None:
    whole = open_bundle(form_folder / "bundle")
    kernel = next(each for each in whole.manifest.models["a"].weights if each in whole.manifest.forms)
    part = BundlePart(whole, ("a",))
    other = open_bundle(shutil.copytree(whole.path, tmp_path / "other"))
    other.manifest.tensors[kernel] = next(iter(other.manifest.tensors.values()))
    with pytest.raises(InputError, match=rf"^a kernel of a is computed in one bundle and stored .*: {kernel}$"):
        write_part(tmp_path / "part", [part, BundlePart(other, ("b",))])


def test_the_output_is_none_of_the_sources_and_damage_is_found(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    copy = open_bundle(shutil.copytree(two[0].path, tmp_path / "copy"))
    with pytest.raises(InputError, match=r"/copy: is one of the bundles that queries are taken from$"):
        write_part(copy.path, [BundlePart(copy, ("a",))])
    blob = copy.file(copy.manifest.blob)
    data = bytearray(blob.read_bytes())
    data[0] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BundleError, match=r"/copy/weights.bin: content is damaged"):
        write_part(tmp_path / "part", [BundlePart(copy, ("a",))])
    assert not (tmp_path / "part").exists()
