"""Queries of a run with their feeds, as sinks see them: a mapping that may be replaced while the run goes on."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping

__all__ = ["RunQueries"]


class RunQueries(Mapping[str, str]):
    """Mapping from the queries of a run to their feeds. Any thread may read it while another one replaces it.

    Args:
        queries: query -> name of its feed, in the order of the workload.
    """

    def __init__(self, queries: Mapping[str, str]) -> None:
        self._now = dict(queries)
        """Present queries and their feeds. This dictionary is never changed, only replaced, so that any thread may read
        it."""

        self.bundle = ""
        """Id of the bundle that answers the queries now; the thread that runs models sets it between two frames."""

    def replace(self, queries: Mapping[str, str]) -> None:
        """Replace all queries of the run by the given ones."""
        self._now = dict(queries)

    def add(self, queries: Mapping[str, str]) -> None:
        """Add queries to those of the run, or give queries another feed."""
        self._now = {**self._now, **queries}

    def items(self) -> ItemsView[str, str]:
        """Return the present pairs of a query and its feed."""
        return self._now.items()

    def __getitem__(self, query: str) -> str:
        return self._now[query]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)
