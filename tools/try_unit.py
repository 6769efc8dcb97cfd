"""Run examples/jetson/gemel.service under a real systemd on this machine, on the CPU, and try what it promises.

    sudo .venv/bin/python tools/try_unit.py [--keep]

The script boots systemd in namespaces of its own (processes, mounts, network, cgroups), on an overlay of this machine's
files that is thrown away. There gemel is installed for the system's Python, and the unit runs a small bundle as its own
user. Tried: readiness, health, owners and modes of files, the lease on the device cache, a reload, a reload of a folder
that is no bundle, kill -9, a process that stands still (the watchdog), and a stop. It needs root, systemd, uv and two
minutes. The exit code is 1 where something is wrong. Namespaces need a kernel that allows them; machines with
cgroup v1 were tried.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import small_bundle

_ROOT = Path(__file__).resolve().parent.parent
_UNIT = _ROOT / "examples" / "jetson" / "gemel.service"
_LIMIT_S = 300
"""Seconds after which the try ends."""

_PREPARE = r"""
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$BOX/upper,workdir=$BOX/work" "$BOX/root"
mount --bind /dev "$BOX/root/dev"
chroot "$BOX/root" "$UV" venv -q --python /usr/bin/python3 /opt/gemel/venv
chroot "$BOX/root" "$UV" pip install -q --link-mode copy --python /opt/gemel/venv/bin/python "$BOX/source[service]"
chroot "$BOX/root" useradd --system --home-dir /var/lib/gemel --shell /usr/sbin/nologin gemel
for group in video render; do chroot "$BOX/root" groupadd --force --system $group; done
"""
"""Program that installs gemel in the overlay."""

_BOOT = r"""
set -e
root=$BOX/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$BOX/upper,workdir=$BOX/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
for each in run tmp dev; do mount -t tmpfs tmpfs "$root/$each"; done
mkdir "$root/dev/pts" "$root/dev/shm"
for each in null zero full random urandom tty; do
    touch "$root/dev/$each"
    mount --bind "/dev/$each" "$root/dev/$each"
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
cd "$root"
mkdir -p oldroot
pivot_root . oldroot
cd /
umount -l /oldroot
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=box.target
"""
"""Program that becomes systemd on the overlay."""

_TRIES = r"""
ip link set lo up 2>/dev/null
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "right  $name"; else echo "WRONG  $name"; fi; }
is() { [ "$(systemctl show gemel -p "$1" --value)" = "$2" ]; }
ask() { python3 - "$1" "$2" <<'EOF'
import json, sys, urllib.request
found = json.load(urllib.request.urlopen("http://127.0.0.1:9464" + sys.argv[1]))
sys.exit(not eval(sys.argv[2], {"found": found}))
EOF
}
within() { limit=$1; shift; for i in $(seq "$limit"); do "$@" >/dev/null 2>&1 && return 0; sleep 1; done; return 1; }
answered() { ask /status "len([each for each in found['queries'].values() if each['processed']]) == 3"; }
process() { systemctl show gemel -p MainPID --value; }

try "the unit is active when models are in memory" within 60 is ActiveState active
try "it is healthy" ask /healthz True
try "it is ready" ask /readyz True
try "all queries answer" within 20 answered
try "state, cache and their modes belong to its user" \
    test "$(stat -c '%U %a' /var/lib/gemel /var/cache/gemel | tr '\n' ' ')" = "gemel 750 gemel 750 "
try "nothing it wrote can be read by others" test -z "$(find /var/lib/gemel /var/cache/gemel -perm /007)"
try "the device cache is mapped" grep -q '/var/cache/gemel/.*weights.bin' "/proc/$(process)/maps"
try "and has a lease" grep -q "LEASE.*READ $(process) " /proc/locks
mv /opt/gemel/bundle /opt/gemel/old
mv /opt/gemel/other /opt/gemel/bundle
systemctl reload gemel
try "systemctl reload takes over another bundle" within 20 ask /status "found['reloads']['done'] == 1"
mv /opt/gemel/bundle /opt/gemel/good
mkdir /opt/gemel/bundle
systemctl reload gemel
try "a folder that is no bundle is refused" within 20 ask /status "found['reloads']['failed'] == 1 and found['ready']"
try "the same process runs on" is NRestarts 0
rmdir /opt/gemel/bundle
mv /opt/gemel/good /opt/gemel/bundle
systemctl kill --signal KILL gemel
try "it is started again after kill -9" within 30 is NRestarts 1
try "and answers" within 30 answered
systemctl kill --signal STOP gemel
try "a process that stands still is started again" within 100 is NRestarts 2
try "and answers, too" within 30 answered
systemctl stop gemel
try "a stop is no failure" is Result success
try "a stop leaves a whole summary" \
    python3 -c 'import json; assert json.load(open("/var/lib/gemel/summary.json"))["status"]["state"] == "stopped"'
try "results are whole lines" \
    python3 -c 'import json; [json.loads(line) for line in open("/var/lib/gemel/results.jsonl")]'
journalctl -u gemel --no-pager -o cat
echo end
"""
"""Program that tries the unit, and prints a line for each try."""

_CHECK_UNIT = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh /opt/gemel/tries.sh
StandardOutput=file:/opt/gemel/tries.log
StandardError=null
ExecStopPost=/bin/systemctl --no-block exit
"""
_TARGET = """[Unit]
Wants=systemd-journald.service gemel.service tries.service
After=systemd-journald.service
"""


def lay_out(box: Path) -> None:
    """Write bundles, units and the tries into the folder that is laid over this machine's files."""
    made = box / "upper" / "opt" / "gemel"
    units = box / "upper" / "etc" / "systemd" / "system"
    for folder in (made, units / "gemel.service.d", box / "work", box / "root"):
        folder.mkdir(parents=True)
    for number, name in enumerate(("bundle", "other")):
        # Two bundles in which only one of the two models differs.
        small_bundle._SEED["cars"] = 1 + number
        shutil.copytree(small_bundle.make_small_bundle(box / name), made / name)
    shutil.copy(box / "bundle" / "street.mp4", made)
    shutil.copy(_UNIT.parent / "outputs.yaml", made)
    names = re.findall(r'^    "gemel\.(\w+)"', (_ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for name in names:
        shutil.copytree(_ROOT / name, box / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (
        *_ROOT.glob("*.py"),
        _ROOT / "pyproject.toml",
        _ROOT / "README.md",
        _ROOT / "LICENSE",
        _ROOT / "py.typed",
    ):
        shutil.copy(path, box / "source")
    shutil.copy(_UNIT, units)
    (command,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", _UNIT.read_text(), re.MULTILINE)
    feeds = " ".join(f"--feed {feed}=/opt/gemel/street.mp4" for feed in ("yard", "gate"))
    changed = f"{command.replace('--backend tensorrt', '--backend ort-cpu')} {feeds}"
    (units / "gemel.service.d" / "cpu.conf").write_text(
        f"[Unit]\nWants=\nAfter=\n[Service]\nExecStart=\nExecStart={changed}\n"
    )
    (units / "tries.service").write_text(_CHECK_UNIT)
    (units / "box.target").write_text(_TARGET)
    (made / "tries.sh").write_text(_TRIES)


def boot(box: Path, uv: str) -> str:
    """Install gemel, boot systemd, and return what the tries printed."""
    environment = {**os.environ, "BOX": str(box), "UV": uv}
    subprocess.run(["unshare", "--mount", "sh", "-c", _PREPARE], check=True, env=environment)
    v1 = Path("/sys/fs/cgroup/systemd")
    group = (v1 if v1.exists() else Path("/sys/fs/cgroup")) / f"gemel-try-{os.getpid()}"
    group.mkdir()
    try:
        join = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        spaces = ["unshare", "--kill-child", "--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--cgroup"]
        limit = ["timeout", "--signal", "KILL", str(_LIMIT_S)]
        subprocess.run(["sh", "-c", join, "sh", *limit, *spaces, "sh", "-c", _BOOT], env=environment)
    finally:
        for folder in sorted(group.rglob("*/"), reverse=True):
            folder.rmdir()
        group.rmdir()
    log = box / "upper" / "opt" / "gemel" / "tries.log"
    return log.read_text() if log.exists() else ""


def main(arguments: Sequence[str]) -> int:
    """Try the unit, print what is right and wrong, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run the unit for systemd, and try what it promises.")
    parser.add_argument("--uv", default=shutil.which("uv") or str(_ROOT / ".uv" / "bin" / "uv"), metavar="PATH")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the try")
    given = parser.parse_args(arguments)
    if os.geteuid():
        print("systemd can only be booted by root", file=sys.stderr)
        return 2
    # An overlay cannot lie on a tmpfs that is itself in the overlay, which /tmp often is.
    box = Path(tempfile.mkdtemp(prefix="gemel-unit-", dir="/var/tmp"))
    try:
        lay_out(box)
        told = boot(box, given.uv)
    finally:
        if not given.keep:
            shutil.rmtree(box)
    print(told)
    return int("WRONG" in told or not told.rstrip().endswith("end"))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
