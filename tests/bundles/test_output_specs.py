"""Outputs in a manifest: what is allowed, and what of a server's address may be printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gemel.bundles.addresses import Address, parse_address, shown_server
from gemel.bundles.output_specs import MQTT_PORTS, WEB_PORTS, OutputSpec, check_topic, map_strings
from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.errors import BundleError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://broker", "mqtt://broker"),
        ("mqtts://box:s3cret@broker:8883", "mqtts://broker:8883"),
        ("https://hooks.example.com/services/s3cret?token=s3cret#s3cret", "https://hooks.example.com"),
        ("http://box@s3cret@192.0.2.7:80/x", "http://192.0.2.7:80"),
        ("mqtt://box:s3/cret@broker", "mqtt://..."),
        ("mqtt://box:s3?cret@broker", "mqtt://..."),
        ("mqtt://box:12/s3cret@broker", "mqtt://..."),
        ("http://[2001:db8::1]:8080/s3cret", "http://[2001:db8::1]:8080"),
        ("mqtt://${BROKER}", "mqtt://..."),
        ("s3cret", "..."),
        ("box:s3cret@broker", "..."),
        ("s3cret@x://broker", "..."),
        ("http://x/s3cret@y", "http://..."),
    ],
)
def test_only_scheme_host_and_port_are_shown(url: str, shown: str) -> None:
    assert shown_server(url) == shown
    assert "s3cret" not in shown_server(url)


def test_parts_of_an_address() -> None:
    address = parse_address("mqtts://box:p%40ss%2f@broker.example", MQTT_PORTS)
    assert address == Address("mqtts", "broker.example", 8883, "/", "box", "p@ss/")
    assert "p@ss" not in repr(address)
    assert parse_address("HTTPS://[::1]:8443/a?b=c", WEB_PORTS) == Address("https", "::1", 8443, "/a?b=c")


@pytest.mark.parametrize(
    "url",
    [
        *("", "broker", "mqtt://", "mqtt:///x", "http://h", "mqtt://h:0", "mqtt://h:99999", "mqtt://h:x", "mqtt://a b"),
        *("mqtt://h\r\nx", "mqtt://[::1", "mqtt://" + "h" * 300, "mqtt://h\0", "file:///etc/passwd", "mqtt://ü$"),
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_address(url, MQTT_PORTS)


@pytest.mark.parametrize("topic", ["a", "a/{feed}/{query}", "${SITE}/{query}", "a/b-c_d/ü"])
def test_topics(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize(
    "topic",
    ["", "a/#", "+/a", "$SYS/x", "a\0", "{", "{}", "{0}", "{camera}", "{query!r}", "{query:>9999999}", "x" * 600],
)
def test_topics_that_are_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        check_topic(topic)


@pytest.mark.parametrize(
    "content",
    [
        {"jsonl": {"path": "/home/me/.bashrc"}},
        {"jsonl": {"path": ""}},
        {"jsonl": {"path": "a\0.jsonl"}},
        {"jsonl": {"path": "a.jsonl", "rotate": {"size": 0}}},
        {"video": {"folder": "v", "segment": 0}},
        {"video": {"folder": "v", "segment": 1e99}},
        {"video": {}},
        {"mqtt": {"url": "mqtt://h", "qos": 5}},
        {"mqtt": {"url": "mqtt://h", "topic": "#"}},
        {"mqtt": {"url": "mqtt://h", "status": "{feed}"}},
        {"webhook": {"url": "http://h", "headers": {"A\r\nB": "c"}}},
        {"webhook": {"url": "http://h", "headers": {"A": "c\r\nD: e"}}},
        {"webhook": {"url": "http://h", "headers": {"Content-Length": "5"}}},
        {"webhook": {"url": "http://h", "batch": 10**9}},
        {"snapshots": {"folder": "s", "cooldown": -1}},
        {"samples": {"folder": "s", "every": 0}},
        {"samples": {"folder": "s", "quality": 101}},
        {"samples": {"every": 30}},
        {"jsonl": {"path": "a.jsonl"}, "video": {"folder": "v"}},
    ],
)
def test_outputs_that_are_refused(content: dict[str, Any], bundle: Path) -> None:
    with pytest.raises(ValidationError):
        OutputSpec.model_validate(content)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["outputs"] = [content]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json: outputs\.0"):
        open_bundle(bundle)


def test_a_newer_minor_version_may_have_other_kinds(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["outputs"] = [{"pigeon": {"to": "home"}}, {"jsonl": {"path": "a.jsonl", "wings": 2}}]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    found = open_bundle(bundle).manifest.outputs
    assert [each.kind for each in found] == [None, "jsonl"]


def test_strings_are_mapped_but_not_keys() -> None:
    assert map_strings({"a": ["b", {"c": "d"}, 1, None]}, str.upper) == {"a": ["B", {"c": "D"}, 1, None]}
