"""Give gemel many changed manifests, workloads, caches and HTTP requests; each must be refused in one line or run.

    .venv/bin/python tools/fuzz.py --inputs 10000

Inputs are made by hypothesis, which reports the smallest one that breaks something. A process of its own takes the
inputs of one target, so that a crash or an input that takes more than a minute is found, too. Exit status 1 if anything
was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import hypothesis
from fuzz_targets import TARGETS, Playground, make_playground
from hypothesis import HealthCheck, Phase

_LONGEST_S = 60
"""Seconds after which an input counts as one that hangs."""
_MOST_BYTES = 16 << 30
"""Maximum bytes of address space of a process that takes inputs."""


def main() -> int:
    """Fuzz every target, print one line for each, and return the exit status."""
    parser = argparse.ArgumentParser(description="Give gemel many changed inputs.")
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs of all targets together")
    parser.add_argument("--target", choices=TARGETS, action="append", help="fuzz only this target; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="other seeds make other inputs")
    options = parser.parse_args()
    chosen = {name: target for name, target in TARGETS.items() if not options.target or name in options.target}
    shares = sum(target.share for target in chosen.values())
    broken = []
    for name, target in chosen.items():
        count, began = max(1, round(options.inputs * target.share / shares)), monotonic()
        with tempfile.TemporaryDirectory(prefix="gemel-fuzz-") as folder:
            process = multiprocessing.get_context("spawn").Process(
                target=_fuzz, args=(name, count, options.seed, Path(folder))
            )
            process.start()
            process.join()
            taken = len((Path(folder) / "taken").read_bytes()) if (Path(folder) / "taken").exists() else 0
            if process.exitcode:
                broken.append(name)
                newest = Path(folder) / "newest"
                what = newest.read_text() if newest.exists() else "none"
                print(f"{name}: exit status {process.exitcode} at this input: {what:.2000}")
        print(
            f"{name}: {taken} inputs, {monotonic() - began:.0f} s, {'BROKEN' if process.exitcode else 'nothing found'}"
        )
    return 1 if broken else 0


def _fuzz(name: str, count: int, seed: int, folder: Path) -> None:
    """Give one target its inputs. If an input breaks something, end the process with a special exit status."""
    os.environ.update({f"XDG_{kind}_HOME": str(folder / "inside" / kind.lower()) for kind in ("CACHE", "STATE")})
    tempfile.tempdir = str(folder / "inside")
    target, ground = TARGETS[name], make_playground(folder)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    taken = (folder / "taken").open("ab", buffering=0)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(target.inputs(ground))
    def take(case: Any) -> None:
        (folder / "newest").write_text(repr(case))
        taken.write(b".")
        _take(target.check, ground, case)

    take()


def _take(check: Any, ground: Playground, case: Any) -> None:
    """Check one input. If this takes too long, print the stacks of all threads and end the process."""
    faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
    try:
        check(ground, case)
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
