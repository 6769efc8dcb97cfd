"""Acting on verdicts: queries that are to be reverted go back to their original weights in the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...bundles.reader import open_bundle
from ...bundles.revert_bundle import RevertedBundle, revert_queries
from ...errors import GemelError, InputError, first_line
from .judge import DriftJudge

__all__ = ["Reverting"]


class Reverting:
    """Revert of each query of a bundle whose verdict is ``revert``, once.

    Args:
        path: folder of the bundle that is judged.
        judge: judge of its samples, who is told about each new bundle.
        reload: function that has a run go on with the new bundle; called again after a failure.
        key: public ed25519 key that must have signed the delta with the original weights; None to accept any.
    """

    def __init__(
        self,
        path: Path,
        judge: DriftJudge,
        reload: Callable[[], None] = lambda: None,
        key: bytes | None = None,
    ) -> None:
        self._path, self._judge, self._reload, self._key = path, judge, reload, key
        self.bundle_id = judge.bundle.id
        """Id of the bundle that is in the folder now, as far as it is known."""
        self._waits = False
        """Whether the run has not taken over the newest bundle yet."""
        self._done: set[str] = set()
        self.trouble: dict[str, str] = {}
        """Query -> why it could not be reverted. The next call tries again."""
        self.reload_trouble: str | None = None
        """Why the run did not go on with the new bundle; None if it did. The next call tries again."""

    @property
    def troubles(self) -> list[str]:
        """Lines about what failed in the last call of :meth:`act`."""
        lines = [f"query {query}: is not reverted: {reason}" for query, reason in self.trouble.items()]
        return lines + ([] if self.reload_trouble is None else [f"reload: {self.reload_trouble}"])

    def act(self) -> list[RevertedBundle]:
        """Revert the queries whose verdict says so and that were not reverted yet; return what was done."""
        self.trouble = {}
        made: list[RevertedBundle] = []
        for query, drift in self._judge.drifts.items():
            if drift.verdict != "revert" or query in self._done:
                continue
            if query in self._judge.reverted:
                # Another query with the same model went first.
                self._done.add(query)
                continue
            try:
                if (now := open_bundle(self._path)).id != self.bundle_id:
                    raise InputError(f"{self._path}: is another bundle now, {now.id[:12]}; judge that one")
                made.append(revert_queries(self._path, [query], key=self._key))
            except GemelError as error:
                self.trouble[query] = first_line(error)
                continue
            self._done.add(query)
            self.bundle_id, self._waits = made[-1].bundle.id, True
            self._judge.go_on(made[-1].bundle)
        if self._waits:
            self._take_over()
        return made

    def _take_over(self) -> None:
        """Have the run go on with the newest bundle."""
        try:
            self._reload()
        except GemelError as error:
            self.reload_trouble = first_line(error)
        else:
            self._waits, self.reload_trouble = False, None
