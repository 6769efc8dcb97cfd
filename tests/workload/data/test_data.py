"""Tests of data sets: reading, splitting, and errors for data that does not fit."""

from __future__ import annotations

import errno
import gc
import json
import pickle
import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import write_video

from gemel.bundles.manifest import InputSpec
from gemel.errors import DataError, UnjudgedError
from gemel.frames.preprocess import preprocess
from gemel.workload.data import Splits, joined, list_data, load_data, read_images
from gemel.workload.data.listing import Listing
from gemel.workload.data.pixels import DiskPixels
from gemel.workload.document.schema import Workload

SPEC = InputSpec(size=(24, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
LETTERBOX = SPEC.model_copy(update={"size": (32, 32), "fit": "letterbox", "pad": 0.25})


def write_image(path: Path, shade: int = 0, size: tuple[int, int] = (20, 30)) -> Path:
    """Write an image of noise of ``size`` (height, width) whose first pixel is ``shade``; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(shade).integers(0, 256, (*size, 3)).astype(np.uint8)
    image[0, 0] = shade
    assert cv2.imwrite(str(path), image)
    return path


def write_classes(folder: Path, **counts: int) -> Path:
    """Write a folder for each class with a number of images; return the folder."""
    for name, count in counts.items():
        for index in range(count):
            write_image(folder / name / f"{index:03}.png", index)
    return folder


def write_coco(folder: Path, count: int = 15, name: str = "boxes.json", **changes: Any) -> Path:
    """Write a COCO file with images of 30 x 20 pixels, a person in each and a dog in the first; return its path.

    Args:
        folder: where to write.
        count: number of images.
        name: name of the JSON file.
        changes: top-level fields that replace those of the JSON.
    """
    for index in range(count):
        write_image(folder / "images" / f"{index}.png", index)
    document = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 30, "height": 20} for index in range(count)],
        "annotations": [
            *({"image_id": index, "category_id": 7, "bbox": [2, 3, 10, 12]} for index in range(count)),
            {"image_id": 0, "category_id": 3, "bbox": [0, 0, 30, 20]},
        ],
        "categories": [{"id": 7, "name": "person"}, {"id": 3, "name": "dog"}],
        **changes,
    }
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def workload(folder: Path, source: str = "yard.mp4", task: str = "classification", **changes: Any) -> Workload:
    """Return a workload in ``folder`` with one query; ``changes`` are fields of the query."""
    query = {"name": "door", "feed": "yard", "task": task, "model": {"factory": "a:b"}, **changes}
    made = Workload.model_validate({"schema_version": "1", "feeds": {"yard": {"source": source}}, "queries": [query]})
    made._path = folder / "workload.yaml"
    return made


def load(folder: Path, *data: str, classes: int | None = None, spec: InputSpec = SPEC, **changes: Any) -> Splits:
    """Load the images of a query.

    Args:
        folder: folder of the workload.
        data: ``data.train`` and perhaps ``data.val``, relative to ``folder``.
        classes: number of the model's classes.
        spec: input of the model.
        changes: fields of the query.
    """
    if data:
        changes["data"] = dict(zip(("train", "val"), data, strict=False))
    made = workload(folder, **changes)
    return load_data(made.queries[0], made, spec, classes)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        LETTERBOX,
        LETTERBOX.model_copy(update={"mean": (0.5,), "std": (0.25,)}),
        SPEC.model_copy(update={"color": "gray", "fit": "letterbox", "pad": -1.0}),
        LETTERBOX.model_copy(update={"fit": "letterbox-center"}),
    ],
    ids=["stretch", "letterbox", "one-number", "gray", "centre"],
)
@pytest.mark.parametrize("sizes", [((20, 30), (20, 30)), ((20, 30), (33, 17))], ids=["equal", "different"])
def test_a_batch_is_what_the_runtime_makes_of_frames(
    tmp_path: Path, spec: InputSpec, sizes: tuple[tuple[int, int], ...]
) -> None:
    files = [write_image(tmp_path / f"{index}.png", index, size) for index, size in enumerate(sizes)]
    images = read_images(tmp_path, spec, "query door")
    frames = [cv2.imread(str(file)) for file in files]
    order = [1, 0, 1]
    made = [preprocess(np.asarray(frame, np.uint8), spec) for frame in frames]
    assert images.geometry == tuple(geometry for _, geometry in made)
    expected = np.concatenate([made[index][0] for index in order])
    np.testing.assert_array_equal(images.batch(torch.tensor(order)).numpy(), expected)
    mirrored = images.batch(torch.tensor(order), mirrored=True).numpy()
    for row, index in enumerate(order):
        rows, columns = images.geometry[index].covered
        expected[row, :, rows, columns] = expected[row, :, rows, columns][:, :, ::-1].copy()
    np.testing.assert_array_equal(mirrored, expected)


def test_a_batch_leaves_the_data_set_as_it_was(tmp_path: Path) -> None:
    write_classes(tmp_path, a=2)
    images = read_images(tmp_path, LETTERBOX, "query door")
    before = images.loaded().clone()
    images.batch(torch.arange(2), mirrored=True)
    assert torch.equal(images.loaded(), before)


def test_select(tmp_path: Path) -> None:
    write_coco(tmp_path)
    images, *_ = load(tmp_path, "boxes.json", task="detection", labels=["dog", "person"])
    picked = images.select(torch.tensor([3, 0]))
    assert len(picked) == 2
    assert picked.boxes is not None and [len(each) for each in picked.boxes] == [1, 2]
    assert torch.equal(picked.batch(torch.arange(2)), images.batch(torch.tensor([3, 0])))
    assert picked.geometry == (images.geometry[3], images.geometry[0])


def test_folders_are_classes_by_the_name_of_the_label(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", car=2, bus=3)
    images, *_ = load(tmp_path, "train", "train", classes=3, labels=["truck", "car", "bus"])
    assert images.labels is not None
    assert sorted(images.labels.tolist()) == [1, 1, 2, 2, 2]


def test_folders_are_classes_in_order_where_labels_do_not_name_them(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", n02=2, n01=3)
    for labels in (None, ["car", "bus"]):
        images, *_ = load(tmp_path, "train", "train", classes=2, labels=labels)
        assert images.labels is not None
        assert sorted(images.labels.tolist()) == [0, 0, 0, 1, 1]


def test_the_first_images_are_of_all_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", a=10, b=5)
    made = workload(tmp_path, data={"train": "train", "val": "train"})
    few = list_data(made.queries[0], made, 2)[1].limited(9, labelled=6)
    assert few.labels is not None
    full = read_images(tmp_path / "train", SPEC, "query door")
    assert full.labels is not None
    assert [full.labels[:6].tolist().count(label) for label in (0, 1)] == [4, 2]
    # Half of the images choose: five and three of the classes.
    assert len(few) == 6
    assert [few.labels.count(label) for label in (0, 1)] == [4, 2]


def test_without_val_two_of_five_images_of_a_class_judge(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", a=10, b=4, c=1)
    train, choose, confirm = parts = load(tmp_path, "train", classes=3)
    counts = [[part.labels.tolist().count(label) for label in range(3)] for part in parts if part.labels is not None]
    assert counts == [[6, 2, 1], [2, 1, 0], [2, 1, 0]]
    # No image is in two parts.
    pictures = {picture.numpy().tobytes() for part in (train, choose, confirm) for picture in part.loaded()}
    assert len(pictures) == 10
    again = load(tmp_path, "train", classes=3)
    assert torch.equal(again.confirm.loaded(), confirm.loaded())


@pytest.mark.parametrize("on_disk", [False, True])
def test_data_sets_of_the_same_images_have_their_pixels_once(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_disk:
        monkeypatch.setattr("gemel.workload.data.images.MOST_IN_MEMORY", 100)
    frames_in(tmp_path / "frames", 20)
    train, choose, _ = load(tmp_path, "frames")
    again = load(tmp_path, "frames").train
    assert isinstance(train.stored, DiskPixels) == on_disk
    assert again.stored is train.stored
    assert choose.stored is not train.stored
    # A part has the pixels of the whole, and numbers its images from 0.
    part = train.select(torch.tensor([3, 1])).select(torch.tensor([1, 0]))
    assert part.stored is train.stored
    assert len(part) == 2
    assert torch.equal(part.loaded(), train.loaded()[[1, 3]])
    assert torch.equal(part.batch(torch.tensor([1])), train.batch(torch.tensor([3])))
    # Several data sets become one without a copy.
    both, order = joined([part, choose, train]), torch.tensor([0, 8, 1, 3, 2, 0])
    assert torch.equal(both.loaded(), torch.cat([part.loaded(), choose.loaded(), train.loaded()]))
    assert torch.equal(both.batch(order), both.select(order).batch(torch.arange(6)))
    assert both.geometry == (*part.geometry, *choose.geometry, *train.geometry)
    # Other pixels: another size or other colours. The same pixels: another normalisation.
    gray = load(tmp_path, "frames", spec=SPEC.model_copy(update={"color": "gray"})).train
    assert gray.stored.shape[1] == 1
    bright = load(tmp_path, "frames", spec=SPEC.model_copy(update={"mean": (0.5,) * 3})).train
    assert bright.stored is train.stored
    assert not torch.equal(bright.batch(torch.tensor([0])), train.batch(torch.tensor([0])))
    # Pixels that nobody uses any more are freed.
    held = weakref.ref(train.stored)
    del train, again, part, bright
    gc.collect()
    assert held() is not None
    del both
    gc.collect()
    assert held() is None


def test_labelled_val_alternates_between_choosing_and_confirming(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", a=4, b=4)
    write_classes(tmp_path / "val", a=6, b=4)
    _, choose, confirm = load(tmp_path, "train", "val", classes=2)
    assert choose.labels is not None and confirm.labels is not None
    assert [sorted(labels.tolist()) for labels in (choose.labels, confirm.labels)] == [[0, 0, 0, 1, 1]] * 2
    assert [part.loaded()[:, 0, 0, 0].max().item() for part in (choose, confirm)] == [4, 5]


def frames_in(folder: Path, count: int) -> Path:
    """Write frames whose first pixel is their number."""
    for index in range(count):
        write_image(folder / f"{index:03}.png", index, size=(24, 32))
    return folder


def test_without_labels_parts_are_apart_in_time(tmp_path: Path) -> None:
    frames_in(tmp_path / "frames", 50)
    parts = load(tmp_path, "frames")
    shades = [part.loaded()[:, 0, 0, 0].tolist() for part in parts]
    # Two frames, a twenty-fifth, are left out between the parts.
    assert shades == [list(range(30)), list(range(32, 40)), list(range(42, 50))]
    assert parts.train.labels is None and parts.train.boxes is None
    frames_in(tmp_path / "val", 20)
    shades = [part.loaded()[:, 0, 0, 0].tolist() for part in load(tmp_path, "frames", "val")]
    assert shades == [list(range(50)), list(range(10)), list(range(11, 20))]


def test_frames_are_spread_evenly_over_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", frames=40)
    everything, *_ = load(tmp_path, "clip.mp4", "clip.mp4")
    made = workload(tmp_path, data={"train": "clip.mp4", "val": "clip.mp4"})
    lists = list_data(made.queries[0], made, None)
    few, fewer, fewest = (part.limited(most).read(SPEC) for part, most in zip(lists, (4, 3, 2), strict=True))
    assert len(everything) == 40
    assert torch.equal(few.loaded(), everything.loaded()[[0, 13, 26, 39]])
    assert torch.equal(fewer.loaded(), everything.loaded()[[0, 10, 19]])
    assert torch.equal(fewest.loaded(), everything.loaded()[[21, 39]])


def test_without_data_frames_come_from_the_feed(tmp_path: Path) -> None:
    write_video(tmp_path / "yard.mp4", frames=20)
    frames_in(tmp_path / "pictures", 15)
    assert [len(part) for part in load(tmp_path)] == [12, 3, 3]
    assert [len(part) for part in load(tmp_path, source="pictures")] == [9, 2, 2]
    assert [len(part) for part in load(tmp_path, data={})] == [12, 3, 3]


def test_package_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "__init__.py").touch()
    write_video(tmp_path / "clips" / "yard.mp4", frames=15)
    monkeypatch.syspath_prepend(tmp_path)
    train, *_ = load(tmp_path, "package:clips/yard.mp4")
    assert len(train) == 9
    with pytest.raises(DataError, match=r"query door: data\.train: .*package 'clips' has no file 'no\.mp4'"):
        load(tmp_path, "package:clips/no.mp4")


def test_coco(tmp_path: Path) -> None:
    write_coco(tmp_path)
    images, *_ = load(tmp_path, "boxes.json", "boxes.json", task="detection", classes=2, labels=["dog", "person"])
    assert images.boxes is not None and len(images) == 15
    first = images.boxes[0]
    assert first.boxes.tolist() == [[2, 3, 12, 15], [0, 0, 30, 20]]
    assert first.classes.tolist() == [1, 0]
    # Without labels, dog (id 3) is class 0. With labels, objects of other categories are left out.
    by_id, *_ = load(tmp_path, "boxes.json", "boxes.json", task="detection", classes=2)
    assert by_id.boxes is not None and by_id.boxes[0].classes.tolist() == [1, 0]
    people, *_ = load(tmp_path, "boxes.json", "boxes.json", task="detection", classes=1, labels=["person"])
    assert people.boxes is not None and [each.classes.tolist() for each in people.boxes] == [[0]] * 15
    # A folder with one JSON file in it is read like the file.
    assert load(tmp_path, ".", task="detection", classes=1, labels=["person"])[0].boxes is not None


def test_coco_leaves_out_crowds_and_boxes_without_area(tmp_path: Path) -> None:
    boxes: list[dict[str, Any]] = [{"bbox": [0, 0, 5, 5]}, {"bbox": [0, 0, 9, 9], "iscrowd": 1}, {"bbox": [3, 3, 0, 4]}]
    write_coco(tmp_path, annotations=[{"image_id": 0, "category_id": 7, **box} for box in boxes])
    images, *_ = load(tmp_path, "boxes.json", "boxes.json", task="detection", labels=["person"])
    assert images.boxes is not None and images.boxes[0].boxes.tolist() == [[0, 0, 5, 5]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "images: "),
        ({"annotations": [{"image_id": 0, "category_id": 7, "bbox": [1, 2, 3]}]}, r"annotations\[0\]\.bbox"),
        ({"annotations": [{"image_id": 0, "category_id": 7, "bbox": [1, 2, -3, 4]}]}, "must not be negative"),
        ({"annotations": [{"image_id": 0, "category_id": 7, "bbox": [25, 2, 10, 4]}]}, r"box \[25.0, 2.0, 35.0, 6.0\]"),
        ({"annotations": [{"image_id": 99, "category_id": 7, "bbox": [1, 2, 3, 4]}]}, "there is no image 99"),
        ({"annotations": [{"image_id": 0, "category_id": 9, "bbox": [1, 2, 3, 4]}]}, "there is no category 9"),
        ({"annotations": []}, "none of 15 images has a box of person"),
        ({"categories": [{"id": 7, "name": "cat"}]}, "categories: cat; none is among the query's labels: person"),
        (
            {"images": [{"id": index, "file_name": "no.png"} for index in range(15)]},
            r"images\[0\]\.file_name: 'no.png' is neither in",
        ),
        ({"images": [{"id": 0, "file_name": "0.png"}] * 2}, "two have the same id"),
    ],
)
def test_bad_coco(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_coco(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"query door: data\.train: .*{message}"):
        load(tmp_path, "boxes.json", task="detection", classes=1, labels=["person"])


def test_coco_of_images_that_were_resized(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_image(tmp_path / "images" / "3.png", size=(40, 60))
    with pytest.raises(DataError, match=r"3\.png is 60 x 40 pixels; its boxes are for 30 x 20"):
        load(tmp_path, "boxes.json", "boxes.json", task="detection", labels=["person"])


def test_coco_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("{")
    with pytest.raises(DataError, match=r"data\.train: .*boxes\.json: .*JSON"):
        load(tmp_path, "boxes.json", task="detection")


def test_coco_with_other_classes_than_the_model(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(DataError, match="2 categories for a model with 91 classes; give the query labels"):
        load(tmp_path, "boxes.json", task="detection", classes=91)
    with pytest.raises(DataError, match="'person' is label 1 of the query, counted from 0; its model has 1 classes"):
        load(tmp_path, "boxes.json", task="detection", classes=1, labels=["dog", "person"])
    with pytest.raises(DataError, match="boxes are for detection; the query's task is classification"):
        load(tmp_path, "boxes.json")
    write_coco(tmp_path, name="more.json")
    with pytest.raises(DataError, match=r"2 json files \(boxes\.json, more\.json\)"):
        load(tmp_path, ".", task="detection")


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ({"a": 2, "b": 0}, {"classes": 2}, "b: a class without images"),
        ({"a": 2, "b": 2}, {"classes": 1}, "2 folders of classes for a model with 1 classes; give the query labels"),
        ({"a": 2}, {"classes": 2}, "1 folders of classes for a model with 2 classes"),
        ({"car": 2, "bsu": 2}, {"classes": 2, "labels": ["car", "bus"]}, "folder 'bsu' is none of the query's labels"),
        ({"car": 2, "bus": 2}, {"classes": 1, "labels": ["car", "bus"]}, "'bus' is label 1 of the query"),
        ({"a": 1}, {"classes": 1}, "fewer than 15 images: 1; some choose and some confirm"),
    ],
)
def test_folders_that_do_not_fit(
    tmp_path: Path, folders: dict[str, int], options: dict[str, Any], message: str
) -> None:
    write_classes(tmp_path / "train", **folders)
    for name in folders:
        (tmp_path / "train" / name).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=rf"query door: data\.train.*{message}"):
        load(tmp_path, "train", **options)


def test_images_beside_folders_of_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", a=2)
    write_image(tmp_path / "train" / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside folders of classes"):
        load(tmp_path, "train", classes=1)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", a=15)
    (tmp_path / "train" / "a" / "001.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"query door: data\.train: .*001\.png: cannot be read as an image"):
        load(tmp_path, "train", classes=1)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"query door: data\.train: .*gone: no such file or folder; allowed: "):
        load(tmp_path, "gone")
    with pytest.raises(DataError, match=r"data\.val: .*gone"):
        load(write_classes(tmp_path / "train", a=2).parent, "train", "gone", classes=1)
    with pytest.raises(DataError, match=r"gone: no such folder"):
        read_images(tmp_path / "gone", SPEC, "query door")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images; looked for"):
        load(tmp_path, "empty")
    with pytest.raises(DataError, match="not allowed; allowed: a folder of images"):
        load(tmp_path, "http://camera/stream")


def test_only_val(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"query door: data\.train is missing"):
        load(tmp_path, data={"val": "val"})


@pytest.mark.parametrize("source", ["rtsp://user:secret@camera/1", "http://camera/stream", "/dev/null"])
def test_a_camera_needs_data(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=r"query door: feed yard: .*give data\.train") as caught:
        load(tmp_path, source=source)
    assert "secret" not in str(caught.value)


def test_a_feed_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"query door: data is not given, and feed 'yard': .* does not exist"):
        load(tmp_path, source="gone.mp4")


def test_videos_without_frames(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"data\.train: .*noise\.mp4: cannot be read as a video"):
        load(tmp_path, "noise.mp4")
    write_video(tmp_path / "short.mp4", frames=1)
    with pytest.raises(UnjudgedError, match=r"fewer than 15 images: 1; some choose and some confirm.*longer recording"):
        load(tmp_path, "short.mp4")
    with pytest.raises(UnjudgedError, match="fewer than 2 images: 1"):
        load(tmp_path, "short.mp4", "short.mp4")
    write_video(tmp_path / "none.avi", frames=0)
    with pytest.raises(DataError, match=r"none\.avi"):
        load(tmp_path, "none.avi")


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no data set keep its pixels in memory."""
    monkeypatch.setattr("gemel.workload.data.images.MOST_IN_MEMORY", 100)


def test_pixels_that_do_not_fit_in_memory_are_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "train", a=3, b=4)
    known = read_images(tmp_path / "train", LETTERBOX, "query door")
    # Pixels that are in use would be shared.
    monkeypatch.setattr("gemel.workload.data.listing._IN_USE", {})
    monkeypatch.setattr("gemel.workload.data.images.MOST_IN_MEMORY", 100)
    images = read_images(tmp_path / "train", LETTERBOX, "query door")
    assert isinstance(images.stored, DiskPixels) and images.stored.shape == (7, 3, 32, 32)
    assert images.labels is not None and known.labels is not None
    assert torch.equal(images.labels, known.labels)
    order = torch.tensor([6, 0, 3, 3])
    for mirrored in (False, True):
        assert torch.equal(images.batch(order, mirrored), known.batch(order, mirrored))
    assert torch.equal(images.select(order).batch(torch.arange(4)), known.select(order).batch(torch.arange(4)))
    # A data set on disk and one in memory become one, and stay where they are.
    both = joined([images.select(order), known, images])
    assert both.stored.shape == (21, 3, 32, 32)
    every = torch.cat([order, torch.arange(7), torch.arange(7)])
    assert torch.equal(both.batch(torch.arange(18)), known.batch(every))
    # Another process gets the pixels themselves.
    assert torch.equal(pickle.loads(pickle.dumps(both)).loaded(), known.loaded()[every])


@pytest.mark.usefixtures("small_memory")
def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_classes(tmp_path / "train", a=2)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DataError, match="cannot hold pixels: No space left on device; set TMPDIR"):
        read_images(tmp_path / "train", SPEC, "query door")


@pytest.mark.parametrize("count", [15, 49, 100, 237])
def test_a_scene_that_began_late_is_in_all_parts(count: int) -> None:
    listing = Listing("samples", tuple(range(count)))
    parts = [{item for item in part.items if isinstance(item, int)} for part in listing.split_often()]
    assert all(len(part) >= 2 for part in parts)
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    # Images of different parts are never neighbours.
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not {item + step for item in parts[first] for step in (-1, 1)} & parts[second]
    if count >= 100:
        late = set(range(count - 50, count))
        assert all(len(part & late) >= 5 for part in parts)
