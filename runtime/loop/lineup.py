"""Lineup of a run: the queries, feeds and models that run until the next change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event

from ..feeds import Feed
from .answerer import Infer
from .channel import Channel, QueryState
from .plan_input import Swapping

__all__ = ["Change", "Lineup"]


@dataclass(frozen=True)
class Lineup:
    """Queries, feeds and models that run until the next change of a run."""

    queries: Mapping[str, str]
    """Query -> name of its feed, in the order of the workload."""
    feeds: Mapping[str, Feed]
    """Name -> feed that runs until the next change of the run. Feeds that ran before are not interrupted."""
    infer: Infer
    swapping: Swapping | None = None
    """Input of the run's plans; None if all weights are in memory and each turn takes one frame."""
    begin: Callable[[], None] = lambda: None
    """Function called on the runner's thread, between two frames, before new queries, feeds and models take over."""

    def states(
        self, depths: Mapping[str, int], channels: Mapping[str, Channel], queries: Mapping[str, QueryState]
    ) -> tuple[dict[str, Channel], dict[str, QueryState]]:
        """Return the states of the lineup's feeds and queries, by name; those that ran before go on with theirs.

        Args:
            depths: feed -> maximum number of frames that wait for its queries at once.
            channels: name of a feed -> its state in the lineup before.
            queries: name of a query -> its state in the lineup before.
        """
        feeds = {name: Channel(self.feeds[name], depth) for name, depth in depths.items()}
        for name in feeds.keys() & channels.keys():
            feeds[name].go_on(channels[name])
        states = {name: QueryState(name, feeds[feed]) for name, feed in self.queries.items()}
        for name, state in states.items():
            if name in queries:
                state.go_on(queries[name])
            state.channel.queries.append(state)
        return feeds, states


@dataclass(frozen=True, eq=False)
class Change:
    """Request to replace a runner's lineup (its queries, feeds and models)."""

    lineup: Lineup
    done: Event = field(default_factory=Event)
    """Event that is set when the new lineup (queries, feeds and models) runs."""
