"""Results to a real mosquitto: topics, status, login, TLS, and a broker that is gone for a while."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from broker import MOSQUITTO, Broker, free_port, subscribed
from sink_events import BOX, INFO, PEOPLE, QUERIES, event, frame, wait_until

from gemel.bundles.output_specs import MqttSpec, OutputSpec
from gemel.errors import InputError, MissingExtraError
from gemel.runtime.decode.results import Raw
from gemel.runtime.sinks import OutputSink, SinkCounts, open_outputs

pytest.importorskip("paho.mqtt", reason="needs paho-mqtt (the extra outputs)")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (Debian's package)")
Open = Callable[..., OutputSink]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Open an MQTT output with a broker on the loopback."""
    found: list[OutputSink] = []

    def start(port: int, *, scheme: str = "mqtt", host: str = "127.0.0.1", **spec: object) -> OutputSink:
        output = OutputSpec(mqtt=MqttSpec(url=f"{scheme}://{host}:{port}", **spec))
        found.append(open_outputs([output], QUERIES, INFO))
        return found[-1]

    yield start
    for each in found:
        each.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    yield found
    found.stop()


def counts(outputs: OutputSink) -> SinkCounts:
    """Return the counts of the only output."""
    return outputs.counts()["mqtt"]


@needs_broker
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_topics_and_messages(broker: Broker, opened: Open, qos: int) -> None:
    with subscribed(broker.port, "box/#") as got:
        outputs = opened(broker.port, topic="box/{feed}/{query}", qos=qos, status=None)
        outputs.on_result("people", frame(3), PEOPLE, 12.34567)
        outputs.on_result("faces", frame(4, feed="gate"), (), 1.0)
        wait_until(lambda: len(got) == 2, "both results arrive")
        wait_until(lambda: counts(outputs).written == 2, "both results are acknowledged")
    assert [(topic, kept) for topic, _, kept in got] == [("box/yard/people", False), ("box/gate/faces", False)]
    assert json.loads(got[0][1]) == json.loads(event(3).line())
    assert json.loads(got[0][1])["result"][0]["box"] == list(BOX)


@needs_broker
def test_many_results_arrive_in_order(broker: Broker, opened: Open) -> None:
    with subscribed(broker.port, "gemel/yard/#") as got:
        outputs = opened(broker.port)
        for index in range(1000):
            outputs.on_result("people", frame(index), (), 1.0)
        wait_until(lambda: counts(outputs).written == 1000, "all results are acknowledged")
        wait_until(lambda: len(got) == 1000, "all results arrive")
    assert [json.loads(payload)["frame"] for _, payload, _ in got] == list(range(1000))


@needs_broker
def test_kept_results_and_the_status(broker: Broker, opened: Open) -> None:
    outputs = opened(broker.port, retain=True)
    for index in range(3):
        outputs.on_result("people", frame(index), (), 1.0)
    wait_until(lambda: counts(outputs).written == 3, "results are acknowledged")
    with subscribed(broker.port) as got:
        wait_until(lambda: len(got) == 2, "the kept messages arrive")
        by_topic = {topic: (payload, kept) for topic, payload, kept in got}
        assert by_topic["gemel/status"] == (b"online", True)
        assert json.loads(by_topic["gemel/yard/people"][0])["frame"] == 2
        outputs.close()
        wait_until(lambda: got[-1][:2] == ("gemel/status", b"offline"), "the end is announced")


DYING = """
import sys
sys.path[:0] = [sys.argv[2]]
from sink_events import INFO, QUERIES, frame, wait_until
from gemel.bundles.output_specs import MqttSpec, OutputSpec
from gemel.runtime.sinks import open_outputs
outputs = open_outputs([OutputSpec(mqtt=MqttSpec(url=f"mqtt://127.0.0.1:{sys.argv[1]}"))], QUERIES, INFO)
outputs.on_result("people", frame(0), (), 1.0)
wait_until(lambda: outputs.counts()["mqtt"].written == 1, "written")
print("ready", flush=True)
import time; time.sleep(60)
"""


@needs_broker
def test_the_last_will_of_a_killed_run(broker: Broker) -> None:
    tests = str(Path(__file__).resolve().parents[2])
    with (
        subscribed(broker.port, "gemel/status") as got,
        subprocess.Popen([sys.executable, "-c", DYING, str(broker.port), tests], stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: len(got) == 2, "the broker publishes the last will")
    assert [payload for _, payload, _ in got] == [b"online", b"offline"]


@needs_broker
@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_that_is_gone_for_a_while(
    broker: Broker, opened: Open, qos: int, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = opened(broker.port, qos=qos)
    for index in range(20):
        outputs.on_result("people", frame(index), (), 1.0)
    wait_until(lambda: counts(outputs).written == 20, "results are written")
    broker.stop()
    for index in range(20, 40):
        outputs.on_result("people", frame(index), (), 1.0)
    wait_until(lambda: counts(outputs).state == "failing", "the outage is noticed")
    broker.start()
    with subscribed(broker.port, "gemel/yard/#") as got:
        wait_until(lambda: counts(outputs).written + counts(outputs).waiting == 40, "nothing is lost")
        wait_until(lambda: counts(outputs).written == 40, "what waited is written")
        outputs.on_result("people", frame(40), (), 1.0)
        wait_until(lambda: bool(got) and json.loads(got[-1][1])["frame"] == 40, "the output works again")
    found = counts(outputs)
    assert (found.offered, found.dropped, found.failed, found.state) == (41, 0, 0, "working")
    first, second = (each.getMessage() for each in caplog.records)
    assert first.startswith(f"output mqtt (mqtt://127.0.0.1:{broker.port}): ")
    assert "works again after" in second


@needs_broker
def test_a_broker_that_stands_still_drops_and_does_not_hold_up_the_end(
    broker: Broker, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemel.runtime.sinks.queued._GRACE_S", 0.3)
    outputs = opened(broker.port)
    outputs.on_result("people", frame(0), (), 1.0)
    wait_until(lambda: counts(outputs).written == 1, "the broker works")
    broker.freeze()
    for index in range(1, 12_000):
        outputs.on_result("people", frame(index), (), 1.0)
    outputs.close()
    found = counts(outputs)
    broker.go_on()
    assert found.offered == found.written + found.dropped + found.failed == 12_000
    assert found.dropped > 10_000


@needs_broker
def test_login(tmp_path: Path, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(tmp_path, users={"box": "right p@ss"})
    try:
        wrong = opened(broker.port, username="box", password="wr0ng")
        right = opened(broker.port, username="box", password="right p@ss")
        in_url = opened(broker.port, host="box:right%20p%40ss@127.0.0.1")
        nobody = opened(broker.port)
        for outputs in (wrong, right, in_url, nobody):
            outputs.on_result("people", frame(0), (), 1.0)
        for outputs in (right, in_url):
            wait_until(lambda outputs=outputs: counts(outputs).written == 1, "the broker takes the password")  # type: ignore[misc]
        for outputs in (wrong, nobody):
            wait_until(lambda outputs=outputs: counts(outputs).state == "failing", "the broker refuses")  # type: ignore[misc]
            assert counts(outputs).error in (
                "the broker refuses the connection: Not authorized",
                "the broker refuses the connection: Bad user name or password",
            )
    finally:
        broker.stop()
    assert "wr0ng" not in caplog.text and "p@ss" not in caplog.text and "p%40ss" not in caplog.text


@needs_broker
@pytest.mark.skipif(which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls(tmp_path: Path, opened: Open) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    broker = Broker(tmp_path, tls=(certificate, key))
    try:
        known = opened(broker.port, scheme="mqtts", host="localhost", ca=str(certificate))
        unknown = opened(broker.port, scheme="mqtts", host="localhost")
        for outputs in (known, unknown):
            outputs.on_result("people", frame(0), (), 1.0)
        wait_until(lambda: counts(known).written == 1, "the certificate is trusted")
        wait_until(lambda: counts(unknown).state == "failing", "the certificate is not trusted")
        assert "CERTIFICATE_VERIFY_FAILED" in str(counts(unknown).error)
    finally:
        broker.stop()


@needs_broker
def test_large_outputs_are_not_sent(broker: Broker, opened: Open) -> None:
    with subscribed(broker.port, "gemel/yard/#") as got:
        outputs = opened(broker.port)
        outputs.on_result("people", frame(0), Raw({"large": np.zeros(5000)}), 1.0)
        wait_until(lambda: len(got) == 1, "the result arrives")
    assert json.loads(got[0][1])["result"] == {"large": {"dtype": "float64", "shape": [5000]}}


def test_nothing_is_there(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    outputs = opened(port)
    outputs.on_result("people", frame(0), (), 1.0)
    wait_until(lambda: counts(outputs).state == "failing", "the failure is noticed")
    outputs.close()
    assert (counts(outputs).written, counts(outputs).dropped) == (0, 1)
    assert [each.getMessage() for each in caplog.records] == [
        f"output mqtt (mqtt://127.0.0.1:{port}): Connection refused"
    ]


def test_files_that_are_missing(tmp_path: Path, opened: Open) -> None:
    with pytest.raises(InputError) as caught:
        opened(1, scheme="mqtts", ca=str(tmp_path / "none.pem"))
    assert str(caught.value) == f"output mqtt (mqtts://127.0.0.1:1): {tmp_path}/none.pem: No such file or directory"
    (tmp_path / "empty.pem").touch()
    with pytest.raises(InputError, match=r"output mqtt \(mqtts://127.0.0.1:1\): "):
        opened(1, scheme="mqtts", ca=str(tmp_path / "empty.pem"))


def test_without_paho(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemel.runtime.sinks.mqtt", None)
    for name in [name for name in sys.modules if name.split(".")[0] == "paho"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "gemel.runtime.sinks.mqtt")
    with pytest.raises(MissingExtraError, match=r"the output mqtt needs packages .*pip install '\.\[outputs\]'"):
        opened(1)


def test_no_thread_is_left(opened: Open) -> None:
    before = len(list(Path("/proc/self/task").iterdir()))
    for _ in range(5):
        opened(free_port()).close()
    wait_until(lambda: len(list(Path("/proc/self/task").iterdir())) <= before, "the threads end")
