"""Lines and a progress bar that say what a merge is doing, what is left of it, and how to go on after its time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from ..console import Stop, print_stage
from ..errors import GemelError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..bundles.merge_report import MergeReport
    from ..merging.search.forecast import Forecast

__all__ = ["merge_listener", "publish_steps", "what_helps"]


Moment = Literal["begin", "step", "end"]
"""When something is published: before the search, after a commit, or after the search."""


def merge_listener(bar: Progress, stop: Stop, publish: Callable[[Moment], str] | None = None) -> Any:
    """Return a listener for a merge that prints a line per model and trial, and shows progress on a bar.

    The bar shows training steps, losses and accuracies. The listener's attribute ``forecasts`` has the forecasts of the
    search so far, and ``unloaded`` the number of models that were not loaded in time.

    Args:
        bar: the bar.
        stop: flag that a signal sets.
        publish: function called before the search and after each commit, to publish what is written; it returns a line
            about what was published, or nothing. Its errors do not end the merge.
    """
    from ..merging.merge import Listener
    from ..merging.search.keeping import SAVES_LESS
    from ..merging.training.closed_form import summary
    from ..merging.training.loading import NOT_LOADED

    console, began = bar.console, perf_counter()
    looked = [monotonic()]

    def say(stage: str, what: str) -> None:
        print_stage(console, stage, what, began=began)

    def show_published(moment: Moment) -> None:
        try:
            line = "" if publish is None else publish(moment)
        except GemelError as error:
            line = f"not published, the next step will be: {error}"
        if line:
            say("publish", line)

    class Printer(Listener):
        def __init__(self) -> None:
            self.forecasts: list[Forecast] = []
            self.unloaded = 0
            self._useless = False

        def model(self, subject: Any) -> None:
            stop.check()
            scores = ", ".join(f"{held.query.name} {held.original:.1%}" for held in subject.held)
            say("model", f"{subject.name}: {len(subject.layers)} layers, {len(subject.train)} images; {scores}")

        def left_out(self, model: str, error: Exception) -> None:
            self.unloaded += str(error) == NOT_LOADED
            say("model", f"{model} stays as it is: {error}")

        def samples(self, samples: Any) -> None:
            for line in samples.lines:
                say("samples", line)

        def fine_tunes(self, models: Any) -> None:
            say("family", models.description)

        def trial(self, trial: Any) -> None:
            stop.check()
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(escape(trial.group), total=None, steps="")

        def errors(self, models: Any, errors: Any) -> None:
            stop.check()
            if len(models) > 1 and errors:
                say("layers", f"{', '.join(models)}: {summary(list(errors.values()))}")

        def forecast(self, forecast: Forecast) -> None:
            self.forecasts.append(forecast)
            if len(self.forecasts) == 1:
                say("search", f"{_left(forecast)} to come if each training reaches its targets")
                show_published("begin")

        def waiting(self) -> None:
            stop.check()

        def progress(self, progress: Any) -> None:
            stop.check()
            losses = " ".join(f"{model} {loss:.3f}" for model, loss in progress.losses.items())
            text = f"loss {losses}"
            if progress.accuracies:
                text += " accuracy " + " ".join(f"{query} {value:.1%}" for query, value in progress.accuracies.items())
            if bar.task_ids:
                steps = f"{progress.step} of {progress.steps} steps"
                bar.update(
                    bar.task_ids[-1],
                    completed=progress.step,
                    total=progress.steps,
                    description=escape(text),
                    steps=steps,
                )
            if not console.is_terminal and monotonic() - looked[0] > 30:
                looked[0] = monotonic()
                say("step", f"{progress.step} of {progress.steps}, {text}")

        def verdict(self, verdict: Any, report: Any) -> None:
            outcome = verdict.outcome
            if verdict.trial.again:
                for query, kept in outcome.relative.items():
                    found = report.queries[query]
                    holds = "holds, and stays as it is" if found.model in outcome.met else "loses its shared weights"
                    say("again", f"{query}: keeps {kept:.1%} of the original (target {found.target:.0%}): {holds}")
                return
            if verdict.trial.release:
                say("again", f"{verdict.trial.group}; all others keep theirs; left: {_left(self.forecasts[-1])}")
                show_published("step")
                return
            before, self._useless = self._useless, outcome.ended == SAVES_LESS
            if self._useless:
                # A strategy that knows nothing of forms may ask for dozens of these.
                if not before:
                    say("trial", f"{verdict.trial.group}: not run, like all that would save hardly more than forms")
                return
            worst = min(outcome.relative.items(), key=lambda item: item[1], default=("", 0.0))
            word = "accepted" if verdict.accepted else "measured" if verdict.trial.recipe is None else "not accepted"
            say(
                "trial",
                f"{verdict.trial.group}: {word} ({outcome.ended}); worst query {worst[0]} keeps {worst[1]:.1%};"
                f" {report.saving:.1%} saved; {outcome.samples} images in {outcome.seconds:.0f} s;"
                f" left: {_left(self.forecasts[-1])}",
            )
            if verdict.accepted:
                show_published("step")

    return Printer()


def what_helps(report: MergeReport, listener: Any, seconds: float) -> str:
    """Return the line that says how to go on after the time was up.

    Args:
        report: the report on the merge.
        listener: the listener of the merge (:func:`merge_listener`).
        seconds: time that the command has taken.
    """
    if listener.unloaded:
        what = f"time is up before {listener.unloaded} of the models were loaded"
    elif not report.trials:
        what = "time is up before the first look at starting weights was over"
    else:
        return f"time is up, left: {_left(listener.forecasts[-1])}; --resume goes on with a larger --budget"
    return f"{what}, after {_duration(seconds)}; --resume goes on with a larger --budget"


def _left(forecast: Forecast) -> str:
    """Return the text for what is left of a search if each training that is to come reaches its targets."""
    counts = ((forecast.looks, "look"), (forecast.trainings, "training"))
    text = " and ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts if count) or "nothing"
    return text + (f" (about {_duration(forecast.seconds)})" if forecast.seconds else "")


def _duration(seconds: float) -> str:
    """Return a time in the largest unit in which it is at least 2, such as ``95 s`` or ``12 min``.

    >>> _duration(95), _duration(700), _duration(8000)
    ('95 s', '12 min', '2.2 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def publish_steps(folder: Path, key: Path | None, originals: Path | None, merged: Path) -> Callable[[Moment], str]:
    """Return a function that publishes what a merge has written, and returns a line about it.

    Before the search only an empty folder gets something, because boxes that follow an earlier merge have no use for
    unmerged weights. During the search a new merge.json alone is no reason to have boxes reload.

    Args:
        folder: folder to publish to.
        key: PEM file with the private key that signs the deltas; None to sign nothing.
        originals: workload.yaml whose weights all bundles keep; None to keep none.
        merged: folder that the merge writes.
    """
    from ..merging.output.publish import Publisher

    publisher = Publisher(folder, key, originals)

    def publish(moment: Moment) -> str:
        empty = publisher.empty
        if moment == "begin" and not empty:
            return ""
        done = publisher.publish(merged / "workload.yaml", report=moment == "end")
        if done is not None:
            return f"{done.path}: {done.bytes / 1e6:.2f} MB, from bundle {done.base[:12]} to {done.makes[:12]}"
        return f"{folder / 'bundle'}: the bundle that boxes begin with" if empty else ""

    return publish
