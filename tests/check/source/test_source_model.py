"""Source models and frames that a bundle is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers import query, write_video
from onnx import TensorProto, helper

from gemel.bundles.reader import open_bundle
from gemel.check.source.feed_frames import read_feed_frames
from gemel.check.source.numerics import compare_with_source
from gemel.check.source.source_model import file_difference, open_source_model
from gemel.compiler import compile_workload
from gemel.workload import Workload


def write_mean(path: Path, batch: int = 1) -> Path:
    """Write a file whose output is the mean of each channel."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["scores"], axes=[2, 3], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    return path


@pytest.mark.parametrize(("batch", "known"), [(1, True), (10, False)])
def test_onnx_files_run_as_they_are(
    tmp_path: Path, workload_in: Callable[..., Workload], batch: int, known: bool
) -> None:
    write_mean(tmp_path / "a.onnx", batch)
    workload = workload_in({**query("a"), "model": {"onnx": "a.onnx"}})
    bundle = open_bundle(compile_workload(workload, tmp_path / "bundle").path)
    source = open_source_model(workload.queries[0], bundle.manifest.models["a"], tmp_path)
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    assert source.run("main", {"image": image})["scores"] == pytest.approx(image.mean((2, 3)), rel=1e-5)
    assert source.examples() == {}
    # A file that declares ten images takes no single one unless its shapes are cleared.
    found = source.runtime_difference("main", {"image": image})
    assert (found is not None) == known and (found or 0.0) < 1e-5
    assert file_difference(bundle.file("a.onnx"), {"image": image}) < 1e-5
    (result,) = compare_with_source(bundle, workload, rtol=1e-3, atol=1e-5)
    assert result.passed and result.inputs.startswith("on noise, because feed 'yard': source 'yard.mp4' does not exist")


def test_frames_at_equal_steps(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    write_video(tmp_path / "yard.mp4", frames=30)
    found = read_feed_frames(workload_in(query("a")), "yard", 4)
    assert len(found.images) == 4 and not found.is_noise
    assert found.words == "on 4 frames of feed yard"
    assert not np.array_equal(found.images[0], found.images[1])


def test_few_images_in_a_folder(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), np.full((8, 8, 3), 100 * index, np.uint8))
    workload = workload_in(query("a"), feeds={"yard": {"source": "pictures"}})
    found = read_feed_frames(workload, "yard", 8)
    assert [image.mean() for image in found.images] == [0, 100]


def test_a_broken_video_is_no_feed_to_compare_on(tmp_path: Path, workload_in: Callable[..., Workload]) -> None:
    (tmp_path / "yard.mp4").write_bytes(b"not a video")
    found = read_feed_frames(workload_in(query("a")), "yard", 8)
    assert found.is_noise and found.words.startswith("on noise, because cannot open ")
    assert found.images[0].shape == (480, 640, 3)
