"""Files from somebody else are data: one checked reader for JSON, YAML and logs of JSON lines.

Sizes, depths and types are checked, names are not given twice, YAML is without aliases, merge keys and types of its
own. What is wrong is said in our own words with a place: never a library's text, which may quote the content.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import RunError, UserError

MOST_BYTES = 2**26
"""Of a JSON file; the largest that we write hold a metric for every task of a benchmark."""
MOST_YAML_BYTES = 2**20
DEEPEST = 64
"""Objects and lists within each other."""
NUMBER = (int, float)
"""What a number may be; it is finite, and true and false are none."""
DIGITS = 300
"""Of the longest whole number, which still is a float."""


@dataclass(frozen=True)
class Each:
    """An object of fields of any names, all of one kind."""

    kind: Any


Kinds = Mapping[str, Any]
"""Name of a field (with `?` at its end where it may be missing) -> its kind: a type, several, the fields of an object,
`Each`, or a list with the kind of its entries."""


class UnreadableError(ValueError):
    """Why a content cannot be read, in our own words, without any of it."""


def parse_json(data: bytes, line: int = 1) -> Any:
    """The object in JSON text, of which `line` is the number of the first line.

    Raises:
        UnreadableError: There is none, it is nested too deeply, or an object has two fields of one name.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_pairs, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(f"invalid JSON at line {line + error.lineno - 1}, column {error.colno}") from None
    except RecursionError:
        raise UnreadableError("JSON nested too deeply") from None
    _check_depth(content)
    return content


def card_metadata(file: Path) -> dict[str, Any]:
    """The head of a model card; nothing where there is none that can be read."""
    try:
        head = re.match(rb"\s*---\r?\n(.*?)\r?\n---", file.read_bytes(), re.DOTALL)
        found = parse_yaml(head[1]) if head else {}
    except (OSError, UnreadableError):
        return {}
    return found if isinstance(found, dict) else {}


def parse_yaml(data: bytes) -> Any:
    """The object in YAML text of plain values.

    Raises:
        UnreadableError: There is none, or it holds an alias, a merge key, a type of its own, or one name twice.
    """
    import yaml

    if len(data) > MOST_YAML_BYTES:
        raise UnreadableError(f"more than {MOST_YAML_BYTES:,} bytes")
    depth = 0
    try:
        text = data.decode("utf-8-sig")
        for event in yaml.parse(text):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UnreadableError(f"an alias (*name, &name) in line {_line(event)}, which settings have no use for")
            if getattr(event, "tag", None):
                raise UnreadableError(f"a type of its own (!name) in line {_line(event)}")
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<":
                raise UnreadableError(f"a merge key in line {_line(event)}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UnreadableError("nested too deeply")
        _check_names(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"byte {error.start + 1} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", see line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UnreadableError(f"not YAML{where}") from None
    except RecursionError:
        raise UnreadableError("nested too deeply") from None
    except UnreadableError:
        raise
    except (ValueError, OverflowError):  # a date that does not exist, a number of thousands of digits
        raise UnreadableError("a value cannot be read") from None


def read_object(path: Path | str, kind: type[UserError] = RunError, *, fields: Kinds | None = None) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        kind: The error to raise.
        fields: What it must hold; further fields are let through.

    Raises:
        UserError: It cannot be read or holds something else; one line with the file and the reason.
    """
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise UnreadableError(f"more than {MOST_BYTES:,} bytes")
        content = parse_json(Path(path).read_bytes())
        if not isinstance(content, dict):
            raise UnreadableError("no JSON object")
        check_fields(content, fields or {})
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from None
    except UnreadableError as error:
        raise kind(f"{path}: damaged or something else ({error})") from None
    return content


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The objects of a log with one JSON object a line: number of the line and object; a cut-off last line is none.

    Raises:
        RunError: A line that is not the last cannot be read.
    """
    if path.stat().st_size > MOST_BYTES * 16:
        raise RunError(f"{path}: more than {MOST_BYTES * 16:,} bytes")
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, parse_json(line, number)
            except UnreadableError as error:
                if number < len(lines):
                    raise RunError(f"{path}: line {number} is damaged ({error})") from None


def check_fields(value: Any, kind: Any, name: str = "") -> None:
    """Look whether a value, `name` in messages, is of its kind: an object holds the fields that it should.

    Raises:
        UnreadableError: It is not, or a field is missing or of another kind.
    """
    above = f"{name}." if name else ""
    if isinstance(kind, Mapping):
        check_fields(value, dict, name)
        for field, inner in kind.items():
            key = field.removesuffix("?")
            if key in value:
                check_fields(value[key], inner, above + key)
            elif key == field:
                raise UnreadableError(f"{above}{key} must be there")
    elif isinstance(kind, Each):
        check_fields(value, dict, name)
        for entry in value.values():
            check_fields(entry, kind.kind, f"{above}*")
    elif isinstance(kind, list):
        check_fields(value, list, name)
        for entry in value:
            check_fields(entry, kind[0], f"an entry of {name}")
    else:
        wanted = kind if isinstance(kind, tuple) else (kind,)
        good = isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))
        if not good or (isinstance(value, float) and not math.isfinite(value)):
            names = " or ".join("null" if option is type(None) else option.__name__ for option in wanted)
            raise UnreadableError(f"{name or 'it'} must be {names}")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise UnreadableError("JSON with a number too long to read")
    return int(digits)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableError("two fields of an object have the same name")
    return found


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise UnreadableError("JSON nested too deeply")


def _check_names(root: Any) -> None:
    """Look whether every mapping of a YAML tree names its fields once, by words."""
    import yaml

    nodes = [root]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(node.value):
                raise UnreadableError(f"a name twice, or none, in the mapping that begins in line {_line(node)}")
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
