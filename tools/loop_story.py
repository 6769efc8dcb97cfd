"""What the commands of the drill tell in their lines, as a timeline."""

from __future__ import annotations

import re
from pathlib import Path
from time import time
from typing import Any

from loop_models import QUERIES
from loop_timeline import Happening, Timeline

from gemel.bundles.reader import open_bundle
from gemel.check.contents.original_figures import unique_bytes

__all__ = ["Story"]


class Story:
    """What the lines of the commands tell, as a timeline.

    Args:
        box: folder of the bundle that the box runs.
        deltas: folder of the deltas.
        begun: Unix time at which the drill began.
    """

    def __init__(self, box: Path, deltas: Path, begun: float) -> None:
        self.timeline = Timeline({name: query.feed for name, query in QUERIES.items()}, {})
        self.url: str | None = None
        """Address of the live page."""
        self.since: str | None = None
        """When the loss began, as ``gemel drift`` says it."""
        self.bundle: str | None = None
        """Beginning of the id of the bundle that the box runs."""
        self.begun = begun
        self._box, self._deltas = box, deltas
        self._starts_from = ""
        """Id of the bundle that the next delta starts from: the box's, or what that would be without reverts."""
        self._asked: dict[str, tuple[float, str]] = {}
        self._verdicts: dict[str, str] = {}

    def now(self) -> float:
        """Return the seconds since the drill began."""
        return time() - self.begun

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"{self.now():6.1f} s  {text}", flush=True)

    def note(self, kind: str, text: str = "", begin: float | None = None, **more: Any) -> None:
        """Note that something has happened; now, if ``begin`` does not say when."""
        self.timeline.happenings.append(Happening(kind, self.now() if begin is None else begin, None, text, more))

    def heard(self, name: str, at: float, line: str) -> None:
        """Take in one line of a command."""
        at -= self.begun
        if name != "box" or "http://" in line:
            self.say(f"{name}: {line}")
        if name == "box" and (match := re.search(r"http://[\d.]+:\d+", line)):
            self.url = match.group()
            self._note_bundle(at)
        elif match := re.search(r"deltas/(\w+)\.delta: ", line):
            self.note("published", begin=at, bytes=self._delta_bytes(match[1]))
        elif match := re.search(r"bundle (\w+) is now (\w+); \S+ MB of weights came in a delta of", line):
            self._asked[name] = (at, "delta")
            self.note("applied", begin=at, bytes=self._delta_bytes(self._starts_from), makes=match[2])
        elif name == "drift" and (
            match := re.search(r": (\S+) now with original weights; bundle \w+ is now (\w+)", line)
        ):
            self._asked[name] = (at, "revert")
            self.note("reverted", match[1], at, makes=match[2])
        elif name != "box" and (match := re.search(r" runs now, after ([\d.]+) s", line)):
            # The box says so, too.
            _, why = self._asked.pop(name, (at, "revert"))
            self.timeline.happenings.append(Happening("reload", at - float(match[1]), at, why))
            self._note_bundle(at)
        elif match := re.fullmatch(r"query (\S+): (\w+) \(before: \w+\)", line):
            self._verdict(match[1], match[2], at)
        elif "is another bundle now" in line:
            self._verdicts.clear()
        elif match := re.search(r"--since (\S+)$", line):
            self.since = match[1]

    def _delta_bytes(self, base: str) -> int:
        """Return the size of the delta that starts from a bundle, given at least the beginning of the bundle's id."""
        (path,) = self._deltas.glob(f"{base[:12]}*.delta")
        return path.stat().st_size

    def _note_bundle(self, at: float) -> None:
        content = open_bundle(self._box)
        originals = content.manifest.originals
        self._starts_from = (originals.merged if originals is not None else None) or content.id
        self.bundle = content.id[:12]
        files = sum(spec.bytes for spec in content.manifest.files.values())
        self.note("bundle", self.bundle, at, weights=unique_bytes(content.manifest), files=files)

    def _verdict(self, query: str, verdict: str, at: float) -> None:
        """Note the worst verdict of all queries from now on."""
        before = self._worst()
        self._verdicts[query] = verdict
        if self._worst() != before or not self.timeline.of("verdict"):
            self.close_verdict(at)
            self.note("verdict", query, at, verdict=self._worst())

    def _worst(self) -> str:
        order = ("unknown", "holds", "watch", "revert")
        return max(self._verdicts.values(), key=order.index, default="unknown")

    def close_verdict(self, at: float) -> None:
        """End the newest verdict."""
        found = self.timeline.happenings
        for index, each in enumerate(found):
            if each.kind == "verdict" and each.end is None:
                found[index] = Happening("verdict", each.begin, at, each.text, each.more)
