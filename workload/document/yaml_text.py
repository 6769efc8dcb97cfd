"""Reading of YAML text with limits on its size, the line of every field, and an error for a repeated key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import yaml

from ...errors import WorkloadError

__all__ = ["FieldPath", "line_of", "parse_yaml", "scalar_of"]

FieldPath = Sequence[str | int]
"""Type of a path to a field of a YAML document: keys of mappings and positions in lists."""

_MOST_BYTES = 1 << 20
"""Maximum length of a YAML text in characters; the largest real workloads have some kilobytes."""
_MOST_VALUES = 100_000
"""Maximum number of values in a YAML document after aliases are replaced; nested aliases multiply values without
limit."""
_MOST_DIGITS = 100
"""Maximum number of characters of a number in a YAML document; Python takes quadratic time to read one and refuses to
print a long one."""
_MOST_DEPTH = 100
"""Maximum depth of mappings and lists inside each other in a YAML document."""
_NEVER = re.compile("[\0\ud800-\udfff]")
"""Pattern of characters that no path may have (NUL) and that no file can hold (halves of surrogate pairs)."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse_yaml(text: str, where: str) -> tuple[yaml.Node | None, Any]:
    """Read a text as one YAML document.

    Args:
        text: content of the YAML file.
        where: name of the file, for errors.

    Returns:
        The root node of the document, whose nodes know their lines, and the document as Python values.

    Raises:
        WorkloadError: the text is not YAML, has a key twice, or has more values than a workload could need.
    """
    if len(text) > _MOST_BYTES:
        raise WorkloadError(f"{where}: larger than {_MOST_BYTES >> 20} MiB: this is no workload")
    loader: yaml.SafeLoader | None = None
    node: yaml.Node | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_size(node, where)
        if (twice := _repeated(node)) is not None:
            raise WorkloadError(f"{where}:{twice[0]}: key {twice[1]!r} is there twice")
        return node, None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise WorkloadError(f"{where}: nested too deeply") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise WorkloadError(
            f"{where}:{line}: not YAML: the character U+{error.character:04X} is not allowed"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        behind = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise WorkloadError(f"{where}{behind}: not YAML: {reason}") from error
    except ValueError as error:
        # A scalar looks like a date or a number and is none, such as 2024-13-45.
        place = "".join(f":{line}" for line in islice(_unreadable(node), 1))
        raise WorkloadError(f"{where}{place}: not YAML: {error}; quote it if it is text") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(root: yaml.Node | None, where: str) -> None:
    """Refuse a YAML document that is too large once its aliases are replaced, or that contains itself.

    Raises:
        WorkloadError: a limit is exceeded, or an alias leads back to itself; the message names the line.
    """
    sizes: dict[int, int] = {}
    stack: list[tuple[yaml.Node, bool]] = [] if root is None else [(root, False)]
    open_: set[int] = set()
    while stack:
        node, done = stack.pop()
        line = node.start_mark.line + 1
        if done:
            open_.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in _children(node))
            if sizes[id(node)] > _MOST_VALUES:
                many = f"more than {_MOST_VALUES:,} values once its aliases are replaced"
                raise WorkloadError(f"{where}:{line}: {many}: this is no workload")
        elif id(node) in open_:
            raise WorkloadError(f"{where}:{line}: an alias leads back to itself")
        elif id(node) not in sizes:
            if len(open_) > _MOST_DEPTH:
                raise WorkloadError(f"{where}:{line}: nested too deeply")
            if isinstance(node, yaml.ScalarNode):
                if node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS:
                    raise WorkloadError(f"{where}:{line}: a number of {len(node.value)} digits: quote it if it is text")
                if (bad := _NEVER.search(node.value)) is not None:
                    # Written with an escape, such as "\0" or "\ud800".
                    raise WorkloadError(f"{where}:{line}: the character U+{ord(bad[0]):04X} is not allowed")
            open_.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node))


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the nodes directly inside a node of a YAML document: keys and values of a mapping, or items of a list."""
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _walk(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Yield every node of a YAML document once, although aliases lead to some of them repeatedly."""
    stack, seen = [] if root is None else [root], set()
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            stack.extend(_children(node))


def _unreadable(root: yaml.Node | None) -> Iterator[int]:
    """Yield the lines of YAML scalars that look like a date or a number and cannot be read as one."""
    for node in _walk(root):
        if isinstance(node, yaml.ScalarNode):
            try:
                yaml.SafeLoader("").construct_document(node)
            except ValueError:
                yield node.start_mark.line + 1


def _repeated(root: yaml.Node | None) -> tuple[int, str] | None:
    """Return line and name of a key that a mapping in a YAML document has twice; None if there is no such key.

    PyYAML would silently take the last value of such a key.
    """
    for node in _walk(root):
        keys: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in keys:
                    return key.start_mark.line + 1, key.value
                keys.add(key.value)
    return None


def _find(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return the YAML nodes of a mapping's key and of its value; for an item of a list, the item's node twice.

    Both are None if the key or item does not exist.
    """
    if isinstance(node, yaml.MappingNode):
        # The last one counts: keys that a merge brings in stand before a mapping's own.
        for key, value in reversed(node.value):
            if key.value == str(part):
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None, None


def line_of(node: yaml.Node | None, field: FieldPath) -> tuple[int, list[str | int]]:
    """Return the line of a field in a YAML document, and the beginning of the field's path that exists in the file.

    If the file does not have the field, the line is that of its nearest ancestor.

    Args:
        node: root of the YAML document.
        field: path to the field; the last parts may be missing in the file.
    """
    line = node.start_mark.line + 1 if node else 1
    known: list[str | int] = []
    for part in field:
        if isinstance(node, yaml.ScalarNode):
            break
        key, node = _find(node, part)
        known.append(part)
        if key is None:
            break
        line = key.start_mark.line + 1
    return line, known


def scalar_of(node: yaml.Node | None, field: FieldPath) -> yaml.ScalarNode | None:
    """Return the node of a field's scalar in a YAML document, with its text as written; None if it is no scalar."""
    for part in field:
        _, node = _find(node, part)
    return node if isinstance(node, yaml.ScalarNode) else None
