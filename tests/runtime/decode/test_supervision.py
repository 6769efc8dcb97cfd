"""Results as supervision's Detections and KeyPoints."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gemel
from gemel.errors import MissingExtraError
from gemel.runtime.decode.results import Class, Detection, Embedding, Mask, Segmentation, SegmentedClass
from gemel.runtime.decode.supervision import results_to_detections, results_to_keypoints

BOXES = (
    Detection((1.0, 2.0, 30.0, 40.0), 0.9, "person", 1),
    Detection((5.0, 6.0, 7.0, 8.0), 0.5, "car", 3),
)


def mask(rows: slice, columns: slice) -> Mask:
    """Return a mask of a rectangle in a frame of 20 x 30 pixels."""
    inside = np.zeros((20, 30), np.bool_)
    inside[rows, columns] = True
    return Mask.of(inside)


def test_without_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(
        MissingExtraError, match=r"gemel\.results_to_detections needs .*pip install '\.\[supervision\]'"
    ):
        results_to_detections(BOXES)


def test_results_of_other_tasks() -> None:
    for result in (Embedding((1.0,)), (Class("cat", 0.9),)):
        with pytest.raises(TypeError, match="detection, pose or segmentation"):
            results_to_detections(result)


class TestWithSupervision:
    @pytest.fixture(autouse=True)
    def supervision(self) -> None:
        pytest.importorskip("supervision", reason="needs supervision (the extra of that name)")

    def test_boxes(self) -> None:
        found = gemel.results_to_detections(BOXES)
        assert found.xyxy.tolist() == [[1, 2, 30, 40], [5, 6, 7, 8]]
        assert found.confidence.tolist() == pytest.approx([0.9, 0.5])
        assert found.class_id.tolist() == [1, 3]
        assert found["class_name"].tolist() == ["person", "car"]
        assert found.mask is None
        assert found[found.class_id == 3]["class_name"].tolist() == ["car"]

    def test_nothing(self) -> None:
        found = results_to_detections(())
        assert len(found) == 0 and found.xyxy.shape == (0, 4)
        assert len(results_to_keypoints(())) == 0

    def test_labels_without_numbers(self) -> None:
        rows = tuple(Detection((0, 0, 1, 1), 0.5, label) for label in ("cat", "ant", "cat"))
        assert results_to_detections(rows).class_id.tolist() == [1, 0, 1]
        assert results_to_detections(rows, ["dog", "cat"]).class_id.tolist() == [1, -1, 1]

    def test_masks(self) -> None:
        inside = mask(slice(2, 5), slice(3, 9))
        found = results_to_detections((Detection((3, 2, 9, 5), 0.9, "cup", 0, mask=inside),))
        assert (found.mask == inside.array()[None]).all()
        assert found.area.tolist() == [18]

    def test_segmented_frames(self) -> None:
        classes = (
            SegmentedClass("road", 4, mask(slice(10, 20), slice(0, 30))),
            SegmentedClass("sky", -1, mask(slice(0, 3), slice(5, 9))),
        )
        found = results_to_detections(Segmentation((20, 30), classes))
        assert found.xyxy.tolist() == [[0, 10, 30, 20], [5, 0, 9, 3]]
        assert found.class_id.tolist() == [4, 0]
        assert found.mask.sum(axis=(1, 2)).tolist() == [300, 12]

    def test_key_points(self) -> None:
        bodies = tuple(
            Detection((0, 0, 9, 9), 0.8, "person", 0, keypoints=((1, 2, 0.9), (3 + i, 4, 0.1))) for i in range(2)
        )
        found = gemel.results_to_keypoints(bodies)
        assert found.xy.tolist() == [[[1, 2], [3, 4]], [[1, 2], [4, 4]]]
        assert found.keypoint_confidence[0].tolist() == pytest.approx([0.9, 0.1])
        assert found.class_id.tolist() == [0, 0]
        assert results_to_detections(bodies)["keypoints"].shape == (2, 2, 3)

    def test_landmarks(self) -> None:
        faces = (Detection((0, 0, 9, 9), 0.8, "face", landmarks=((1.0, 2.0), (3.0, 4.0))),)
        assert results_to_keypoints(faces).keypoint_confidence.tolist() == [[1, 1]]

    def test_objects_with_different_points(self) -> None:
        faces = (Detection((0, 0, 9, 9), 0.8, "face", landmarks=((1.0, 2.0),)), BOXES[0])
        assert "keypoints" not in results_to_detections(faces).data
        with pytest.raises(TypeError, match="as many key points"):
            results_to_keypoints(faces)

    def test_its_tools_take_them(self) -> None:
        import supervision

        found = results_to_detections(BOXES)
        zone = supervision.PolygonZone(np.array([[0, 0], [50, 0], [50, 50], [0, 50]]))
        assert zone.trigger(found).tolist() == [True, True]
        drawn = supervision.BoxAnnotator().annotate(np.zeros((60, 60, 3), np.uint8), found)
        assert drawn.any()
