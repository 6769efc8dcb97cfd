"""Tests of the samples that a merge uses: which are left out, in which order, and that a resumed merge has the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from drift_samples import NOON, picture, put_sample
from helpers import query

from gemel.errors import InputError
from gemel.merging.output.kept_samples import MergeSamples, merge_samples
from gemel.merging.output.store import Store
from gemel.workload import Workload

BUNDLE = "0" * 64


@pytest.fixture
def workload(workload_in: Callable[..., Workload]) -> Workload:
    return workload_in(query("a"), query("b"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of 20 samples whose frames differ."""
    for number in range(20):
        put_sample(tmp_path / "samples", number, BUNDLE, brightness=10 * number)
    return tmp_path / "samples"


def read(folder: Path, workload: Workload, output: Path | None = None, *, resume: bool = False) -> MergeSamples:
    """Read the samples for a merge."""
    return merge_samples(str(folder), workload, output or folder.parent / "merged", resume=resume)


def test_frames_are_in_the_order_of_time(folder: Path, workload: Workload) -> None:
    late = put_sample(folder, 30, BUNDLE, brightness=205, at=0.0)
    found = read(folder, workload)
    names = [name for name, _ in found.pictures["yard"]]
    # The record's time counts, not its name.
    assert names[0] == late.with_suffix(".jpg").name
    assert names[1:] == sorted(names[1:]) and len(names) == 21
    assert found.left_out == {}
    assert found.lines == ("feed yard: 21 samples",)


def test_samples_since(folder: Path, workload: Workload) -> None:
    found = merge_samples(str(folder), workload, folder.parent / "merged", since=NOON + 4 * 30)
    assert [len(names) for names in found.pictures.values()] == [16] and found.left_out == {"before --since": 4}


def test_what_is_left_out_is_counted(folder: Path, workload: Workload) -> None:
    put_sample(folder, 30, BUNDLE, brightness=52)
    put_sample(folder, 31, BUNDLE, brightness=205, data=b"cut off")
    put_sample(folder, 32, BUNDLE, brightness=210).write_text("{")
    put_sample(folder, 33, BUNDLE, brightness=215, feed="attic")
    put_sample(folder, 34, BUNDLE, brightness=220, answers={"strange": []})
    put_sample(folder, 35, BUNDLE, brightness=225, answers={"strange": [], "b": []})
    found = read(folder, workload)
    assert len(found.pictures["yard"]) == 21
    assert found.left_out == {
        "damaged": 2,
        "near duplicates": 1,
        "of a feed without queries here": 1,
        "of unknown queries": 1,
    }
    assert found.lines[1] == (
        "2 damaged, 1 of a feed without queries here, 1 of unknown queries, 1 near duplicates left out"
    )


def test_a_small_object_is_no_near_duplicate(folder: Path, workload: Workload) -> None:
    frame = cv2.imdecode(np.frombuffer(picture(50, (128, 128)), np.uint8), cv2.IMREAD_COLOR)
    assert frame is not None
    noisy = frame + np.random.default_rng(0).integers(-3, 4, frame.shape)
    frame[60:66, 60:66] += 60
    for number, image in enumerate((picture(50, (128, 128)), noisy, frame), 40):
        data = image if isinstance(image, bytes) else cv2.imencode(".jpg", np.asarray(image, np.uint8))[1].tobytes()
        put_sample(
            folder, number, BUNDLE, data=data, sha256=hashlib.sha256(data).hexdigest(), size=[128, 128], feed="yard"
        )
    found = read(folder, workload)
    # The noisy copy and the plain frames are near duplicates of the frame of brightness 50; the object is new.
    assert found.left_out == {"near duplicates": 2}
    assert len(found.pictures["yard"]) == 21


@pytest.mark.parametrize("count", [0, 14])
def test_too_few_samples_for_any_query(count: int, workload: Workload, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for number in range(count):
        put_sample(tmp_path / "samples", number, BUNDLE, brightness=10 * number)
    why = "there are none" if not count else "14 of feed yard, which takes 15 left out"
    with pytest.raises(InputError, match=f"no query's feed has 15 samples that can be used; {why}"):
        read(tmp_path / "samples", workload)


def test_samples_of_other_feeds_alone_are_none(workload: Workload, tmp_path: Path) -> None:
    for number in range(20):
        put_sample(tmp_path / "samples", number, BUNDLE, brightness=10 * number, feed="attic")
    with pytest.raises(InputError, match="20 of a feed without queries here left out"):
        read(tmp_path / "samples", workload)


def test_a_folder_that_is_missing(workload: Workload, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        read(tmp_path / "nowhere", workload)


def test_a_resumed_merge_has_the_samples_that_it_was_begun_with(folder: Path, workload: Workload) -> None:
    output = folder.parent / "merged"
    first = read(folder, workload)
    with Store(output, {}) as store:
        before = first.listings(store)["yard"]
    put_sample(folder, 40, BUNDLE, brightness=222)
    assert read(folder, workload).digest != first.digest
    shutil.rmtree(folder)
    again = read(folder, workload, resume=True)
    assert (again.digest, again.lines) == (first.digest, first.lines)
    with Store(output, {}, resume=True) as store:
        assert again.listings(store) == {"yard": before}
    assert all(path.is_file() for path in before.items if isinstance(path, Path))


def test_a_merge_that_was_killed_while_it_copied_reads_them_again(folder: Path, workload: Workload) -> None:
    output = folder.parent / "merged"
    first = read(folder, workload)
    with Store(output, {}) as store:
        first.listings(store)
    (output / "search" / "samples.json").unlink()
    assert not read(folder, workload, resume=True).kept
    assert read(folder, workload, resume=True).digest == first.digest


def test_kept_samples_that_are_damaged_are_named(folder: Path, workload: Workload) -> None:
    output = folder.parent / "merged"
    with Store(output, {}) as store:
        read(folder, workload).listings(store)
    victim = sorted((output / "search" / "samples").iterdir())[3]
    victim.write_bytes(b"other")
    with pytest.raises(InputError, match=f"{victim.name}: missing or changed"):
        read(folder, workload, resume=True)
    (output / "search" / "samples.json").write_text(json.dumps({"pictures": 3}))
    with pytest.raises(InputError, match=r"samples\.json: damaged"):
        read(folder, workload, resume=True)


def test_a_sample_that_a_box_deletes_meanwhile_is_named(folder: Path, workload: Workload) -> None:
    found = read(folder, workload)
    next(folder.glob("*.jpg")).unlink()
    with Store(folder.parent / "merged", {}) as store, pytest.raises(InputError, match=r"--samples: .* begin anew"):
        found.listings(store)
