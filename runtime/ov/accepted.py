"""Record of the models that may run in bf16, by the agreement of their answers with those in float32.

``gemel eval --accept bf16`` measures the agreement on recordings and writes the record into the device cache. The
backend ``auto-cpu`` reads it. The runtime itself does not measure: a backend reads no feeds, and cameras cannot be
played twice.
"""

from __future__ import annotations

import hashlib
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ...bundles.manifest import Name
from ...bundles.reader import Bundle
from ...durable import write_whole
from ...errors import BackendError, BundleError
from ..device_cache import check_folder, places, plain_size
from ..ort.bake import cpu_flags

__all__ = ["Acceptance", "QueryAgreement", "read_acceptance", "write_acceptance"]

_RECORD = "bf16.json"
_MOST_BYTES = 1 << 20
"""Maximum size in bytes of the file that records which models may run in bf16."""


class QueryAgreement(BaseModel):
    """Agreement of a query's answers in bf16 with its answers in float32."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    agreement: Annotated[float, Field(ge=0, le=1)] | None
    """Agreement from 0 to 1, by the measure of the query's task; None if there was nothing to judge by."""
    frames: Annotated[int, Field(ge=0)]
    """Number of frames on which the answers were compared."""


class Acceptance(BaseModel):
    """Agreement of a bundle's queries in bf16 with float32 on this CPU."""

    model_config = ConfigDict(frozen=True)
    bundle: str
    """Id of the bundle whose queries were measured."""
    queries: dict[Name, QueryAgreement]

    def models(self, bundle: Bundle) -> dict[str, dict[str, QueryAgreement]]:
        """Return model -> query -> agreement, for the models that may run in bf16.

        A model may run in bf16 if every query that runs it was measured, and agrees at least as much as its target.
        """
        found: dict[str, dict[str, QueryAgreement]] = {}
        refused: set[str] = set()
        for name, query in bundle.manifest.queries.items():
            each = self.queries.get(name)
            if each is None or each.agreement is None or each.agreement < query.target:
                refused.add(query.model)
            else:
                found.setdefault(query.model, {})[name] = each
        return {model: queries for model, queries in found.items() if model not in refused}


def read_acceptance(bundle: Bundle) -> Acceptance | None:
    """Return the agreement that was measured for a bundle on this CPU with this OpenVINO; None if there is none."""
    for folder in _folders(bundle):
        path = folder / _RECORD
        # A damaged record counts as none: it is measured again.
        with suppress(BundleError, OSError, ValueError, RecursionError):
            # A cache may have come with a bundle from elsewhere. A link could lead out of the cache.
            check_folder(folder)
            if plain_size(path) > _MOST_BYTES:
                continue
            found = Acceptance.model_validate_json(path.read_bytes())
            if found.bundle == bundle.id:
                return found
    return None


def write_acceptance(bundle: Bundle, found: Acceptance) -> Path:
    """Write the agreement of a bundle's queries into the device cache, and return the file.

    Raises:
        BackendError: no folder can be written.
    """
    reasons = []
    for folder in _folders(bundle):
        path = folder / _RECORD
        try:
            if folder.parent.is_symlink() or folder.is_symlink():
                raise OSError(0, "is a link", str(folder))
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, found.model_dump_json(indent=1).encode())
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
        else:
            return path
    raise BackendError(f"no device cache could be written: {'; '.join(reasons)}")


def _folders(bundle: Bundle) -> tuple[Path, ...]:
    """Return the folders that may hold a bundle's record, the preferred folder first; none without OpenVINO."""
    try:
        # Importing OpenVINO would take a tenth of a second, only for its version.
        version = metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return ()
    parts = (bundle.id, version, platform.machine(), cpu_flags())
    return places(bundle, f"bf16-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}")
