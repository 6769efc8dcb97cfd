"""Answers of a bundle to stored frames, by workers of a Ray cluster, several frames at once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from ...bundles.reader import MANIFEST, Bundle, open_bundle
from ...errors import BackendError, GemelError
from ...frames.frame import Image
from ...ray_cluster import connect
from ...runtime.decode.results import Result
from .bundle_answers import BundleAnswers

__all__ = ["RayAnswers", "RayCluster"]

_MOST = 32
"""Maximum number of frames that are answered at once: each takes two workers, which open a bundle first."""
_PATIENCE_S = 300.0
"""Seconds after which a cluster without a free CPU is given up."""
_RESTARTS = 3
"""Number of times that a lost worker is started again, and that a frame is sent again."""


class RayCluster:
    """Ray cluster whose CPUs answer frames; a context manager that disconnects at its end.

    Args:
        address: as in :func:`gemel.ray_cluster.connect`.
        threads: threads of one worker; one when left out.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """

    def __init__(self, address: str, threads: int | None = None) -> None:
        self.ray = connect(address, "gemel drift")
        self.threads = threads or 1
        free = int(self.ray.cluster_resources().get("CPU", 1)) // self.threads
        self.at_once = min(max(1, free), _MOST)
        """Number of frames that are answered at once."""

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ray.shutdown()


class RayAnswers:
    """Bundle on the workers of a Ray cluster; each call answers one frame, and several threads may call at once.

    Workers open the bundle in its folder where they find the same one there. To others it is sent.

    Args:
        bundle: open bundle.
        cluster: cluster with the workers.
        backend: as in :func:`gemel.runtime.backends.open_backend`.

    Raises:
        BackendError: a worker cannot run the bundle.
    """

    def __init__(self, bundle: Bundle, cluster: RayCluster, backend: str | None = None) -> None:
        self.bundle, self.at_once, self._ray = bundle, cluster.at_once, cluster.ray
        names = (MANIFEST, *bundle.manifest.files)
        # Kept, because a worker that is started again reads them again.
        self._files = self._ray.put({name: (bundle.path / name).read_bytes() for name in names})
        # Of the two bundles that a frame is shown to, one waits for the other: each has half of the CPUs.
        share = 0.5 if cluster.threads == 1 else cluster.threads // 2
        made = self._ray.remote(num_cpus=share, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(_Worker)
        self._workers = [
            made.remote(bundle.path, bundle.id, self._files, backend, cluster.threads) for _ in range(cluster.at_once)
        ]
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._await_one()

    def answer(self, image: Image, queries: Sequence[str]) -> dict[str, Result]:
        """Return query -> answer to a frame, as :meth:`.bundle_answers.BundleAnswers.answer`.

        Raises:
            Exception: a model failed on the frame, or its worker was lost again and again.
        """
        worker = self._idle.get()
        try:
            found: dict[str, Result] = self._ray.get(worker.answer.remote(image, list(queries)))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        finally:
            self._idle.put(worker)
        return found

    def _await_one(self) -> None:
        """Wait until a worker has opened the bundle; the others may have to wait for CPUs."""
        done, _ = self._ray.wait([worker.ready.remote() for worker in self._workers], timeout=_PATIENCE_S)
        if not done:
            raise BackendError(f"--ray: no worker has started within {_PATIENCE_S:.0f} s; the cluster's CPUs are taken")
        try:
            self._ray.get(done[0])
        except self._ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1].strip()
            raise BackendError(f"--ray: a worker cannot run {self.bundle.path}: {why}") from error

    def __enter__(self) -> RayAnswers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            self._ray.kill(worker)


class _Worker:
    """Bundle in a process of the cluster.

    Args:
        path: folder of the bundle on the machine that judges.
        digest: id of the bundle.
        files: file of the bundle -> its content.
        backend, threads: as in :func:`gemel.runtime.backends.open_backend`.
    """

    def __init__(self, path: Path, digest: str, files: dict[str, bytes], backend: str | None, threads: int) -> None:
        found = _opened(path)
        if found is None or found.id != digest:
            self._folder = tempfile.TemporaryDirectory(prefix="gemel-drift-")
            path = Path(self._folder.name)
            for name, content in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
            found = open_bundle(path)
        self._answers = BundleAnswers(found, backend, threads)

    def ready(self) -> None:
        """Do nothing; whoever has called this knows that the bundle is open."""

    def answer(self, image: Image, queries: list[str]) -> dict[str, Result]:
        """Return query -> answer to a frame."""
        return self._answers.answer(image, queries)


def _opened(path: Path) -> Bundle | None:
    try:
        return open_bundle(path)
    except GemelError:
        return None
