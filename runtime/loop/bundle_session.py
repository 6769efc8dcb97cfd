"""Session of a bundle on a device, for images that the caller brings: the Python API's counterpart of ``gemel-run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from time import monotonic
from types import TracebackType

import numpy as np

from ...bundles.reader import Bundle
from ...errors import InputError
from ...frames.frame import Frame, Image
from ..backends import open_backend
from ..backends.share_stems import shared_stems
from ..decode.results import Result
from .inference import Inference

__all__ = ["BundleSession"]


class BundleSession:
    """Session that answers queries of a bundle on images of the caller, under a memory budget. Not thread-safe.

    If the budget has no room for all weights, the weights of a query are loaded when the query needs them, and others
    are evicted.

    Args:
        bundle: an open bundle.
        backend: name of the backend, such as ``"ort-cpu"``; the bundle's own setting when left out.
        memory: memory setting that gives the budget for weights: bytes, ``"64MiB"``, ``"50%"``, ``"min"`` or ``"all"``;
            the bundle's own setting when left out.
        threads: maximum number of threads that one run may use; one less than the number of cores when left out.

    Raises:
        InputError: the backend is unknown, or the memory setting is not allowed or too small.
        BackendError: the device is missing or cannot run the bundle.

    Example:
        >>> import gemel
        >>> with gemel.BundleSession(gemel.open_bundle("bundle"), memory="50%") as session:  # doctest: +SKIP
        ...     people = session.answer("junction-people", image)
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str | None = None,
        memory: str | int | None = None,
        threads: int | None = None,
    ) -> None:
        self._feed_of = {name: query.feed for name, query in bundle.manifest.queries.items()}
        self._backend = open_backend(bundle, backend, memory=memory, threads=threads)
        stems = shared_stems(bundle.manifest, self._backend.stems, self._feed_of)
        self._infer = Inference(bundle, self._backend, stems=stems)
        self._index = count()

    @property
    def queries(self) -> Mapping[str, str]:
        """Query -> feed that the query was written for, in the order of the workload."""
        return dict(self._feed_of)

    @property
    def budget(self) -> int:
        """Maximum bytes that weights may take in memory."""
        return self._backend.budget

    @property
    def peak(self) -> int:
        """Maximum bytes of weights that were in memory at once so far."""
        return self._backend.stats.peak

    def answer(self, query: str, image: Image) -> Result:
        """Run one query on one image.

        Args:
            query: name of the query in the workload.
            image: pixels ``[H, W, 3]``, uint8, BGR, as OpenCV reads files.

        Returns:
            The result of the query's task: a tuple of :class:`.Detection` (boxes in pixels of ``image``) or of
            :class:`.Class`, or an :class:`.Embedding`, :class:`.Segmentation`, :class:`.Text` or :class:`.Raw`.

        Raises:
            InputError: the query is unknown, or the array is not an image.
            BackendError: the model could not be swapped in or run.
        """
        if query not in self._feed_of:
            raise InputError(f"query {query!r} is not in the bundle; its queries are {', '.join(self._feed_of)}")
        return self._answers([(query, self._frame(self._feed_of[query], image))])[query]

    def answer_feed(self, feed: str, image: Image) -> dict[str, Result]:
        """Run all queries of a feed on one image. Queries whose models take equal inputs share the resized image.

        Queries of one model share its run.

        Args:
            feed: name of a feed that has queries.
            image: pixels ``[H, W, 3]``, uint8, BGR.

        Returns:
            Query -> result of the query; see :meth:`answer`.

        Raises:
            InputError: no query has this feed, or the array is not an image.
            BackendError: a model could not be swapped in or run.
        """
        queries = [query for query, of in self._feed_of.items() if of == feed]
        if not queries:
            raise InputError(
                f"feed {feed!r} has no query; feeds are {', '.join(dict.fromkeys(self._feed_of.values()))}"
            )
        frame = self._frame(feed, image)
        return self._answers([(query, frame) for query in queries])

    def close(self) -> None:
        """Close the backend, which frees the weights and the device. Idempotent."""
        self._backend.close()

    def __enter__(self) -> BundleSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self, pairs: Sequence[tuple[str, Frame]]) -> dict[str, Result]:
        """Run different queries on frames, and return query -> result; raise the first failure."""
        found: dict[str, Result] = {}
        for (query, _), outcome in zip(pairs, self._infer(pairs), strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            found[query] = outcome
        return found

    def _frame(self, feed: str, image: Image) -> Frame:
        # An array of another kind would give plausible answers about a picture that nobody took.
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            shape = f"{image.dtype}{list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"image: {shape} is not an image; uint8 [height, width, 3] in BGR order is expected")
        now = monotonic()
        return Frame(feed, next(self._index), image, now, now)
