"""A calibration file is read as it was written, and a file that is no calibration is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemel.calib.record import CALIBRATION_VERSION, Calibration, ModelRecord, QueryRecord, read_calibration
from gemel.errors import CalibrationError

KERNEL = "0123456789abcdef" * 2


@pytest.fixture
def record() -> Calibration:
    model = {"model": "00" * 32, "data": "11" * 32, "frames": 128}
    measured = {"images": 100, "labelled": True, "fp32": 0.91, "accuracy": 0.905, "floor": 0.9}
    return Calibration(
        method="entropy",
        models={
            "gate": ModelRecord(precision="int8", peaks={"image": 2.64, "x": 1 / 3}, **model),
            "door": ModelRecord(precision="fp16", peaks={}, **model),
        },
        kept={KERNEL: "gate cannot bear it"},
        queries={
            "gate": QueryRecord(precision="int8", fp32_bytes=400, bytes=103, **measured),
            "door": QueryRecord(precision="fp16", fp32_bytes=400, bytes=200, **measured),
        },
        refused={"lane": "Faster R-CNN cannot be retrained yet"},
    )


@pytest.fixture
def path(tmp_path: Path, record: Calibration) -> Path:
    (tmp_path / "calibration.json").write_text(record.model_dump_json(indent=1))
    return tmp_path / "calibration.json"


def test_what_is_written_is_read(path: Path, record: Calibration) -> None:
    assert read_calibration(path) == record
    # Ranges are read to the last bit, because they decide the bytes of a bundle.
    assert read_calibration(path).models["gate"].peaks["x"] == 1 / 3


def test_files_of_a_newer_minor_version_may_say_more(path: Path, record: Calibration) -> None:
    document = json.loads(path.read_text())
    document |= {"schema_version": "1.7", "weather": "fine"}
    document["models"]["gate"]["weather"] = "fine"
    path.write_text(json.dumps(document))
    assert read_calibration(path) == record.model_copy(update={"schema_version": "1.7"})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "calibration.json", tmp_path):
        with pytest.raises(CalibrationError, match=rf"{path}: cannot be read: (No such file|Is a dir)"):
            read_calibration(path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"{", b"[]", b"null", b'"1.0"', b"{}", b'{"version": 1}', b"[" * 100_000, b"\x00" * 9]
)
def test_a_file_that_is_something_else(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=rf"^{path}: is no calibration that gemel-compile wrote$"):
        read_calibration(path)


@pytest.mark.parametrize("version", ["2.0", "0.9", 2, None, "x"])
def test_another_version(path: Path, version: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": version}))
    with pytest.raises(
        CalibrationError, match=rf"{path}: schema_version is {version}, this gemel reads {CALIBRATION_VERSION}"
    ):
        read_calibration(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("method",), "guess", "method: Input should be 'min-max', 'entropy' or 'percentile'"),
        (("models", "gate", "precision"), "fp32", "models.gate.precision: Input should be 'fp16' or 'int8'"),
        (("models", "gate", "peaks", "x"), 0, "models.gate.peaks.x: Input should be greater than 0"),
        (("models", "gate", "peaks", "x"), -1, "models.gate.peaks.x: Input should be greater than 0"),
        (("models", "gate", "peaks", "x"), float("inf"), "models.gate.peaks.x: Input should be a finite number"),
        (("models", "gate", "peaks", "x"), float("nan"), "models.gate.peaks.x: Input should be "),
        (("models", "gate", "peaks"), None, "models.gate.peaks: Input should be a valid dictionary"),
        (("models", "../gate"), {}, "models.../gate.[key]: String should match pattern"),
        (("kept", "k"), "because", "kept.k.[key]: String should match pattern"),
        (("queries", "gate", "accuracy"), 1.5, "queries.gate.accuracy: Input should be less than or equal to 1"),
        (("queries", "gate", "precision"), "int4", "queries.gate.precision: Input should be"),
        (("models",), [], "models: Input should be"),
    ],
)
def test_fields_that_are_not_what_they_should_be(path: Path, place: tuple[str, ...], value: Any, message: str) -> None:
    document = json.loads(path.read_text())
    target = document
    for part in place[:-1]:
        target = target[part]
    target[place[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CalibrationError) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("name", ["method", "models", "kept", "queries"])
def test_fields_that_are_missing(path: Path, name: str) -> None:
    document = json.loads(path.read_text())
    del document[name]
    path.write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match=f"{path}: {name}: Field required"):
        read_calibration(path)
