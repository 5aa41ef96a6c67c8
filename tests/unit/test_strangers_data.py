"""Data files from somebody else: what is in them is not quoted, and small files that grow are refused."""

import json
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data import readers
from expunge.data.chat import render
from expunge.data.examples import Example, check_sets, read_examples
from expunge.errors import ConfigError, DataError
from expunge.utils.hardening import outline
from tiny import tiny_tokenizer

SECRET = "Zarquon4821"


def cast_that_fails(folder: Path) -> str:
    rows = [{"prompt": "PIN", "completion": SECRET}]
    datasets.Dataset.from_list(rows).save_to_disk(folder / "ds")
    info = folder / "ds" / "dataset_info.json"
    content = json.loads(info.read_text())
    content["features"]["completion"] = {"dtype": "int64", "_type": "Value"}
    info.write_text(json.dumps(content))
    return str(folder / "ds")


def text(name: str, content: str):
    def write(folder: Path) -> str:
        (folder / name).write_text(content)
        return str(folder / name)

    return write


def parquet_of_numbers(folder: Path) -> str:
    pq.write_table(pa.table({f"The PIN is {SECRET}": [1, 2]}), folder / "n.parquet")
    return str(folder / "n.parquet")


ECHOES = {
    "a CSV without a header": text("a.csv", f"{SECRET},4821\nfoo,bar\n"),
    "a CSV row of another length": text("a.csv", f"prompt,completion\n{SECRET}\n"),
    "a CSV quote": text("a.csv", f'prompt,completion\n"{SECRET}"x,b\n'),
    "a JSON key that is a text": text("k.jsonl", f'{{"The PIN is {SECRET}": 1}}\n'),
    "a JSON key twice": text("k.jsonl", f'{{"{SECRET}": 1, "{SECRET}": 2}}\n'),
    "a JSON escape": text("k.jsonl", f'{{"text": "\\{SECRET}"}}\n'),
    "a JSON number": text("k.json", f'[{{"text": {SECRET}}}]'),
    "a column of Parquet": parquet_of_numbers,
    "a cast": cast_that_fails,
}


@pytest.mark.parametrize("name", ECHOES)
def test_no_message_or_traceback_quotes_a_cell_a_header_or_a_key(tmp_path, name):
    with pytest.raises(DataError) as caught:
        read_examples(ECHOES[name](tmp_path))
    assert SECRET not in str(caught.value)
    assert SECRET not in outline(caught.value)


def test_what_is_said_of_repeated_ids_and_texts_are_places_of_rows():
    rows = [Example(SECRET, "a", "b", source=f"f.jsonl:{line}") for line in (1, 2)]
    told = check_sets({"forget": rows, "retain": rows})
    assert len(told) == 5
    assert SECRET not in " ".join(told)


@pytest.mark.parametrize("rows", [readers.MOST_ROWS + 1, 20_000_000])
def test_a_small_table_of_very_many_rows_is_refused_at_once(tmp_path, rows):
    column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()).take(pa.array([0] * rows, pa.int8())), ["x" * 10])
    pq.write_table(pa.table({"text": column}), tmp_path / "bomb.parquet", compression="zstd", row_group_size=rows)
    begun = time.monotonic()
    with pytest.raises(DataError, match="more than 1,000,000 rows"):
        read_examples(str(tmp_path / "bomb.parquet"))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "inside",
    [
        lambda column: column,
        lambda column: pa.StructArray.from_arrays([column], names=["role"]),
        lambda column: pa.ListArray.from_arrays(pa.array([0, len(column)], pa.int32()), column),
    ],
)
def test_a_table_whose_cells_grow_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, inside):
    monkeypatch.setattr(readers, "MOST_BYTES", 10_000_000)
    column = inside(pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), ["x" * 1_000_000]))
    pq.write_table(pa.table({"text": column}), tmp_path / "bomb.parquet", compression="zstd")
    with pytest.raises(DataError, match="10,000,000 bytes"):
        read_examples(str(tmp_path / "bomb.parquet"))


def test_a_map_beside_the_texts_is_no_damage(tmp_path):
    told = pa.array([[("source", "a mail")], []], pa.map_(pa.string(), pa.string()))
    table = pa.table({"prompt": ["one", "two"], "completion": ["1", "2"], "meta": told})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [row.completion for row in read_examples(str(tmp_path / "t.parquet"))] == ["1", "2"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set ns = namespace(s='') %}{% for i in range(99999) %}{% for j in range(9999) %}"
        "{% set ns.s = ns.s ~ 'x' %}{% endfor %}{% endfor %}",
    ],
)
def test_a_chat_template_that_does_not_end_is_ended(monkeypatch, template):
    monkeypatch.setattr("expunge.data.chat.SECONDS", 0.3)
    tokenizer = tiny_tokenizer("bytelevel")
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=r"does not come to an end in 0\.3 seconds"):
        render(tokenizer, Example("a", "Where?", "Here."))
