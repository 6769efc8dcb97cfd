"""The folder that a merge writes: an ordinary workload at any time, and what is needed to go on after a crash.

::

    merged/
      merge.json                the report; names the weights that belong to it
      workload.yaml             refers to weights/, and to the feeds and data of the original workload
      weights/NAME-DIGEST.*     one file a merged model; the name follows from the content
      *.py                      modules beside the original workload that its models come from
      search/journal.jsonl      one line a batch of trials, after a line that says what is searched for
      search/last-N.safetensors weights after the last trial that trained, in the N-th batch
      search/lock               held by the process that writes the folder

A batch is written in this order: the models it changed, the weights that the next one may go on from, its line, which
names both, merge.json, workload.yaml. Every file is renamed into its place when it is whole, and old weights go last,
so that a crash or a full disk leaves either the state before the batch or the state after it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ...bundles.merge_report import MERGE_REPORT, MergeReport
from ...errors import InputError
from ..strategies import Verdict
from ..training.subjects import State
from ..training.trial import Outcome, Trial
from .lock import locked
from .records import entry_of, key_of, outcome_of, pack_states, unpack_states

__all__ = ["Store", "write_atomically"]

_SEARCH, _JOURNAL, _LOCK, _WEIGHTS = "search", "journal.jsonl", "lock", "weights"
_VERSION = 2
_OWN = re.compile(r".+-[0-9a-f]{8}\.(safetensors|onnx)|\..+\.part")
"""What this module writes into the folder of weights, and may delete."""


class Store:
    """A merge on disk, which no other process writes until this one is closed.

    Args:
        output: the folder.
        header: what is searched for and how; a search that goes on must have the same.
        resume: go on with what is there.

    Raises:
        InputError: the folder cannot be written, is being written by another merge, holds one that is not to be
            resumed, or anything else.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], *, resume: bool = False) -> None:
        self.output = output.absolute()
        self._search = self.output / _SEARCH
        self._journal = self._search / _JOURNAL
        self._known: list[dict[str, Any]] = []
        self._count = 0
        self._header = {"version": _VERSION, **header}
        with ExitStack() as held:
            # Into a folder of other things nothing is written, no lock either.
            if self._journal.is_file() or not self._holds_something():
                try:
                    held.enter_context(locked(self._search / _LOCK, f"another gemel merge is writing {output}"))
                except OSError as error:
                    raise InputError(f"{output}: cannot be written: {error.strerror}") from error
            there = self._holds_something()
            if there and not resume:
                hint = "; --resume goes on with it" if self._journal.exists() else ""
                raise InputError(f"{output}: is there already{hint}; name another folder, or delete it")
            if there:
                self._known = self._read()
            self._held = held.pop_all()

    def close(self) -> None:
        """Let another process write the folder."""
        self._held.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _holds_something(self) -> bool:
        """Whether it is there, and more than what a merge leaves that died before its first line."""
        if not self.output.is_dir():
            return self.output.exists()
        for path in self.output.iterdir():
            if path != self._search or not path.is_dir():
                return True
            if any(file.suffix != ".part" and file.name != _LOCK for file in path.iterdir()):
                return True
        return False

    def _read(self) -> list[dict[str, Any]]:
        if not self._journal.is_file():
            raise InputError(f"{self.output}: holds no merge to resume: {_SEARCH}/{_JOURNAL} is missing")
        lines = self._journal.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            entries = [json.loads(line) for line in lines[:-1]]
            # The last line may have been cut off by a crash; its trial is run again.
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
                # Of a workload, there is only a hash.
                what = f"{field} {before!r}, now it is {value!r}" if field != "workload" else "other queries or feeds"
                raise InputError(
                    f"{self.output}: was begun with {what}; resume with what it was begun with, or name another folder"
                )
        write_atomically(self._journal, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        return entries[1:]

    @property
    def replaying(self) -> bool:
        """Whether trials of an earlier run are still to be recalled."""
        return self._count < len(self._known)

    def recall(self, trials: Sequence[Trial]) -> list[Outcome] | None:
        """What came of the next batch in an earlier run, without its weights; None after the last one.

        Raises:
            InputError: the earlier run tried something else; versions differ.
        """
        if not self.replaying:
            return None
        entries = self._known[self._count]["trials"]
        if [entry["key"] for entry in entries] != [key_of(trial) for trial in trials]:
            raise self._other_version()
        self._count += 1
        return [outcome_of(entry) for entry in entries]

    @property
    def weights(self) -> dict[str, Path]:
        """Files of the models that were merged when the earlier run ended."""
        names = self._known[-1]["weights"] if self._known else {}
        return {model: self.output / _WEIGHTS / name for model, name in names.items()}

    def _other_version(self) -> InputError:
        return InputError(f"{self.output}: another version of gemel began this search; it cannot be resumed")

    def last_states(self) -> dict[str, State]:
        """Weights after the last trial that trained, of an earlier run.

        Raises:
            InputError: the file is damaged.
        """
        # A crash may have come between a trial's weights and its line.
        files = {number: path for path in self._last_files() if (number := _number(path)) <= len(self._known)}
        return unpack_states(files[max(files)]) if files else {}

    def record(
        self, verdicts: Sequence[Verdict], last: Mapping[str, State], files: Mapping[str, tuple[str, bytes | None]]
    ) -> None:
        """Append a batch to the journal, with the weights of the merged models and those that the next may go on from.

        Args:
            verdicts: on the trials of the batch.
            last: weights after the last trial that trained.
            files: a merged model's name to the name of its file and its content; None where it was written before.

        Raises:
            InputError: the disk is full, or cannot be written; what was recorded before stays.
        """
        entry = {
            "trials": [entry_of(verdict) for verdict in verdicts],
            "weights": {model: name for model, (name, _) in files.items()},
        }
        with _guarded(self.output):
            self._begin()
            self._write(dict(files.values()))
            number, old = self._count + 1, []
            if any(verdict.trial.recipe is not None for verdict in verdicts):
                target = self._search / f"last-{number}.safetensors"
                write_atomically(target, pack_states(last))
                old = [path for path in self._last_files() if path != target]
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._count = number
            for path in old:
                path.unlink()

    def commit(self, files: Mapping[str, bytes | None], report: MergeReport, workload: bytes) -> None:
        """Make ``files`` the weights, and then the report and the workload what names them.

        Args:
            files: content by file name; what is there already under its name is not written again.
            report: merge.json.
            workload: workload.yaml.

        Raises:
            InputError: the disk is full, or cannot be written; what was committed before stays.
        """
        with _guarded(self.output):
            self._begin()
            self._write(files)
            write_atomically(self.output / MERGE_REPORT, report.model_dump_json(indent=2).encode() + b"\n")
            write_atomically(self.output / "workload.yaml", workload)
            for path in (self.output / _WEIGHTS).iterdir():
                if path.name not in files and _OWN.fullmatch(path.name):
                    path.unlink()

    def place(self, files: Mapping[str, bytes]) -> None:
        """Write files beside workload.yaml, by their paths relative to it.

        Raises:
            InputError: they cannot be written.
        """
        with _guarded(self.output):
            self._begin()
            for name, content in files.items():
                target = self.output / name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, content)

    def _begin(self) -> None:
        if not self._journal.exists():
            self._search.mkdir(parents=True, exist_ok=True)
            write_atomically(self._journal, (json.dumps(self._header) + "\n").encode())

    def _write(self, files: Mapping[str, bytes | None]) -> None:
        folder = self.output / _WEIGHTS
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            if content is not None and not (folder / name).exists():
                write_atomically(folder / name, content)

    def _last_files(self) -> list[Path]:
        return list(self._search.glob("last-*.safetensors"))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place, see it to the disk and rename it."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _guarded(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or output}: cannot be written: {error.strerror}"
        raise InputError(f"{reason}; the last commit is whole, --resume goes on from it") from error


def _number(path: Path) -> int:
    digits = path.stem.partition("-")[2]
    return int(digits) if digits.isdigit() else 0
