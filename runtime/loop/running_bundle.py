"""Running bundle: the bundle that a run answers now, which can be exchanged while cameras go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from time import monotonic, time
from typing import Any

from ...bundles.feed_sources import feeds_from
from ...bundles.known_variables import known_variables
from ...bundles.manifest import FeedSpec, Manifest
from ...bundles.reader import Bundle, open_bundle
from ...errors import GemelError, InputError
from ..backends.prepare_apart import prepare_apart
from ..feeds import Feed
from ..memory.arena_stats import ArenaStats
from ..sinks import OutputSink
from ..sinks.run_queries import RunQueries
from ..trace import Watch, unwatched
from .deployment import Deployment, DeployOptions, deploy
from .first_plan import with_first_plan
from .lineup import Lineup
from .open_feeds import FeedOptions, open_feeds
from .runner import Runner
from .summary import FeedStats, MemoryUse, QueryStats, RunStats, Summary, SwapStats

__all__ = ["RunningBundle"]

_log = logging.getLogger(__name__)


@dataclass
class _Reloads:
    """Counts of a run's reloads of its bundle, and the outcome of the last reload."""

    done: int = 0
    failed: int = 0
    last: Mapping[str, Any] | None = None


class RunningBundle:
    """Bundle that a run answers, with its feeds and its deployment on the device.

    :meth:`reload` and :meth:`pause` change what runs, on any thread but the runner's own.

    Args:
        bundle: an open bundle.
        device: settings of the device.
        feeds: options that concern feeds.
        live: whether queries take the newest frames. Only a live run can be changed.
        watch: function that returns, for a feed's name, the function to tell when decoding of a frame began and ended.

    Raises:
        FeedError: no feed can be opened, or ``feeds.sources`` names a feed that does not exist.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: DeployOptions,
        feeds: FeedOptions,
        *,
        live: bool,
        watch: Callable[[str], Watch] = lambda name: unwatched,
    ) -> None:
        self.bundle = bundle
        self.feeds: Mapping[str, Feed] = {}
        """Name -> feed, for the feeds that could be opened."""
        self.queries = RunQueries({})
        """Query -> feed, for the queries whose feeds could be opened."""
        self.deployment: Deployment | None = None
        self.runner: Runner | None = None
        self.outputs: OutputSink | None = None
        self.ended = False
        self._device, self._options, self._live, self._watch = device, feeds, live, watch
        self._specs: Mapping[str, FeedSpec] = {}
        self._broken: Mapping[str, str] = {}
        self._past = ArenaStats()
        """Counters of the loads of all deployments that were replaced."""
        self._reloads = _Reloads()
        self._busy = Lock()
        self._take_feeds(*self._open_feeds(bundle))

    def deploy(self, progress: Callable[[str], None], profiling: Callable[[str], None]) -> Deployment:
        """Open the bundle on the device for the first time, and make a plan; see :func:`.deployment.deploy`."""
        self.deployment = deploy(self.bundle, self.queries, self._device, progress=progress, profiling=profiling)
        # What a plan promises, and minimum rates, are about live cameras.
        if self._live and self.deployment.swapping is not None:
            self.deployment.swapping = with_first_plan(self.deployment.swapping)
        return self.deployment

    def close(self) -> None:
        """Free the running bundle's weights and the device. A reload that is going on is given up."""
        self.ended = True
        with self._busy:
            if self.deployment is not None:
                self.deployment.close()

    def summarise(self, stats: RunStats, *, stopped: bool = False) -> Summary:
        """Return the summary of the run up to now. Any thread may call this."""
        deployment, outputs = self.deployment, self.outputs
        assert deployment is not None and outputs is not None, "summarise() is called during the run"
        loads = self._past + deployment.loads
        return Summary(
            self._with_broken(deployment.with_runs(stats)),
            deployment.backend.name,
            MemoryUse(deployment.backend.budget, loads.peak),
            SwapStats(loads.loads, loads.loaded, loads.blocked_s * 1e3 + stats.blocked_ms),
            self._device.policy,
            outputs.info.run,
            {name: counts.to_json() for name, counts in outputs.counts().items()},
            deployment.infer.stems,
            stopped=stopped,
        )

    def status(self) -> dict[str, Any]:
        """Return the fields of the run's status about reloads."""
        return {"reloads": {"done": self._reloads.done, "failed": self._reloads.failed, "last": self._reloads.last}}

    def reload(self, path: str | None = None, *, wait: bool = False) -> Mapping[str, Any]:
        """Go on with another bundle, or with the same one as it is on disk now, between two frames.

        The bundle is opened and prepared beside the running one. Queries that keep their name and feed keep their
        counts, and feeds that are not changed go on undisturbed. If anything fails, the running bundle goes on.

        Args:
            path: folder of the bundle; None for the folder of the running one.
            wait: whether to wait for another reload that is going on; otherwise such a call is refused.

        Returns:
            What was changed, as JSON fields.

        Raises:
            GemelError: the bundle cannot be opened or run, another reload is going on, or the run is offline.
        """
        if not self._live:
            raise InputError("an offline run cannot be changed")
        if not self._busy.acquire(blocking=wait):
            raise InputError("another reload is going on")
        began, target = monotonic(), self.bundle.path if path is None else Path(path)
        outcome: dict[str, Any] = {"at": round(time(), 3), "bundle": str(target)}
        try:
            outcome |= self._exchange(target)
        except Exception as error:
            known = isinstance(error, (GemelError, OSError))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            self._reloads.failed += 1
            self._reloads.last = {**outcome, "error": reason}
            if self.ended:
                _log.warning("reload: %s is given up, because the run ends", target)
            else:
                _log.error("reload: %s; the bundle that ran before runs on", reason, exc_info=not known)
            raise error if isinstance(error, GemelError) else InputError(reason) from error
        finally:
            self._busy.release()
        outcome["seconds"] = round(monotonic() - began, 3)
        self._reloads.done += 1
        self._reloads.last = {**outcome, "error": None}
        _log.warning("reload: %s runs now, after %.1f s", target, outcome["seconds"])
        return self._reloads.last

    def pause(self, kind: str, name: str, paused: bool) -> Mapping[str, Any]:
        """Pause or resume a query or a feed.

        Args:
            kind: ``queries`` or ``feeds``.
            name: name of the query or feed.
            paused: whether to pause; otherwise to resume.

        Returns:
            What was changed, as JSON fields.

        Raises:
            LookupError: there is no such query or feed.
            InputError: the run is offline, or has not begun.
        """
        if not self._live:
            raise InputError("an offline run cannot be changed")
        if self.runner is None:
            raise InputError("models are being prepared; ask again when the run is ready")
        self.runner.pause(kind, name, paused)
        return {kind: {name: {"paused": paused}}}

    def _exchange(self, path: Path) -> dict[str, Any]:
        """Open another bundle beside the running one, and replace the running one; return the changes."""
        before = self.deployment
        if before is None or self.runner is None or self.ended:
            raise InputError("models are being prepared, or the run has ended")
        bundle = open_bundle(path)
        if bundle.manifest.outputs != self.bundle.manifest.outputs:
            _log.warning("reload: the bundle has other outputs; those of the run stay until it is started again")
        named = bundle.manifest.device.backend
        if self._device.backend is None and named != before.backend.name:
            _log.warning("reload: the bundle names the backend %s; the run stays on %s", named, before.backend.name)
        feeds, specs, broken = self._open_feeds(bundle)
        queries = _queries_of(bundle, feeds)
        device = replace(self._device, backend=before.backend.name)
        prepare_apart(bundle, before.backend.name, lambda: self.ended)
        deployment = deploy(bundle, queries, device, before=before)
        try:
            if deployment.swapping is not None:
                deployment.swapping = with_first_plan(deployment.swapping)
            swapping = deployment.swapping
            changes = _changes(self.bundle.manifest, bundle.manifest)
            # New queries may be seen by sinks before they run; those that are gone must not be missing while they run.
            self.queries.add(queries)
            self.runner.change(Lineup(queries, feeds, deployment.infer, swapping, lambda: deployment.take_over(before)))
        except BaseException:
            deployment.close()
            self.queries.replace(before.queries)
            raise
        self._past += before.loads
        self.bundle, self.deployment = bundle, deployment
        self._take_feeds(feeds, specs, broken)
        before.close()
        return {**changes, **deployment.kept}

    def _open_feeds(self, bundle: Bundle) -> tuple[dict[str, Feed], dict[str, FeedSpec], dict[str, str]]:
        """Open the feeds of a bundle. Feeds that run already and are unchanged are kept.

        Returns:
            Name -> feed; name -> settings of the feed; and name -> reason, for the feeds that could not be opened.
        """
        variables = {*self._options.variables, *known_variables(bundle)}
        specs = dict(feeds_from(bundle.manifest.feeds, self._options.sources))
        known = {
            name: feed
            for name, feed in self.feeds.items()
            if specs.get(name) == self._specs.get(name) and not feed.finished
        }
        used = {query.feed for query in bundle.manifest.queries.values()}
        options = replace(self._options, variables=variables)
        feeds, broken = open_feeds(bundle.manifest.feeds, used, options, self._watch, known)
        return feeds, specs, broken

    def _take_feeds(self, feeds: Mapping[str, Feed], specs: Mapping[str, FeedSpec], broken: Mapping[str, str]) -> None:
        self.feeds, self._specs, self._broken = feeds, specs, broken
        self.queries.replace(_queries_of(self.bundle, feeds))

    def _with_broken(self, stats: RunStats) -> RunStats:
        """Return statistics with the feeds that could not be opened, and their queries, each with the reason."""
        broken = self._broken
        feed_of = {name: query.feed for name, query in self.bundle.manifest.queries.items()}
        idle = {
            query: QueryStats(feed, 0, 0, last_error=broken[feed]) for query, feed in feed_of.items() if feed in broken
        }
        failed = {name: FeedStats(0, error=reason, state="failed") for name, reason in broken.items()}
        found = {**stats.queries, **idle}
        # While a bundle is exchanged, a query may be in one of the two only.
        queries = {query: found[query] for query in [*feed_of, *stats.queries] if query in found}
        return replace(stats, queries=queries, feeds={**stats.feeds, **failed})


def _queries_of(bundle: Bundle, feeds: Collection[str]) -> dict[str, str]:
    """Return query -> feed, for the queries of a bundle whose feeds were opened."""
    return {name: query.feed for name, query in bundle.manifest.queries.items() if query.feed in feeds}


def _changes(before: Manifest, after: Manifest) -> dict[str, Any]:
    """Return the queries that a reload adds, removes and changes, as JSON fields.

    A query counts as changed if its own settings or its model are other ones.
    """
    old, new = before.queries, after.queries
    both = [name for name in new if name in old]
    changed = [
        name
        for name in both
        if new[name] != old[name] or after.models[new[name].model].stages != before.models[old[name].model].stages
    ]
    return {
        "queries": {
            "added": [name for name in new if name not in old],
            "removed": [name for name in old if name not in new],
            "changed": changed,
        }
    }
