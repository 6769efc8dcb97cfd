"""Files of deploy/ and the unit for systemd: they are valid, and name flags, metrics and files that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from gemel.cli import app
from gemel.runtime.loop.summary import FeedStats, QueryStats, RunStats, Summary
from gemel.runtime.service.metrics import RunMetrics
from gemel.runtime.service.status import STALLED_S, RunStatus
from gemel.workload.document.load_outputs import load_outputs

ROOT = Path(__file__).resolve().parents[2]
DEPLOY, JETSON = ROOT / "deploy", ROOT / "examples" / "jetson"
UNIT = JETSON / "gemel.service"


def metrics() -> str:
    """Return the metrics of a run as Prometheus gets them."""
    summary = Summary(RunStats(1.0, {"q": QueryStats("f", 1, 1)}, {"f": FeedStats(1)}), "ort-cpu")
    outputs = {"outputs": {"o": {"written": 1, "dropped": 0, "failed": 0}}, "reloads": {"done": 1, "failed": 0}}
    status = RunStatus("0", lambda: Path("bundle"), details=lambda: outputs)
    status.begin(lambda: summary)
    return RunMetrics(status).text().decode()


def known_metrics() -> set[str]:
    """Return the names of all samples that a run gives to Prometheus."""
    declared = re.findall(r"^# TYPE (\S+) (\S+)$", metrics(), re.MULTILINE)
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


def tool(name: str) -> str:
    """Return the path of a checker, from the PATH or beside the running Python; skip the test if there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run_flags() -> set[str]:
    """Return all flags of ``gemel-run``."""
    command = get_command(app).commands["run"]  # type: ignore[attr-defined]
    return {name for parameter in command.params for name in parameter.opts}


def command_of_compose() -> list[str]:
    words: list[str] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gemel"]["command"]
    return words


def command_of_image(name: str) -> list[str]:
    (words,) = re.findall(r"^CMD (\[.*\])$", (DEPLOY / name).read_text(), re.MULTILINE)
    found: list[str] = json.loads(words)
    return found


def unit_lines() -> list[tuple[str, str]]:
    """Return the settings of the unit for systemd as (name, value), with continued lines joined."""
    text = UNIT.read_text().replace("\\\n", " ")
    return [line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line)]  # type: ignore[misc]


def command_of_unit() -> list[str]:
    return shlex.split(dict(unit_lines())["ExecStart"])[1:]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(command_of_compose(), id="compose.yaml"),
        pytest.param(command_of_image("Dockerfile"), id="Dockerfile"),
        pytest.param(command_of_image("Dockerfile.cuda"), id="Dockerfile.cuda"),
        pytest.param(command_of_unit(), id="gemel.service"),
    ],
)
def test_commands_have_flags_that_exist(words: list[str]) -> None:
    used = {word for word in words if word.startswith("-")}
    assert "--metrics-port" in used and used <= run_flags()


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_is_read(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize("folder", [DEPLOY, JETSON], ids=lambda folder: folder.name)
def test_outputs_are_read(folder: Path) -> None:
    assert load_outputs(folder / "outputs.yaml")


def test_the_compose_file_mounts_files_that_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", ())]
    named = [mount.partition(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(named) >= 5 and all((DEPLOY / name).exists() for name in named)
    # Ports are for this machine alone.
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_contain_the_product_and_little_else() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".*", "tests", "docs", "out"} <= set(left_out)
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms and not rooms & set(left_out)
    # Folders of the context that the Dockerfiles copy by name.
    for name in ("Dockerfile", "Dockerfile.cuda"):
        copied = re.findall(r"^COPY (?!--from)(\S+) ", (DEPLOY / name).read_text(), re.MULTILINE)
        assert copied and all((ROOT / each).exists() for each in copied)


def test_the_unit_keeps_what_gemel_needs() -> None:
    lines = unit_lines()
    settings = dict(lines)
    assert (settings["Type"], settings["NotifyAccess"]) == ("notify", "main")
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    # The runner counts as stuck after STALLED_S seconds; signs of life are sent twice in each interval.
    assert 30 <= int(settings["WatchdogSec"]) <= 2 * STALLED_S
    assert settings["StateDirectory"] == settings["CacheDirectory"] == "gemel"
    # These hide the GPU, the cameras or the number of the boot, or break CUDA.
    broken = {"PrivateDevices", "DevicePolicy", "ProtectClock", "MemoryDenyWriteExecute", "ProcSubset", "PrivateUsers"}
    assert not broken & settings.keys()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    copy = tmp_path / UNIT.name
    # The program of the unit is not installed here.
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    done = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_promtool_takes_the_rules_and_the_configuration() -> None:
    promtool = tool("promtool")
    for words in (("rules", DEPLOY / "alerts.yml"), ("config", "--syntax-only", DEPLOY / "prometheus.yml")):
        done = subprocess.run([promtool, "check", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout


def test_promtool_takes_the_metrics() -> None:
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=metrics(), capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


TROUBLE = {
    "GemelDown": ('up{job="gemel"}', "0x60"),
    "GemelQuerySilent": ('gemel_query_answer_age_seconds{query="q"}', "0+15x60"),
    "GemelQueryGivenUp": ('gemel_query_given_up{query="q"}', "1x60"),
    "GemelFeedDown": ('gemel_feed_running{feed="f"}', "0x60"),
    "GemelFeedBehind": ('gemel_feed_lag_seconds{feed="f"}', "3x60"),
    "GemelOutputLoses": ('gemel_output_dropped_total{output="o"}', "0+5x60"),
    "GemelReloadFailed": ('gemel_reloads_total{outcome="failed"}', "0x20 1x40"),
}
"""Alert -> (series, its values every 15 s) that must raise the alert within 10 minutes."""


def test_alerts_are_raised(tmp_path: Path) -> None:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"]} == TROUBLE.keys()
    # Series of a run without trouble, which must raise nothing.
    calm = {"up": "1x60", "gemel_healthy": "1x60", "gemel_query_given_up": "0x60", "gemel_feed_running": "1x60"}
    # A failed and a dropped series with the same labels: the alert adds their rates.
    failed = {"series": 'gemel_output_failed_total{output="o"}', "values": "0x60"}
    cases: list[tuple[dict[str, str], str | None]] = [({name: values}, None) for name, values in calm.items()]
    cases.append(({"gemel_feed_running": "0x60", "gemel_feed_paused": "1x60"}, None))
    cases.append(({"gemel_query_answer_age_seconds": "0+15x60", "gemel_query_paused": "1x60"}, None))
    cases += [({series: values}, alert) for alert, (series, values) in TROUBLE.items()]
    tests = []
    for series, raised in cases:
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        expression = "count by (alertname) (ALERTS{alertstate='firing'})"
        samples: list[dict[str, Any]] = [] if raised is None else [{"labels": f'{{alertname="{raised}"}}', "value": 1}]
        expected = [{"expr": expression, "eval_time": "10m", "exp_samples": samples}]
        tests.append({"interval": "15s", "input_series": [*inputs, failed], "promql_expr_test": expected})
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(DEPLOY / "alerts.yml")], "tests": tests}))
    done = subprocess.run([tool("promtool"), "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_compose_takes_the_compose_file() -> None:
    """Docker Compose 1 does not know secrets from the environment, so only version 2 and later can say."""
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker has no plugin compose")
    variables = {**os.environ, "GEMEL_TOKEN": "t", "SITE": "/tmp"}
    words: list[str | Path] = [docker, "compose", "-f", DEPLOY / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_hadolint_takes_the_dockerfiles(name: str) -> None:
    done = subprocess.run([tool("hadolint"), DEPLOY / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shell_takes_the_script() -> None:
    assert subprocess.run(["sh", "-n", DEPLOY / "slim-opencv.sh"]).returncode == 0
