"""A real mosquitto broker on the loopback, and a subscriber, for tests of the MQTT output."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sink_events import wait_until

_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
MOSQUITTO = shutil.which("mosquitto", path=_SBIN)
MOSQUITTO_PASSWD = shutil.which("mosquitto_passwd", path=_SBIN)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Broker:
    """Mosquitto process that can be stopped and started again on its port.

    Args:
        folder: folder for its settings.
        users: name -> password; anybody may connect if there are none.
        tls: certificate and key of the server; no TLS if None.
    """

    def __init__(self, folder: Path, users: dict[str, str] | None = None, tls: tuple[Path, Path] | None = None) -> None:
        self.port = free_port()
        self._settings = folder / f"mosquitto-{self.port}.conf"
        # Started by root, mosquitto would change to a user who cannot read the test's folder.
        lines = [f"listener {self.port} 127.0.0.1", "user root", "persistence false", "log_dest none"]
        lines.append(f"allow_anonymous {'false' if users else 'true'}")
        if users:
            passwords = folder / f"passwords-{self.port}"
            passwords.touch(mode=0o600)
            for name, password in users.items():
                command = [str(MOSQUITTO_PASSWD), "-b", str(passwords), name, password]
                subprocess.run(command, check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        if tls:
            lines += [f"certfile {tls[0]}", f"keyfile {tls[1]}"]
        self._settings.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the broker, and wait until it listens."""
        self._process = subprocess.Popen(
            [str(MOSQUITTO), "-c", str(self._settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, "mosquitto listens")

    def stop(self) -> None:
        """Kill the broker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let the broker do nothing, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a frozen broker go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "mosquitto ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


@contextmanager
def subscribed(port: int, topic: str = "#", **login: str) -> Iterator[list[tuple[str, bytes, bool]]]:
    """Subscribe to topics; yield the list of (topic, payload, whether the broker had kept it), which grows."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    found: list[tuple[str, bytes, bool]] = []
    ready: list[Any] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    if login:
        client.username_pw_set(login["username"], login["password"])
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=2)
    client.on_subscribe = lambda *_: ready.append(True)

    def note(client: Any, data: Any, message: Any) -> None:
        found.append((message.topic, bytes(message.payload), message.retain))

    client.on_message = note
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    wait_until(lambda: bool(ready), "the subscription stands")
    # Messages that the broker had kept come at once.
    time.sleep(0.05)
    try:
        yield found
    finally:
        client.disconnect()
        client.loop_stop()
