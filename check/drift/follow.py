"""Judging of the samples that a folder has now, once or again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event

from ...errors import BackendError, InputError
from ...runtime.sinks.sample_files import DamagedSampleError, SampleStore, StoredSample
from .judge import Asked, DriftJudge, DriftVerdict

__all__ = ["Round", "in_order", "judge_new", "rounds"]


@dataclass(frozen=True)
class Round:
    """What one look at a folder of samples has changed."""

    changes: dict[str, tuple[DriftVerdict, DriftVerdict]] = field(default_factory=dict)
    """Query whose verdict has changed -> its verdict before and now."""
    trouble: str | None = None
    """Why the folder cannot be read, where it could be before; None if it can."""


def judge_new(
    judge: DriftJudge,
    store: SampleStore,
    known: set[str] | None = None,
    *,
    stop: Event | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Judge all samples of a folder that are not known yet.

    Args:
        judge: judge of the samples.
        store: folder of samples.
        known: names of the records that were judged before. Those that are judged now are added one by one, so that
            after an error the next call goes on from there. In the end, names of deleted samples are removed.
        stop: event that ends the judging early.
        told: function called with the number of samples judged so far, and of all.

    Raises:
        BackendError: the store does not answer, or gives no access.
        InputError: the folder cannot be listed.
    """
    known = set() if known is None else known
    names = store.names()
    samples: list[StoredSample] = []
    for name in names:
        if name not in known:
            try:
                samples.append(store.read(name))
            except DamagedSampleError as error:
                judge.leave_out("damaged", str(error))
                known.add(name)
    late: set[str] = set()
    ordered = in_order(samples, lambda sample: late.add(sample.name))
    with closing(_asked(judge, [sample for sample, _ in ordered])) as answers:
        for number, (sample, at) in enumerate(ordered):
            if stop is not None and stop.is_set():
                return
            told(number, len(ordered))
            judge.add(next(answers), at)
            judge.clocks_back += sample.name in late
            known.add(sample.name)
    # Otherwise the names of samples that boxes have deleted would add up.
    known.intersection_update(names)


def _asked(judge: DriftJudge, samples: Sequence[StoredSample]) -> Generator[Asked, None, None]:
    """Yield samples with their answers, in order; as many are answered at once as the judge's devices allow."""
    if judge.at_once == 1:
        yield from map(judge.ask, samples)
        return
    with ThreadPoolExecutor(judge.at_once) as pool:
        try:
            yield from pool.map(judge.ask, samples)
        finally:
            pool.shutdown(cancel_futures=True)


def rounds(
    judge: DriftJudge, store: SampleStore, pause: float, stop: Event, known: set[str] | None = None
) -> Iterator[Round]:
    """Judge new samples again and again until ``stop`` is set, and yield what each look has changed.

    A folder that is missing or cannot be read now is looked at again later, and so are samples that were not read.

    Args:
        judge: judge of the samples.
        store: folder of samples.
        pause: seconds between two looks.
        stop: event that ends the judging.
        known: names of the records that were judged before; those judged now are added.
    """
    known = set() if known is None else known
    trouble: str | None = None
    while not stop.is_set():
        before = {query: drift.verdict for query, drift in judge.drifts.items()}
        earlier, trouble = trouble, None
        try:
            judge_new(judge, store, known, stop=stop)
        except (BackendError, InputError) as error:
            trouble = str(error)
        changes = {
            query: (before[query], drift.verdict)
            for query, drift in judge.drifts.items()
            if drift.verdict != before[query]
        }
        yield Round(changes, trouble if trouble != earlier else None)
        stop.wait(pause)


def in_order(
    samples: Iterable[StoredSample], back: Callable[[StoredSample], None] = lambda sample: None
) -> list[tuple[StoredSample, float]]:
    """Return samples in the order in which they are judged, each with its time in Unix seconds.

    Frames of one run and feed are in the order of their indices, whatever the box's clock did meanwhile. A clock that
    was set back was wrong before: earlier samples count as no later than later ones. Runs and feeds are merged by these
    times, each box's by its own clock.

    Args:
        samples: samples of any runs and feeds.
        back: function called with each sample whose clock is behind that of an earlier frame.
    """
    groups: dict[tuple[str, str], list[StoredSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.record.run, sample.record.feed].append(sample)
    found: list[tuple[float, str, str, int, StoredSample]] = []
    for (run, feed), group in groups.items():
        group.sort(key=lambda sample: sample.record.frame)
        latest = float("-inf")
        for sample in group:
            if sample.record.at < latest:
                back(sample)
            latest = max(latest, sample.record.at)
        earliest = float("inf")
        for sample in reversed(group):
            earliest = min(earliest, sample.record.at)
            found.append((earliest, run, feed, sample.record.frame, sample))
    found.sort(key=lambda item: item[:4])
    return [(sample, at) for at, *_, sample in found]
