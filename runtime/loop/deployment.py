"""Deployment: a bundle on a device, with everything that is needed to answer its queries."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from ...bundles.reader import Bundle
from ...bundles.staleness import Staleness
from ...errors import BackendError
from ..backends import Backend, open_backend
from ..backends.share_stems import shared_stems
from ..memory.arena_stats import ArenaStats
from ..memory.loading import WARM, Loading
from ..planning.planner import check_objective, check_policy, policy_of
from ..planning.profile import with_curves
from .device_profile import kept_batches, profile_after, profile_of
from .inference import Inference
from .plan_input import Swapping
from .summary import RunCounts, RunStats

__all__ = ["DeployOptions", "Deployment", "deploy"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeployOptions:
    """Settings of how a bundle runs on a device. The bundle's own setting applies where a setting is None."""

    backend: str | None = None
    memory: str | int | None = None
    policy: str = "gemel"
    """Name of the policy by which turns are planned if not all weights fit."""
    objective: str | None = None
    """Name of the objective of plans."""
    threads: int | None = None
    loading: Loading = WARM
    staleness: Mapping[str, Staleness] = field(default_factory=dict)
    """Query -> staleness curve that replaces the bundle's. Queries that the bundle does not have are left out."""


@dataclass
class Deployment:
    """Bundle on a device: its backend, the function that answers queries, and the input of plans."""

    bundle: Bundle
    backend: Backend
    queries: Mapping[str, str]
    """Query -> feed, for the queries whose feeds could be opened."""
    swapping: Swapping | None
    infer: Inference
    _before: ArenaStats = field(default_factory=ArenaStats)
    """Counters of the arena when the run could begin; after a reload, those before its new weights were loaded."""
    _ran: Mapping[str, RunCounts] = field(default_factory=dict)
    """Query -> counts of its runs in deployments before this one, on the feed that the query has now."""

    @property
    def loads(self) -> ArenaStats:
        """Counters of loads and evictions in the run, without those of measuring and of opening models before it."""
        return self.backend.stats.since(self._before)

    @property
    def kept(self) -> dict[str, int]:
        """Bytes of weights that stay in memory, and bytes that are new, when this deployment replaces another one."""
        kept = self.backend.kept_bytes
        return {"kept_bytes": kept, "new_bytes": sum(self.backend.segments.values()) - kept}

    def take_over(self, before: Deployment) -> None:
        """Replace another deployment; called on the runner's thread, between two frames."""
        self.backend.take_over(before.backend)
        self._ran = {
            name: before._counts_of(name) for name, feed in before.queries.items() if self.queries.get(name) == feed
        }

    def with_runs(self, stats: RunStats) -> RunStats:
        """Return statistics with the counts of the runs that answered each query's frames. Any thread may call this."""
        queries = {name: replace(each, ran=self._counts_of(name)) for name, each in stats.queries.items()}
        return replace(stats, queries=queries)

    def _counts_of(self, query: str) -> RunCounts:
        return self._ran.get(query, RunCounts()) + self.infer.counts.get(query, RunCounts())

    def close(self) -> None:
        """Free the bundle's weights, and the device that runs it."""
        self.backend.close()


def deploy(
    bundle: Bundle,
    queries: Mapping[str, str],
    settings: DeployOptions,
    *,
    progress: Callable[[str], None] = lambda model: None,
    profiling: Callable[[str], None] = lambda what: None,
    before: Deployment | None = None,
) -> Deployment:
    """Open a bundle on a device: prepare and open its models, and measure times if weights must be swapped.

    Args:
        bundle: an open bundle.
        queries: query -> feed, for the queries that will run.
        settings: settings of the device.
        progress: function called with the name of each model that is prepared for the device.
        profiling: function called with a description of what is measured next, if times must be measured.
        before: deployment that runs now, and that the new one replaces; run times that were measured for it are reused.

    Raises:
        InputError: the memory setting is not possible, the policy cannot serve the objective, or the backend, policy
            or objective is unknown.
        BackendError: the device cannot run the bundle.
    """
    check_policy(settings.policy)
    check_objective(settings.objective, (settings.policy,))
    backend = open_backend(
        bundle,
        settings.backend,
        memory=settings.memory,
        threads=settings.threads,
        loading=settings.loading,
        progress=progress,
        before=None if before is None else before.backend,
    )
    try:
        swapping = _swapping(bundle, backend, settings, queries, profiling, before)
        earlier = replace(backend.stats)
        # At a reload, weights that both bundles have are taken over later, so that they are not loaded twice.
        _warm(bundle, backend, queries, load=before is None)
        # The run goes on during a reload: new weights are loads of the run, but no running model waits for them.
        loads = replace(backend.stats if before is None else earlier, blocked_s=backend.stats.blocked_s)
        depths = None if swapping is None else swapping.depths(queries)
        stems = shared_stems(bundle.manifest, backend.stems, queries)
        infer = Inference(bundle, backend, depths, _batches(bundle, backend, swapping), stems)
    except BaseException:
        backend.close()
        raise
    return Deployment(bundle, backend, queries, swapping, infer, loads)


def _swapping(
    bundle: Bundle,
    backend: Backend,
    settings: DeployOptions,
    queries: Collection[str],
    profiling: Callable[[str], None],
    before: Deployment | None,
) -> Swapping | None:
    """Return the input of the run's plans; None if all weights fit into the budget, or times cannot be measured."""
    if sum(backend.segments.values()) <= backend.room:
        return None
    try:
        if before is None:
            profile = profile_of(bundle, backend, progress=profiling)
        else:
            known = None if before.swapping is None else before.swapping.profile
            profile = profile_after(bundle, backend, before.bundle, known)
    except BackendError as error:
        _log.warning("nothing is planned, queries take turns: %s", error)
        return None
    backend.evict()
    used = {name: query for name, query in profile.queries.items() if name in queries}
    profile = with_curves(profile.model_copy(update={"queries": used}), settings.staleness)
    for query in profile.late():
        run_ms = profile.run_ms(query, 1)
        _log.warning(
            "query %s: a run takes %.0f ms, longer than the SLA of %g ms", query, run_ms, profile.sla_of(query)
        )
    return Swapping(profile, backend.room, backend, policy_of(settings.policy, profile, settings.objective))


def _batches(bundle: Bundle, backend: Backend, swapping: Swapping | None) -> dict[str, tuple[int, ...]]:
    """Return model -> numbers of frames that run as one batch; empty if nothing was measured."""
    if swapping is None:
        # Starting must not take long for turns of more than one frame that may never come.
        return kept_batches(bundle, backend)
    return {name: model.as_batch for name, model in swapping.profile.models.items()}


def _warm(bundle: Bundle, backend: Backend, queries: Collection[str], *, load: bool) -> None:
    """Open the programs of all models, so that no camera waits for this later.

    Args:
        bundle: an open bundle.
        backend: backend on which the bundle is open.
        queries: names of the queries that will run.
        load: whether to load weights as well, if all fit into the budget.
    """
    fits = sum(backend.segments.values()) <= backend.room
    for model in dict.fromkeys(bundle.manifest.queries[query].model for query in queries):
        # A model that cannot be used fails again when its queries run, and is reported then.
        with contextlib.suppress(BackendError):
            backend.prepare(model)
            if fits and load:
                backend.activate(model)
                backend.release(model)
    if not fits:
        backend.evict()
