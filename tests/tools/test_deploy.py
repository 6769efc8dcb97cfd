"""Files of deploy/: configurations are valid, and the dashboard and the alerts use metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gemel.runtime.loop.summary import FeedStats, QueryStats, RunStats, Summary
from gemel.runtime.service.metrics import RunMetrics
from gemel.runtime.service.status import RunStatus

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def known_metrics() -> set[str]:
    """Return the names of all samples that a run gives to Prometheus."""
    summary = Summary(RunStats(1.0, {"q": QueryStats("f", 1, 1)}, {"f": FeedStats(1)}), "ort-cpu")
    outputs = {"outputs": {"o": {"written": 1, "dropped": 0, "failed": 0}}, "reloads": {"done": 1, "failed": 0}}
    status = RunStatus("r", "0", "bundle", lambda: summary, details=lambda: outputs)
    text = RunMetrics(status).text().decode()
    declared = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    endings = {"histogram": ("_bucket", "_count", "_sum")}
    return {f"{name}{ending}" for name, kind in declared for ending in ("", *endings.get(kind, ()))}


def used_metrics(text: str) -> set[str]:
    return set(re.findall(r"\bgemel_[a-z_]+", text))


def test_dashboard_and_alerts_use_metrics_that_exist() -> None:
    dashboard = (DEPLOY / "grafana" / "dashboards" / "gemel.json").read_text()
    panels = json.loads(dashboard)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 6
    used = used_metrics(dashboard) | used_metrics((DEPLOY / "alerts.yml").read_text())
    assert len(used) >= 10 and used <= known_metrics()


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_is_read(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


def test_the_compose_file_mounts_files_that_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", ())]
    named = [mount.partition(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(named) >= 5 and all((DEPLOY / name).exists() for name in named)
    # Ports are for this machine alone.
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", DEPLOY / "alerts.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_hadolint_takes_the_dockerfiles(name: str) -> None:
    done = subprocess.run(["hadolint", DEPLOY / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
