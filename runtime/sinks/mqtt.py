"""Writer that publishes results to an MQTT broker."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from ...bundles.addresses import parse_address
from ...bundles.output_specs import MQTT_PORTS, MqttSpec
from .events import SinkEvent, event_lines
from .run_info import RunInfo
from .writer import Writer

__all__ = ["MqttWriter"]

_ONLINE, _OFFLINE = "online", "offline"
_KEEP_ALIVE_S = 30
"""Seconds without traffic after which the MQTT client sends a sign of life."""
_CONNECT_S = 5.0
"""Seconds after which an attempt to connect to the MQTT broker counts as failed."""
_ANSWER_S = 10.0
"""Seconds that the writer waits for the MQTT broker to acknowledge messages."""
_GOODBYE_S = 1.0
"""Maximum seconds to wait at the end of the run until the MQTT broker has acknowledged the status ``offline``."""


class MqttWriter(Writer):
    """Writer that publishes each result as one message, with the content of a line of results.jsonl.

    A message counts as written when the broker has acknowledged it (QoS 1 and 2), or when it was sent (QoS 0). Of raw
    outputs with many values, only the shape is sent.

    Args:
        spec: address of the broker, topics, and how to log in.
        info: identification of the run.

    Raises:
        ValueError: the address is not allowed.
        OSError: a file of certificates cannot be read.
    """

    batch, linger = 100, 0.2
    idle_every = 1.0

    def __init__(self, spec: MqttSpec, info: RunInfo) -> None:
        self._address = address = parse_address(spec.url, MQTT_PORTS)
        self._spec = spec
        self._refused: str | None = None
        """Reason that the MQTT broker gave for refusing the connection; None if it did not refuse."""
        self._sent: dict[int, int] = {}
        """Event, as Python's ``id()`` of it -> number of its message, for messages that the MQTT client has taken."""
        self._acknowledged: set[int] = set()
        """Numbers of messages that the MQTT broker has acknowledged (with QoS 0: that were sent)."""
        self._status: int | None = None
        """Number of the newest MQTT message with the status ``online`` or ``offline``; None once it is acknowledged."""
        # Every run has a client name of its own, because a broker disconnects a client when another of its name
        # connects.
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, f"gemel-{info.run[-8:]}")
        client.max_inflight_messages_set(self.batch)
        client.max_queued_messages_set(4 * self.batch)
        client.connect_timeout = _CONNECT_S
        username = spec.username if spec.username is not None else address.username
        if username is not None:
            client.username_pw_set(username, spec.password if spec.password is not None else address.password)
        if address.scheme == "mqtts":
            for path in filter(None, (spec.ca, spec.certificate, spec.key)):
                Path(path).open("rb").close()
            client.tls_set(spec.ca, spec.certificate, spec.key)
        if spec.status is not None:
            client.will_set(spec.status, _OFFLINE, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish

    def write(self, batch: deque[SinkEvent]) -> None:
        self._connect()
        refused = None
        for event, line in zip(batch, event_lines(batch), strict=False):
            if id(event) not in self._sent and (refused := self._publish(event, line)) is not None:
                break
        try:
            self._wait(lambda: self._acknowledged.issuperset(self._sent.values()), _ANSWER_S)
        except BaseException:
            if self._spec.qos == 0:
                # With QoS 1 and 2 the client sends its messages again after it has connected; with QoS 0 it does not.
                self._sent = {event: mid for event, mid in self._sent.items() if mid in self._acknowledged}
            raise
        finally:
            # Events leave the queue in order: an event behind one that is not acknowledged stays, too.
            while batch and self._sent.get(id(batch[0])) in self._acknowledged:
                self._acknowledged.discard(self._sent.pop(id(batch.popleft())))
        if refused is not None:
            raise ConnectionError(refused)

    def idle(self) -> None:
        self._connect()
        self._spin(0)

    def close(self) -> None:
        client = self._client
        with suppress(OSError):
            if client.is_connected() and self._spec.status is not None:
                self._status = client.publish(self._spec.status, _OFFLINE, qos=1, retain=True).mid
                self._wait(lambda: self._status is None, _GOODBYE_S)
        client.disconnect()

    def _connect(self) -> None:
        """Connect to the MQTT broker, unless the client is connected.

        Raises:
            OSError: the broker cannot be reached, does not answer, or refuses the connection.
        """
        client = self._client
        if client.is_connected():
            return
        self._refused = None
        client.connect(self._address.host, self._address.port, _KEEP_ALIVE_S)
        try:
            self._wait(client.is_connected, _CONNECT_S)
        except OSError as error:
            if self._refused is not None:
                raise ConnectionError(f"the broker refuses the connection: {self._refused}") from error
            raise
        if self._spec.status is not None:
            self._status = client.publish(self._spec.status, _ONLINE, qos=1, retain=True).mid

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Exchange data with the MQTT broker until ``done()`` is true.

        Raises:
            OSError: the connection is lost, or the condition does not hold in time.
        """
        end = monotonic() + seconds
        while not done():
            left = end - monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer from the broker in {seconds:g} s")
            self._spin(left)

    def _spin(self, seconds: float) -> None:
        """Wait up to ``seconds`` until data can be exchanged with the MQTT broker, and exchange it.

        Raises:
            OSError: the connection is lost.
        """
        client = self._client
        link: Any = client.socket()
        if link is None:
            raise ConnectionError("the connection is lost")
        # A TLS connection may hold bytes that it has read already.
        waiting = bool(getattr(link, "pending", int)())
        poll = select.poll()
        poll.register(link, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        found = dict(poll.poll(0 if waiting else seconds * 1000)).get(link.fileno(), 0)
        code = paho.MQTT_ERR_SUCCESS
        if waiting or found & ~select.POLLOUT:
            code = client.loop_read()
        if code == paho.MQTT_ERR_SUCCESS and found & select.POLLOUT:
            code = client.loop_write()
        if code == paho.MQTT_ERR_SUCCESS:
            code = client.loop_misc()
        if code != paho.MQTT_ERR_SUCCESS:
            raise ConnectionError("the connection is lost")

    def _publish(self, event: SinkEvent, line: bytes) -> str | None:
        """Give the message of an event to the MQTT client; return None, or the reason if the client refuses it."""
        topic = self._spec.topic.format(feed=event.frame.feed, query=event.query)
        message = self._client.publish(topic, line.rstrip(b"\n"), self._spec.qos, self._spec.retain)
        # With QoS 1 and 2 the client keeps the message while there is no connection, and sends it then.
        kept = message.rc == paho.MQTT_ERR_SUCCESS or (self._spec.qos and message.rc == paho.MQTT_ERR_NO_CONN)
        if not kept:
            return paho.error_string(message.rc)
        self._sent[id(event)] = message.mid
        return None

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._refused = str(reason) if reason.is_failure else None

    def _on_publish(self, client: Any, data: Any, mid: int, reason: Any, properties: Any) -> None:
        if mid == self._status:
            self._status = None
        else:
            self._acknowledged.add(mid)
