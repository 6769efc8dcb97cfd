"""Test that one process at a time holds a lock, and that a killed process releases its lock."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gemel.errors import InputError
from gemel.merging.output.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from gemel.merging.output.lock import locked

with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(100)
"""


def test_what_holds_it_may_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "search" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"^taken$"), locked(path, "taken"):
            pass
        process.send_signal(signal.SIGKILL)
    with locked(path, "taken"):
        pass


def test_it_is_released_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock", "taken"):
        raise KeyboardInterrupt
    with locked(tmp_path / "lock", "taken"), pytest.raises(InputError), locked(tmp_path / "lock", "taken"):
        pass


@pytest.mark.parametrize("missing", ["module", "support"])
def test_where_there_are_no_locks_nothing_is_held(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    if missing == "module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "lock", "taken"), locked(tmp_path / "lock", "taken"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists"), locked(tmp_path / "file" / "lock", "taken"):
        pass
