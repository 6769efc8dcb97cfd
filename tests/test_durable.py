"""Files and folders are replaced as a whole, whatever kills the writer; what it leaves behind is removed later."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemel import durable
from gemel.bundles.replace_bundle import replacing
from gemel.durable import check_room, remove_leftovers, replace_folder, work_folder, write_through, write_whole
from gemel.errors import BundleError


def killed(code: str, *arguments: Path | str) -> None:
    """Run Python code in a process that kills itself, as if the power had failed."""
    begin = "import os, sys, signal\nfrom pathlib import Path\nfrom gemel import durable\n"
    begin += "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
    command = [sys.executable, "-c", begin + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"old")
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["summary.json"]


def test_a_name_is_on_the_disk_after_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(number: int) -> None:
        done.append(Path(f"/proc/self/fd/{number}").readlink().suffix)
        sync(number)

    def rename(made: Path, target: Path) -> None:
        done.append("renamed")
        replace(made, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    (tmp_path / "folder.d").mkdir()
    write_whole(tmp_path / "folder.d" / "summary.json", b"new")
    assert done == [".part", "renamed", ".d"]


def test_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_through(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    # In a cache, a link may lead anywhere.
    write_whole(tmp_path / "link", b"newer")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_through(tmp_path / "pipe", b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("place", ["os.fsync", "Path.replace"])
def test_a_killed_writer_leaves_the_old_file(place: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(b"old")
    killed(f"{place} = die\ndurable.write_whole(Path(sys.argv[1]), b'new')", path)
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    write_whole(path, b"new")
    assert names(tmp_path) == ["summary.json"]
    assert path.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["summary.json"]


def fill(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced(exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(durable, "_exchange", lambda made, target: False)
    for text in ("old", "new"):
        with work_folder(tmp_path / "b", ".b-") as made:
            fill(made, text)
            replace_folder(made, tmp_path / "b")
        assert (tmp_path / "b" / "manifest.json").read_text() == text
        assert names(tmp_path) == ["b"]


REPLACE = """
folder = Path(sys.argv[1])
with durable.work_folder(folder / "b", ".b-", restore=True) as made:
    (made / "manifest.json").write_text("new")
    durable.replace_folder(made, folder / "b")
"""


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("durable.sync_tree = die", "old"),
        ("durable._exchange = die", "old"),
        ("durable.shutil.rmtree = die", "new"),
        # A file system without exchange: there is nothing between the two renames, until the next start.
        (
            "durable._exchange = lambda *_: False\nmoved = Path.rename\n"
            "Path.rename = lambda *paths: (moved(*paths), die())",
            "",
        ),
    ],
    ids=["while files are written", "before the exchange", "after it", "between two renames"],
)
def test_a_kill_never_loses_a_folder(before: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    fill(tmp_path / "b", "old")
    killed(f"{before}\n{REPLACE}", tmp_path)
    manifest = tmp_path / "b" / "manifest.json"
    assert (manifest.read_text() if manifest.exists() else "") == found
    assert len(names(tmp_path)) == (2 if found else 1)
    remove_leftovers(tmp_path / "b", ".b-", restore=True)
    assert names(tmp_path) == ["b"]
    assert manifest.read_text() == (found or "old")


def test_what_a_running_process_builds_is_left_alone(tmp_path: Path) -> None:
    with work_folder(tmp_path / "b", ".b-") as made:
        fill(made, "mine")
        remove_leftovers(tmp_path / "b", ".b-")
        with work_folder(tmp_path / "b", ".b-") as other:
            assert other != made
        assert (made / "manifest.json").exists()
    assert names(tmp_path) == []


def old_leftover(folder: Path) -> None:
    folder.mkdir()
    for name in ("manifest.json", "weights.bin", "a.onnx"):
        (folder / name).touch()


def users_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").touch()


@pytest.mark.parametrize(
    ("name", "make", "stays"),
    [
        (".b-ab12_xyz", old_leftover, False),
        (".b-ab12_xyz", Path.mkdir, False),
        (".b-old-ab12_xyz", old_leftover, False),
        (".b-ab12_xyz", users_folder, True),
        (".b-ab12_xyz", Path.touch, True),
        (".b-backup", users_folder, True),
        (".b-backups-of-mine", old_leftover, True),
        (".c-ab12_xyz", old_leftover, True),
    ],
)
def test_only_leftovers_are_removed(name: str, make: Callable[[Path], None], stays: bool, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    make(tmp_path / name)
    remove_leftovers(tmp_path / "b", ".b-")
    assert (tmp_path / name).exists() == stays


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    old_leftover(tmp_path / "elsewhere")
    (tmp_path / ".b-ab12_xyz").symlink_to(tmp_path / "elsewhere")
    remove_leftovers(tmp_path / "b", ".b-")
    assert len(names(tmp_path / "elsewhere")) == 3


def test_an_old_bundle_that_an_old_version_moved_aside_comes_back(tmp_path: Path) -> None:
    old_leftover(tmp_path / ".b-old-ab12_xyz")
    old_leftover(tmp_path / ".b-ab34_xyz")
    with pytest.raises(BundleError, match=r"holds a\.onnx"), replacing(tmp_path / "b"):
        pass
    assert names(tmp_path) == ["b"]
    assert len(names(tmp_path / "b")) == 3


def test_a_bundle_that_cannot_be_moved_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "sync_tree", full)
    with pytest.raises(BundleError, match=r"b: cannot be written: No space left on device"), replacing(tmp_path / "b"):
        pass
    assert names(tmp_path) == []


def test_room(tmp_path: Path) -> None:
    check_room(tmp_path, 1 << 20)
    with pytest.raises(OSError, match=r"No space left on device|File too large") as caught:
        check_room(tmp_path, 1 << 60)
    assert caught.value.filename == str(tmp_path)
    assert names(tmp_path) == []
