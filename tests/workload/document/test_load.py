"""Tests of the workload reader: mistakes give one line with file, line, field, value and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gemel.bundles.staleness import Staleness
from gemel.errors import WorkloadError
from gemel.workload import load_workload

GOOD = """\
schema_version: "1"
device: {backend: ort-cpu, memory: 64MiB}
sla: 100ms
feeds:
  junction: {source: vtest.avi, fps: 10, loop: true}
queries:
  - name: people
    feed: junction
    task: detection
    labels: [person]
    target: 0.9
    model:
      factory: some.module:factory
      input: {size: [320, 240]}
  - name: faces
    feed: junction
    task: detection
    model: {onnx: faces.onnx}
"""


def write(path: Path, text: str) -> Path:
    """Write workload.yaml into a folder and return its path."""
    file = path / "workload.yaml"
    file.write_text(text)
    return file


def test_values(tmp_path: Path) -> None:
    workload = load_workload(write(tmp_path, GOOD))
    assert workload.sla == 100.0
    assert workload.device.memory == 64 << 20
    assert workload.queries[0].model.input.size == (320, 240)
    assert workload.root == tmp_path


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("target: 0.9", "targt: 0.9", 11, ["queries[0].targt", "'targt'", "did you mean 'target'"]),
        ("target: 0.9", "target: 1.7", 11, ["queries[0].target", "1.7", "less than or equal to 1"]),
        ("task: detection\n    labels", "task: detect\n    labels", 9, ["'detect'", "'classification', 'detection'"]),
        ("64MiB", "64 lemons", 2, ["device.memory", "64 lemons", "64MiB", "50%", "all"]),
        ("100ms", "soon", 3, ["sla", "'soon'", "100ms"]),
        ("fps: 10", "fps: 0", 5, ["feeds.junction.fps", "greater than 0"]),
        ("[320, 240]", "[320, 0]", 14, ["model.input.size", "[320, 0]", "at least 1"]),
        ("some.module:factory", "nothing", 13, ["model.factory", "'nothing'"]),
        ("- name: faces", "- name: people", 15, ["queries[1].name", "two queries are called 'people'"]),
        ("feed: junction\n    task: detection\n    labels", "feed: jnction\n    task: detection\n    labels", 8,
         ["queries[0].feed", "'jnction' is not a feed; feeds: junction"]),
        ("    target: 0.9\n", "    target: 0.9\n    target: 0.8\n", 12, ["key 'target' is there twice"]),
        ("size: [320, 240]", "size: [320, 240], std: [0]", 14, ["model.input.std", "other than 0"]),
        ("size: [320, 240]", "size: [320, 240], mean: [1, 2]", 14, ["model.input.mean", "three channels"]),
        ("size: [320, 240]", "size: [320, 240], scale: .inf", 14, ["model.input.scale", "finite"]),
        ("64MiB", "-5", 2, ["device.memory", "-5"]),
        ("    task: detection\n    labels: [person]\n", "", 7, ["queries[0].task", "is missing"]),
        ("name: faces", "name: ../faces", 15, ["queries[1].name", "'../faces'"]),
        ("{onnx: faces.onnx}", "{onnx: faces.onnx, weights: w.pt}", 18, ["weights go with factory"]),
        ('schema_version: "1"', 'schema_version: "2"', 1, ["schema_version", "'2'", "'1'"]),
        ("some.module:factory", "'${GEMEL_NOT_SET}'", 13, ["model.factory", "GEMEL_NOT_SET is not set"]),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, old: str, new: str, line: int, words: list[str]) -> None:
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(WorkloadError) as caught:
        load_workload(file)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}: ")
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_not_yaml(tmp_path: Path) -> None:
    file = write(tmp_path, "feeds: [\nqueries: 1")
    with pytest.raises(WorkloadError, match=re.escape(f"{file}:2: not YAML")):
        load_workload(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_workload(tmp_path / "nowhere.yaml")


def test_python_tags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="not YAML"):
        load_workload(write(tmp_path, "feeds: !!python/object/apply:os.system ['true']"))


def test_an_alias_to_itself(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError):
        load_workload(write(tmp_path, "feeds: &a {b: *a}"))


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA", "10.0.0.7")
    text = GOOD.replace("vtest.avi", "'${CAMERA}/${FILE:-door.mp4}'")
    assert load_workload(write(tmp_path, text)).feeds["junction"].source == "10.0.0.7/door.mp4"


def test_addresses_of_cameras_keep_their_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that passwords do not get into the workload, which is written into bundles and copied with them."""
    monkeypatch.setenv("PASSWORD", "secret")
    source = "rtsp://me:${PASSWORD}@camera/live"
    assert load_workload(write(tmp_path, GOOD.replace("vtest.avi", f"'{source}'"))).feeds["junction"].source == source


CURVES = "people: {fps: 10, frames: 100, curve: [0.9, 0.8]}"


def test_staleness_curves(tmp_path: Path) -> None:
    (tmp_path / "curves.yaml").write_text(CURVES)
    wanted = {"people": Staleness(fps=10, frames=100, curve=(0.9, 0.8))}
    for value in ("curves.yaml", str(tmp_path / "curves.yaml"), f"{{{CURVES}}}"):
        assert load_workload(write(tmp_path, GOOD + f"staleness: {value}\n")).staleness == wanted
    assert load_workload(write(tmp_path, GOOD)).staleness == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "curves.yaml: cannot be read: no such file"),
        ("people: [", "curves.yaml: not YAML"),
        ("people: {fps: 10, frames: 100, curve: [2]}", "curves.yaml: people.curve.0: Input should be less than"),
        ("persons: {fps: 10, frames: 100, curve: [1]}",
         "it has a curve of 'persons', which is not a query; queries: people, faces"),
    ],
)  # fmt: skip
def test_files_that_are_no_staleness_curves(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "curves.yaml").write_text(content)
    file = write(tmp_path, GOOD + "staleness: curves.yaml\n")
    with pytest.raises(WorkloadError) as caught:
        load_workload(file)
    assert str(caught.value).startswith(f"{file}:19: staleness: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)
