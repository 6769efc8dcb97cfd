"""Files of Debian packages that are fetched without installing the package, which would need root."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["fetch_files"]


def fetch_files(package: str, members: Mapping[str, Path], limit: float) -> str:
    """Copy files of a Debian package, installed or downloaded, and return where they came from.

    Args:
        package: name of the package.
        members: path of a file in an installed system, without the leading slash -> file to write.
        limit: seconds after which a download fails.

    Raises:
        OSError: there is no apt-get here, or the package lacks a file.
        subprocess.SubprocessError: the package cannot be downloaded.
        tarfile.TarError: the package is damaged.
    """
    if all((Path("/") / member).is_file() for member in members):
        for member, target in members.items():
            shutil.copyfile(Path("/") / member, target)
        return f"{package}, installed"
    left = dict(members)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", package], cwd=folder, timeout=limit, check=True, capture_output=True)
        for found in Path(folder).glob("*.deb"):
            command = ["dpkg-deb", "--fsys-tarfile", str(found)]
            # dpkg-deb reports an error on stderr where its output is not read to the end.
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpack,
                tarfile.open(fileobj=unpack.stdout, mode="r|") as files,
            ):
                for each in files:
                    name = each.name.removeprefix("./")
                    if name in left and (content := files.extractfile(each)):
                        with left.pop(name).open("wb") as out:
                            shutil.copyfileobj(content, out)
                    if not left:
                        return f"{package}, from the distribution's package"
    raise FileNotFoundError(f"the package has no {min(left)}")
