"""Publishing of a merge's steps: each commit becomes a bundle, and a delta that leads boxes on from the one before."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...bundles.apply_delta import apply_delta
from ...bundles.delta_format import delta_name
from ...bundles.manifest import Manifest
from ...bundles.merge_report import MERGE_REPORT
from ...bundles.originals import add_originals, changed_models
from ...bundles.reader import MANIFEST, Bundle, open_bundle
from ...bundles.write_delta import WrittenDelta, write_delta
from ...compiler import compile_workload
from ...workload import load_workload

__all__ = ["Publisher"]

_BUNDLE, _NEXT, _ORIGINALS = "bundle", "next-bundle", "originals"


class Publisher:
    """Folder of deltas that ``gemel pull`` follows, with the bundle to which the last of them leads.

    ::

        DIR/
          bundle/            the newest bundle; a copy of it is what a new box begins with
          <id>.delta         leads on from the bundle with this id
          originals/         the bundle of the original models, if boxes are to keep these

    Args:
        folder: the folder; one that an earlier merge published to is continued.
        key: PEM file with the private key that signs the deltas; None to sign nothing.
        originals: workload.yaml that is merged, whose weights all bundles keep for a revert; None to keep none.

    Raises:
        BundleError: the folder's bundle or a delta is damaged.
    """

    def __init__(self, folder: Path, key: Path | None = None, originals: Path | None = None) -> None:
        self._folder, self._key, self._originals = folder, key, originals
        self._original: Bundle | None = None
        self._bundle = folder / _BUNDLE
        if not self.empty:
            self._catch_up()

    @property
    def empty(self) -> bool:
        """Whether nothing was published yet."""
        return not (self._bundle / MANIFEST).exists()

    def publish(self, workload: Path, *, report: bool = True) -> WrittenDelta | None:
        """Compile a merged workload; publish a delta to it, unless it is the bundle that is published already.

        Args:
            workload: workload.yaml that a merge wrote.
            report: whether to publish a bundle that has a new merge.json and is otherwise the same.

        Returns:
            The delta; None for the first bundle, and if nothing changed.

        Raises:
            InputError: the workload or the key cannot be used.
            CompileError: the workload cannot be compiled.
            BundleError: the folder cannot be written.
        """
        if self.empty:
            self._compile(workload, self._bundle)
            return None
        target = self._folder / _NEXT
        try:
            self._compile(workload, target)
            before, after = open_bundle(self._bundle), open_bundle(target)
            if before.id == after.id or (not report and _without_report(before) == _without_report(after)):
                return None
            # Where the search came back to an earlier bundle, the way leads there, and no longer on from there.
            (self._folder / delta_name(after.id)).unlink(missing_ok=True)
            done = write_delta(before, after, self._folder, key=self._key)
        finally:
            shutil.rmtree(target, ignore_errors=True)
        self._catch_up()
        return done

    def _compile(self, workload: Path, target: Path) -> None:
        """Compile a merged workload, with the original weights of changed models if boxes are to keep these."""
        if self._originals is None:
            compile_workload(load_workload(workload), target)
            return
        if self._original is None:
            compile_workload(load_workload(self._originals), self._folder / _ORIGINALS)
            self._original = open_bundle(self._folder / _ORIGINALS)
        original = self._original

        def finish(merged: Bundle, work: Path) -> Manifest:
            if changed_models(merged, original):
                return add_originals(merged, original, work)
            shutil.copytree(merged.path, work, dirs_exist_ok=True)
            return merged.manifest

        compile_workload(load_workload(workload), target, finish=finish)

    def _catch_up(self) -> Bundle:
        """Apply the deltas that lead on from the bundle: also one after whose writing the process was killed.

        A box may have it already, so no other delta may ever start from the same bundle.
        """
        bundle = open_bundle(self._bundle)
        while (delta := self._folder / delta_name(bundle.id)).exists():
            bundle = apply_delta(delta, self._bundle).bundle
        return bundle


def _without_report(bundle: Bundle) -> Manifest:
    """Return the manifest of a bundle without the entry of merge.json."""
    files = {name: spec for name, spec in bundle.manifest.files.items() if name != MERGE_REPORT}
    return bundle.manifest.model_copy(update={"files": files})
