"""Run of a bundle on its feeds, from opening the backend to the summary: what ``gemel-run`` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

from ..bundles.known_variables import known_variables
from ..bundles.output_specs import OutputSpec, SamplesSpec
from ..bundles.reader import Bundle
from ..bundles.staleness import Staleness, check_curves
from ..errors import InputError
from .loop import pipeline
from .loop.deployment import DeployOptions
from .loop.open_feeds import FeedOptions
from .loop.runner import Runner
from .loop.running_bundle import RunningBundle
from .loop.summary import RunStats, Summary
from .loop.summary_file import SummaryFile
from .memory.loading import WARM, Loading
from .service.run_service import RunService, ServiceOptions
from .sinks import LiveTable, RunInfo, Sink, open_outputs
from .sinks.run_outputs import outputs_of_run
from .sinks.sampling import SampleHook, Sampling, check_upload
from .trace import Trace, Watch, unwatched

__all__ = ["RunOptions", "run_bundle"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """Options of a run. The bundle's own settings apply where an option is left out."""

    backend: str | None = None
    """Name of the backend that runs the bundle."""
    memory: str | int | None = None
    """Memory setting that gives the budget for weights: bytes, ``"64MiB"``, ``"50%"``, ``"min"`` or ``"all"``."""
    policy: str = "gemel"
    """Name of the policy by which a run is planned if not all weights fit, in :data:`.planning.planner.POLICIES`."""
    objective: str | None = None
    """Name of the objective of plans, in :data:`gemel.bundles.goals.OBJECTIVES`."""
    staleness: Mapping[str, Staleness] = field(default_factory=dict)
    """Query -> staleness curve that replaces the one in the bundle."""
    loading: Loading = WARM
    """Settings of how weights are loaded: from the page cache or the disk, at full speed or slower."""
    frames: int | None = None
    """Number of frames of each feed after which the run ends; no limit if None."""
    duration: float | None = None
    """Seconds after which the run ends; no limit if None."""
    offline: bool = False
    """Whether every query processes every frame, as fast as models run. Recordings then loop only if a limit is set."""
    threads: int | None = None
    """Maximum number of threads that one run of a model may use; one less than the number of cores if None."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Feed -> source to use instead of the source that the bundle states."""
    variables: Collection[str] = ()
    """Environment variables (``${VAR}``) that the bundle's sources and outputs may use, besides those that begin with
    ``GEMEL_``. A bundle that the user compiled on this machine may use all of its own."""
    outputs: Sequence[OutputSpec] | None = None
    """Outputs that replace those of the bundle; the bundle's if None."""
    results: Path | None = None
    """File that results are appended to, as JSON lines; ``-`` for the standard output; not written if None."""
    video: Path | None = None
    """Folder that annotated videos are written to; not written if None."""
    samples: SamplesSpec | None = None
    """Folder that samples (frames with the answers given) are written to, and how often; not written if None."""
    sample_hook: SampleHook | None = None
    """Function that changes each frame of all outputs ``samples`` before it is stored, for example blurs faces."""
    sample_upload: str | None = None
    """Folder in a store that samples are moved to, such as ``s3://bucket/box7``; samples stay on the box if None."""
    trace: Path | None = None
    """File that a Chrome trace is written to; not written if None."""
    summary: Path | None = None
    """File that summary.json is written to, every minute and at the end; not written if None."""
    live_table: bool = False
    """Whether to show a table on the terminal that is updated during the run."""
    service: ServiceOptions = field(default_factory=ServiceOptions)
    """Options of the HTTP server, and of the reports to the service manager."""


def run_bundle(
    bundle: Bundle,
    options: RunOptions,
    *,
    sinks: Sequence[Sink] = (),
    stop: Event | None = None,
    reload: Event | None = None,
    progress: Callable[[str], None] = lambda model: None,
    profiling: Callable[[str], None] = lambda what: None,
) -> Summary:
    """Run every query of a bundle until its feeds end, a limit is reached or ``stop`` is set.

    Queries of a feed that cannot be opened get no frames, and the summary says why; all other queries run. If not all
    weights fit into the budget, the run follows a plan. A plan needs the times of loads and runs, which are measured if
    the device cache has none.

    Args:
        bundle: an open bundle.
        options: settings and limits of the run, and the files that the run writes.
        sinks: receivers of results, in addition to the outputs; closed when the run ends.
        stop: event that ends the run early when it is set.
        reload: event that makes the run go on with the bundle as it is on disk then, each time that it is set.
        progress: function called with the name of each model that is prepared for the device.
        profiling: function called with a description of what is measured next, if times must be measured.

    Raises:
        FeedError: no feed can be opened, or ``options.sources`` names a feed that does not exist.
        MissingExtraError: samples are to be uploaded, and fsspec is not installed.
        InputError: a limit or the memory setting is not possible, the policy cannot serve the objective, the objective
            is about accuracy and a query has no staleness curve, a staleness curve is of no query of the bundle, or the
            HTTP server cannot listen.
        BackendError: the device cannot run the bundle.
    """
    check_curves(options.staleness, bundle.manifest.queries, "staleness")
    if options.sample_upload is not None:
        check_upload(options.sample_upload)
    trace = None if options.trace is None else Trace()
    variables = {*options.variables, *known_variables(bundle)}
    running = _running(bundle, options, trace)
    service = RunService(running, options.service, reload)
    try:
        deployment = running.deploy(progress, profiling)
        # Outputs are opened last: only the pipeline closes them, so nothing may fail before the pipeline begins.
        table = [LiveTable(running.queries, feeds=running.feeds)] if options.live_table else []
        specs = outputs_of_run(
            bundle.manifest.outputs,
            options.outputs,
            allowed=variables,
            results=options.results,
            video=options.video,
            samples=options.samples,
        )
        own = [*table, *service.sinks, *sinks]
        sampling = Sampling(lambda: running.queries.bundle, options.sample_hook, options.sample_upload)
        outputs = open_outputs(specs, running.queries, RunInfo(), own, patient=options.offline, sampling=sampling)
        running.outputs = outputs
        file = SummaryFile(options.summary)

        def summarise(stats: RunStats) -> Summary:
            """Return the summary of the run up to now."""
            return running.summarise(stats, stopped=stop is not None and stop.is_set())

        def begin(runner: Runner) -> None:
            """Start writing summary.json, and show the run to other programs."""
            running.runner = runner
            file.start(lambda: summarise(runner.stats()))
            service.begin(lambda: summarise(runner.stats()))

        try:
            stats = pipeline.run_pipeline(
                deployment.queries,
                running.feeds,
                deployment.infer,
                [outputs],
                live=not options.offline,
                frames=options.frames,
                duration=options.duration,
                stop=stop,
                swapping=deployment.swapping,
                trace=trace,
                started=begin,
                beat=service.beat,
            )
        except BaseException as error:
            if running.runner is not None:
                file.finish(summarise(running.runner.stats()), error)
            raise
        _write_trace(trace, options.trace)
        summary = summarise(stats)
        file.finish(summary)
        return replace(summary, unwritten=file.error)
    finally:
        service.close()
        running.close()


def _running(bundle: Bundle, options: RunOptions, trace: Trace | None) -> RunningBundle:
    """Return the running bundle for a run's options; its feeds are opened, but not started."""
    # An endless recording would never let an offline run end.
    endless = not options.offline or options.frames is not None or options.duration is not None
    loading = replace(options.loading, watch=_watch(trace, "load"))
    return RunningBundle(
        bundle,
        DeployOptions(
            options.backend,
            options.memory,
            options.policy,
            options.objective,
            options.threads,
            loading,
            options.staleness,
        ),
        FeedOptions(options.sources, set(options.variables), endless),
        live=not options.offline,
        watch=lambda name: _watch(trace, f"decode {name}"),
    )


def _watch(trace: Trace | None, lane: str) -> Watch:
    """Return a function that adds spans (timed intervals) to a lane of the trace, or ignores them without a trace."""
    return unwatched if trace is None else partial(trace.span, lane)


def _write_trace(trace: Trace | None, path: Path | None) -> None:
    """Write the trace. A failure is logged and not raised, so that the summary of the run is not lost."""
    if trace is not None and path is not None:
        try:
            trace.write(path)
        except InputError as error:
            _log.warning("%s", error)
