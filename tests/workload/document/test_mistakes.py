"""Tests of mistakes in workload.yaml: the exact line that a user sees, with what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemel.errors import WorkloadError
from gemel.workload import load_workload

GOOD = """\
schema_version: "1"
device: {backend: ort-cpu, memory: 64MiB}
sla: 100ms
feeds:
  gate: {source: cars.mp4, fps: 10}
queries:
  - name: gate-cars
    feed: gate
    task: detection
    labels: [car, truck]
    model:
      factory: models:detector
      input: {size: [320, 240]}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # Keys, in the wrong place or form.
        ("task: detection", "tsk: detection",
         "9: queries[0].tsk: unknown key 'tsk'; did you mean 'task'? allowed: name, feed, task, model, decode,"
         " activation, labels, classes, threshold, target, precision, data, sla, min_fps, weight, priority"),
        ("    labels:", "    input: {size: [96, 96]}\n    labels:",
         "10: queries[0].input: unknown key 'input'; it belongs in model; allowed: name, feed, task, model, decode,"
         " activation, labels, classes, threshold, target, precision, data, sla, min_fps, weight, priority"),
        ("gate: {source: cars.mp4, fps: 10}", "gate: cars.mp4",
         "5: feeds.gate: 'cars.mp4' is not allowed: a mapping is expected; did you mean {source: cars.mp4}?"),
        ("{size: [320, 240]}", "[320, 240]",
         "13: queries[0].model.input: [320, 240] is not allowed: a mapping is expected; did you mean {size: [320,"
         " 240]}?"),
        ("device: {backend: ort-cpu, memory: 64MiB}", "device: ort-cuda",
         "2: device: 'ort-cuda' is not allowed: a mapping is expected; did you mean {backend: ort-cuda}?"),
        ("    model:\n      factory: models:detector\n      input: {size: [320, 240]}", "    model: car.onnx",
         "11: queries[0].model: 'car.onnx' is not allowed: a mapping is expected; did you mean {onnx: car.onnx}?"),
        ("  - name: gate-cars", "  gate-cars:",
         "6: queries: a list is expected, not a mapping: begin each item with '- '"),
        ("  gate: {source: cars.mp4, fps: 10}", "  - {source: cars.mp4}",
         "4: feeds: [{'source': 'cars.mp4'}] is not allowed: a mapping is expected"),
        # Values that mean something else than they look like.
        ("memory: 64MiB", "memory: 64",
         "2: device.memory: 64 is not allowed: a bare number is bytes; did you mean 64MiB? (64 bytes are 64B)"),
        ("memory: 64MiB", "memory: '512'",
         "2: device.memory: '512' is not allowed: a bare number is bytes; did you mean 512MiB? (512 bytes are 512B)"),
        ("sla: 100ms", "sla: 0.1",
         "3: sla: 0.1 is not allowed: a bare number is milliseconds; did you mean 0.1s, which is 100ms?"),
        ("sla: 100ms", "sla: yes", "3: sla: yes is not allowed: a duration such as 100ms or 0.5s is expected"),
        ("size: [320, 240]", "size: 96",
         "13: queries[0].model.input.size: 96 is not allowed: [height, width] in pixels is expected; did you mean"
         " [96, 96]?"),
        ("size: [320, 240]", "size: 96x96",
         "13: queries[0].model.input.size: '96x96' is not allowed: [height, width] in pixels is expected; did you mean"
         " [96, 96]?"),
        ("size: [320, 240]", "size: 640x480",
         "13: queries[0].model.input.size: '640x480' is not allowed: [height, width] in pixels is expected; did you"
         " mean [480, 640]?"),
        ("size: [320, 240]", "size: [1, 3, 320, 240]",
         "13: queries[0].model.input.size: [1, 3, 320, 240] is not allowed: [height, width] in pixels is expected;"
         " did you mean [320, 240]?"),
        ("size: [320, 240]", "size: [320, 240], mean: [123.7, 116.3, 103.5], std: [58.4, 57.1, 57.4]",
         "13: queries[0].model.input.mean: 123.7 cannot be meant with scale 1/255, the usual factor: pixels are then"
         " from 0 to 1; did you mean scale: 1.0 with it?"),
        ("size: [320, 240]", "size: [320, 240], mean: [0, 0, 0], std: [255, 255, 255]",
         "13: queries[0].model.input.std: 255 cannot be meant with scale 1/255, the usual factor: pixels are then"
         " from 0 to 1; did you mean scale: 1.0 with it?"),
        ("size: [320, 240]", "size: [320, 240], scale: 0.00392157, mean: 127.5, std: 127.5",
         "13: queries[0].model.input.mean: 127.5 cannot be meant with scale 0.003922: pixels are then from 0 to 1;"
         " did you mean scale: 1.0 with it?"),
        ("size: [320, 240]", "scale: 1.0, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]",
         "13: queries[0].model.input.mean: 0.485 cannot be meant with scale 1: pixels are then from 0 to 255; leave"
         " scale out (1/255)"),
        ("size: [320, 240]", "mean: [0, 0, 0]",
         "13: queries[0].model.input.mean: is given without std, which would stay the model's own (ImageNet's for"
         " most); give both, such as std: [1, 1, 1]"),
        ("size: [320, 240]", "std: 1",
         "13: queries[0].model.input.std: is given without mean, which would stay the model's own (ImageNet's for"
         " most); give both, such as mean: [0, 0, 0]"),
        ("source: cars.mp4", "source: 0",
         "5: feeds.gate.source: 0 is not allowed: did you mean the camera /dev/video0?"),
        ("source: cars.mp4", "source: '1'",
         "5: feeds.gate.source: '1' is not allowed: did you mean the camera /dev/video1?"),
        ("source: cars.mp4", "source: [a.mp4, b.mp4]",
         "5: feeds.gate.source: ['a.mp4', 'b.mp4'] is not allowed: one source is expected; give every camera or file"
         " a feed of its own"),
        ("source: cars.mp4", "source: ", "5: feeds.gate.source: text is expected, and nothing is there"),
        # Choices.
        ("ort-cpu", "cuda",
         "2: device.backend: 'cuda' is not allowed: 'ort-cpu', 'auto-cpu', 'openvino', 'openvino-fast', 'ort-cuda',"
         " 'tensorrt' or 'tensorrt-rtx' is expected; did you mean ort-cuda?"),
        ("size: [320, 240]", "color: BGR",
         "13: queries[0].model.input.color: 'BGR' is not allowed: 'rgb', 'bgr' or 'gray' is expected; did you mean"
         " bgr?"),
        ("task: detection", "task: object-detection",
         "9: queries[0].task: 'object-detection' is not allowed: 'classification', 'detection', 'embedding',"
         " 'segmentation', 'pose', 'ocr' or 'raw' is expected; did you mean detection?"),
        ('schema_version: "1"', "schema_version: 1",
         '1: schema_version: 1 is not allowed: text is expected: quote it, "1"'),
        # Models.
        ("factory: models:detector", "factory: my_model.gatenet",
         "12: queries[0].model.factory: 'my_model.gatenet' is not allowed: module:callable is expected, such as"
         " torchvision.models:resnet18; did you mean my_model:gatenet?"),
        ("factory: models:detector", "factory: nets/gate.py:GateNet",
         "12: queries[0].model.factory: 'nets/gate.py:GateNet' is not allowed: module:callable is expected, such as"
         " torchvision.models:resnet18; did you mean nets.gate:GateNet?"),
        ("factory: models:detector", "factory: car.onnx",
         "12: queries[0].model.factory: 'car.onnx' is not allowed: module:callable is expected, such as"
         " torchvision.models:resnet18; for an ONNX file say onnx: car.onnx"),
        ("factory: models:detector", "onnx: car.pt",
         "12: queries[0].model.onnx: 'car.pt' is not allowed: an ONNX file is expected; weights go with a factory:"
         " {factory: module:name, weights: car.pt}"),
        ("factory: models:detector", "factory: models:detector\n      outputs: logits",
         "13: queries[0].model.outputs: 'logits' is not allowed: a list is expected: [logits]"),
        # Labels and classes.
        ("[car, truck]", "[on, off]",
         "10: queries[0].labels[0]: on is not allowed: text is expected, and YAML reads this as true or false: quote"
         " it,"
         ' "on" (and 1 more)'),
        ("[car, truck]", "[1]",
         '10: queries[0].labels[0]: 1 is not allowed: text is expected, and YAML reads this as a number: quote it,'
         ' "1"'),
        ("[car, truck]", "[2024-01-02]",
         "10: queries[0].labels[0]: 2024-01-02 is not allowed: text is expected, and YAML reads this as a date: quote"
         " it,"
         ' "2024-01-02"'),
        ("[car, truck]", "{0: car, 1: truck}", "10: queries[0].labels: a list is expected: [car, truck, ...]"),
        ("[car, truck]", "car",
         "10: queries[0].labels: 'car' is not allowed: a list is expected, such as [car], or a text file with one"
         " label per line; no such file"),
        ("[car, truck]", "[car, truck]\n    classes: [cat]",
         "11: queries[0].classes: 'cat' is not among the labels; did you mean 'car'?"),
        ("[car, truck]", "[car, truck]\n    classes: truck",
         "11: queries[0].classes: 'truck' is not allowed: a list is expected: [truck]"),
        ("task: detection", "task: embedding\n    activation: softmax",
         "10: queries[0].activation: the task embedding has no classes; leave it out"),
        # YAML.
        ("sla: 100ms", "sla: " + "9" * 5000, "3: a number of 5000 digits: quote it if it is text"),
        ("sla: 100ms", "sla: 2024-13-45", "3: not YAML: month must be in 1..12; quote it if it is text"),
        ("sla: 100ms", "sla: &a [*a]", "3: an alias leads back to itself"),
        ("sla: 100ms", "sla: 100ms\0", "3: not YAML: the character U+0000 is not allowed"),
        ("cars.mp4, fps", '"a\\0b", fps', "5: the character U+0000 is not allowed"),
        ("cars.mp4, fps", '"a\\ud800b", fps', "5: the character U+D800 is not allowed"),
        ("sla: 100ms", "sla: 100ms # \a", "3: not YAML: the character U+0007 is not allowed"),
        ("sla: 100ms", 'sla: 100ms\n"a\\n\\eb": 1',
         r"4: 'a\n\x1bb': unknown key 'a\n\x1bb'; allowed: schema_version, device, sla, objective, staleness,"
         " feeds, base, queries, stills, outputs"),
        ("sla: 100ms", "sla: 100ms\n? " + "x" * 2000 + "\n: 1",
         f"4: {'x' * 60}...: unknown key '{'x' * 63}; allowed: schema_version, device, sla, objective,"
         " staleness, feeds, base, queries, stills, outputs"),
        ("name: gate-cars", "name: gate cars",
         "7: queries[0].name: 'gate cars' is not allowed: letters, digits, - and _ are expected, with a letter or a"
         " digit first"),
        ("[car, truck]", "[car, truck]\n    threshold: 50",
         "11: queries[0].threshold: 50 is not allowed: less than or equal to 1; did you mean 0.5?"),
        ("[car, truck]", "[car, truck]\n    target: 95%",
         "11: queries[0].target: '95%' is not allowed: a number is expected; did you mean 0.95?"),
        ("[car, truck]", "[]", "10: queries[0].labels: [] is not allowed: at least one is expected"),
        ("  gate: {source: cars.mp4, fps: 10}", "  {}", "4: feeds: at least one is expected"),
        ("  gate: {source: cars.mp4, fps: 10}", "  1: {source: cars.mp4}",
         '5: feeds[1]: 1 is not allowed: text is expected, and YAML reads this as a number: quote it, "1"'),
        ("  gate: {source: cars.mp4, fps: 10}", "  on: {source: cars.mp4}",
         "4: feeds[1]: True is not allowed: text is expected, and YAML reads this as true or false: quote it"),
        ("memory: 64MiB", "memory: 64m",
         "2: device.memory: '64m' is not allowed: bytes such as 64MiB, a share such as 50%, 'min' or 'all' are"
         " expected; did you mean 64MB?"),
        ("factory: models:detector", "factory: models:detector(3)",
         "12: queries[0].model.factory: 'models:detector(3)' is not allowed: module:callable is expected, such as"
         " torchvision.models:resnet18; did you mean models:detector, with its arguments in args?"),
        # Goals of plans.
        ("sla: 100ms", "staleness: 3", "3: staleness: 3 is not allowed: a mapping is expected"),
        ("sla: 100ms", "staleness: {gate-cars: {fps: 10, frames: 20, curve: [1, -0.5]}}",
         "3: staleness.gate-cars.curve[1]: -0.5 is not allowed: greater than or equal to 0"),
        ("sla: 100ms", "staleness: {gate-cats: {fps: 10, frames: 20, curve: [1]}}",
         "3: staleness: it has a curve of 'gate-cats', which is not a query; queries: gate-cars"),
        ("    task:", "    staleness: s.yaml\n    task:",
         "9: queries[0].staleness: unknown key 'staleness'; it belongs in the top level of the file; allowed: name,"
         " feed, task, model, decode, activation, labels, classes, threshold, target, precision, data, sla, min_fps,"
         " weight, priority"),
        ("sla: 100ms", "objective: maxmin",
         "3: objective: 'maxmin' is not allowed: 'max-min', 'sum', 'accuracy' or 'mean-accuracy' is expected; did you"
         " mean max-min?"),
        ("sla: 100ms", "weight: 2", "3: weight: unknown key 'weight'; allowed: schema_version, device, sla, objective,"
         " staleness, feeds, base, queries, stills, outputs"),
        ("sla: 100ms", "min_fps: 2", "3: min_fps: unknown key 'min_fps'; it belongs in a query; allowed:"
         " schema_version, device, sla, objective, staleness, feeds, base, queries, stills, outputs"),
        ("    task:", "    objective: sum\n    task:",
         "9: queries[0].objective: unknown key 'objective'; it belongs in the top level of the file; allowed: name,"
         " feed, task, model, decode, activation, labels, classes, threshold, target, precision, data, sla, min_fps,"
         " weight, priority"),
        ("    task:", "    weight: -1\n    task:",
         "9: queries[0].weight: -1 is not allowed: greater than 0"),
        ("    task:", "    weight: 0\n    task:",
         "9: queries[0].weight: 0 is not allowed: greater than 0"),
        ("    task:", "    weight: .inf\n    task:",
         "9: queries[0].weight: .inf is not allowed: a finite number is expected"),
        ("    task:", "    min_fps: -1\n    task:",
         "9: queries[0].min_fps: -1 is not allowed: greater than or equal to 0"),
        ("    task:", "    min_fps: 10.5\n    task:",
         "9: queries[0].min_fps: 10.5 is not allowed: at most the 10 frames per second of feed gate"),
        ("    task:", "    priority: high\n    task:",
         "9: queries[0].priority: 'high' is not allowed: a whole number is expected"),
        ("    task:", "    priority: 1.5\n    task:",
         "9: queries[0].priority: 1.5 is not allowed: a whole number is expected"),
        ("    task:", "    sla: 0.1\n    task:",
         "9: queries[0].sla: 0.1 is not allowed: a bare number is milliseconds; did you mean 0.1s, which is 100ms?"),
        ("    task:", "    sla: soon\n    task:",
         "9: queries[0].sla: 'soon' is not allowed: a duration such as 100ms or 0.5s is expected"),
        ("fps: 10", "fps: ten", "5: feeds.gate.fps: 'ten' is not allowed: a number is expected"),
        ("fps: 10", "loop: maybe", "5: feeds.gate.loop: 'maybe' is not allowed: true or false is expected"),
    ],
)  # fmt: skip
def test_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) >= 1
    file = tmp_path / "workload.yaml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(WorkloadError) as caught:
        load_workload(file)
    assert str(caught.value) == f"{file}:{message}"


def test_the_workload_without_mistakes(tmp_path: Path) -> None:
    (tmp_path / "workload.yaml").write_text(GOOD)
    (query,) = load_workload(tmp_path / "workload.yaml").queries
    assert query.labels == ["car", "truck"]


def test_goals_of_plans(tmp_path: Path) -> None:
    goals = "    sla: 0.5s\n    min_fps: 10\n    weight: 2.5\n    priority: -1\n    task:"
    text = GOOD.replace("sla: 100ms", "objective: mean-accuracy").replace("    task:", goals)
    (tmp_path / "workload.yaml").write_text(text)
    workload = load_workload(tmp_path / "workload.yaml")
    (query,) = workload.queries
    assert (workload.objective, workload.sla) == ("mean-accuracy", 100.0)
    assert (query.sla, query.min_fps, query.weight, query.priority) == (500.0, 10.0, 2.5, -1)
    (tmp_path / "workload.yaml").write_text(GOOD)
    workload = load_workload(tmp_path / "workload.yaml")
    (query,) = workload.queries
    assert workload.objective == "max-min"
    assert (query.sla, query.min_fps, query.weight, query.priority) == (None, 0.0, 1.0, 0)


def test_a_feed_without_a_rate_may_be_asked_for_any(tmp_path: Path) -> None:
    text = GOOD.replace(", fps: 10", "").replace("    task:", "    min_fps: 60\n    task:")
    (tmp_path / "workload.yaml").write_text(text)
    assert load_workload(tmp_path / "workload.yaml").queries[0].min_fps == 60


def test_a_scale_may_be_a_fraction(tmp_path: Path) -> None:
    (tmp_path / "workload.yaml").write_text(GOOD.replace("size: [320, 240]", "scale: 1/255, mean: 0.5, std: 0.5"))
    (query,) = load_workload(tmp_path / "workload.yaml").queries
    given = query.model.input
    assert (given.scale, given.mean, given.std) == (1 / 255, (0.5,), (0.5,))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)),
        "a: &a {x0: 1, x1: 1, x2: 1}\n"
        + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join([f'*{chr(97 + i)}'] * 9)}]}}" for i in range(9)),
    ],
    ids=["aliases", "merges"],
)
def test_bombs(tmp_path: Path, text: str) -> None:
    file = tmp_path / "workload.yaml"
    file.write_text(text)
    with pytest.raises(
        WorkloadError, match=r"more than 100,000 values once its aliases are replaced: this is no workload"
    ):
        load_workload(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "nested too deeply"),
        ("a: " + "[" * 200 + "]" * 200, "1: nested too deeply"),
        ("x" * 2_000_000, "larger than 1 MiB: this is no workload"),
        ('{"blob": 1, "programs": 1, "segments": 1}', "is the manifest of a bundle, not a workload"),
        ("segments: {}\nmodels: {}\nqueries: {}", "is a profile, for gemel simulate, not a workload"),
        ('{"trials": 1, "merged_bytes": 1}', "is the report of a merge, not a workload"),
        ("just text", "a mapping with schema_version, feeds and queries is expected"),
        ("", "a mapping with schema_version, feeds and queries is expected"),
    ],
)
def test_files_that_are_no_workload(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "workload.yaml"
    file.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        load_workload(file)
    assert str(caught.value) in (f"{file}:{message}", f"{file}: {message}")


def test_folders_and_onnx_files_are_no_workload(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="is a folder, not a workload file"):
        load_workload(tmp_path)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(WorkloadError, match="is a bundle, not a workload file"):
        load_workload(tmp_path)
    (tmp_path / "car.onnx").write_bytes(b"\x08\x0a\xff\xfe")
    with pytest.raises(WorkloadError, match=r"car\.onnx: is not UTF-8 text; gemel init .*car\.onnx writes a workload"):
        load_workload(tmp_path / "car.onnx")


def test_labels_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("car\r\nröhre \n \n\n".encode())
    file = tmp_path / "workload.yaml"
    file.write_text(GOOD.replace("[car, truck]", "names.txt\n    classes: [car, 1]"))
    (query,) = load_workload(file).queries
    # A blank is a label of text readers.
    assert (query.labels, query.classes) == (["car", "röhre", " "], ["car", "1"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"car\n\ntruck\n", "its line 2 is empty"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"\x00\x00", "it is too large, or holds other data"),
        (b"x" * (1 << 20) + b"y", "it is too large, or holds other data"),
    ],
)
def test_files_that_hold_no_labels(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    file = tmp_path / "workload.yaml"
    file.write_text(GOOD.replace("[car, truck]", "names.txt"))
    with pytest.raises(WorkloadError) as caught:
        load_workload(file)
    assert str(caught.value) == (
        f"{file}:10: queries[0].labels: 'names.txt' is not allowed: a text file with one label per line is expected;"
        f" {message}"
    )
