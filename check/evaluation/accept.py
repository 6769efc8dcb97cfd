"""Accuracy of bf16: agreement of a bundle's answers in OpenVINO's bf16 with its answers in float32."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from ...bundles.reader import Bundle
from ...errors import BackendError
from ...runtime.decode.agreement import agreement
from ...runtime.ov.accepted import Acceptance, QueryAgreement
from ...runtime.ov.openvino_cpu import computes_in_bf16
from .reference import AnswerCount, OfflineSettings, answer_all, has_several_labels, recordings

__all__ = ["measure_bf16"]

_LEAST_FRAMES = 20
"""Minimum number of frames on which answers are compared."""


def measure_bf16(
    bundle: Bundle,
    settings: OfflineSettings,
    *,
    stop: Event | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Acceptance:
    """Measure how much each query's answers in bf16 agree with its answers on ``ort-cpu``.

    Both precisions answer the same frames of recordings, with all weights in memory. A query with fewer than 20 frames,
    or whose feed is a camera, has None as its agreement.

    Args:
        bundle: open bundle.
        settings: number of frames, threads and sources.
        stop: event that ends the measurement early. The caller must then ignore the result.
        told: function that receives progress: the number of answers so far, and the number expected.

    Raises:
        FeedError: no feed is a recording that can be read, or a source in ``settings`` is none.
        BackendError: this CPU does not compute in bf16, or cannot run the bundle.
        MissingExtraError: OpenVINO is not installed.
    """
    if not computes_in_bf16():
        raise BackendError("OpenVINO does not compute in bf16 on this CPU, so there is nothing to accept")
    queries = bundle.manifest.queries
    left_out: dict[str, str] = {}
    sources = recordings(bundle, settings.sources, left_out)
    total = 2 * settings.frames * len(queries)
    runs = []
    for place, backend in enumerate(("ort-cpu", "openvino-fast")):
        count = AnswerCount(lambda done, place=place: told(done + place * total // 2, total))  # type: ignore[misc]
        recorder = answer_all(
            bundle,
            sources,
            dict.fromkeys(sources, settings.frames),
            backend=backend,
            threads=settings.threads,
            stop=stop,
            loop=False,
            beside=[count],
        )
        runs.append({query: {each.frame: each.result for each in recorder.answers[query]} for query in queries})
    found = {}
    for name, query in queries.items():
        if query.feed in left_out:
            found[name] = QueryAgreement(agreement=None, frames=0)
            continue
        right, given = (run[name] for run in runs)
        # A frame that has an answer in float32 only counts as wrong.
        answers = [given.get(frame) for frame in right]
        enough = len(right) >= _LEAST_FRAMES
        several = has_several_labels(bundle, name)
        value = agreement(query.task, answers, [*right.values()], multi_label=several) if enough else None
        found[name] = QueryAgreement(agreement=value, frames=len(right))
    return Acceptance(bundle=bundle.id, queries=found)
