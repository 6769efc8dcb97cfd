"""Measure real swapping: eight models in half of the memory that their weights need, read from a cold disk.

    .venv/bin/python tools/bench_swap.py DATA

Four ResNet-18 and four MobileNetV3-Large run on three videos, in the paper's setting of 30 frames a second and answers
within 100 ms. Models get 96 x 96 pixels, so that a CPU can keep up. Weights are random, because only frames processed
and their latency are measured. In the merged bundle, the models of a family share the convolutions of all but their
last stage and have private BatchNorm and heads, as after a merge; in the unmerged bundle they share nothing. Evicted
segments leave the page cache, so each load reads from disk.

Arms take turns. Each round is a ``gemel-run`` process. A short run of its own comes before: its memory is sampled from
outside in /proc/PID/smaps, with the process stopped meanwhile, which costs frames. There is a table for the disk, and
one for each bandwidth to which loads are slowed down. Plans, the simulator and real runs are compared. Writes the
tables into docs/swapping.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import torchvision
import yaml
from documents import write_between
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from gemel.bundles.reader import open_bundle
from gemel.frames.source import resolve
from gemel.runtime.backends import open_backend
from gemel.runtime.loop.device_profile import profile_of
from gemel.runtime.memory.loading import Loading
from gemel.runtime.planning.planner import POLICIES, make_plan
from gemel.runtime.planning.simulate import simulate
from gemel.runtime.sinks.encoder import Encoder

_ROOT = Path(__file__).resolve().parent.parent
_FAMILIES = {"resnet18": ("layer4.", "fc."), "mobilenet_v3_large": ("features.13", "features.14", "features.15")}
"""Factory in torchvision.models -> prefixes of the names of weights that its merged models do not share."""
_EACH = 4
"""Number of models of each family."""
_CLIP_S = 10
"""Length of each video in seconds."""
_BANDWIDTHS = (300.0, 60.0)
"""Megabytes per second to which loads are slowed down, one table each."""
_SAMPLE_S = 0.1
"""Seconds between two samples of a process's memory."""
_SAMPLED_S = 5.0
"""Seconds of the run whose memory is sampled."""


@dataclass(frozen=True)
class Setting:
    """Input size, frame rate and SLA of all queries in the swapping benchmark."""

    size: int
    """Height and width of the models' input, in pixels."""
    fps: int
    sla: int
    """Maximum milliseconds from a frame to its answer."""

    def __str__(self) -> str:
        return f"{self.size} px, {self.fps} fps, {self.sla} ms"


@dataclass(frozen=True)
class Arm:
    """Bundle, policy and backend with which the workload is run in the swapping benchmark."""

    name: str
    merged: bool
    policy: str
    backend: str = "ort-cpu"


_ARMS = (
    Arm("sessions, loaded and unloaded", False, "nexus", "ort-sessions"),
    Arm("nexus, unmerged", False, "nexus"),
    Arm("gemel, unmerged", False, "gemel"),
    Arm("nexus, merged", True, "nexus+shared"),
    Arm("gemel, merged", True, "gemel"),
)


@dataclass(frozen=True)
class Round:
    """Result of one ``gemel-run`` process of the swapping benchmark: frames, times and memory."""

    processed: int
    frames: int
    slowest: float
    """Smallest fraction of its frames that any query processed."""
    in_time: float
    """Fraction of the processed frames that were answered within the SLA."""
    blocked: float
    """Fraction of the time in which nothing ran because weights were still loading."""
    budget: int


class Expected(NamedTuple):
    """Fractions of frames that a plan or the simulator expects of an arm."""

    processed: float
    slowest: float
    """Smallest fraction of its frames that any query is expected to process."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with videos (*.mp4)")
    parser.add_argument("--output", type=Path, default=_ROOT / "out/swap", help="folder for models and bundles")
    parser.add_argument("--size", type=int, default=96, help="height and width of the models' input, pixels")
    parser.add_argument("--fps", type=int, default=30, help="frames a second of the videos")
    parser.add_argument("--sla", type=int, default=100, help="milliseconds from a frame to its answer")
    parser.add_argument(
        "--bandwidth",
        type=float,
        action="append",
        help="MB per second to which loads are slowed down; once for each table; default 300 and 60",
    )
    parser.add_argument("--no-cold", action="store_true", help="leave out the table of loads from the cold disk")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each arm")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each arm in each round")
    parser.add_argument("--report", type=Path, default=_ROOT / "docs/swapping.md", help="page to write the tables into")
    options = parser.parse_args(arguments)
    console = Console()
    setting = Setting(options.size, options.fps, options.sla)
    output = options.output / f"{setting.size}-{setting.fps}-{setting.sla}"
    bundles = {merged: prepare(options.data, output, setting, merged=merged) for merged in (False, True)}
    # All arms get the same budget: half of the bytes of the merged models.
    manifest = json.loads((bundles[True] / "manifest.json").read_text())
    budget = sum(segment["length"] for segment in manifest["segments"].values()) // 2
    tables = {}
    loadings = {} if options.no_cold else {"cold": Loading(cold=True)}
    loadings |= {f"{each:g} MB/s": Loading(bandwidth=each * 1e6) for each in options.bandwidth or _BANDWIDTHS}
    for name, loading in loadings.items():
        expected = {arm.name: _expect(arm, bundles[arm.merged], budget, loading, options.seconds) for arm in _ARMS}
        seen = {arm.name: _seen(_command_of(arm, bundles[arm.merged], budget, loading)) for arm in _ARMS}
        found: dict[str, list[Round]] = {arm.name: [] for arm in _ARMS}
        for number in range(options.rounds):
            for arm in _ARMS:
                result = _run(arm, bundles[arm.merged], budget, loading, options.seconds, setting.sla, output)
                found[arm.name].append(result)
                what = f"{name} {number + 1}: {arm.name}: {result.processed} of {result.frames} frames"
                console.print(what, highlight=False)
        tables[name] = table(found, expected, seen)
        console.print(tables[name], highlight=False, soft_wrap=True)
    for name, content in tables.items():
        write_between(options.report, f"{name}, {setting}", content)


def prepare(data: Path, output: Path, setting: Setting, *, merged: bool) -> Path:
    """Write the benchmark's models and workload, compile them, and return the bundle's path; keep an existing bundle.

    Args:
        data: folder with videos.
        output: folder for clips, weights and the bundle.
        setting: input size, frame rate and SLA.
        merged: whether the models of a family share weights.
    """
    name = "merged" if merged else "unmerged"
    bundle = output / f"{name}-bundle"
    if bundle.exists():
        return bundle
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    videos = [_at(setting.fps, video, output / video.name) for video in sorted(data.resolve().glob("*.mp4"))]
    queries: list[dict[str, Any]] = []
    for family, private in _FAMILIES.items():
        for index in range(_EACH):
            query = f"{family.split('_')[0]}-{index}"
            save_file(_weights(family, index, private if merged else ("",)), folder / f"{query}.safetensors")
            model = {
                "factory": f"torchvision.models:{family}",
                "weights": f"{query}.safetensors",
                "input": {"size": [setting.size, setting.size]},
            }
            feed = videos[index % len(videos)].stem
            queries.append({"name": query, "feed": feed, "task": "classification", "model": model})
    workload = {
        "schema_version": "1",
        "device": {"backend": "ort-cpu", "memory": "50%"},
        "sla": f"{setting.sla}ms",
        "feeds": {video.stem: {"source": str(video), "fps": setting.fps, "loop": True} for video in videos},
        "queries": queries,
    }
    path = folder / "workload.yaml"
    path.write_text(yaml.safe_dump(workload, sort_keys=False))
    subprocess.run([_command("gemel-compile"), path, "-o", bundle], check=True)
    return bundle


def _at(fps: int, video: Path, clip: Path) -> Path:
    """Write the first frames of a video as a clip with the frame rate ``fps``, whatever the video's own rate."""
    with contextlib.closing(resolve(video.stem, str(video)).open()) as reader:
        images = [load() for _, load in itertools.islice(reader, _CLIP_S * fps)]
    with contextlib.closing(Encoder(clip, images[0])) as encoder:
        for number, image in enumerate(images):
            encoder.write(image, number / fps)
    return clip


def _weights(family: str, index: int, private: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return the random weights of model number ``index`` of a torchvision family.

    Weights whose names begin with one of ``private`` and those with fewer than two dimensions are the model's own; all
    other weights are equal in the models of the family.
    """
    torch.manual_seed(0)
    common = getattr(torchvision.models, family)().state_dict()
    torch.manual_seed(1 + index)
    own = getattr(torchvision.models, family)()
    for layer in own.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return {
        name: value if name.startswith(private) or value.ndim < 2 else common[name]
        for name, value in own.state_dict().items()
    }


def _command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _expect(arm: Arm, path: Path, budget: int, loading: Loading, seconds: float) -> tuple[Expected, Expected]:
    """Return what the plan of an arm promises, and what the simulator makes of it.

    The load and run times that are measured for it are kept in the device cache, for the real runs.
    """
    bundle = open_bundle(path)
    with open_backend(bundle, arm.backend, memory=budget, threads=1, loading=loading) as backend:
        profile, room = profile_of(bundle, backend, fresh=True), backend.room
    plan = make_plan(profile, room, POLICIES[arm.policy])
    shares = {name: plan.frames[name] / query.fps for name, query in profile.queries.items()}
    all_fps = sum(query.fps for query in profile.queries.values())
    found = simulate(profile, room, plan, seconds)
    return (
        Expected(sum(plan.frames.values()) / all_fps, min(shares.values())),
        Expected(found.processed, min(each.processed / max(1, each.frames) for each in found.queries.values())),
    )


def _command_of(arm: Arm, bundle: Path, budget: int, loading: Loading) -> list[str]:
    """Return the command line of ``gemel-run`` for an arm, without the length of the run."""
    command = [_command("gemel-run"), bundle, "--memory", budget, "--threads", 1]
    command += ["--backend", arm.backend, "--policy", arm.policy, *(["--cold"] if loading.cold else [])]
    command += ["--bandwidth", f"{loading.bandwidth:.0f}"] if loading.bandwidth else []
    return [str(part) for part in command]


def _run(arm: Arm, bundle: Path, budget: int, loading: Loading, seconds: float, sla: int, output: Path) -> Round:
    summary, results = output / "summary.json", output / "results.jsonl"
    command = _command_of(arm, bundle, budget, loading)
    command += ["--duration", str(seconds), "--json", str(summary), "--results", str(results)]
    if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"{arm.name}: gemel-run ended with {code}")
    found = json.loads(summary.read_text())
    latencies = [json.loads(line)["latency_ms"] for line in results.read_text().splitlines()]
    queries = found["queries"].values()
    return Round(
        sum(query["processed"] for query in queries),
        sum(query["frames"] for query in queries),
        min(query["processed"] / max(1, query["frames"]) for query in queries),
        sum(latency <= sla for latency in latencies) / max(1, len(latencies)),
        found["swaps"]["blocked_ms"] / found["seconds"] / 1e3,
        found["memory"]["budget"],
    )


def _seen(command: Sequence[str]) -> int:
    """Return the maximum bytes of the blob that are seen in the memory of a short run; 0 for plain sessions."""
    if "ort-sessions" in command:
        return 0
    process = psutil.Popen([*command, "--duration", str(_SAMPLED_S)], stdout=subprocess.DEVNULL)
    seen = 0
    while process.poll() is None:
        seen = max(seen, _mapped(process, "weights.bin"))
        time.sleep(_SAMPLE_S)
    return seen


def _mapped(process: psutil.Popen, name: str) -> int:
    """Return the bytes of mapped files called ``name`` that are in a process's memory now."""
    # A running process may evict a segment that was counted and load one that is counted next.
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        try:
            return sum(file.rss for file in process.memory_maps() if file.path.endswith(f"/{name}"))
        finally:
            process.resume()
    return 0


def table(found: dict[str, list[Round]], expected: dict[str, tuple[Expected, Expected]], seen: dict[str, int]) -> str:
    """Return a Markdown table of frames, times and memory of each way to run the workload: medians over rounds.

    Args:
        found: name of an arm -> its rounds.
        expected: name of an arm -> what its plan promises, and what the simulator makes of the plan.
        seen: name of an arm -> maximum bytes of the blob that were seen in memory.
    """
    lines = [
        "| runs as | frames | planned | simulated | slowest query | beside sessions | planned | simulated | in time"
        " | blocked | budget | seen |",
        f"|---|{'--:|' * 11}",
    ]
    first = statistics.median(each.slowest for each in next(iter(found.values())))
    for name, rounds in found.items():
        part = statistics.median(each.processed / each.frames for each in rounds)
        slowest = statistics.median(each.slowest for each in rounds)
        plan, simulated = expected[name]
        beside = f"{slowest / first:.2f}x" if first else ""
        lines.append(
            f"| {name} | {part:.1%} | {plan.processed:.1%} | {simulated.processed:.1%}"
            f" | {slowest:.1%} | {beside} | {plan.slowest:.1%} | {simulated.slowest:.1%}"
            f" | {statistics.median(each.in_time for each in rounds):.1%}"
            f" | {statistics.median(each.blocked for each in rounds):.1%}"
            f" | {rounds[0].budget / 1e6:.1f} MB | {f'{seen[name] / 1e6:.1f} MB' if seen[name] else ''} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
