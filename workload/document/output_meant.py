"""Parsers of values in ``outputs`` of workload.yaml, whose error messages suggest what the user probably meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ...bundles.addresses import parse_address
from ...bundles.budget import parse_memory
from ...bundles.output_specs import STDOUT, check_header, check_results_path, check_status, check_topic
from .meant import mistake, near_size

__all__ = [
    "parse_age",
    "parse_bytes",
    "parse_folder",
    "parse_headers",
    "parse_path",
    "parse_period",
    "parse_rotate",
    "parse_secret",
    "parse_server",
    "parse_status",
    "parse_topic",
]

_UNITS_S = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_WORDS = {"hourly": "1h", "daily": "1d", "weekly": "7d", "nightly": "1d", "1day": "1d", "day": "1d", "hour": "1h"}
_LEAST_BYTES = 1000
"""Bytes below which a size without a unit is taken for a number of megabytes whose unit was forgotten."""
_SECRET_NAME = re.compile(r"auth|cookie|key|password|secret|token", re.IGNORECASE)


def parse_period(value: Any) -> Any:
    """Parse a period of an output, such as ``10s``, ``10m`` or ``1d``, into seconds; a bare number is seconds."""
    expected = "a period such as 10s, 10m, 1h or 7d is expected"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|sec|m|min|h|d)?\s*", value)
        if not match:
            near = _WORDS.get(value.strip().lower())
            raise mistake(expected + (f"; did you mean {near}?" if near else ""))
        return float(match[1]) * _UNITS_S[match[2] or "s"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mistake(expected)
    return value


def parse_age(value: Any) -> Any:
    """Parse an age at which files are deleted, such as ``7d``, into seconds; ``all`` becomes None: no limit."""
    return None if value is None or value == "all" else parse_period(value)


def parse_bytes(value: Any) -> Any:
    """Parse a size in bytes, such as ``100MB``; ``all`` becomes None, which is no limit."""
    expected = "a size such as 100MB or 2GiB, or all, is expected"
    if value is None or value == "all":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise mistake(expected)
    try:
        parsed = parse_memory(value)
    except ValueError as error:
        raise mistake(expected + near_size(value)) from error
    if not isinstance(parsed, int) or parsed < 1:
        raise mistake(expected)
    if (isinstance(value, int) or value.strip().isdigit()) and parsed < _LEAST_BYTES:
        raise mistake(f"a bare number is bytes; did you mean {parsed}MB?")
    return parsed


def parse_rotate(value: Any) -> Any:
    """Return the key ``rotate`` as a mapping: ``100MB`` is a size, ``1d`` is an age, ``none`` is no rotation."""
    if value in ("none", False):
        return {"size": "all", "keep": "all"}
    if isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*(?:[KMG]i?)?B?\s*", value, re.IGNORECASE):
        # A number with m could be minutes or megabytes; minutes are as in every other period.
        return {"age": value} if re.fullmatch(r"\s*[\d.]+\s*m\s*", value) else {"size": value}
    if isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*\w+\s*", value):
        return {"age": value}
    if isinstance(value, str | int | float | bool):
        near = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
        hint = f"; did you mean {near}?" if near else ", or a mapping with size, age and keep"
        raise mistake(f"a size such as 100MB or an age such as 1d is expected{hint}")
    return value


def parse_path(value: Any) -> Any:
    """Check the path of a file of results (``jsonl.path``), and suggest what was probably meant."""
    if not isinstance(value, str):
        raise mistake("the path of a file such as results.jsonl is expected")
    try:
        return check_results_path(value)
    except ValueError as error:
        plain = re.fullmatch(r"[\w./~-]+", value)
        near = "; did you mean -?" if value in ("stdout", "/dev/stdout") else f"; did you mean {value}.jsonl?"
        folder = value.endswith("/") or value in (".", "..")
        suffix = f"; did you mean {value.rstrip('/')}/results.jsonl?" if folder else near
        raise mistake(f"{error}{suffix if plain else ''}") from error


def parse_folder(value: Any) -> Any:
    """Check the path of a folder that an output of a run writes to."""
    if not isinstance(value, str) or not value.strip() or value == STDOUT:
        raise mistake("the path of a folder is expected")
    return value


def parse_topic(value: Any) -> Any:
    """Check the template of MQTT topics in ``mqtt.topic``."""
    try:
        return check_topic(value) if isinstance(value, str) else value
    except ValueError as error:
        raise mistake(str(error)) from error


def parse_status(value: Any) -> Any:
    """Check the MQTT topic in ``mqtt.status``; ``none`` becomes None, which is no topic."""
    if value == "none":
        return None
    try:
        return check_status(value) if isinstance(value, str) else value
    except ValueError as error:
        raise mistake(str(error)) from error


def parse_server(value: Any, ports: Mapping[str, int]) -> Any:
    """Check the URL of a server that an output sends results to. The messages do not repeat the URL, which may hold a
    password.

    Args:
        value: URL of the server; variables stay as they are.
        ports: allowed scheme -> port where the URL names none.
    """
    allowed = " or ".join(f"{scheme}://HOST" for scheme in ports)
    if not isinstance(value, str):
        raise mistake(f"{allowed} is expected", secret=True)
    if re.fullmatch(r"\$\{[^}]*\}.*", value):
        return value
    if re.fullmatch(r"[\w.-]+(:\d{1,5})?", value):
        raise mistake(f"{allowed} is expected; did you mean {next(iter(ports))}://{value}?")
    try:
        parse_address(re.sub(r"\$\{[^}]*\}", "x", value), dict(ports))
    except ValueError as error:
        raise mistake(str(error), secret=True) from error
    password = urlsplit(value).password
    if password is not None and not re.fullmatch(r"\$\{\w+\}", password):
        raise mistake(
            "a password does not belong in a file: write ${GEMEL_PASSWORD} in its place,"
            " and set that variable where gemel-run runs",
            secret=True,
        )
    return value


def parse_secret(value: Any) -> Any:
    """Check that an output's password is given by the name of an environment variable. The message does not repeat the
    password."""
    if isinstance(value, str) and re.fullmatch(r"\$\{\w+\}", value):
        return value
    raise mistake(
        "a variable such as ${GEMEL_MQTT_PASSWORD} is expected, which is set where gemel-run runs;"
        " a password does not belong in a file",
        secret=True,
    )


def parse_headers(value: Any) -> Any:
    """Check the HTTP headers in ``webhook.headers`` of an output. The messages do not repeat the text of a header."""
    if not isinstance(value, dict):
        raise mistake("a mapping such as {Authorization: 'Bearer ${GEMEL_TOKEN}'} is expected", secret=True)
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise mistake(f"{name!s:.40}: text is expected, in quotes", secret=True)
        try:
            check_header(name, text)
        except ValueError as error:
            raise mistake(f"{name:.40}: {error}", secret=True) from error
        if _SECRET_NAME.search(name) and "${" not in text:
            raise mistake(f"{name}: a variable such as ${{GEMEL_TOKEN}} is expected in a secret", secret=True)
    return value
