"""Merge a workload: search for sharing, retrain, and write the same workload with shared weights (``gemel merge``)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

import torch

from ..bundles.merge_report import MergeReport
from ..errors import InputError, first_line
from ..workload.document.schema import Workload
from .forms.fine_tunes import FineTunes
from .layers.families import distances_of, find_families, representatives
from .layers.layers import Definition
from .layers.problem import Problem, pair_layers
from .layers.sharing import Slot
from .models.bases import check_bases
from .output.disk_journal import DiskJournal
from .output.going_on import GoesOn, open_going_on
from .output.kept_samples import MergeSamples, merge_samples
from .output.modules import imported_beside, modules_beside
from .output.report import Reporter
from .output.store import Store
from .search.find_forms import find_forms
from .search.forecast import Forecast, forecast
from .search.found import Found
from .search.search import Job, search
from .strategies import Search, SearchSettings, Strategy, Verdict, strategy
from .strategies.cheapest_forms import with_forms
from .strategies.rejoin import Earlier, rejoin
from .training.closed_form import JointErrors
from .training.deadline import TimeUpError
from .training.freed_memory import keep_freed_memory
from .training.loading import build_subjects
from .training.subjects import Subject
from .training.training import TrainingProgress
from .training.trial import Outcome, Trial, TrialRunner

__all__ = ["Listener", "MergeOptions", "device_of", "merge_workload"]

_MOST_TOLD = 8
"""Maximum number of models of a family whose closed-form errors are measured before the search."""


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge of a workload's models."""

    strategy: str = "together"
    """Name of the search strategy, one of :data:`.strategies.STRATEGIES`."""
    settings: SearchSettings = field(default_factory=SearchSettings)
    definition: Definition = "shape"
    """Rule that says when two layers may share a weight (:data:`.layers.Definition`): ``shape`` or ``strict``."""
    seed: int = 0
    """Seed for all random numbers of a merge; the same seed repeats the same merge."""
    device: str = "auto"
    """Device to retrain on: ``auto``, ``cpu`` or ``cuda``."""
    budget: float | None = None
    """Time limit of a merge in seconds, after which the best sharing found so far is the result; None for no limit."""
    resume: bool = False
    """Whether to continue the merge that the output folder holds."""
    ray: str | None = None
    """Address of a Ray cluster for independent trials; ``local`` starts a cluster on this machine, None uses no Ray."""
    earlier: Path | None = None
    """Folder of an earlier merge of the same workload to go on from; None to start from the original weights."""
    samples: str | None = None
    """Folder, or address of a store, with frames that boxes have sampled; queries are judged by these as well, and
    models trained on them. None for no samples; ``earlier`` needs some."""
    since: float = -math.inf
    """Unix time by the boxes' clocks before which samples are left out. A merge that is resumed keeps its samples."""


class Listener:
    """Callbacks for the progress of a merge. All do nothing; a subclass overrides those that it needs."""

    def model(self, subject: Subject) -> None:
        """Handle a model that was just loaded together with its images."""

    def left_out(self, model: str, error: InputError) -> None:
        """Handle a model that keeps its weights because it cannot be retrained or judged; the error says why."""

    def samples(self, samples: MergeSamples) -> None:
        """Handle the samples that the merge uses, and the numbers of those that are left out."""

    def fine_tunes(self, models: FineTunes) -> None:
        """Handle a set of models that were found to be fine-tunes of one checkpoint."""

    def trial(self, trial: Trial) -> None:
        """Handle the start of a trial, which applies one sharing map and measures the accuracies."""

    def progress(self, progress: TrainingProgress) -> None:
        """Handle the end of a training step. An override may raise KeyboardInterrupt to stop the merge."""

    def waiting(self) -> None:
        """Handle about a second of waiting for trials on Ray. May raise KeyboardInterrupt to stop the merge."""

    def errors(self, models: Sequence[str], errors: Mapping[Slot, float | None]) -> None:
        """Handle the closed-form errors of the layers that some models could share (:class:`.JointErrors`).

        The errors come before the search, for each family and for all models. None stands for a layer that was not
        fitted.
        """

    def forecast(self, forecast: Forecast) -> None:
        """Handle a forecast of what is left of the search; it comes before the search and before each verdict."""

    def verdict(self, verdict: Verdict, report: MergeReport) -> None:
        """Handle the search's decision on a trial, after the trial's changes were written to disk."""


def merge_workload(
    workload: Workload, output: str | Path, options: MergeOptions | None = None, listener: Listener | None = None
) -> MergeReport:
    """Merge the models of a workload, write the merged workload to a folder, and return the report.

    The folder holds a usable workload as soon as all models are loaded, and after every trial.

    Args:
        workload: the workload whose models are merged.
        output: folder to write the merged workload to.
        options: options of the merge; None for the defaults.
        listener: callbacks for the progress of the merge; None for no callbacks.

    Raises:
        InputError: the workload, its data, the options or the folder cannot be used.
        KeyboardInterrupt: the listener stopped the merge; committed sharing stays in the folder.
    """
    options, listener = options or MergeOptions(), listener or Listener()
    keep_freed_memory()
    deadline = monotonic() + options.budget if options.budget is not None else math.inf
    device = device_of(options.device)
    plan = strategy(options.strategy)
    seen = None
    if options.samples is not None:
        seen = merge_samples(options.samples, workload, Path(output), since=options.since, resume=options.resume)
    goes_on = open_going_on(workload, options.earlier, seen, options.strategy, options.settings)
    with Store(Path(output), _header(workload, options, goes_on), resume=options.resume) as store:
        try:
            return _merge(workload, store, plan, options, listener, device, deadline, goes_on)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"--device: not enough memory: {first_line(error)} --resume with --device cpu goes on from the last"
                " commit; a smaller --batch needs less memory, but the search begins anew"
            ) from error


def _merge(
    workload: Workload,
    store: Store,
    plan: Strategy,
    options: MergeOptions,
    listener: Listener,
    device: torch.device,
    deadline: float,
    goes_on: GoesOn,
) -> MergeReport:
    """Load the models, search until ``time.monotonic()`` passes ``deadline``, and write the merged workload."""
    left: dict[str, str] = {}

    def leave(model: str, error: InputError) -> None:
        """Note that a model keeps its weights, and call the listener."""
        left[model] = str(error)
        listener.left_out(model, error)

    if options.settings.differences:
        check_bases(workload)
    # A resumed search needs all models to repeat its trials, and one that goes on needs all that are merged.
    until = math.inf if store.replaying or goes_on.earlier is not None else deadline
    samples = None
    if goes_on.samples is not None:
        listener.samples(goes_on.samples)
        samples = goes_on.samples.listings(store)
    subjects = build_subjects(workload, options.definition, device, listener.model, leave, until, samples)
    wanted = options.settings.supervision
    if wanted in ("labels", "both") and not any(
        each.held[0].task.learns_from(each.train) for each in subjects.values()
    ):
        raise InputError(f"--supervision: {wanted}: no model has labels to learn from; give data.train with labels")
    originals = {name: subject.state() for name, subject in subjects.items()}
    problem = Problem(
        {name: subject.layers for name, subject in subjects.items()},
        options.seed,
        {name: tuple(query.name for query in subject.network.queries) for name, subject in subjects.items()},
        {query.name: query.target for query in workload.queries},
        distances_of({name: subject.layers for name, subject in subjects.items()}, originals),
        JointErrors(subjects, options.seed),
    )
    if len(subjects) > 1 and goes_on.earlier is None and not store.replaying and monotonic() <= deadline:
        _tell_errors(problem, listener)

    settings = options.settings
    earlier = goes_on.earlier
    had_forms = earlier is not None and earlier.report.forms is not None
    costs = find_forms(
        workload,
        subjects,
        listener.fine_tunes,
        differences=settings.differences or had_forms,
        compress=settings.compress,
    )
    begin = Found(originals) if earlier is None else earlier.start(subjects, left, costs)

    def start() -> Search:
        """Start the search for forms and sharing anew."""
        if earlier is not None:
            return rejoin(problem, settings, costs, Earlier(begin.sharing, begin.forms, begin.retained))
        return with_forms(plan, problem, settings, costs)

    def look_ahead(verdicts: Sequence[Verdict]) -> None:
        """Call the listener with a forecast of the search."""
        listener.forecast(forecast(start, problem, verdicts, begin))

    def settled(verdict: Verdict, report: MergeReport, found: Found) -> None:
        """Call the listener with the forecast after a trial and with the verdict on it."""
        look_ahead(found.verdicts)
        listener.verdict(verdict, report)

    reporter = Reporter(problem, subjects, originals, options.strategy, left)
    journal = DiskJournal(workload, store, subjects, reporter, settled)
    store.place(modules_beside(workload))
    if not store.replaying:
        # Write what the search begins with first, so that the folder is usable even if no trial succeeds.
        journal.commit(begin, finished=False)
        look_ahead(())
    steps = start()
    if options.ray is not None:
        from .search.cluster import Cluster

        modules = imported_beside(workload)
        with Cluster(options.ray, subjects, options.seed, deadline, listener.waiting, modules) as cluster:

            def execute_on_ray(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
                for job in jobs:
                    listener.trial(job.trial)
                yield from cluster.execute(jobs)

            found = search(problem, steps, originals, execute_on_ray, journal, deadline, begin)
    else:
        runner = TrialRunner(subjects, options.seed)

        def execute(jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
            for job in jobs:
                if monotonic() > deadline:
                    return
                listener.trial(job.trial)
                try:
                    outcome = runner(job.trial, job.states, job.shared, deadline, listener.progress)
                except TimeUpError:
                    return
                yield outcome

        found = search(problem, steps, originals, execute, journal, deadline, begin)
    return journal.commit(found, finished=monotonic() <= deadline)


def _tell_errors(problem: Problem, listener: Listener) -> None:
    """Call the listener with the closed-form errors of each family and of all models, of eight models at most."""
    assert problem.joint_error is not None
    for family in [*find_families(problem), frozenset(problem.models)]:
        seen = problem.of(representatives(problem, family, _MOST_TOLD))
        slots = [slot for _, slot in pair_layers(seen)]
        listener.errors(tuple(sorted(family)), {slot: problem.joint_error(slot) for slot in slots})
        if len(family) == len(problem.models):
            break


def device_of(name: str) -> torch.device:
    """Return the PyTorch device that a ``--device`` value names; raise InputError for an unknown or missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device: {name!r} is not allowed: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda is not available here; use auto or cpu")
    return torch.device(name)


def _header(workload: Workload, options: MergeOptions, goes_on: GoesOn) -> dict[str, object]:
    """Return the header of the search journal: everything that must be equal for a search to be resumed."""
    queries = workload.model_dump_json(include={"queries", "feeds", "stills"})
    return {
        "workload": hashlib.sha256(queries.encode()).hexdigest()[:32],
        "base": workload.base,
        "strategy": options.strategy,
        "definition": options.definition,
        "seed": options.seed,
        "from": goes_on.earlier and goes_on.earlier.digest,
        "samples": goes_on.samples and goes_on.samples.digest,
        **asdict(options.settings),
    }
