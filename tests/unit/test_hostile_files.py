# ruff: noqa: PT017  (a refusal is one of two good outcomes)
"""Whatever is in a file, it is read as rows or refused with a UserError of one line that shows none of its text."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.data.examples import Example, check_sets, read_examples
from expunge.data.tokenize import PromptFormat, completion_ids, prompt_ids, tokenize
from expunge.errors import DataError, UserError
from tiny import TOKENIZERS, tiny_tokenizer

quick = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
text = st.text(st.characters(codec="utf-8"), max_size=30)
column = st.sampled_from(["input", "output", "prompt", "completion", "text", "messages", "id", "task", "kind"]) | text
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(column, inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(st.dictionaries(column, text | value, max_size=4), max_size=4)


def read(path: Path, content: bytes) -> list[Example]:
    """The examples in a file, or none when it is refused in one line."""
    path.write_bytes(content)
    try:
        examples = read_examples(path)
        check_sets({"forget": examples, "retain": examples})
    except UserError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(("--columns", str(path)))
        return []
    assert examples
    assert all(example.completion.strip() and example.id for example in examples)
    return examples


@quick
@given(rows)
def test_json_of_any_shape(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = read(tmp_path / "rows.json", json.dumps(rows).encode())
    lines = read(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    assert [(e.prompt, e.completion, e.id) for e in found] == [(e.prompt, e.completion, e.id) for e in lines]


@quick
@given(st.sampled_from(["rows.json", "rows.jsonl", "rows.csv", "rows.parquet"]), st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, name: str, content: bytes) -> None:
    read(tmp_path / name, content)


@quick
@given(st.lists(st.tuples(text, text), min_size=1, max_size=4))
def test_csv_gives_back_what_was_written(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([("prompt", "completion"), *cells])

    found = read(tmp_path / "rows.csv", file.getvalue().encode())

    assert not found or [(example.prompt, example.completion) for example in found] == cells


@quick
@given(st.data(), st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_damaged_parquet(tmp_path: Path, data: st.DataObject, cells: list[tuple[str, str]]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": [a for a, _ in cells], "completion": [b for _, b in cells]}), buffer)
    content = bytearray(buffer.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))

    read(tmp_path / "rows.parquet", bytes(content))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {kind: tiny_tokenizer(kind) for kind in TOKENIZERS}


@settings(quick, max_examples=400)
@given(
    kind=st.sampled_from(TOKENIZERS),
    prompt=st.text(max_size=40) | st.text(" \n\t\u200b\u00a0ab", max_size=12),
    completion=st.text(min_size=1, max_size=40).filter(str.strip),
    style=st.sampled_from(["none", "space", "newline", "separate", "chat"]),
    end=st.booleans(),
    max_length=st.sampled_from([2, 3, 5, 17, 4096]),
)
def test_tokenization_of_any_text(
    tokenizers: dict[str, Any], kind: str, prompt: str, completion: str, style: str, end: bool, max_length: int
) -> None:
    """There is something to predict, it has context, nothing is longer than asked, and a prompt is cut at its head."""
    tokenizer, example, prompt_format = tokenizers[kind], Example("id", prompt, completion), PromptFormat(style, end)
    try:
        row = tokenize(tokenizer, example, prompt_format, max_length=max_length, truncate_completions=True)
    except UserError as error:
        assert completion not in str(error) or len(completion) < 4
        return

    assert 2 <= len(row) <= max_length
    assert 0 <= row.completion_start < len(row)
    assert len(row.targets("completion"))
    whole = tokenize(tokenizer, example, prompt_format, max_length=10**6)
    assert row.truncated == max(0, len(whole) - max_length)
    if not row.truncated:
        assert row.input_ids == whole.input_ids
        assert whole.input_ids[whole.completion_start :] == completion_ids(tokenizer, example, prompt_format)
        assert isinstance(prompt_ids(tokenizer, example, prompt_format), list)


# --- what the fuzzer found -----------------------------------------------------------------------


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a"] * 50, "completion": ["b"] * 50}), buffer, compression="none")
    return buffer.getvalue()


def test_a_column_name_in_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet_bytes().replace(b"completion", b"comp\xddetion"))

    with pytest.raises(DataError, match="invalid Parquet: a name in it is not UTF-8"):
        read_examples(path)


def test_parquet_whose_reason_has_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    content = parquet_bytes()
    path.write_bytes(content[:4] + bytes(40) + content[44:])

    with pytest.raises(DataError) as raised:
        read_examples(path)
    assert "\n" not in str(raised.value)


def test_a_date_that_python_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "day": pa.array([0, 2**62], pa.timestamp("us"))}), path)

    with pytest.raises(DataError, match=r"row 2: a value that is out of range"):
        read_examples(path)
