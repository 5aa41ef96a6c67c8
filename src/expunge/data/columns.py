"""Which column of a file holds what: columns that are recognised, and those that the user names."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from expunge.errors import ConfigError, DataError
from expunge.utils.text import did_you_mean, first_few

MESSAGES = "messages"
"""The column of chats."""
LAYOUTS: tuple[tuple[str | None, str], ...] = (
    ("input", "output"),  # LUME
    ("prompt", "completion"),
    ("question", "answer"),  # TOFU
    (None, MESSAGES),  # the turns before the last are the prompt
    (None, "text"),
    (None, "document"),
)
"""Columns of prompt and completion that are recognised, the first that fits. None: the prompt is empty."""
LUME = LAYOUTS[0]
FIELDS = ("prompt", "completion", "id", "task", "keywords")
"""What `columns` may name."""
TEMPLATE = ("tools", "documents", "chat_template_kwargs")
"""Columns beside `messages` that chat templates take."""
BESIDE = ("instruction", "system", "system_prompt", "tools", "context")
"""Columns that say something to the model beside a prompt, and would be left out; the last beside prompts alone."""
SIMILAR = 0.75
"""A column whose name is so close to a known one is probably that one, mis-spelled."""


def parse_columns(text: str | None) -> dict[str, str]:
    """Read `prompt=a,completion=b` as field to column; nothing where there is no text.

    Raises:
        ConfigError: Not of that form, an unknown field, or a field named twice.
    """
    columns: dict[str, str] = {}
    for part in text.split(",") if text else ():
        key, equals, column = (piece.strip() for piece in part.partition("="))
        if not (key and equals and column):
            raise ConfigError(f"--columns {text}: write it as prompt=COLUMN,completion=COLUMN")
        if key in columns:
            raise ConfigError(f"--columns {text}: {key} is named twice")
        columns[key] = column
    if unknown := sorted(set(columns) - set(FIELDS)):
        known = f"the fields are {', '.join(FIELDS)} (texts alone are completions)"
        raise ConfigError(f"--columns: unknown field {', '.join(unknown)}; {known}")
    return columns


def choose_columns(source: str | Path, found: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Field to column, for the fields and `kind`, as far as the file has something for them.

    Args:
        source: The file, for messages.
        found: The columns of all its rows.
        columns: What the user names, over what is recognised.

    Raises:
        DataError: No column holds a completion, a named one is absent, or one beside the prompt would be left out.
        ConfigError: Prompt and completion are one column, or a prompt is named beside chats, which hold theirs.
    """
    absent = [column for column in columns.values() if column not in found]
    if absent:
        raise DataError(f"{source}: has no column {', '.join(absent)}; columns found: {_names(source, found)}")
    chosen = {name: name for name in ("id", "task", "kind", "keywords") if name in found}
    alone = columns.get("completion") in ("text", "document") and "prompt" not in columns
    fits = [pair for pair in LAYOUTS if {*filter(None, pair)} <= {*found}]
    prompt, completion = (None, columns["completion"]) if alone else fits[0] if fits else (None, None)
    beside = _left_out(found, columns, prompt, completion) if not alone else []
    if beside:
        sides = (columns.get("prompt", prompt), columns.get("completion", completion))
        layout = "messages" if completion == MESSAGES else " and ".join(filter(None, sides))
        raise DataError(
            f"{source}: has a column {beside[0]} beside {layout}, which would be left out: put the prompt into one "
            "column and name it with --columns prompt=COLUMN"
        )
    chosen |= {key: column for key, column in (("prompt", prompt), ("completion", completion)) if column}
    chosen |= columns
    if "completion" not in chosen:
        known = ", ".join("/".join(filter(None, pair)) for pair in LAYOUTS)
        half = next((completion for prompt, completion in LAYOUTS if prompt and completion in found), None)
        missing = f"{half} holds a completion, and no column its prompt" if half else "no column holds a completion"
        turns = "conversations" in found  # of ShareGPT
        rather = "rename it to messages, and from and value in its turns to role (user, assistant) and content"
        raise DataError(
            f"{source}: {missing}; columns found: {_names(source, found)}; known are {known}; "
            f"{rather if turns else 'or say which with --columns prompt=...,completion=...'}"
        )
    prompt, completion = chosen.get("prompt"), chosen["completion"]
    if prompt == completion:
        raise ConfigError(f"--columns: {source}: prompt and completion are both {prompt}: name both")
    if prompt and completion == MESSAGES:
        raise ConfigError(f"--columns prompt={prompt}: {source}: the messages hold the prompt already")
    return chosen


def _left_out(
    found: Sequence[str], columns: Mapping[str, str], prompt: str | None, completion: str | None
) -> list[str]:
    """Columns that say something to the model, and that neither the layout nor the user makes a part of a row."""
    if columns.get("prompt") in BESIDE:  # an instruction has its input in another column
        return [name for name in ("input", "context") if name in found and name not in columns.values()]
    if "prompt" in columns or completion is None:
        return []
    beside = [name for name in BESIDE[: None if prompt else -1] if name in found and name not in columns.values()]
    if completion == MESSAGES:
        return [name for name in beside if name not in TEMPLATE]
    prompts = [name for name, _ in LAYOUTS if name and name in found and not prompt]
    return beside + [name for name in prompts if name not in columns.values()]


def _names(source: str | Path, found: Sequence[str]) -> str:
    """Column names for a message: of a CSV those that we know, since it may lack a header; of others single words."""
    known = {*filter(None, chain(*LAYOUTS)), *FIELDS, *BESIDE, *TEMPLATE, "kind"}
    word = "(?!)" if str(source).lower().endswith(".csv") else r"[^\W\d][\w.-]{0,39}"

    def told(at: int, name: str) -> str:
        return f"column {at} ({len(name)} characters{did_you_mean(name.lower(), sorted(known), alike=SIMILAR)})"

    plain = {name for name in found if name in known or re.fullmatch(word, name)}
    shown = [name if name in plain else told(at, name) for at, name in enumerate(found, 1)]
    return first_few(shown, 20)
