"""Answers of a bundle to stored frames, with all weights in memory and no deadline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ...bundles.reader import Bundle, open_bundle
from ...console import missing_extra
from ...errors import InputError
from ...frames.frame import Frame, Image
from ...runtime.backends import open_backend
from ...runtime.decode.results import Result
from ...runtime.loop.inference import Inference

if TYPE_CHECKING:
    from ...compiler.compile import ConvertPrecision
    from ...workload import Workload

__all__ = ["BundleAnswers", "open_originals"]


class BundleAnswers:
    """Bundle on a device that answers single frames.

    Args:
        bundle: open bundle.
        backend, threads: as in :func:`gemel.runtime.backends.open_backend`.

    Raises:
        BackendError: the device cannot run the bundle.
    """

    def __init__(self, bundle: Bundle, backend: str | None = None, threads: int | None = None) -> None:
        self.bundle, self.at_once = bundle, 1
        self._device = open_backend(bundle, backend, memory="all", threads=threads)
        self._infer, self._count = Inference(bundle, self._device), 0

    def answer(self, image: Image, queries: Sequence[str]) -> dict[str, Result]:
        """Return query -> answer to a frame.

        Args:
            image: ``[H, W, 3]`` uint8, BGR.
            queries: queries of one feed.

        Raises:
            Exception: a model failed on the frame.
        """
        self._count += 1
        # Queries of one feed that want equal inputs prepare the frame once.
        frame = Frame("samples", self._count, image, 0.0, 0.0)
        found: dict[str, Result] = {}
        for query, outcome in zip(queries, self._infer([(query, frame) for query in queries]), strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            found[query] = outcome
        return found

    def __enter__(self) -> BundleAnswers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device.close()


@contextmanager
def open_originals(
    path: Path,
    told: Callable[[str], None] = lambda what: None,
    converter: Callable[[Workload, Path], ConvertPrecision] | None = None,
) -> Iterator[Bundle]:
    """Open the bundle of the original models during the ``with`` block.

    Args:
        path: a bundle; or a workload, which is compiled into a temporary folder first.
        told: function called with a line about what is compiled.
        converter: function that returns, for the workload and the folder of its bundle, what converts its models to
            lower precision; None to leave them as they are.

    Raises:
        InputError: there is neither a bundle nor a workload, or a model of the workload cannot be used.
        CompileError: a model of the workload cannot be exported.
        MissingExtraError: a workload was given, and the compiler is not installed.
    """
    if path.is_dir():
        yield open_bundle(path)
        return
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise InputError(f"--originals: {path}: a bundle of the original models, or their workload.yaml, is expected")
    try:
        from ...compiler import compile_workload
        from ...compiler.compile import convert_nothing
        from ...workload import load_workload
    except ModuleNotFoundError as error:
        raise missing_extra(error, "--originals WORKLOAD.YAML", "compiler") from error
    with tempfile.TemporaryDirectory(prefix="gemel-originals-", ignore_cleanup_errors=True) as folder:
        told(f"{path}: compiled for this time; gemel-compile makes a bundle that can be used again")
        made = Path(folder) / "bundle"
        workload = load_workload(path)
        compile_workload(workload, made, convert=convert_nothing if converter is None else converter(workload, made))
        yield open_bundle(made)
