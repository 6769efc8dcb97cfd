"""Folder that a merge writes. The folder is a usable workload at any time, and the merge can be resumed from it.

::

    merged/
      merge.json                the report on the merge
      workload.yaml             refers to weights/, and to the feeds and data of the original workload
      weights/NAME-DIGEST.*     a file for each merged model; the digest is a hash of the content
      forms-DIGEST.safetensors  codes of weights that are kept as codes, if there are any
      *.py                      modules in the original workload's folder that make its models
      search/journal.jsonl      a header that says what is searched for, then a line for each trial
      search/last-N.safetensors weights after the last trial that trained, written with the N-th trial
      search/confirmed.json     the trial to whose result the merge may go back, and the models that were refused since
      search/samples/*.jpg      frames that boxes have sampled, if the merge goes on from an earlier one with them
      search/samples.json       their names and hashes, by feed
      search/lock               locked by the process that writes the folder

A trial is written in this order: codes; the models that the trial changed; the weights that the next trial may start
from; the trial's line in the journal; merge.json; workload.yaml. Every file is written under another name and renamed
when it is whole, and old weights are deleted last. So a crash or a full disk leaves the state before or after a trial.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ...bundles.merge_report import MERGE_REPORT, FormsReport, MergeReport
from ...durable import write_whole
from ...errors import InputError
from ...locks import try_lock
from ..strategies import Verdict
from ..training.subjects import State
from ..training.trial import Outcome, Trial
from .disk import explain_disk_errors
from .records import Confirmed, entry_of, key_of, outcome_of, pack_states, read_confirmed, trial_number, unpack_states

__all__ = ["Store"]

_SEARCH, _JOURNAL, _LOCK, _WEIGHTS, _CONFIRMED = "search", "journal.jsonl", "lock", "weights", "confirmed.json"
_VERSION = 5
"""Version of the format of the search journal; a journal of another version cannot be resumed."""
_HASHED = {
    "workload": "other queries or feeds",
    "from": "another --from, or that folder has changed since",
    "samples": "other --samples, or none",
}
"""Field of the header that holds only a hash, which tells a user nothing -> what to say in its place."""
_OWN_FILES = re.compile(r".+-[0-9a-f]{8}\.(safetensors|onnx)|\..+\.part")
"""Pattern for the names of files in ``weights/`` that a merge writes and may delete."""


class Store:
    """Folder of a merge on disk, locked against other processes until the store is closed.

    Args:
        output: folder of the merge.
        header: header of the journal: workload, strategy and settings. A resumed search must have the same header.
        resume: whether to continue the merge that the folder holds.

    Raises:
        InputError: the folder cannot be written, another merge is writing it, it holds a merge that ``resume`` does not
            allow or that has another header, or it holds anything else.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], *, resume: bool = False) -> None:
        self.output = output.absolute()
        self._search = self.output / _SEARCH
        self._journal = self._search / _JOURNAL
        self._known: list[dict[str, Any]] = []
        self._count = 0
        self._header = {"version": _VERSION, **header}
        with ExitStack() as held:
            # Nothing is written into a folder of other files, not even a lock.
            if self._journal.is_file() or not self._holds_something():
                try:
                    self._search.mkdir(parents=True, exist_ok=True)
                    # The file stays: another process may just have opened it.
                    lock = held.enter_context((self._search / _LOCK).open("ab"))
                    if not try_lock(lock.fileno()):
                        raise InputError(f"another gemel merge is writing {output}")
                except OSError as error:
                    raise InputError(f"{output}: cannot be written: {error.strerror}") from error
            exists = self._holds_something()
            if exists and not resume:
                hint = "; --resume goes on with it" if self._journal.exists() else ""
                raise InputError(f"{output}: is there already{hint}; name another folder, or delete it")
            if exists:
                self._known = self._read()
            self._held = held.pop_all()

    def close(self) -> None:
        """Release the lock of the merge's folder, so that another process may write the folder."""
        self._held.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _holds_something(self) -> bool:
        """Check whether the output path is a file, or a folder that holds more than a lock and unfinished files.

        A merge that was killed before it wrote its journal leaves only a lock and unfinished files.
        """
        if not self.output.is_dir():
            return self.output.exists()
        for path in self.output.iterdir():
            if path != self._search or not path.is_dir():
                return True
            if any(file.suffix != ".part" and file.name != _LOCK for file in path.iterdir()):
                return True
        return False

    def _read(self) -> list[dict[str, Any]]:
        """Read the journal's entries without the header, and rewrite the journal without a line cut off by a crash.

        Raises:
            InputError: there is no journal, it is damaged, or its header differs from this search's.
        """
        if not self._journal.is_file():
            raise InputError(f"{self.output}: holds no merge to resume: {_SEARCH}/{_JOURNAL} is missing")
        lines = self._journal.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            entries = [json.loads(line) for line in lines[:-1]]
            # A crash may have cut off the last line; its trial is run again.
            with suppress(json.JSONDecodeError):
                entries += [json.loads(line) for line in lines[-1:]]
        except json.JSONDecodeError as error:
            raise InputError(f"{self._journal}: damaged; the search cannot be resumed") from error
        if not entries:
            raise InputError(f"{self._journal}: empty; the search cannot be resumed")
        for path in self._search.glob(".*.part"):
            path.unlink()
        if entries[0].get("version") != _VERSION:
            raise self._other_version()
        for field, value in self._header.items():
            if (before := entries[0].get(field)) != value:
                what = _HASHED.get(field, f"{field} {before!r}, now it is {value!r}")
                raise InputError(
                    f"{self.output}: was begun with {what}; resume with what it was begun with, or name another folder"
                )
        write_whole(self._journal, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        return entries[1:]

    @property
    def replaying(self) -> bool:
        """Whether the journal still has trials of an earlier run that this resumed search has not read."""
        return self._count < len(self._known)

    def recall(self, trial: Trial) -> Outcome | None:
        """Return the outcome, without weights, of the next recorded trial; None after the last one.

        Args:
            trial: the trial that the strategy asks for now.

        Raises:
            InputError: the earlier run tried another trial, because another version of gemel ran it.
        """
        if not self.replaying:
            return None
        entry = self._known[self._count]["trial"]
        if entry["key"] != key_of(trial):
            raise self._other_version()
        self._count += 1
        return outcome_of(entry)

    def after(self, trial: int) -> tuple[dict[str, Path], FormsReport | None]:
        """Return what an earlier run had after a trial: merged model -> weight file, and the entry in merge.json of the
        weights that it kept as codes, if there were any."""
        if not trial:
            return {}, None
        entry = self._known[trial - 1]
        forms = FormsReport.model_validate(entry["forms"]) if entry.get("forms") is not None else None
        return {model: self.output / _WEIGHTS / name for model, name in entry["weights"].items()}, forms

    @property
    def confirmed(self) -> Confirmed:
        """What the earlier run would have gone back to."""
        return read_confirmed(self._search / _CONFIRMED, len(self._known))

    def _other_version(self) -> InputError:
        """Return the error for a search that another version of gemel began."""
        return InputError(f"{self.output}: another version of gemel began this search; it cannot be resumed")

    def last_states(self) -> dict[str, State]:
        """Load model name -> weights after the last trial that trained in an earlier run; empty if no trial trained.

        Raises:
            InputError: the file is damaged.
        """
        # Ignore weights of a trial without a line in the journal: a crash came before the line was written.
        files = {number: path for path in self._last_files() if (number := trial_number(path)) <= len(self._known)}
        return unpack_states(files[max(files)]) if files else {}

    def record(
        self,
        verdict: Verdict,
        last: Mapping[str, State],
        files: Mapping[str, tuple[str, bytes | None]],
        forms: FormsReport | None = None,
    ) -> None:
        """Write the weights that a trial leaves, then append the trial to the journal.

        Args:
            verdict: verdict on the trial.
            last: model name -> weights after the last trial that trained, which the next trial may start from.
            files: merged model -> name and content of its weight file; content is None if the file was written before.
            forms: weights that are kept as codes, whose file is written already; None without such weights.

        Raises:
            InputError: the disk is full or cannot be written; earlier records are intact.
        """
        entry = {
            "trial": entry_of(verdict),
            "weights": {model: name for model, (name, _) in files.items()},
            "forms": forms and forms.model_dump(),
        }
        with explain_disk_errors(self.output):
            self._begin_journal()
            self._write_weights(dict(files.values()))
            number, old = self._count + 1, []
            if verdict.trial.recipe is not None:
                target = self._search / f"last-{number}.safetensors"
                write_whole(target, pack_states(last))
                old = [path for path in self._last_files() if path != target]
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._count = number
            for path in old:
                path.unlink()

    def commit(
        self, files: Mapping[str, bytes | None], report: MergeReport, workload: bytes, confirmed: Confirmed
    ) -> None:
        """Write weight files, then the report and the workload that belong to these files; delete old weight files.

        Args:
            files: name of each weight file -> content; a file that exists already is not written again.
            report: content of merge.json.
            workload: content of workload.yaml.
            confirmed: what the merge goes back to if less is left later; its files are in ``files``.

        Raises:
            InputError: the disk is full or cannot be written; the last commit is intact.
        """
        with explain_disk_errors(self.output):
            self._begin_journal()
            self._write_weights(files)
            write_whole(self.output / MERGE_REPORT, report.model_dump_json(indent=2).encode() + b"\n")
            write_whole(self.output / "workload.yaml", workload)
            write_whole(self._search / _CONFIRMED, json.dumps(confirmed._asdict()).encode())
            used = {*files, report.forms and report.forms.file}
            for path in (*(self.output / _WEIGHTS).iterdir(), *self.output.glob("forms-*.safetensors")):
                if path.name not in used and _OWN_FILES.fullmatch(path.name):
                    path.unlink()

    def place(self, files: Mapping[str, bytes]) -> None:
        """Write files into the folder of the merge.

        Args:
            files: path relative to the folder of the merge -> content.

        Raises:
            InputError: a file cannot be written.
        """
        with explain_disk_errors(self.output):
            self._begin_journal()
            for name, content in files.items():
                target = self.output / name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_whole(target, content)

    def _begin_journal(self) -> None:
        """Write the header of the search journal if there is no journal yet."""
        if not self._journal.exists():
            self._search.mkdir(parents=True, exist_ok=True)
            write_whole(self._journal, (json.dumps(self._header) + "\n").encode())

    def _write_weights(self, files: Mapping[str, bytes | None]) -> None:
        """Write merged models' weight files that do not exist yet; a content of None says that a file was written."""
        folder = self.output / _WEIGHTS
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            if content is not None and not (folder / name).exists():
                write_whole(folder / name, content)

    def _last_files(self) -> list[Path]:
        """Return the files with weights after the last trial that trained; a crash may leave more than one file."""
        return list(self._search.glob("last-*.safetensors"))
