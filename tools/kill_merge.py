"""Kill a merge with SIGKILL at random moments, resume it each time, and compare its end with that of one left alone.

    .venv/bin/python tools/kill_merge.py --kills 20     # half an hour on one core

The workload is that of the drill (``tools/loop_models.py``), with fewer images. Printed are how many looks and trials
that were reported as done were not in the journal after a kill (none may be missing), the seconds of work that kills
have cost, and what the two merges share. Exit status 1 if anything done was lost, if the folder could not be used after
a kill, or if the ends differ in what is shared.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median
from threading import Timer
from time import time

from loop_models import make_loop_models

from gemel.bundles.merge_report import MergeReport, read_report
from gemel.workload import load_workload

_ROOT = Path(__file__).resolve().parent.parent
_GEMEL = Path(sys.executable).parent / "gemel"
_SEARCH = ("--strategy", "heaviest")
"""Search with many short trainings, so that kills hit many of them."""
_CLOSE = 0.02
"""Difference of two accuracies relative to the originals that is still chance: some images of those that confirm."""


def main() -> None:
    """Run both merges, print what was lost, and exit with 1 if that is more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=_ROOT / "out" / "kill-merge", help="folder to work in")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recorded", type=int, default=300, help="images of each camera")
    parser.add_argument("--target", type=float, default=0.8, help="accuracy target of all queries")
    parser.add_argument("--steps", type=int, default=12, help="steps of a training")
    parser.add_argument("--within", type=float, default=120.0, help="latest moment of a kill, in seconds after a start")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of kills")
    options = parser.parse_args()
    folder: Path = options.output
    workload = make_loop_models(folder / "models", "none", recorded=options.recorded, target=options.target)
    for name in ("whole", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    began = time()
    _merge(workload, folder / "whole", options.steps)
    seconds = time() - began
    whole = read_report(folder / "whole/merge.json")
    print(f"left alone: {seconds:.0f} s, {len(_journal(folder / 'whole'))} looks and trials", flush=True)
    rng, lost_s, faults = random.Random(options.seed), list[float](), list[str]()
    kills = 0
    while kills < options.kills:
        before = len(_journal(folder / "killed"))
        done, killed = _merge(workload, folder / "killed", options.steps, rng.uniform(0, options.within))
        if not killed:
            # It was at its end before; another one begins.
            faults += _differences(whole, read_report(folder / "killed/merge.json"))
            shutil.rmtree(folder / "killed")
            continue
        kills += 1
        journal = folder / "killed/search/journal.jsonl"
        kept = len(_journal(folder / "killed"))
        if kept - before < done:
            faults.append(f"kill {kills}: {done} looks and trials were reported, {kept - before} are in the journal")
        if journal.exists():
            lost_s.append(time() - journal.stat().st_mtime)
        faults += _unusable(folder / "killed")
        print(f"kill {kills}: {done} done since the last one, {kept} in the journal", flush=True)
    _merge(workload, folder / "killed", options.steps)
    again = read_report(folder / "killed/merge.json")
    faults += _differences(whole, again)
    print(
        f"{kills} kills: {median(lost_s):.1f} s of work lost by each (median; at most {max(lost_s):.1f} s)."
        f" Saved: {again.saving:.1%}, and {whole.saving:.1%} by the merge that was left alone."
    )
    if faults:
        sys.exit("\n".join(faults))


def _merge(workload: Path, output: Path, steps: int, seconds: float | None = None) -> tuple[int, bool]:
    """Start a merge or go on with it, and wait for its end, or kill it after some seconds.

    Returns:
        Number of looks and trials that it reported as done, and whether it was killed.
    """
    resume = ["--resume"] if (output / "search/journal.jsonl").exists() else []
    command = [str(_GEMEL), "merge", str(workload), "-o", str(output), "--steps", str(steps), *_SEARCH, *resume]
    done = 0
    # Otherwise lines that were printed would be lost with the process.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        timer = None if seconds is None else Timer(seconds, process.send_signal, [signal.SIGKILL])
        if timer is not None:
            timer.start()
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            done += line.strip().startswith("trial")
        if timer is not None:
            timer.cancel()
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}\n{''.join(lines[-15:])}")
    return done, process.returncode != 0


def _journal(output: Path) -> list[str]:
    """Return the whole lines of a merge's journal."""
    path = output / "search/journal.jsonl"
    return [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"] if path.exists() else []


def _unusable(output: Path) -> list[str]:
    """Return what is wrong with a folder after a kill; an output that was never written is in order."""
    if not (output / "merge.json").exists():
        return []
    try:
        read_report(output / "merge.json")
        load_workload(output / "workload.yaml")
    except Exception as error:
        return [f"after a kill: {type(error).__name__}: {error}"]
    return []


def _differences(whole: MergeReport, again: MergeReport) -> list[str]:
    """Return how the end of a merge that was killed differs from that of one that was left alone."""
    found = []
    if [each.uses for each in whole.shared] != [each.uses for each in again.shared]:
        found.append(f"other tensors are shared: {whole.saving:.3%} of all bytes are saved, and {again.saving:.3%}")
    for name, query in whole.queries.items():
        if abs(query.relative - again.queries[name].relative) > _CLOSE:
            found.append(f"query {name}: {query.relative:.3f}, and {again.queries[name].relative:.3f} after the kills")
    return found


if __name__ == "__main__":
    main()
