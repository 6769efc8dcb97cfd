"""Bundles that have original weights beside merged ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemel.bundles.manifest import Manifest
from gemel.bundles.originals import add_originals, note_address, ship_originals
from gemel.bundles.reader import open_bundle
from gemel.bundles.replace_bundle import replacing
from gemel.check.drift.bundle_answers import BundleAnswers
from gemel.frames.frame import Image

__all__ = ["answers", "with_address", "with_originals"]


def with_originals(merged: Path, original: Path, output: Path) -> Path:
    """Write a bundle that has the original weights, and return its folder."""
    with replacing(output) as work:
        add_originals(open_bundle(merged), open_bundle(original), work)
    return output


def with_address(merged: Path, original: Path, output: Path, folder: Path, at: str | None = None) -> Path:
    """Write a bundle that knows where its original weights are, and a delta with them; return the bundle's folder.

    Args:
        merged: bundle of merged models.
        original: bundle of the original models.
        output: folder of the new bundle.
        folder: folder for the delta.
        at: address of that folder; its path if None.
    """
    with replacing(output) as work:
        note_address(open_bundle(merged), work, str(folder) if at is None else at)
    folder.mkdir(exist_ok=True)
    ship_originals(open_bundle(output), open_bundle(original), folder)
    return output


def answers(bundle: Path, queries: Sequence[str]) -> dict[str, Any]:
    """Return the answers of a bundle to one noisy frame, with scores to the last bit."""
    image: Image = np.random.default_rng(3).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    with BundleAnswers(open_bundle(bundle)) as device:
        return dict(device.answer(image, queries))


def waiting(content: Manifest) -> set[str]:
    """Return the tensors of a bundle that no running model uses."""
    return {*content.tensors} - content.resident
