"""Merge a workload: search for sharing, retrain, and write the same workload with shared weights (``gemel merge``)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

import torch
from safetensors.torch import save

from ..bundles.merge_report import MergeReport
from ..errors import InputError, first_line
from ..workload.document.paths import locate
from ..workload.document.schema import Workload
from ..workload.models.factory import read_state
from ..workload.models.identity import models_of
from .layers.layers import Definition
from .layers.problem import Problem
from .models.networks import Network
from .models.onnx_models import cut_onnx, onnx_bytes
from .output.modules import imported_beside, modules_beside
from .output.report import Reporter, merged_workload
from .output.store import Store
from .search.search import Found, Job, search
from .strategies import SearchSettings, Strategy, Verdict, strategy
from .training.loading import build_subjects
from .training.subjects import State, Subject
from .training.training import TrainingProgress
from .training.trial import Outcome, Trial, TrialRunner

__all__ = ["Listener", "MergeOptions", "merge_workload", "weight_file"]


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


class Listener:
    """Callbacks for the progress of a merge. All do nothing; a subclass overrides those that it needs."""

    def model(self, subject: Subject) -> None:
        """Handle a model that was just loaded together with its images."""

    def left_out(self, model: str, error: InputError) -> None:
        """Handle a model that keeps its weights because it cannot be retrained or judged; the error says why."""

    def trial(self, trial: Trial) -> None:
        """Handle the start of a trial, which applies one sharing map and measures the accuracies."""

    def progress(self, progress: TrainingProgress) -> None:
        """Handle the end of a training step. An override may raise KeyboardInterrupt to stop the merge."""

    def waiting(self) -> None:
        """Handle about a second of waiting for trials on Ray. May raise KeyboardInterrupt to stop the merge."""

    def verdict(self, verdict: Verdict, report: MergeReport) -> None:
        """Handle the search's decision on a trial, after the trial's changes were written to disk."""


def merge_workload(
    workload: Workload, output: str | Path, options: MergeOptions | None = None, listener: Listener | None = None
) -> MergeReport:
    """Merge the models of a workload, write the merged workload to a folder, and return the report.

    The folder holds a usable workload as soon as all models are loaded, and after every batch of trials.

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
    deadline = monotonic() + options.budget if options.budget is not None else math.inf
    device = _device(options.device)
    plan = strategy(options.strategy)
    with Store(Path(output), _header(workload, options), resume=options.resume) as store:
        try:
            return _merge(workload, store, plan, options, listener, device, deadline)
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
) -> MergeReport:
    """Load the models, search until ``time.monotonic()`` passes ``deadline``, and write the merged workload."""
    left: dict[str, str] = {}

    def leave(model: str, error: InputError) -> None:
        left[model] = str(error)
        listener.left_out(model, error)

    subjects = build_subjects(workload, options.definition, device, listener.model, leave)
    problem = Problem(
        {name: subject.layers for name, subject in subjects.items()},
        options.seed,
        {name: tuple(query.name for query in subject.network.queries) for name, subject in subjects.items()},
        {query.name: query.target for query in workload.queries},
    )
    originals = {name: subject.state() for name, subject in subjects.items()}
    journal = _DiskJournal(workload, store, subjects, Reporter(problem, subjects, options.strategy, left), listener)
    store.place(modules_beside(workload))
    if not store.replaying:
        # Write the unmerged workload first, so that the folder is usable even if no trial succeeds.
        journal.commit(Found(originals), finished=False)
    steps = plan(problem, options.settings)
    if options.ray is not None:
        from .search.cluster import Cluster

        modules = imported_beside(workload)
        with Cluster(options.ray, subjects, options.seed, deadline, listener.waiting, modules) as cluster:

            def execute_on_ray(jobs: Sequence[Job]) -> list[Outcome] | None:
                for job in jobs:
                    listener.trial(job.trial)
                return cluster.execute(jobs)

            found = search(problem, steps, originals, execute_on_ray, journal, deadline)
    else:
        runner = TrialRunner(subjects, options.seed)

        def execute(jobs: Sequence[Job]) -> list[Outcome] | None:
            outcomes: list[Outcome] = []
            for job in jobs:
                if outcomes and monotonic() > deadline:
                    return None
                listener.trial(job.trial)
                outcomes.append(runner(job.trial, job.states, job.shared, deadline, listener.progress))
            return outcomes

        found = search(problem, steps, originals, execute, journal, deadline)
    return journal.commit(found, finished=monotonic() <= deadline)


def _device(name: str) -> torch.device:
    """Return the PyTorch device that a ``--device`` value names; raise InputError for an unknown or missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(f"--device: {name!r} is not allowed: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda is not available here; use auto or cpu")
    return torch.device(name)


def _header(workload: Workload, options: MergeOptions) -> dict[str, object]:
    """Return the header of the search journal: everything that must be equal for a search to be resumed."""
    queries = workload.model_dump_json(include={"queries", "feeds", "stills"})
    return {
        "workload": hashlib.sha256(queries.encode()).hexdigest()[:32],
        "strategy": options.strategy,
        "definition": options.definition,
        "seed": options.seed,
        **asdict(options.settings),
    }


def weight_file(network: Network, state: State, root: Path) -> tuple[bytes, str]:
    """Return content and suffix of a model's weight file: safetensors, or onnx for a model from an ONNX file.

    Args:
        network: the model.
        state: new weights of the model.
        root: folder that the workload's paths are relative to.
    """
    query = network.queries[0]
    if query.model.onnx is None:
        return save(state), "safetensors"
    source = locate(query.model.onnx, root, f"query {query.name}: onnx")
    return onnx_bytes(source, state, query.model.input), "onnx"


class _DiskJournal:
    """Search :class:`.Journal` on disk that also writes the report and a usable workload after each batch of trials."""

    def __init__(
        self,
        workload: Workload,
        store: Store,
        subjects: Mapping[str, Subject],
        reporter: Reporter,
        listener: Listener,
    ) -> None:
        self._workload, self._store, self._subjects = workload, store, subjects
        self._reporter, self._listener = reporter, listener
        self._replayed = store.replaying
        self._files: dict[str, tuple[State, str]] = {}

    def recall(self, trials: Sequence[Trial]) -> list[Outcome] | None:
        """Return the recorded outcomes of a batch of trials, or None if the batch has not run yet."""
        return self._store.recall(trials)

    def restore(self, found: Found) -> tuple[dict[str, State], dict[str, State]] | None:
        """Return, once all batches of an interrupted search are recalled, its committed and last trained weights."""
        if not self._replayed:
            return None
        self._replayed = False
        files = self._store.weights
        return {name: self._read(name, files[name]) for name in found.sharing.models}, self._store.last_states()

    def record(self, verdicts: Sequence[Verdict], found: Found, last: Mapping[str, State]) -> None:
        """Write a batch of verdicts, the report and the workload to disk, then call the listener for each verdict."""
        self._store.record(verdicts, last, self._contents(found))
        report = self.commit(found, finished=False)
        for verdict in verdicts:
            self._listener.verdict(verdict, report)

    def commit(self, found: Found, *, finished: bool) -> MergeReport:
        """Write the merged weights, the report and the workload to disk and return the report."""
        report = self._reporter.report(found, finished=finished)
        files = self._contents(found)
        written = self._reporter.confirmed(found).sharing.models
        names = {name: f"weights/{file}" for name, (file, _) in files.items() if name in written}
        workload = merged_workload(self._workload, names, models_of(self._workload), self._store.output)
        self._store.commit(dict(files.values()), report, workload)
        return report

    def _contents(self, found: Found) -> dict[str, tuple[str, bytes | None]]:
        """Return merged model -> (weight file name, content); content is None if an earlier call returned it."""
        files: dict[str, tuple[str, bytes | None]] = {}
        for name in sorted(found.sharing.models):
            state, known = found.states[name], self._files.get(name)
            if known is not None and known[0] is state:
                files[name] = known[1], None
            else:
                files[name] = file, _ = self._file(name, state)
                self._files[name] = state, file
        return files

    def _file(self, name: str, state: State) -> tuple[str, bytes]:
        """Return the name and the content of a model's weight file; the name contains a hash of the content."""
        content, suffix = weight_file(self._subjects[name].network, state, self._workload.root)
        digest = hashlib.sha256(content).hexdigest()[:8]
        return f"{name}-{digest}.{suffix}", content

    def _read(self, name: str, path: Path) -> State:
        """Read a model's weights from a weight file with the content that :meth:`_file` makes."""
        query = self._subjects[name].network.queries[0]
        if query.model.onnx is None:
            return read_state(path)
        model = query.model.model_copy(update={"onnx": str(path)})
        query = query.model_copy(update={"model": model})
        state = Network(name, (query,), cut_onnx(query, self._workload.root)).module.state_dict()
        return {key: value.clone() for key, value in state.items()}
