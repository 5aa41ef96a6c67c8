"""The `Example` record, and the one reader for everything that holds examples.

`columns` says what its columns hold. A row that cannot be used is refused with file, line
and reason, never skipped or mended, and no message shows a row's text.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.data.columns import LUME, MESSAGES, TEMPLATE, choose_columns
from expunge.data.readers import read_rows, stem
from expunge.data.words import words
from expunge.errors import DataError
from expunge.utils.text import first_few

KINDS = ("sc", "qa", "")
SPOKEN = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")
"""Keys of a turn, beside its content, that say something; others (names, ids) are handed on and may be dropped."""


@dataclass(frozen=True)
class Example:
    """One text, split where the prompt ends.

    Attributes:
        id: Unique name of the row within its file (the file's `id` column, else `<stem>-<row number from 1>`).
        prompt: What the model is given; empty when the whole text is the completion.
        completion: What the model must forget or keep saying after the prompt; never empty.
        task: Group that the official scores average over (`Task1` ...); empty when the data has none.
        kind: `sc` (sentence completion: regurgitation), `qa` (question: knowledge) or empty.
        source: Where the row was read: `path:line`, for messages only.
        messages: The turns of a chat before its last one, as `role` and `content`, for the chat template;
            `prompt` is their contents, joined by blank lines. None for rows that are no chat. Turns keep their other
            keys (`tool_calls`, `reasoning_content`, `name`).
        answer: The other keys of a chat's last turn.
        template: What the chat template takes beside the turns: `tools`, `documents`.
        keywords: Words of the completion that say the fact (the file's `keywords` column).
        label: What stands for task and kind where these do not tell rows apart (`data.kinds`); never written to a file.
    """

    id: str
    prompt: str
    completion: str
    task: str = ""
    kind: str = ""
    source: str = ""
    messages: tuple[Mapping[str, Any], ...] | None = field(default=None, hash=False)
    answer: Mapping[str, Any] = field(default_factory=dict, hash=False)
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)
    keywords: tuple[str, ...] = field(default=(), compare=False)
    label: str = ""

    @property
    def text(self) -> str:
        """Prompt and completion, for comparing texts."""
        return f"{self.prompt} {self.completion}".strip()

    @property
    def bare(self) -> bool:
        """Whether the completion answers nothing: no prompt, turn, tool or document stands before it."""
        return not (self.prompt or self.messages or self.beyond_text)

    @property
    def group(self) -> str:
        """What the official scores average the row with: its task and kind, or its label."""
        return self.label or f"{self.task} {self.kind}".strip()

    @property
    def beyond_text(self) -> list[str]:
        """What the row says that only a chat template can show: keys of turns, and tools or documents."""
        turns = (*(self.messages or ()), self.answer)
        return sorted({key for turn in turns for key in SPOKEN if key in turn} | {*self.template} & {*TEMPLATE})


def read_examples(source: str | Path, *, columns: Mapping[str, str] | None = None) -> list[Example]:
    """Read every row of a file or data set, in its order.

    Args:
        source: A .jsonl, .json (a list, or one object a line), .parquet, .csv or .txt file, a folder written by
            `datasets.save_to_disk` (`folder` or `folder:split`), or a `datasets` name (`name`, `name:split`,
            `name@config:split`). A `Path` is never looked up as a name.
        columns: Field to column, as `parse_columns` gives it, over what is recognised.

    Raises:
        DataError: The source cannot be read, has no rows or no known columns, or a row cannot be used.
        ConfigError: `columns` names one column twice, or a prompt that a chat has already.
    """
    rows = read_rows(source)
    chosen = choose_columns(source, [*dict.fromkeys(column for _, row in rows for column in row)], columns or {})
    prefix = stem(source)
    return [_example(row, where, f"{prefix}-{number}", chosen) for number, (where, row) in enumerate(rows, 1)]


def check_sets(sets: Mapping[str, Sequence[Example]], *, kept_count: int | None = None) -> list[str]:
    """Look for what is probably a mistake in the sets of a run: `forget`, `retain` and others, by name.

    Two texts are the same when prompt and completion, read on, differ in white space at most.

    Args:
        sets: The rows of each.
        kept_count: Texts to keep that were given, with those set apart for testing; those in `retain` when None.

    Returns:
        One line for each finding: ids and texts that a set has twice, texts of a benchmark both to forget and to keep,
        more forget than retain texts. Places of rows, and nothing of them.
    """
    warnings = []
    keys = {name: [text_key(row) for row in rows] for name, rows in sets.items()}
    for name, rows in sets.items():
        for what, values, then in (("id", [row.id for row in rows], ""), ("text", keys[name], ", and each counts")):
            if again := _again(rows, values):
                warnings.append(f"{name}: {_told(again, what, f'there already on an earlier row{then}')}")
    kept = set(keys["retain"])
    if shared := [_place(row) for row, key in zip(sets["forget"], keys["forget"], strict=True) if key in kept]:
        warnings.append(f"forget: {_told(shared, 'text', 'also in retain')}")
    kept_count = len(sets["retain"]) if kept_count is None else kept_count
    if sets["retain"] and len(sets["forget"]) > kept_count:
        warnings.append(
            f"forget has {len(sets['forget']):,} texts, more than retain with {kept_count:,}: give at least as many to "
            "keep (--retain), for what is like none of them is held less"
        )
    return warnings


def text_key(example: Example) -> str:
    """What two examples share that are the same text: all but white space, however prompt and completion are joined."""
    return "".join(f"{example.prompt}{example.completion}".split())


def text_hash(example: Example) -> str:
    """What stands for a text where it must not be told: SHA-256 of its `text_key`."""
    return hashlib.sha256(text_key(example).encode()).hexdigest()


def _again(rows: Sequence[Example], keys: Sequence[str]) -> list[str]:
    """Where the rows were read whose key stands there already on an earlier one."""
    first: dict[str, int] = {}
    return [
        _place(row) for at, (row, key) in enumerate(zip(rows, keys, strict=True)) if first.setdefault(key, at) != at
    ]


def _place(row: Example) -> str:
    """Where a row stands in its file, `line 3` or `row 3`, without the file's name: it is shown on pages."""
    found = re.search(r"(?:, row |:)(\d+)\Z", row.source)
    return f"{'row' if ', row ' in row.source else 'line'} {found[1]}" if found else "a row of its folder"


def _told(places: Sequence[str], noun: str, what: str) -> str:
    count = f"1 {noun} is" if len(places) == 1 else f"{len(places):,} {noun}s are"
    return f"{count} {what}: {first_few(places, 5)}"


def _example(row: dict[str, Any], where: str, default_id: str, columns: Mapping[str, str]) -> Example:
    turns: tuple[dict[str, Any], ...] | None = None
    answer: dict[str, Any] = {}
    template: dict[str, Any] = {}
    if columns["completion"] == MESSAGES:
        turns, answer = _turns(row, where)
        completion = answer["content"]
        answer = {key: value for key, value in answer.items() if key not in ("role", "content")}
        template = _template_columns(row, where)
        prompt = "\n\n".join(turn["content"] for turn in turns if turn["content"])
    else:
        if (column := columns.get("prompt")) and column not in row:
            raise DataError(f"{where}: missing field '{column}': that of a text without a prompt is empty")
        prompt = text_cell(row, column, where) if column else ""
        completion = text_cell(row, columns["completion"], where)
    if _blank(completion):
        raise DataError(f"{where}: field '{columns['completion']}' is empty: every row needs a completion")
    row_id = _id(row, columns["id"], where) if _has(row, columns, "id") else default_id
    task, kind = (text_cell(row, columns[key], where) if _has(row, columns, key) else "" for key in ("task", "kind"))
    if kind not in KINDS:
        raise DataError(f"{where}: field 'kind' must be sc, qa or empty: rename a column that means something else")
    if "kind" not in columns and (columns.get("prompt"), columns["completion"]) == LUME:
        ending = re.search(r"(sc|qa)[0-9]+\Z", row_id)
        kind = ending[1] if ending else ""
    keywords = _keywords(row, columns["keywords"], where) if _has(row, columns, "keywords") else ()
    return Example(row_id, prompt, completion, task, kind, where, turns, answer, template, keywords)


def _keywords(row: Mapping[str, Any], column: str, where: str) -> tuple[str, ...]:
    """A list of texts, or one text with semicolons between them."""
    value = row[column]
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise DataError(f"{where}: field '{column}' is neither a list of words nor text with ; between them")
    found = [text for part in parts if (text := text_cell({column: part}, column, where).strip())]
    if not all(map(words, found)):
        raise DataError(f"{where}: field '{column}' holds a key word without letter or digit, which none can say")
    return tuple(dict.fromkeys(found))


def _blank(text: str) -> bool:
    """Whether there is nothing to be seen: white space, control and zero-width characters at most."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def _has(row: Mapping[str, Any], columns: Mapping[str, str], key: str) -> bool:
    """Whether a row has a value for an optional field."""
    return key in columns and row.get(columns[key]) is not None


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise DataError(f"{where}: missing field '{column}'")
    if row[column] is None:
        raise DataError(f"{where}: field '{column}' is null")
    return row[column]


def text_cell(row: Mapping[str, Any], column: str, where: str, *, empty: bool = True) -> str:
    """The text in a cell, once it is one that can be tokenized.

    Raises:
        DataError: It is missing, null, no string, not Unicode text, or has nothing but white space and may not.
    """
    value = _cell(row, column, where)
    if not isinstance(value, str):
        found = type(value).__name__
        raise DataError(f"{where}: field '{column}' is not a string but {found}: write it as text, in quotation marks")
    if "\0" in value:
        raise DataError(f"{where}: field '{column}': NUL character at position {value.index(chr(0)) + 1}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: field '{column}': half a surrogate pair at {error.start + 1}") from None
    if not empty and not value.strip():
        raise DataError(f"{where}: field '{column}' is empty")
    return value


def _id(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if _blank(text := text_cell(row, column, where)):
        raise DataError(f"{where}: field '{column}' is empty: give the row an id, or leave the column out")
    return text


def _turns(row: Mapping[str, Any], where: str) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """A chat's turns before the last one, and the last one, the assistant's."""
    messages = _cell(row, MESSAGES, where)
    if not isinstance(messages, list):
        raise DataError(f"{where}: field 'messages' is not a list but {type(messages).__name__}")
    turns: list[dict[str, Any]] = []
    for number, turn in enumerate(messages, 1):
        place = f"{where}: turn {number} of 'messages'"
        if not isinstance(turn, dict):
            raise DataError(f"{place} is not an object with role and content but {type(turn).__name__}")
        others = {key: _value(turn[key], place) for key in turn if key not in ("role", "content")}
        others = {key: value for key, value in others.items() if value not in (None, "", [], {})}
        if turn.get("content") is None and "tool_calls" in others:  # as OpenAI's format has it
            turn = {**turn, "content": ""}
        turns.append({key: text_cell(turn, key, place) for key in ("role", "content")} | others)
    if not turns or turns[-1]["role"] != "assistant":
        raise DataError(f"{where}: the last turn of 'messages' must be the assistant's, it is the completion")
    if len(turns) == 1:
        raise DataError(f"{where}: 'messages' has only the assistant's turn: put texts alone in a column 'text'")
    return tuple(turns[:-1]), turns[-1]


def _template_columns(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What stands beside the turns for the chat template; lists may be written as JSON, as data sets with tools do."""
    found: dict[str, Any] = {}
    for column in TEMPLATE:
        value = _value(row.get(column), f"{where}: field '{column}'")
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                raise DataError(f"{where}: field '{column}' is a string that holds no JSON") from None
        if value in (None, "", [], {}):
            continue
        kind = dict if column == "chat_template_kwargs" else list
        if not isinstance(value, kind):
            raise DataError(f"{where}: field '{column}' is not a {kind.__name__} but {type(value).__name__}")
        found |= value if isinstance(value, dict) else {column: value}
    return found


def _value(value: Any, place: str) -> Any:
    """A nested value without the nulls that tables put where a row has no such key.

    Raises:
        DataError: A string in it cannot be tokenized, or it is none of JSON's kinds.
    """
    if isinstance(value, str):
        return text_cell({"value": value}, "value", place)
    if isinstance(value, Mapping):
        return {str(key): _value(inner, place) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_value(inner, place) for inner in value]
    if value is None or isinstance(value, int | float):
        return value
    raise DataError(f"{place}: holds a {type(value).__name__}, which is no value of JSON")
