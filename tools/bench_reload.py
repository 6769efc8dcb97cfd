"""Measure reloads: what a query misses when one of five models is exchanged, which bytes are loaded, and what leaks.

    .venv/bin/python tools/bench_reload.py [--reloads 1000] [--fps 4] [--json reload.json]

Five ResNet-18 of torchvision with random weights (times do not depend on them) answer one feed on one thread. The other
bundle has another last model. The first reload finds no device cache, so another process makes it meanwhile; later
reloads go to and fro between the two bundles. A query's gap is the longest time between two answers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from small_bundle import write_video

from gemel.compiler import compile_workload
from gemel.workload import load_workload

_MODELS = 5
_CALM_S = 20.0
"""Seconds of the run that are looked at before the first reload."""


def compile_bundle(folder: Path, seeds: list[int], fps: float) -> Path:
    """Compile a bundle with a ResNet-18 for each seed."""
    folder.mkdir()
    queries = []
    for number, seed in enumerate(seeds):
        torch.manual_seed(seed)
        save_file(torchvision.models.resnet18(num_classes=10).state_dict(), folder / f"{number}.safetensors")
        model = {
            "factory": "torchvision.models:resnet18",
            "args": {"num_classes": 10},
            "weights": f"{number}.safetensors",
            "input": {"size": [224, 224]},
        }
        queries.append({"name": f"q{number}", "feed": "yard", "task": "classification", "model": model})
    feed = {"source": str(folder.parent / "street.mp4"), "fps": fps, "loop": True}
    (folder / "workload.yaml").write_text(
        yaml.safe_dump({"schema_version": "1", "feeds": {"yard": feed}, "queries": queries})
    )
    return compile_workload(load_workload(folder / "workload.yaml"), folder / "bundle").path


class Box:
    """Running gemel-run, with its results and its HTTP server.

    Args:
        bundle: folder of the bundle.
        results: file for the results.
        flags: more flags of gemel-run.
    """

    def __init__(self, bundle: Path, results: Path, *flags: str) -> None:
        program = Path(sys.executable).parent / "gemel-run"
        command: list[str | Path] = [program, bundle, "--metrics-port", "0", "--threads", "1", "--results", results]
        command += flags
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        port = next(found for line in self.process.stdout if (found := re.search(r"http://[\d.]+:(\d+)", line)))
        self.port, self.seen = int(port.group(1)), psutil.Process(self.process.pid)
        while self.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.1)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the content of the answer to a request."""
        link = HTTPConnection("127.0.0.1", self.port, timeout=600)
        link.request(method, path, None if body is None else json.dumps(body))
        answer = link.getresponse()
        return answer.status, json.loads(answer.read())

    def reload(self, bundle: Path) -> dict[str, Any]:
        """Have the run go on with another bundle, and return what was changed, with the bytes that were loaded."""
        before = self.loaded
        began = time.time()
        code, done = self.ask("POST", "/reload", {"bundle": str(bundle)})
        assert code == 200, done
        time.sleep(1)
        return {**done, "began": began, "ended": time.time(), "loaded": self.loaded - before}

    @property
    def loaded(self) -> int:
        """Bytes of weights that were loaded so far."""
        found: int = self.ask("GET", "/status")[1]["swaps"]["bytes"]
        return found

    def leaks(self) -> dict[str, float]:
        """Return what a leak would make grow: descriptors, mappings, threads, and memory in MB."""
        maps = len(Path(f"/proc/{self.process.pid}/maps").read_text().splitlines())
        memory = self.seen.memory_full_info().uss / 1e6
        return {"descriptors": self.seen.num_fds(), "mappings": maps, "threads": self.seen.num_threads(), "MB": memory}


def longest_gaps(results: Path, begin: float, end: float) -> dict[str, float]:
    """Return query -> longest seconds between two answers, of those that came between two Unix times."""
    times = defaultdict(list)
    for line in results.read_text().splitlines():
        row = json.loads(line)
        if begin <= row["at"] + row["latency_ms"] / 1e3 <= end:
            times[row["query"]].append(row["at"] + row["latency_ms"] / 1e3)
    return {query: max(later - earlier for earlier, later in pairwise(each)) for query, each in sorted(times.items())}


def main() -> None:
    """Run the measurement, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as temporary:
        folder = Path(temporary)
        write_video(folder / "street.mp4", 10)
        first = compile_bundle(folder / "first", list(range(_MODELS)), options.fps)
        second = compile_bundle(folder / "second", [*range(_MODELS - 1), 99], options.fps)
        results = folder / "results.jsonl"
        box = Box(first, results)
        try:
            began = time.time()
            time.sleep(_CALM_S)
            calm = (began, time.time())
            cold = box.reload(second)
            warm = box.reload(first)
            leaks, times = [], []
            for number in range(options.reloads):
                done = box.ask("POST", "/reload", {"bundle": str((second, first)[number % 2])})[1]
                times.append(done["seconds"])
                if number in (options.reloads // 5, options.reloads - 1):
                    # The new model's weights come with its next frame.
                    time.sleep(2)
                    leaks.append(box.leaks())
            status = box.ask("GET", "/status")[1]
        finally:
            box.process.terminate()
            box.process.communicate(timeout=60)
        period = 1 / options.fps
        found = {
            "period_s": period,
            "gap_before_s": longest_gaps(results, *calm),
            "gap_cold_s": longest_gaps(results, cold["began"] - period, cold["ended"]),
            "gap_warm_s": longest_gaps(results, warm["began"] - period, warm["ended"]),
            "cold": {key: cold[key] for key in ("seconds", "kept_bytes", "new_bytes", "loaded")},
            "warm": {key: warm[key] for key in ("seconds", "kept_bytes", "new_bytes", "loaded")},
            "reloads": {"done": status["reloads"]["done"], "failed": status["reloads"]["failed"]},
            "median_reload_s": median(times) if times else None,
            "after_a_fifth": leaks[0] if leaks else None,
            "at_the_end": leaks[-1] if leaks else None,
            "errors": {name: query["errors"] for name, query in status["queries"].items()},
        }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
