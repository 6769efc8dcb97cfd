"""Run gemel for hours while everything around it fails, and check that its memory is flat and its counts add up.

    .venv/bin/python tools/soak.py --minutes 60

A camera on the loopback is killed every twelve seconds. The broker and the web server that take results are down for a
third of the time; the broker is left out where mosquitto is not installed. A second feed is a recording that loops, and
the memory setting is ``min``, so weights are swapped all the time. Memory, descriptors and threads are sampled from
outside. At the end all counts must add up. Exit status 1 if one does not, or if memory grew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from small_bundle import make_small_bundle

_ROOT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
_CAMERA_S, _AWAY_S = 10.0, 2.0
"""Seconds for which the camera works, and for which it then cannot be reached."""
_UP_S, _DOWN_S = 60.0, 30.0
"""Seconds for which broker and web server work, and for which they then cannot be reached."""
_SAMPLE_S = 5.0
"""Seconds between two measurements of the process's memory, descriptors and threads."""
_MOST_GROWTH = 8 << 20
"""Maximum bytes by which memory may grow from the second to the last quarter of the time."""

_CAMERA = """
import sys, time
from cameras import RtspCamera, Sending, encoded
with RtspCamera(encoded(300), Sending(fps=10), port=int(sys.argv[1])):
    time.sleep(1e9)
"""
_RECEIVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["results"]
        with open(sys.argv[2], "a") as file:
            file.writelines(f"{row['query']} {row['frame']}\\n" for row in rows)
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@dataclass
class Server:
    """Server in a process of its own, which is killed and started again and again until :meth:`stay`.

    Args:
        command: command of the server.
        works: seconds from each start of the server until it is killed.
        away: seconds from each kill until the server is started again.
    """

    command: list[str]
    works: float
    away: float
    kills: int = 0
    """Number of times that the server was killed."""
    _stay: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Run the server until :meth:`end`."""
        while not self._over.is_set():
            environment = {**os.environ, "PYTHONPATH": str(_ROOT / "tests")}
            with subprocess.Popen(self.command, env=environment, stderr=subprocess.DEVNULL) as process:
                begun = time.monotonic()
                while not self._over.wait(0.1):
                    if not self._stay.is_set() and time.monotonic() - begun > self.works:
                        break
                process.kill()
            self.kills += 1
            self._over.wait(0.0 if self._stay.is_set() else self.away)

    def stay(self) -> None:
        """Do not kill the server again until :meth:`end` is called."""
        self._stay.set()

    def end(self) -> None:
        """Stop the server."""
        self._over.set()


@contextmanager
def _running(servers: list[Server]) -> Iterator[None]:
    threads = [threading.Thread(target=server.run, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for server in servers:
            server.end()
        for thread in threads:
            thread.join(10)


@dataclass(frozen=True)
class Sample:
    """Memory, descriptors and threads of the gemel process at one moment."""

    at: float
    """Seconds from the start of the soak test to the measurement."""
    memory: int
    """Bytes of memory that only this process has."""
    descriptors: int
    threads: int


def _sample(process: psutil.Process, began: float) -> Sample | None:
    try:
        with process.oneshot():
            return Sample(
                time.monotonic() - began, process.memory_full_info().uss, process.num_fds(), process.num_threads()
            )
    except psutil.Error:
        return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _flat(samples: list[Sample]) -> list[str]:
    """Return a line for each resource that the process used more of in the last quarter than in the second."""
    quarter = len(samples) // 4
    if quarter < 3:
        return ["too few samples: run for longer"]
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = []
    memory = [statistics.median(each.memory for each in part) for part in (early, late)]
    print(f"memory of its own: {memory[0] / 1e6:.1f} MB early, {memory[1] / 1e6:.1f} MB late")
    if memory[1] - memory[0] > _MOST_GROWTH:
        grown.append(f"memory grew by {(memory[1] - memory[0]) / 1e6:.1f} MB")
    for name in ("descriptors", "threads"):
        most = [max(getattr(each, name) for each in part) for part in (early, late)]
        print(f"{name}: at most {most[0]} early, {most[1]} late")
        if most[1] > most[0] + 2:
            grown.append(f"{name} grew from {most[0]} to {most[1]}")
    return grown


def _unexplained(summary: dict[str, Any], folder: Path) -> list[str]:
    """Return a line for each count in a run's summary that does not add up."""
    found = []
    for name, feed in summary["feeds"].items():
        parts = {key: feed[key] for key in ("frames", "corrupt", "withheld", "behind")}
        print(f"feed {name}: captured {feed['captured']} = {parts}, {feed['restarts']} restarts")
        if feed["captured"] != sum(parts.values()):
            found.append(f"feed {name}: captured {feed['captured']}, and {parts}")
    lines: dict[str, int] = dict.fromkeys(summary["queries"], 0)
    for path in (folder / "results").glob("results*.jsonl"):
        for line in path.read_text().splitlines():
            lines[json.loads(line)["query"]] += 1
    written = summary["outputs"]
    for name, query in summary["queries"].items():
        print(f"query {name}: {query['frames']} = {query['processed']} processed + {query['skipped']} skipped")
        if query["frames"] != query["processed"] + query["skipped"] or query["frames"] == 0:
            found.append(f"query {name}: {query}")
        if query["errors"]:
            found.append(f"query {name}: {query['errors']} errors: {query['last_error']}")
    processed = sum(query["processed"] for query in summary["queries"].values())
    for name, output in written.items():
        parts = {key: output[key] for key in ("written", "dropped", "failed", "waiting")}
        print(f"output {name}: offered {output['offered']} = {parts}, {output['state']}")
        if output["offered"] != sum(parts.values()):
            found.append(f"output {name}: offered {output['offered']}, and {parts}")
        if name.startswith("jsonl") and (output["written"] != sum(lines.values()) or output["offered"] != processed):
            found.append(
                f"output {name}: {sum(lines.values())} lines, {output['written']} written, {processed} answers"
            )
        if name.startswith("webhook"):
            taken = folder / "webhook"
            came = set(taken.read_text().split("\n")[:-1]) if taken.exists() else set()
            # A request whose answer was lost is sent again, and a kill may lose an answer to what was taken.
            if len(came) < output["written"]:
                found.append(f"output {name}: {output['written']} written, {len(came)} taken")
    return found


def main() -> int:
    """Run the soak test, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description="Run gemel while everything around it fails.")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the run")
    parser.add_argument("--keep", type=Path, help="folder to keep results, log and samples in")
    options = parser.parse_args()
    seconds = options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="gemel-soak-") as name:
        folder = options.keep or Path(name)
        (folder / "results").mkdir(parents=True, exist_ok=True)
        bundle = make_small_bundle(folder / "made", seconds=10)
        camera, web, broker = _free_port(), _free_port(), _free_port()
        servers = [
            Server([sys.executable, "-c", _CAMERA, str(camera)], _CAMERA_S, _AWAY_S),
            Server([sys.executable, "-c", _RECEIVER, str(web), str(folder / "webhook")], _UP_S, _DOWN_S),
        ]
        outputs: list[dict[str, Any]] = [
            {"jsonl": {"path": str(folder / "results" / "results.jsonl"), "rotate": {"size": "1MB", "keep": 1000}}},
            {"webhook": {"url": f"http://127.0.0.1:{web}/in"}},
            {"video": {"folder": str(folder / "videos"), "segment": "10s", "keep": "50MB"}},
        ]
        if (mosquitto := shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")) is not None:
            settings = folder / "mosquitto.conf"
            lines = [f"listener {broker} 127.0.0.1", "allow_anonymous true", "persistence false", "log_dest none"]
            settings.write_text("\n".join([*lines, "user root", ""]))
            servers.append(Server([mosquitto, "-c", str(settings)], _UP_S, _DOWN_S))
            outputs.append({"mqtt": {"url": f"mqtt://127.0.0.1:{broker}", "topic": "soak/{feed}/{query}"}})
        else:
            print("mosquitto is not installed: no broker")
        (folder / "outputs.yaml").write_text(yaml.safe_dump({"outputs": outputs}))
        summary = folder / "summary.json"
        command = [_BIN / "gemel-run", bundle, "--memory", "min", "--outputs", folder / "outputs.yaml"]
        command += ["--feed", f"yard=rtsp://127.0.0.1:{camera}/live", "--json", summary, "--duration", str(seconds)]
        samples: list[Sample] = []
        with _running(servers), (folder / "log").open("w") as log:
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
            watched, began = psutil.Process(process.pid), time.monotonic()
            while process.poll() is None:
                if (sample := _sample(watched, began)) is not None:
                    samples.append(sample)
                # The outputs work at the end, so that the run ends well.
                if time.monotonic() - began > seconds - 45:
                    for server in servers[1:]:
                        server.stay()
                if time.monotonic() - began > seconds + 300:
                    process.kill()
                time.sleep(_SAMPLE_S)
            kills = [server.kills for server in servers]
        broken = [] if process.returncode == 0 else [f"exit status {process.returncode}: see the log"]
        print(f"{seconds:.0f} s, servers killed: {kills}")
        broken += _flat(samples)
        broken += _unexplained(json.loads(summary.read_text()), folder)
        if broken and options.keep is None:
            print((folder / "log").read_text()[-3000:])
        (folder / "samples.json").write_text(json.dumps([vars(each) for each in samples]))
    for each in broken:
        print(f"BROKEN: {each}")
    print("failed" if broken else "flat, and every count explains itself")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
