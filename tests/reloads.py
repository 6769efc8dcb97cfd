"""Runs with an HTTP server whose bundle is exchanged, and bundles for them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

from small_bundle import write_model

from gemel.bundles.reader import open_bundle
from gemel.compiler import compile_workload
from gemel.frames.frame import Frame
from gemel.runtime.decode.results import Result
from gemel.runtime.loop.summary import Summary
from gemel.runtime.run import RunOptions, run_bundle
from gemel.runtime.service.run_service import ServiceOptions
from gemel.runtime.sinks import Sink
from gemel.workload import load_workload

FPS = 25


def compiled(folder: Path, names: str, changed: str = "", feeds: Mapping[str, Any] | None = None) -> Path:
    """Compile a bundle of queries with a model each, all of which have the same convolutions; return its folder."""
    folder.mkdir(exist_ok=True)
    for name in names:
        write_model(folder / f"{name}.onnx", ord(name) + 100 * (name in changed))
    document = {
        "schema_version": "1",
        "feeds": feeds or {"yard": {"source": str(folder.parent / "yard.mp4"), "fps": FPS, "loop": True}},
        "queries": [_query(name) for name in names],
    }
    (folder / "workload.yaml").write_text(json.dumps(document))
    return compile_workload(load_workload(folder / "workload.yaml"), folder / "bundle").path


def _query(name: str) -> dict[str, Any]:
    model = {"onnx": f"{name}.onnx", "input": {"size": [32, 32]}}
    task = {"task": "classification", "labels": ["none", "some", "many"], "activation": "softmax"}
    return {"name": name, "feed": "yard", "model": model, **task}


class Recorder(Sink):
    """Sink that notes which frames each query answered, and with what."""

    pixels, queued = False, False

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Result]]] = {}
        self.errors: list[str] = []

    def on_result(self, query: str, frame: Frame, result: Result, latency_ms: float) -> None:
        self.answers.setdefault(query, []).append((frame.index, result))

    def on_error(self, query: str, frame: Frame, message: str) -> None:
        self.errors.append(message)

    def count(self, query: str) -> int:
        return len(self.answers.get(query, ()))


class Run:
    """Run of a bundle on a thread of its own, with an HTTP server."""

    def __init__(self, bundle: Path, **options: Any) -> None:
        self.sink, self.stop, self.reload = Recorder(), Event(), Event()
        url: Future[str] = Future()
        service = ServiceOptions(port=0, listening=url.set_result)
        self._pool = ThreadPoolExecutor(1)
        self._summary = self._pool.submit(
            lambda: run_bundle(
                open_bundle(bundle),
                RunOptions(threads=1, service=service, **options),
                sinks=[self.sink],
                stop=self.stop,
                reload=self.reload,
            )
        )
        self.port = int(url.result(60).rpartition(":")[2])
        self.wait(lambda: self.ask("GET", "/readyz")[0] == 200)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        link.request(method, path, None if body is None else json.dumps(body))
        answer = link.getresponse()
        return answer.status, json.loads(answer.read())

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "/status")[1]
        return found

    def wait(self, condition: Callable[[], bool]) -> None:
        ends = monotonic() + 60
        while not condition():
            assert monotonic() < ends and not self._summary.done()
            sleep(0.02)

    def wait_for(self, query: str, more: int = 5) -> None:
        """Wait until a query has answered some more frames."""
        before = self.sink.count(query)
        self.wait(lambda: self.sink.count(query) >= before + more)

    def end(self) -> Summary:
        self.stop.set()
        summary = self._summary.result(60)
        self._pool.shutdown()
        return summary
