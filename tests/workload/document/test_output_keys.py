"""Outputs in workload.yaml: what they become in the manifest, and the exact line that a user sees after a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gemel.bundles.output_specs import (
    JsonlSpec,
    MqttSpec,
    OutputSpec,
    RotateSpec,
    SamplesSpec,
    SnapshotsSpec,
    VideoSpec,
    WebhookSpec,
)
from gemel.errors import WorkloadError
from gemel.workload import load_workload
from gemel.workload.document.output_schema import output_specs

HEAD = """\
schema_version: "1"
feeds: {gate: {source: cars.mp4}}
queries:
  - {name: q, feed: gate, task: detection, model: {factory: "a:b"}}
outputs:"""


def specs(path: Path) -> tuple[OutputSpec, ...]:
    return output_specs(load_workload(path).outputs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jsonl: {path: r.jsonl}", OutputSpec(jsonl=JsonlSpec(path="r.jsonl"))),
        ("jsonl: {path: '-'}", OutputSpec(jsonl=JsonlSpec(path="-"))),
        (
            "jsonl: {path: r.jsonl, rotate: 5MB}",
            OutputSpec(jsonl=JsonlSpec(path="r.jsonl", rotate=RotateSpec(size=5_000_000))),
        ),
        (
            "jsonl: {path: r.jsonl, rotate: 1d}",
            OutputSpec(jsonl=JsonlSpec(path="r.jsonl", rotate=RotateSpec(age=86400))),
        ),
        (
            "jsonl: {path: r.jsonl, rotate: 90m}",
            OutputSpec(jsonl=JsonlSpec(path="r.jsonl", rotate=RotateSpec(age=5400))),
        ),
        (
            "jsonl: {path: r.jsonl, rotate: {size: 1GiB, age: 12h, keep: all}}",
            OutputSpec(jsonl=JsonlSpec(path="r.jsonl", rotate=RotateSpec(size=1 << 30, age=43200, keep=None))),
        ),
        (
            "jsonl: {path: r.jsonl, rotate: none}",
            OutputSpec(jsonl=JsonlSpec(path="r.jsonl", rotate=RotateSpec(size=None, keep=None))),
        ),
        ("video: {folder: v}", OutputSpec(video=VideoSpec(folder="v"))),
        ("video: {folder: v, segment: 10s, keep: all}", OutputSpec(video=VideoSpec(folder="v", segment=10, keep=None))),
        ("video: {folder: v, segment: 10}", OutputSpec(video=VideoSpec(folder="v", segment=10))),
        (
            "snapshots: {folder: s, labels: [person, 7], cooldown: 500ms}",
            OutputSpec(snapshots=SnapshotsSpec(folder="s", labels=("person", "7"), cooldown=0.5)),
        ),
        ("samples: {folder: s}", OutputSpec(samples=SamplesSpec(folder="s"))),
        (
            "samples: {folder: s, every: 1m, keep: all, age: all, quality: 80}",
            OutputSpec(samples=SamplesSpec(folder="s", every=60, keep=None, age=None, quality=80)),
        ),
        ("mqtt: {url: 'mqtt://${BROKER}'}", OutputSpec(mqtt=MqttSpec(url="mqtt://${BROKER}"))),
        ("mqtt: {url: '${URL}'}", OutputSpec(mqtt=MqttSpec(url="${URL}"))),
        (
            "mqtt: {url: 'mqtts://b', topic: '${SITE}/{query}', status: none, username: box, password: '${GEMEL_PW}',"
            " qos: 0}",
            OutputSpec(
                mqtt=MqttSpec(
                    url="mqtts://b", topic="${SITE}/{query}", status=None, username="box", password="${GEMEL_PW}", qos=0
                )
            ),
        ),
        ("mqtt: {url: 'mqtt://box:${PW}@b:1884'}", OutputSpec(mqtt=MqttSpec(url="mqtt://box:${PW}@b:1884"))),
        (
            "webhook: {url: https://h/x, headers: {Authorization: 'Bearer ${T}', X-Site: yard}, every: 5s, batch: 10}",
            OutputSpec(
                webhook=WebhookSpec(
                    url="https://h/x", headers={"Authorization": "Bearer ${T}", "X-Site": "yard"}, every=5, batch=10
                )
            ),
        ),
    ],
)
def test_outputs(tmp_path: Path, text: str, expected: OutputSpec) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(f"{HEAD}\n  - {text}\n")
    assert specs(path) == (expected,)
    # A merge writes the workload again.
    written = yaml.safe_dump(load_workload(path).model_dump(mode="json", exclude_unset=True))
    (tmp_path / "merged.yaml").write_text(written)
    assert specs(tmp_path / "merged.yaml") == (expected,)


def test_no_outputs(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(HEAD.removesuffix("\noutputs:") + "\n")
    assert specs(tmp_path / "w.yaml") == ()


PASSWORD = (
    "a password does not belong in a file: write ${GEMEL_PASSWORD} in its place,"
    " and set that variable where gemel-run runs"
)
KINDS = "one of jsonl, mqtt, webhook, video, snapshots, samples"
SUFFIXES = "a file that ends with .jsonl, .ndjson, .json, or - for the standard output, is expected"
PERIOD = "a period such as 10s, 10m, 1h or 7d is expected"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # The list and its items.
        ("\n  jsonl: {path: r.jsonl}", "5: outputs: a list is expected, not a mapping: begin each item with '- '"),
        (" none", "5: outputs: 'none' is not allowed: a list is expected"),
        ("\n  - mqtt", "6: outputs[0]: a mapping is expected; did you mean {mqtt: {...}}?"),
        ("\n  - r.jsonl", "6: outputs[0]: a mapping is expected; did you mean {jsonl: {path: ...}}?"),
        ("\n  - mqtt://u:s3cret@h", "6: outputs[0]: a mapping is expected; did you mean {mqtt: {url: ...}}?"),
        ("\n  - https://h/s3cret", "6: outputs[0]: a mapping is expected; did you mean {webhook: {url: ...}}?"),
        ("\n  - {mqt: {url: x}}",
         "6: outputs[0].mqt: unknown key 'mqt'; did you mean 'mqtt'? allowed: jsonl, mqtt, webhook, video,"
         " snapshots, samples"),
        ("\n  - {}", f"6: outputs[0]: {KINDS} is expected; none is given"),
        ("\n  - jsonl: {path: a.jsonl}\n    video: {folder: b}",
         f"6: outputs[0]: {KINDS} is expected; give jsonl and video an item each, with - in front"),
        # Files and folders.
        ("\n  - jsonl: r.jsonl",
         "6: outputs[0].jsonl: 'r.jsonl' is not allowed: a mapping is expected; did you mean {path: r.jsonl}?"),
        ("\n  - video: out",
         "6: outputs[0].video: 'out' is not allowed: a mapping is expected; did you mean {folder: out}?"),
        ("\n  - jsonl: {path: .bashrc}",
         f"6: outputs[0].jsonl.path: '.bashrc' is not allowed: {SUFFIXES}; did you mean .bashrc.jsonl?"),
        ("\n  - jsonl: {path: out/}",
         f"6: outputs[0].jsonl.path: 'out/' is not allowed: {SUFFIXES}; did you mean out/results.jsonl?"),
        ("\n  - jsonl: {path: stdout}",
         f"6: outputs[0].jsonl.path: 'stdout' is not allowed: {SUFFIXES}; did you mean -?"),
        ("\n  - jsonl: {path: r.jsonl}\n  - jsonl: {path: r.jsonl}",
         "7: outputs[1].jsonl.path: r.jsonl is not allowed: outputs[0] writes to the same file"),
        ("\n  - jsonl: {path: r.jsonl, rotate: daily}",
         "6: outputs[0].jsonl.rotate: 'daily' is not allowed: a size such as 100MB or an age such as 1d is"
         " expected; did you mean 1d?"),
        ("\n  - jsonl: {path: r.jsonl, rotate: 100M}",
         "6: outputs[0].jsonl.rotate: '100M' is not allowed: a size such as 100MB or 2GiB, or all, is expected;"
         " did you mean 100MB?"),
        ("\n  - jsonl: {path: r.jsonl, rotate: {sise: 1}}",
         "6: outputs[0].jsonl.rotate.sise: unknown key 'sise'; did you mean 'size'? allowed: size, age, keep"),
        ("\n  - video: {folder: v, segment: 10 min.}",
         f"6: outputs[0].video.segment: '10 min.' is not allowed: {PERIOD}"),
        ("\n  - video: {folder: v, segment: hourly}",
         f"6: outputs[0].video.segment: 'hourly' is not allowed: {PERIOD}; did you mean 1h?"),
        ("\n  - video: {folder: v, segment: 0}", "6: outputs[0].video.segment: 0 is not allowed: greater than 0"),
        ("\n  - video: {folder: v, keep: 10}",
         "6: outputs[0].video.keep: 10 is not allowed: a bare number is bytes; did you mean 10MB?"),
        ("\n  - snapshots: {folder: s, labels: person}",
         "6: outputs[0].snapshots.labels: 'person' is not allowed: a list is expected: [person]"),
        ("\n  - samples: s",
         "6: outputs[0].samples: 's' is not allowed: a mapping is expected; did you mean {folder: s}?"),
        ("\n  - samples: {folder: s, upload: 's3://b'}",
         "6: outputs[0].samples.upload: unknown key 'upload'; allowed: folder, every, keep, age, quality"),
        ("\n  - samples: {folder: s, age: old}", f"6: outputs[0].samples.age: 'old' is not allowed: {PERIOD}"),
        # Servers.
        ("\n  - mqtt: {url: 'broker:1883'}",
         "6: outputs[0].mqtt.url: 'broker:1883' is not allowed: mqtt://HOST or mqtts://HOST is expected; did you"
         " mean mqtt://broker:1883?"),
        ("\n  - mqtt: {url: 'http://u:s3cret@h'}", "6: outputs[0].mqtt.url: mqtt://HOST or mqtts://HOST is expected"),
        ("\n  - mqtt: {url: 'mqtt://u:s3cret@h'}", f"6: outputs[0].mqtt.url: {PASSWORD}"),
        ("\n  - mqtt: {url: 'mqtt://u:s3/cret@h'}",
         "6: outputs[0].mqtt.url: mqtt://HOST or mqtts://HOST is expected, with a port from 1 to 65535"),
        ("\n  - mqtt: {url: 'mqtt://h', password: s3cret}",
         "6: outputs[0].mqtt.password: a variable such as ${GEMEL_MQTT_PASSWORD} is expected, which is set where"
         " gemel-run runs; a password does not belong in a file"),
        ("\n  - mqtt: {url: 'mqtt://h', password: [s3cret]}",
         "6: outputs[0].mqtt.password: a variable such as ${GEMEL_MQTT_PASSWORD} is expected, which is set where"
         " gemel-run runs; a password does not belong in a file"),
        ("\n  - mqtt: {url: 'mqtt://h', pasword: s3cret}",
         "6: outputs[0].mqtt.pasword: unknown key 'pasword'; did you mean 'password'? allowed: url, topic,"
         " status, qos, retain, username, password, ca, certificate, key"),
        ("\n  - mqtt: {url: 'mqtt://h', topic: 'a/+'}",
         "6: outputs[0].mqtt.topic: 'a/+' is not allowed: a topic such as gemel/{feed}/{query} is expected,"
         " without + and #, not beginning with $"),
        ("\n  - mqtt: {url: 'mqtt://h', topic: 'a/{camera}'}",
         "6: outputs[0].mqtt.topic: 'a/{camera}' is not allowed: {camera} is no field of a topic; allowed:"
         " {feed}, {query}"),
        ("\n  - mqtt: {url: 'mqtt://h', qos: 3}", "6: outputs[0].mqtt.qos: 3 is not allowed: 0, 1 or 2 is expected"),
        ("\n  - webhook: {url: 'https://h', headers: {Authorization: 'Bearer s3cret'}}",
         "6: outputs[0].webhook.headers: Authorization: a variable such as ${GEMEL_TOKEN} is expected in a secret"),
        ("\n  - webhook: {url: 'https://h', headers: [s3cret]}",
         "6: outputs[0].webhook.headers: a mapping such as {Authorization: 'Bearer ${GEMEL_TOKEN}'} is expected"),
        ("\n  - webhook: {url: 'https://h', headers: {A: 5}}",
         "6: outputs[0].webhook.headers: A: text is expected, in quotes"),
        ("\n  - webhook: {url: 'https://h', headers: {Host: x}}",
         "6: outputs[0].webhook.headers: Host: the header Host is set by gemel"),
        ("\n  - webhook: https://h/s3cret", "6: outputs[0].webhook: a mapping is expected; did you mean {url: ...}?"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(f"{HEAD}{text}\n")
    with pytest.raises(WorkloadError) as caught:
        load_workload(path)
    assert str(caught.value) == f"{path}:{message}"
    assert "s3cret" not in str(caught.value)


def test_an_output_at_the_top_level(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(HEAD.removesuffix("outputs:") + "mqtt: {url: 'mqtt://h'}\n")
    with pytest.raises(WorkloadError, match="unknown key 'mqtt'; it belongs in outputs"):
        load_workload(tmp_path / "w.yaml")
