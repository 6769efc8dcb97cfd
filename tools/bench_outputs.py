"""Measure what outputs cost: CPU time of ``gemel-run`` with outputs, compared with runs without outputs.

    .venv/bin/python tools/bench_outputs.py out/street/bundle --rounds 10

Each round runs the bundle once without outputs and once with each set of outputs, offline on the same frames; the order
changes from round to round. With ``page``, another process asks for the metrics every five seconds and for the status
every second; with ``pictures``, also for the pictures of all feeds, as often as an open page does. The servers run in
processes of their own, and their time is not counted. MQTT is left out where mosquitto is not installed.
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
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gemel.bundles.reader import MANIFEST

_RECEIVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""Program of a web server that takes every request; prints its port."""

_WATCHERS = """
import sys, threading, time, urllib.request
base, feeds = f"http://127.0.0.1:{sys.argv[1]}", sys.argv[2:]
def ask(path, pause):
    while True:
        try:
            with urllib.request.urlopen(base + path) as answer:
                while answer.read(1 << 16):
                    pass
        except OSError:
            pass
        time.sleep(pause)
threads = [("/metrics", 5), ("/status", 1), *((f"/feeds/{name}.jpg", 0.2) for name in feeds)]
for path, pause in threads:
    threading.Thread(target=ask, args=(path, pause), daemon=True).start()
time.sleep(1e9)
"""
"""Program that watches a run: metrics every five seconds, status every second, and the pictures of feeds."""


@contextmanager
def _web_server() -> Iterator[int]:
    """Run a web server that takes all results during the ``with`` block, and yield its port."""
    with subprocess.Popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def _broker(program: str, folder: Path) -> Iterator[int]:
    """Run a mosquitto broker during the ``with`` block, and yield its port."""
    port = _free_port()
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_dest none\n")
    with subprocess.Popen([program, "-c", str(settings)]) as process:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            process.kill()


@contextmanager
def _watchers(port: int, feeds: Sequence[str]) -> Iterator[None]:
    """Watch a run over HTTP during the ``with`` block, as Prometheus and an open page do."""
    with subprocess.Popen([sys.executable, "-c", _WATCHERS, str(port), *feeds]) as process:
        try:
            yield
        finally:
            process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _run(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command, and return its CPU time and its duration in seconds.

    Raises:
        RuntimeError: the command failed.
    """
    began = time.monotonic()
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {status}: {log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began


def _sets(folder: Path, web: int, broker: int | None) -> dict[str, list[dict[str, Any]]]:
    """Return the sets of outputs to measure: name of the set -> its outputs."""
    lines = {"jsonl": {"path": str(folder / "results.jsonl")}}
    webhook = {"webhook": {"url": f"http://127.0.0.1:{web}/"}}
    snapshots = {"snapshots": {"folder": str(folder / "snapshots")}}
    video = {"video": {"folder": str(folder / "video")}}
    mqtt = {"mqtt": {"url": f"mqtt://127.0.0.1:{broker}"}}
    third = snapshots if broker is None else mqtt
    names = "jsonl, webhook, snapshots" if broker is None else "jsonl, webhook, mqtt"
    return {
        "none": [],
        names: [lines, webhook, third],
        f"{names}, metrics, page": [lines, webhook, third],
        f"{names}, metrics, page with pictures": [lines, webhook, third],
        "samples, 30 times as often as by default": [{"samples": {"folder": str(folder / "samples"), "every": 1.0}}],
        "video": [video],
        "all five": [lines, webhook, mqtt, snapshots, video],
    }


def main() -> None:
    """Measure the CPU time of runs with each set of outputs, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=10, help="runs of each set; default 10")
    parser.add_argument("--frames", type=int, default=200, help="frames of each feed; default 200")
    parser.add_argument("--only", action="append", help="set to measure beside none, such as video; default all")
    parser.add_argument("--json", type=Path, help="file for all measured times")
    options = parser.parse_args()
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    times: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        web = stack.enter_context(_web_server())
        broker = None if program is None else stack.enter_context(_broker(program, folder))
        sets = _sets(folder, web, broker)
        if broker is None:
            del sets["all five"]
        sets = {name: each for name, each in sets.items() if not options.only or name in ("none", *options.only)}
        run = Path(sys.executable).parent / "gemel-run"
        base = ["--offline", "--frames", str(options.frames), "--threads", "1"]
        for number, each in enumerate(sets.values()):
            bundle = Path(shutil.copytree(options.bundle, folder / f"bundle-{number}"))
            manifest = json.loads((bundle / MANIFEST).read_text())
            (bundle / MANIFEST).write_text(json.dumps(manifest | {"outputs": each}))
            _run([str(run), str(bundle), *base], folder)  # prepares the bundle for this device
        names = list(sets)
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                bundle = folder / f"bundle-{names.index(name)}"
                command = [str(run), str(bundle), *base]
                if "page" in name:
                    command += ["--metrics-port", str(port := _free_port())]
                    shown = list(json.loads((bundle / MANIFEST).read_text())["feeds"]) if "pictures" in name else []
                    with _watchers(port, shown):
                        times.setdefault(name, []).append(_run(command, folder))
                else:
                    times.setdefault(name, []).append(_run(command, folder))
                for made in ("results.jsonl", "video", "snapshots", "samples"):
                    path = folder / made
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    table = Table("outputs", "CPU s (median)", "quartiles", "of none, median of rounds", "wall s (median)")
    for name, found in times.items():
        cpu = [each for each, _ in found]
        ratios = [each / other for each, (other, _) in zip(cpu, times["none"], strict=True)]
        quartiles = statistics.quantiles(cpu, n=4) if len(cpu) > 1 else [cpu[0]] * 3
        table.add_row(
            name,
            f"{statistics.median(cpu):.2f}",
            f"{quartiles[0]:.2f} - {quartiles[2]:.2f}",
            f"{statistics.median(ratios):.3f}",
            f"{statistics.median(each for _, each in found):.1f}",
        )
    Console(width=140).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(times, indent=1) + "\n")


if __name__ == "__main__":
    main()
