"""Draft of a workload.yaml with comments, for ``gemel init``."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from ...bundles.manifest import InputSpec
from ...workload.document.json_schema import SCHEMA_FILE
from ...workload.models.identity import PRETRAINED_FOLDER
from .given import GivenFeed, GivenModel, unique_name

__all__ = ["draft_workload"]

_COMMENT_AT = 34
"""Column at which comments begin in the lines of a drafted workload.yaml, if the text before leaves room."""
_MOST_LABELS = 100
"""Maximum number of labels of a model's file to write into the draft."""
_ROUNDING = 1e-6
"""Largest relative difference from 1/255 up to which a model's pixel scale is written into the draft as 1/255."""
_NO_FEED = GivenFeed("camera", "rtsp://${CAMERA}/live", recorded=False)
_NO_MODEL = GivenModel("model", "model.onnx", "detection", "what the model answers")

_HEAD = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
# Written by gemel init. Check what is marked as a guess. Every key: docs/workload.md, or the schema above.
schema_version: "1"
device:
  backend: ort-cpu                # ort-cpu, auto-cpu, openvino, ort-cuda, tensorrt, ...
  memory: all                     # budget for weights: 64MiB, 50%, min or all
sla: 100ms                        # time from a frame's arrival to its result
"""


def draft_workload(models: Sequence[GivenModel], feeds: Sequence[GivenFeed], folder: Path) -> str:
    """Return the text of a commented workload.yaml with a query for every model on every feed.

    Args:
        models: models to write queries for; a placeholder is written if there are none.
        feeds: sources of frames; the address of a camera is written as a placeholder if there are none.
        folder: folder that the workload will be written to; paths are made relative to this folder.
    """
    lines = ["", "feeds:"]
    for feed in feeds or [_NO_FEED]:
        lines += _feed(feed, folder, placeholder=not feeds)
    lines += ["", "queries:"]
    names: list[str] = []
    for model in models or [_NO_MODEL]:
        for index, feed in enumerate(feeds or [_NO_FEED]):
            names.append(unique_name(f"{feed.name}-{model.name}", names))
            query = f"  - name: {names[-1]}\n    feed: {feed.name}"
            lines += [query, *_query(model, folder, first=index == 0, repeated=len(feeds) > 1), ""]
    return _HEAD + "\n".join(lines[:-1]) + "\n"


def _feed(feed: GivenFeed, folder: Path, *, placeholder: bool) -> Iterator[str]:
    yield f"  {feed.name}:"
    what = f"gemel-run --feed {feed.name}=SOURCE replaces it"
    if placeholder:
        what = "your camera, or a file, a folder of images, /dev/video0; ${CAMERA} is filled in when the bundle runs"
    yield _line(f"    source: {_scalar(_relative(feed.source, folder))}", what)
    if feed.recorded:
        yield _line("    loop: true", "begin again at its end")
    yield _line("    # fps: 10", "most frames per second that are used")


def _query(model: GivenModel, folder: Path, *, first: bool, repeated: bool) -> Iterator[str]:
    yield _line(f"    task: {model.task}", model.reason)
    yield from _labels(model)
    yield _line("    # threshold: 0.5", "lowest score that is reported")
    if first:
        yield f"    model:{f' &{model.name}' if repeated else ''}"
        yield from _model(model, folder)
    else:
        yield _line(f"    model: *{model.name}", "the same model as above")
    yield _line("    # target: 0.95", "accuracy that gemel merge and --precision must keep, of the original's")


def _labels(model: GivenModel) -> Iterator[str]:
    labels = model.facts.labels if model.facts is not None else ()
    if model.task in ("embedding", "raw", "ocr"):
        return
    if 0 < len(labels) <= _MOST_LABELS:
        text = ", ".join(_scalar(label) for label in labels)
        wrapped = textwrap.wrap(
            f"    labels: [{text}]", 118, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False
        )
        yield from ["    # From the file's metadata:", *wrapped]
        yield _line(f"    # classes: [{_scalar(labels[0])}]", "report only these")
    elif labels:
        yield f"    # labels: labels.txt, one per line; the file has {len(labels)}, such as {_plain(labels[0])}"
    else:
        yield _line("    # labels: [car, truck]", "or a file with one per line; the background is not counted")


def _model(model: GivenModel, folder: Path) -> Iterator[str]:
    facts = model.facts
    if facts is None and model.reference.endswith(".onnx"):
        yield _line(f"      onnx: {_scalar(model.reference)}", "your model, or factory: module:name")
        return
    if facts is None:
        yield _line(f"      factory: {model.reference}", "a callable that returns an nn.Module")
        if model.folder is not None:
            yield f"      args: {{{PRETRAINED_FOLDER}: {_scalar(_explicit(_relative(model.folder, folder)))}}}"
            yield _line("      # input: {size: [224, 224]}", "from preprocessor_config.json if left out")
            return
        yield _line("      # args: {num_classes: 3}", "its keyword arguments")
        if model.weights is not None:
            yield f"      weights: {_scalar(_relative(model.weights, folder))}"
        else:
            yield _line("      # weights: weights.safetensors", "torch.save(model.state_dict(), ...) or safetensors")
        yield _line("      # input: {size: [224, 224]}", "the model's own if left out")
        return
    yield f"      # {_plain(facts.ports, 140)}"
    yield f"      onnx: {_scalar(_relative(model.reference, folder))}"
    if facts.size is not None:
        yield _line("      input:", "(pixel * scale - mean) / std")
        yield _line(f"        size: {list(facts.size)}", f"height, width: {facts.size_reason}")
    else:
        yield _line("      # input:", "(pixel * scale - mean) / std, in numbers that gemel-compile would take:")
    for line in _input(facts.input) if facts.input is not None else ():
        yield f"        # {line}" if facts.size is not None else f"      #   {line}"


def _input(spec: InputSpec) -> Iterator[str]:
    """Yield the preprocessing of a model's input as lines of YAML, without its size."""
    scale = "1/255" if abs(spec.scale * 255 - 1) < _ROUNDING else f"{spec.scale:g}"
    mean, std = ([round(value, 4) for value in values] for values in (spec.mean, spec.std))
    yield f"color: {spec.color}"
    yield f"scale: {scale}"
    yield f"mean: {mean}"
    yield f"std: {std}"
    yield f"fit: {spec.fit}"


def _line(text: str, comment: str) -> str:
    return f"{text:<{_COMMENT_AT - 1}} # {_plain(comment, 200)}"


def _plain(value: object, most: int = 60) -> str:
    """Return a value as text for a YAML comment: one line without control characters, cut after ``most`` characters."""
    text = "".join(character if character.isprintable() else "?" for character in str(value))
    return text if len(text) <= most else f"{text[:most]}..."


def _scalar(text: str) -> str:
    """Return a text as a YAML scalar, quoted if YAML would read the bare text as something else."""
    simple = re.fullmatch(r"[A-Za-z0-9_./$][\w./$ +-]*", text) and text == text.strip()
    return text if simple and yaml.safe_load(text) == text else json.dumps(text)


def _explicit(path: str) -> str:
    """Return the path of a folder in a form that no name on a model hub has."""
    return path if path.startswith((".", "/")) else f"./{path}"


def _relative(reference: str, folder: Path) -> str:
    """Return a file's path relative to a folder; absolute paths and references that are no paths stay as they are."""
    path = Path(reference).expanduser()
    if "://" in reference or reference.startswith(("package:", "${")) or path.is_absolute():
        return reference
    return os.path.relpath(path.absolute(), folder.absolute())
