"""The whole loop between merger and box on one machine, with the real commands as processes of their own.

    .venv/bin/python tools/loop_drill.py        # or: make loop

Three models are merged, and each step is published as a delta (``gemel merge --publish``). A box runs two cameras
(``gemel-run --samples``), follows the deltas (``gemel pull --follow``), and is watched (``gemel drift --follow
--revert``). Then it gets dark at one camera. The loss is found, the query goes back to its original weights, and the
merge goes on with the box's samples (``gemel merge --from --samples``) until the query shares weights again, or stays
private. What happened is written to ``timeline.json`` and drawn; docs/loop.md explains the picture.

Each frame is a sample, twenty in a second, in place of two in a minute; so a minute stands for ten hours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

from commands import CommandError, Commands
from documents import write_between
from drift_scenes import DISTURBANCES
from loop_answers import LiveAnswers, answers_to, equal_answers, frames_of, label_of
from loop_models import CAMERAS, FPS, LENGTH, QUERIES, make_loop_models
from loop_report import report_lines, trained_until
from loop_story import Story
from loop_timeline import Happening, Timeline, draw

from gemel.bundles.merge_report import MergeReport, read_report
from gemel.bundles.reader import open_bundle
from gemel.cli.merge import parse_budget
from gemel.runtime.sinks.sample_files import open_samples

_ROOT = Path(__file__).resolve().parent.parent
_PAGE, _PICTURE = _ROOT / "docs" / "loop.md", _ROOT / "docs" / "images" / "loop.png"
_CAMERA, _QUERY = "north", "north-shoes"
"""Camera at which it gets dark, and its query."""
_EVERY = "25ms"
"""Time between two samples of a camera: half of that between two frames, so that no rounding leaves frames out."""
_LOOK = "2s"
"""Time between two looks for deltas, and for samples."""
_CALM_S = 30.0
"""Seconds that the box runs before the scene changes, and after all is over."""
_ONE = {"OMP_NUM_THREADS": "1"}
"""Environment of what trains and judges, so that the box keeps a core."""


class Drill:
    """The phases of the drill, in the order of their methods.

    Args:
        out: folder for everything; all paths of commands start from it.
        commands: where commands are started.
        story: what is known of them.
        options: flags of the tool.
    """

    def __init__(self, out: Path, commands: Commands, story: Story, options: argparse.Namespace) -> None:
        self._out, self._commands, self._story, self._options = out, commands, story, options
        self._live = LiveAnswers(out / "box" / "results.jsonl")
        self._night: dict[str, int] = {}
        """Camera at which it gets dark -> index of its first dark frame."""
        self._by_day = 0
        """Number of samples of this camera before the night."""

    def merge(self) -> None:
        """Merge the models, while the box starts with unmerged weights and takes over each step."""
        publish = ("--publish", "deltas", "--originals", "--budget", self._options.budget)
        begin = self._story.now()
        self._commands.start("merger", "gemel", "merge", "models/workload.yaml", "-o", "merged", *publish, **_ONE)
        self._commands.wait_for((self._out / "deltas/bundle/manifest.json").exists, 300, "the first published bundle")
        shutil.copytree(self._out / "deltas/bundle", self._out / "box/bundle")
        feeds = [flag for camera in CAMERAS for flag in ("--feed", f"{camera}=cameras/{camera}.mp4")]
        self._commands.start(
            "box", "gemel-run", "box/bundle", *feeds, "--samples", "box/samples", "--sample-every", _EVERY,
            "--results", "box/results.jsonl", "--json", "box/summary.json", "--metrics-port", "0", "--threads", "1",
        )  # fmt: skip
        self._commands.wait_for(lambda: self._story.url is not None, 120, "the box's live page", ends="merger")
        assert self._story.url is not None
        port = self._story.url.rstrip("/").rpartition(":")[2]
        follow = ("--follow", "--every", _LOOK, "--port", port)
        self._commands.start("pull", "gemel", "pull", "deltas", "box/bundle", *follow)
        originals = ("--originals", "deltas/originals")
        drift = ("gemel", "drift", "box/bundle", "box/samples", *originals, *follow, "--revert", "--threads", "1")
        self._commands.start("drift", *drift, **_ONE)
        self._commands.finish("merger", parse_budget(self._options.budget) + 600)
        if _QUERY not in self._merged(begin, "merged"):
            raise CommandError(
                f"{_QUERY} shares no weights after the merge, so nothing can be lost; see logs/merger.log"
            )

    def change_scene(self) -> None:
        """After some time without a change, make it night at one camera."""
        self._rest()
        self._keep_state("merged")
        # The video is opened again at its end; the exchange must not fall together with that.
        self._wait(lambda: 0.1 < self._live.frame(_QUERY) % LENGTH / LENGTH < 0.9, 60, "the middle of the video")
        self._night[_CAMERA] = (self._live.frame(_QUERY) // LENGTH + 1) * LENGTH
        shutil.copyfile(self._out / "models" / f"{_CAMERA}-night.mp4", self._out / "cameras/next.mp4")
        (self._out / "cameras/next.mp4").replace(self._out / "cameras" / f"{_CAMERA}.mp4")
        self._story.say(f"camera {_CAMERA}: the night follows when the video begins again")
        self._wait(lambda: self._live.frame(_QUERY) >= self._night[_CAMERA], 2 * LENGTH / FPS, "night")
        self._by_day = self._samples()
        at = next(at for at, frame, _ in self._live.rows[_QUERY] if frame >= self._night[_CAMERA])
        self._story.note("scene", _CAMERA, at - self._story.begun)
        self._story.say(f"camera {_CAMERA}: night")

    def find_loss(self) -> None:
        """Wait until the loss is found, and the query is back on its original weights."""
        timeline = self._story.timeline
        self._wait(lambda: bool(timeline.of("reverted")), 300, f"a revert of {_QUERY}")
        self._wait(lambda: any(each.text == "revert" for each in timeline.of("reload")), 120, "the box's reload")
        if [each.text for each in timeline.of("reverted")] != [_QUERY]:
            raise CommandError(f"{timeline.of('reverted')[0].text} was reverted, though nothing changed at its camera")
        self._keep_state("reverted")

    def merge_on(self) -> None:
        """Collect samples of the new scene, and go on merging with them."""
        assert self._story.since is not None
        many = self._by_day + self._options.samples
        what = f"{self._options.samples} samples of the night"
        self._commands.wait_for(lambda: self._samples() >= many, 600, what, poll=1.0)
        begin = self._story.now()
        self._commands.run(
            "merger again", "gemel", "merge", "models/workload.yaml", "-o", "merged-on", "--from", "merged",
            "--samples", "box/samples", "--since", self._story.since, "--publish", "deltas", "--originals",
            "--budget", self._options.budget, until=parse_budget(self._options.budget) + 600, **_ONE,
        )  # fmt: skip
        back = _QUERY in self._merged(begin, "merged-on")
        self._story.note("back" if back else "private", _QUERY)
        self._story.say(f"{_QUERY}: {'shares weights again' if back else 'did not reach its target; it stays private'}")
        self._rest()
        self._keep_state("back")

    def end(self) -> None:
        """Stop what follows, then the box."""
        self._commands.stop("pull")
        # Status 3 says that a query should be reverted.
        self._commands.stop("drift", allowed=(0, 3))
        self._commands.stop("box")
        self._story.close_verdict(self._story.now())

    def merge_from_scratch(self) -> None:
        """Merge the original models with the samples that the merge went on with, to compare the images trained on."""
        assert self._story.since is not None
        budget = 2 * parse_budget(self._options.budget)
        self._commands.run(
            "from scratch", "gemel", "merge", "models/workload.yaml", "-o", "merged-scratch",
            "--samples", "box/samples", "--since", self._story.since, "--budget", f"{budget:.0f}s",
            until=budget + 600, **_ONE,
        )  # fmt: skip
        report = read_report(self._out / "merged-scratch/merge.json")
        self._story.timeline.figures["from scratch"] = {
            **self._figures("from scratch", report),
            "shares": any(use.query == _QUERY for each in report.shared for use in each.uses),
        }

    def compare(self) -> None:
        """Compare all answers with those of the original models, and the box's bundles with each other."""
        self._story.say("comparing answers")
        models, timeline = self._out / "models", self._story.timeline
        truth = json.loads((models / "labels.json").read_text())
        originals: dict[tuple[str, str], list[str]] = {}
        scenes = {}
        for scene in ("day", "night"):
            scenes[scene] = {camera: frames_of(models / f"{camera}-{scene}.mp4") for camera in CAMERAS}
            for query, answers in answers_to(self._out / "deltas/originals", scenes[scene]).items():
                originals[query, scene] = [label_of(each) for each in answers]
        timeline.answers = self._live.judged(self._story.begun, self._night, originals, truth)
        timeline.originals = {
            query: {
                scene: sum(a == b for a, b in zip(originals[query, scene], truth[query], strict=True)) / LENGTH
                for scene in scenes
            }
            for query in QUERIES
        }
        (reverted,) = timeline.of("reverted")
        store = open_samples(str(self._out / "box" / "samples"))
        records = [store.read(name).record for name in store.names() if name.startswith(f"{_CAMERA}-")]
        end = self._story.begun + reverted.begin
        timeline.figures["samples"] = sum(each.frame >= self._night[_CAMERA] and each.at <= end for each in records)
        some = {camera: scenes["day"][camera][:100] + scenes["night"][camera][:100] for camera in CAMERAS}
        states = {name: self._out / "states" / name for name in ("merged", "reverted", "back")}
        for what, after in (("revert", "reverted"), ("end", "back")):
            timeline.figures[f"equal after the {what}"] = equal_answers(states["merged"], states[after], some)
        for query, (same, count) in timeline.figures["equal after the revert"].items():
            if query != _QUERY and same != count:
                raise CommandError(f"{query}: {count - same} of {count} answers changed with the revert of {_QUERY}")

    def _samples(self) -> int:
        """Return the number of samples of the camera at which it gets dark."""
        return sum(each.name.startswith(_CAMERA) for each in (self._out / "box/samples").glob("*.json"))

    def _merged(self, begin: float, folder: str) -> set[str]:
        """Note that a merge has ended, wait until the box runs what it has published; return the queries that share."""
        report = read_report(self._out / folder / "merge.json")
        figures = self._figures("merger" if folder == "merged" else "merger again", report)
        self._story.timeline.targets = {query: found.target for query, found in report.queries.items()}
        self._story.timeline.happenings.append(Happening("merging", begin, self._story.now(), folder, figures))
        published = open_bundle(self._out / "deltas/bundle").id[:12]
        self._wait(lambda: self._story.bundle == published, 180, f"bundle {published} on the box")
        return {use.query for each in report.shared for use in each.uses}

    def _figures(self, command: str, report: MergeReport) -> dict[str, Any]:
        """Return what a merge saves, and the images that it trained on."""
        lines = (self._out / "logs" / f"{command}.log").read_text().splitlines()
        return {"saving": report.saving, "images": trained_until(lines)}

    def _rest(self) -> None:
        began = self._story.now()
        self._wait(lambda: self._story.now() > began + _CALM_S, 2 * _CALM_S, "the end of a pause")

    def _keep_state(self, name: str) -> None:
        target = self._out / "states" / name
        shutil.copytree(self._out / "box/bundle", target, ignore=shutil.ignore_patterns("device-cache"))

    def _wait(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        self._commands.wait_for(done, seconds, what)


def _begin_anew(out: Path) -> None:
    """Delete what an earlier drill has left, except the models."""
    for each in ("merged", "merged-on", "merged-scratch", "deltas", "box", "cameras", "states", "logs"):
        shutil.rmtree(out / each, ignore_errors=True)
    for each in ("box", "cameras", "deltas", "states"):
        (out / each).mkdir(parents=True)


def _interrupted(number: int, _: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the drill, and print and draw what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=_ROOT / "out" / "loop", help="folder for everything")
    parser.add_argument("--night", choices=DISTURBANCES, default="night, gamma 5", help="the new scene")
    parser.add_argument("--target", type=float, default=0.9, help="accuracy target of all queries")
    parser.add_argument("--recorded", type=int, default=1500, help="frames of each recording that models are merged by")
    parser.add_argument("--samples", type=int, default=2000, help="samples of the night before merging goes on")
    parser.add_argument("--budget", default="6m", help="time for each of the two merges")
    parser.add_argument("--scratch", action="store_true", help="merge from scratch, too, in up to twice the time")
    parser.add_argument("--docs", action="store_true", help="write figures and picture into docs/")
    parser.add_argument("--draw", action="store_true", help="only draw the picture and print the figures again")
    options = parser.parse_args()
    out: Path = options.output.resolve()
    if not options.draw:
        signal.signal(signal.SIGTERM, _interrupted)
        try:
            _run(out, options)
        except CommandError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("stopped; all commands have ended")
    timeline = Timeline.read(out / "timeline.json")
    lines = report_lines(timeline, _QUERY)
    print("\n".join(lines))
    draw(timeline, out / "loop.png")
    print(f"{out / 'loop.png'} is written")
    if options.docs:
        draw(timeline, _PICTURE)
        write_between(_PAGE, "loop", "\n".join(lines))


def _run(out: Path, options: argparse.Namespace) -> None:
    """Run all phases, and write the timeline.

    Raises:
        CommandError: a command failed, or did not do what is expected.
    """
    out.mkdir(parents=True, exist_ok=True)
    make_loop_models(out / "models", options.night, recorded=options.recorded, target=options.target)
    _begin_anew(out)
    for camera in CAMERAS:
        shutil.copyfile(out / "models" / f"{camera}-day.mp4", out / "cameras" / f"{camera}.mp4")
    story = Story(out / "box" / "bundle", out / "deltas", time())
    with Commands(out, story.heard) as commands:
        drill = Drill(out, commands, story, options)
        for phase in (drill.merge, drill.change_scene, drill.find_loss, drill.merge_on, drill.end):
            phase()
        if options.scratch:
            drill.merge_from_scratch()
    drill.compare()
    story.timeline.write(out / "timeline.json")


if __name__ == "__main__":
    main()
