"""The reader, on every format and on files that are broken in every way we know."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from expunge.data.columns import parse_columns
from expunge.data.examples import Example, check_sets, read_examples
from expunge.errors import ConfigError, DataError

ROWS = [
    {"id": "a-sc1", "input": "Ann lives", "output": "in Rome.", "task": "Task1"},
    {"id": "a-qa12", "input": "Where does\nAnn live?", "output": 'In "Rome", Italy', "task": "Task1"},
    {"id": "b", "input": "", "output": "\u2028 é\r\n", "task": "Task2"},
]
SECRET = "0431-55-8812"


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_jsonl(path: Path, rows: list) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def csv_text(rows: list[dict]) -> str:
    def quote(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    return "\n".join(",".join(map(quote, cells)) for cells in [list(rows[0]), *(row.values() for row in rows)])


def write_as(form: str, folder: Path) -> str:
    """`ROWS` in one of the formats; the source to read them from."""
    path = folder / f"rows.{form.split('-')[0]}"
    if form == "jsonl":
        write_jsonl(path, ROWS)
    elif form == "jsonl-bom":
        write(path, b"\xef\xbb\xbf" + "\r\n\r\n".join(map(json.dumps, ROWS)).encode())
    elif form == "json-list":
        write(path, json.dumps(ROWS, indent=1))
    elif form == "json-lines":
        write(path, "\n" + "\n \n".join(map(json.dumps, ROWS)))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif form.startswith("csv"):
        write(path, ("\ufeff" if form == "csv-bom" else "") + csv_text(ROWS))
    elif form == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    elif form == "saved-dict":
        held = datasets.Dataset.from_list(ROWS[::-1])
        datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS), b=held).save_to_disk(path)
        return f"{path}:a"
    return str(path)


FORMS = ["jsonl", "jsonl-bom", "json-list", "json-lines", "parquet", "csv", "csv-bom", "saved", "saved-dict"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_examples(form: str, tmp_path: Path) -> None:
    examples = read_examples(write_as(form, tmp_path))
    assert [(e.id, e.prompt, e.completion, e.task) for e in examples] == [tuple(row.values()) for row in ROWS]
    assert [e.kind for e in examples] == ["sc", "qa", ""]
    assert all(e.messages is None for e in examples)


@pytest.mark.parametrize(
    ("form", "places"),
    [
        ("jsonl", [":1", ":2", ":3"]),
        ("jsonl-bom", [":1", ":3", ":5"]),
        ("json-list", [", row 1", ", row 2", ", row 3"]),
        ("json-lines", [":2", ":4", ":6"]),
        ("csv", [":2", ":3", ":5"]),  # the second row's prompt holds a line break
        ("parquet", [", row 1", ", row 2", ", row 3"]),
    ],
)
def test_source_says_where_a_row_begins(form: str, places: list[str], tmp_path: Path) -> None:
    source = write_as(form, tmp_path)
    assert [example.source for example in read_examples(source)] == [source + place for place in places]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input": "p", "output": "c"}, ("p", "c")),
        ({"prompt": "p", "completion": "c"}, ("p", "c")),
        ({"question": "p", "answer": "c", "paraphrased_answer": "x", "perturbed_answer": ["y"]}, ("p", "c")),
        ({"text": "c"}, ("", "c")),
        ({"document": "c", "metadata": {"length": 3}}, ("", "c")),
        ({"text": "t", "answer": "c", "question": "p", "output": "alone"}, ("p", "c")),
        ({"question": "q", "answer": "a", "input": "p", "output": "c"}, ("p", "c")),
    ],
)
def test_columns_are_recognised_in_a_fixed_order(row: dict, expected: tuple, tmp_path: Path) -> None:
    (example,) = read_examples(write_jsonl(tmp_path / "some.rows.jsonl", [row]))
    assert (example.prompt, example.completion) == expected
    assert (example.id, example.task, example.kind) == ("some.rows-1", "", "")


def test_named_columns_go_over_the_recognised_ones(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "other": "o", "nr": 7, "topic": "t", "id": "x", "task": "y"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    named = {"completion": "other", "id": "nr", "task": "topic"}
    assert read_examples(path, columns=named) == [Example("7", "q", "o", "t", "", f"{path}:1")]
    assert read_examples(path, columns={"prompt": "topic"})[0].prompt == "t"
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"body": "b"}])
    assert read_examples(bare, columns={"completion": "body"}) == [Example("bare-1", "", "b", "", "", f"{bare}:1")]


def test_ids_are_strings_integers_or_row_numbers(tmp_path: Path) -> None:
    rows = [{"text": "a", "id": 3}, {"text": "b", "id": None}, {"text": "c"}, {"text": "d", "id": "é"}]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    assert [example.id for example in read_examples(path)] == ["3", "f-2", "f-3", "é"]


@pytest.mark.parametrize(
    ("row_id", "kind"),
    [
        ("xsc1", "sc"),
        ("xqa12", "qa"),
        ('"x"sc0', "sc"),
        ("xqa", ""),
        ("sc1x", ""),
        ("xsc1\n", ""),
        ("xSC1", ""),
    ],
)
def test_kind_is_read_from_a_lume_id_alone(row_id: str, kind: str, tmp_path: Path) -> None:
    row = {"id": row_id, "input": "p", "output": "c"}
    assert read_examples(write_jsonl(tmp_path / "a.jsonl", [row]))[0].kind == kind
    assert read_examples(write_jsonl(tmp_path / "b.jsonl", [{**row, "kind": "qa"}]))[0].kind == "qa"
    other = {"id": row_id, "question": "p", "answer": "c"}
    assert read_examples(write_jsonl(tmp_path / "c.jsonl", [other]))[0].kind == ""


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_chat_keeps_the_turns_before_the_last(suffix: str, tmp_path: Path) -> None:
    chat = turns(("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?"), ("assistant", "Ann"))
    path = tmp_path / f"chat.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, [{"messages": chat}])
    else:
        pq.write_table(pa.Table.from_pylist([{"messages": chat}]), path)
    (example,) = read_examples(path)
    assert example.messages == tuple(chat[:-1])
    assert (example.prompt, example.completion) == ("Be brief.\n\nHi\n\nYes?\n\nWho?", "Ann")
    hash(example)


USER, ASSISTANT = ("user", SECRET), ("assistant", SECRET)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input": SECRET}, "missing field 'output'"),
        ({"output": SECRET}, "missing field 'input': that of a text without a prompt is empty"),
        ({"input": None, "output": SECRET}, "'input' is null"),
        ({"input": SECRET, "output": None}, "'output' is null"),
        ({"input": SECRET, "output": ""}, "'output' is empty"),
        ({"input": SECRET, "output": " \n\u00a0\t"}, "'output' is empty"),
        ({"input": SECRET, "output": 1936}, "'output' is not a string but int"),
        ({"input": [SECRET], "output": "x"}, "'input' is not a string but list"),
        ({"input": SECRET, "output": "a\0b"}, "'output': NUL character at position 2"),
        ({"input": "a\ud800", "output": SECRET}, "'input': half a surrogate pair at 2"),
        ({"input": SECRET, "output": "x", "id": 1.5}, "'id' is not a string but float"),
        ({"input": SECRET, "output": "x", "id": True}, "'id' is not a string but bool"),
        ({"input": SECRET, "output": "x", "id": " "}, "'id' is empty"),
        ({"input": SECRET, "output": "x", "task": 1}, "'task' is not a string but int"),
        ({"input": SECRET, "output": "x", "kind": SECRET}, "'kind' must be sc, qa or empty"),
        ([SECRET], "is not an object with named fields but list"),
        (SECRET, "is not an object with named fields but str"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused(row: object, reason: str, tmp_path: Path) -> None:
    good = {"input": "p", "output": "c"}
    path = write(tmp_path / "f.jsonl", "\n".join(map(json.dumps, [good, good, row, good])))
    with pytest.raises(DataError) as caught:
        read_examples(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert reason in message
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "'messages' is null"),
        (SECRET, "'messages' is not a list but str"),
        ([], "must be the assistant's"),
        (turns(USER), "must be the assistant's"),
        (turns(USER, ASSISTANT, USER), "must be the assistant's"),
        (turns(ASSISTANT), "only the assistant's turn"),
        (turns(USER, ("assistant", " ")), "'messages' is empty"),
        ([SECRET], "turn 1 of 'messages' is not an object"),
        ([*turns(USER), {"role": "assistant"}], "turn 2 of 'messages': missing field 'content'"),
        (
            [*turns(USER), {"role": "assistant", "content": [SECRET]}],
            "turn 2 of 'messages': field 'content' is not a",
        ),
    ],
)
def test_a_chat_that_cannot_be_used_is_refused(messages: object, reason: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"messages": turns(USER, ASSISTANT)}, {"messages": messages}])
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)
    assert SECRET not in str(caught.value)


GOOD = '{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("f.jsonl", GOOD + '{"text": "a\n', "f.jsonl:2: invalid JSON at line 2, column 10"),
        ("f.jsonl", GOOD + "{'text': 'a'}", "f.jsonl:2: invalid JSON at line 2, column 2"),
        ("f.jsonl", GOOD + GOOD.strip() + GOOD, "f.jsonl:2: invalid JSON at line 2, column 14"),
        ("f.jsonl", "[" * 100_000, "f.jsonl:1: JSON nested too deeply"),
        ("f.jsonl", '{"text": ' + "9" * 5000 + "}", "f.jsonl:1: JSON with a number too long"),
        ("f.jsonl", "[" + GOOD + "]", "f.jsonl:1: invalid JSON"),
        ("f.json", '[{"text": "a"},\n {"text": }]', "f.json: invalid JSON at line 2, column 11"),
        ("f.json", '{\n"data": []}', "expected is a list of objects, or one object a line"),
        ("f.json", '[{"text": "a"}, 3]', "f.json, row 2: is not an object with named fields but int"),
        ("f.jsonl", GOOD.encode() + b'{"text": "\xff"}', "f.jsonl:2: invalid UTF-8 at byte 11"),
        ("f.csv", b"\xef\xbb\xbftext\nok\n\xe9t\xe9\n", "f.csv:3: invalid UTF-8 at byte 1"),
        ("f.jsonl", GOOD.encode("utf-16"), "f.jsonl:1: invalid UTF-8 at byte 1"),
        ("f.csv", b"text\na\nb\0c\n", "f.csv:3: NUL character"),
        ("f.csv", "id,text\n1,a\n2,b,c\n", "f.csv:3: 3 cells where the header has 2"),
        ("f.csv", 'id,text\n1,"a\nb"\n2\n', "f.csv:4: 1 cells where the header has 2"),
        ("f.csv", 'id,text\n1,a\n2,"b\n', "f.csv:3: invalid CSV in the row that begins here"),
        ("f.csv", 'id,text\n1,"a"b\n', "f.csv:2: invalid CSV in the row that begins here"),
        ("f.csv", "text,text\na,b\n", "f.csv:1: two columns have the same name"),
        ("f.csv", "text\n\n  \n", "f.csv:3: field 'text' is empty"),
        ("f.parquet", b"PAR1 no", "f.parquet: invalid Parquet"),
        ("f.parquet", b"", "f.parquet: invalid Parquet"),
        ("f.jsonl", "", "f.jsonl: is empty"),
        ("f.jsonl", "\n \n", "f.jsonl: is empty"),
        ("f.json", "[]", "f.json: is empty"),
        ("f.json", b"\xef\xbb\xbf", "f.json: is empty"),
        ("f.csv", "input,output\n", "f.csv: is empty"),
        ("f.doc", "a", "unknown format '.doc': give a .jsonl, .json, .parquet, .csv, .txt file"),
        ("f", "a", "unknown format ''"),
        (
            "f.jsonl",
            '{"input": "p", "body": "b"}',
            "columns found: input, body; known are input/output, prompt/",
        ),
        (
            "f.json",
            json.dumps([{"q.1": "p", "Wer ist Ann?": "b", SECRET * 9: "c"}]),
            "columns found: q.1, column 2 (12 characters), column 3 (108 characters); known",
        ),
        (
            "f.csv",
            "promt,completion\nWho?,Bob\n",
            "f.csv: completion holds a completion, and no column its prompt; columns found: column 1 (5 characters: "
            "did you mean prompt?), completion; known",
        ),
        (
            "f.csv",
            f"Who is Ann?,{SECRET}\nWho?,Bob\n",
            "columns found: column 1 (11 characters), column 2 (12 characters); known",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(name: str, data: str | bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path / name, data))
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert reason in message
    assert SECRET not in message
    assert "\n" not in message


def test_invalid_text_in_parquet_is_found_in_its_row(tmp_path: Path) -> None:
    cells = pa.array([b"a", b"b", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": cells}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=r"f\.parquet, row 3: invalid UTF-8"):
        read_examples(tmp_path / "f.parquet")


def test_numbers_in_parquet_stay_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q"], "answer": [5551234]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=r"row 1: field 'answer' is not a string but int"):
        read_examples(tmp_path / "f.parquet")


def test_a_cell_of_several_lines_reads_the_same_wherever_the_file_was_written(tmp_path: Path) -> None:
    lines = 'text\n"Dear Ines,\nYours, Marta"\n'
    for number, written in enumerate((lines, lines.replace("\n", "\r\n"))):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(written.encode())
        assert read_examples(path)[0].completion == "Dear Ines,\nYours, Marta"


def test_a_cell_of_any_size_is_read_from_csv(tmp_path: Path) -> None:
    text = "a\n" * 200_000
    (example,) = read_examples(write(tmp_path / "f.csv", f'text\n"{text}"\n'))
    assert example.completion == text


@pytest.mark.parametrize("head", ["prompt;completion", "\ufeff\r\nid;prompt;completion"])
def test_a_csv_with_semicolons_in_its_header_and_no_comma_is_separated_by_them(head: str, tmp_path: Path) -> None:
    cells = "7;" if "id" in head else ""
    (example,) = read_examples(write(tmp_path / "f.csv", f'{head}\r\n{cells}Who, where?;"Bob; ""at"", home"\r\n'))
    assert (example.prompt, example.completion) == ("Who, where?", 'Bob; "at", home')


@pytest.mark.parametrize(
    ("columns", "error", "reason"),
    [
        ({"completion": "outptu"}, DataError, "no column outptu; columns found: input, output"),
        ({"id": "nr", "task": "t"}, DataError, "no column nr, t; columns found"),
        ({"completion": "input"}, ConfigError, "prompt and completion are both input"),
    ],
)
def test_named_columns_that_cannot_be_used(columns: dict, error: type, reason: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"input": "p", "output": "c"}])
    with pytest.raises(error, match=reason):
        read_examples(path, columns=columns)


def test_a_chat_takes_no_other_prompt(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"messages": turns(USER, ASSISTANT), "q": "x"}])
    with pytest.raises(ConfigError, match="hold the prompt already"):
        read_examples(path, columns={"prompt": "q"})
    assert read_examples(path, columns={"completion": "q"})[0].completion == "x"


MISSING = [
    "nothere.jsonl",
    "nothere.txt",
    "/no/such/file",
    "./nothere",
    "~/nothere",
    "a/b/c",
    "a\\b",
    "NOTHERE.CSV",
    "no.json:train",
]


@pytest.mark.parametrize("source", MISSING)
def test_a_missing_file_is_named_and_not_looked_up(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: pytest.fail("looked up"))
    with pytest.raises(DataError, match=r"no such file: look at the path$") as caught:
        read_examples(source)
    assert str(caught.value).startswith(f"{source}: ")
    with pytest.raises(DataError, match=r"no such file: look at the path$"):
        read_examples(Path("owner/name"))


@pytest.mark.parametrize("source", ["", "  ", "no name at all?", "a@b@c/d"])
def test_a_name_that_is_none(source: str) -> None:
    with pytest.raises(DataError, match=r"is empty|no name of a data set"):
        read_examples(source)


def test_an_unreadable_file_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = write(tmp_path / "f.jsonl", GOOD)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"f\.jsonl: cannot be read: Permission denied"):
        read_examples(path)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder: give a file"):
        read_examples(tmp_path)
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match=r"rows\.jsonl: is a folder"):
        read_examples(tmp_path / "rows.jsonl")
    write(tmp_path / "dataset_info.json", "{")
    with pytest.raises(DataError, match="not a folder that datasets can load"):
        read_examples(tmp_path)
    two = write_as("saved-dict", tmp_path).removesuffix(":a")
    with pytest.raises(DataError, match="has several splits: give one of a, b after a colon"):
        read_examples(two)
    with pytest.raises(DataError, match="has no split c: give one of a, b after a colon"):
        read_examples(f"{two}:c")
    with pytest.raises(DataError, match="without splits: leave :a out"):
        read_examples(f"{write_as('saved', tmp_path)}:a")


class TestNames:
    """`datasets` names, with the Hub replaced."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> list:
        calls = []

        def load(name: str, config: str | None) -> datasets.DatasetDict:
            calls.append((name, config))
            rows = [{"question": "q", "answer": "a"}]
            splits = {"train": rows} if config == "one" else {"train": rows, "test": rows * 2}
            return datasets.DatasetDict({key: datasets.Dataset.from_list(split) for key, split in splits.items()})

        def info(api: object, name: str, **options: object) -> huggingface_hub.DatasetInfo:
            return huggingface_hub.DatasetInfo(id=f"owner/{name}" if "/" not in name else name, private=False)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    def test_name_configuration_and_split(self, hub: list) -> None:
        assert [e.id for e in read_examples("owner/some.name:test")] == ["some-1", "some-2"]
        assert read_examples("owner/name@one")[0].source == "owner/name@one, row 1"
        assert len(read_examples("owner/name@two:train")) == 1
        assert hub == [("owner/some.name", None), ("owner/name", "one"), ("owner/name", "two")]
        with pytest.raises(DataError, match=r"owner/name: has several splits: give one of train, test"):
            read_examples("owner/name")
        with pytest.raises(DataError, match=r"has no split valid"):
            read_examples("owner/name:valid")

    def test_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object, **options: object) -> None:
            assert options["timeout"]
            raise ConnectionError("no route\nto host")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
        with pytest.raises(DataError) as caught:
            read_examples("owner/name")
        assert "owner/name: no such file, and the Hub has no such data set or is out of reach: ConnectionError;" in str(
            caught.value
        )

    def test_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*args: object, **options: object) -> None:
            raise OfflineModeIsEnabled("offline")

        def fail(name: str, config: str | None) -> None:
            raise ConnectionError(f"Couldn't reach {name}")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(DataError, match=r"datasets cannot load it \(ConnectionError\)"):
            read_examples("owner/name")
        with pytest.raises(DataError, match="needs its owner"):
            read_examples("csv")  # datasets would read the csv files of the working directory


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("prompt=a,completion=b", {"prompt": "a", "completion": "b"}),
        (" id = nr , task=the topic", {"id": "nr", "task": "the topic"}),
        ("completion=a=b", {"completion": "a=b"}),
        ("", {}),
        (None, {}),
    ],
)
def test_parse_columns(text: str | None, columns: dict) -> None:
    assert parse_columns(text) == columns


@pytest.mark.parametrize(
    "text", [",", "prompt", "prompt=", "=a", "prompt=a,", "a=b", "kind=a", "id=a,id=b", "Prompt=a"]
)
def test_parse_columns_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="--columns"):
        parse_columns(text)


def test_conversations_are_told_how_chats_are_written(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ida."}]
    path = tmp_path / "sharegpt.jsonl"
    path.write_text(json.dumps({"conversations": turns}))
    with pytest.raises(DataError, match=r"no column holds a completion.*rename it to messages, and from and value"):
        read_examples(path)


def test_a_column_of_texts_alone_is_named_as_the_completion() -> None:
    with pytest.raises(ConfigError, match=r"unknown field text; the fields are .* \(texts alone are completions\)"):
        parse_columns("text=story")


def rows(*pairs: tuple[str, str, str]) -> list[Example]:
    return [Example(*pair, source=f"f:{line}") for line, pair in enumerate(pairs, 1)]


def test_check_sets_finds_nothing_to_warn_of() -> None:
    forget = rows(("a", "p", SECRET))
    assert check_sets({"forget": forget, "retain": []}) == []
    assert check_sets({"forget": forget, "retain": rows(("a", "p", "other")), "holdout": forget}) == []


def test_check_sets_names_how_many_and_where() -> None:
    forget = rows(*((f"f{n % 7}", "p", f"{SECRET} {n}") for n in range(14)))
    retain = rows(("r", f"p\n{SECRET}", " 3"), ("s", "p", f"{SECRET} 13"), ("s", "p", "x"))
    assert check_sets({"forget": forget, "retain": retain}) == [
        "forget: 7 ids are there already on an earlier row: line 8, line 9, line 10, line 11, line 12 and 2 more",
        "retain: 1 id is there already on an earlier row: line 3",
        "forget: 2 texts are also in retain: line 4, line 14",
        "forget has 14 texts, more than retain with 3: give at least as many to keep (--retain), for what is like none "
        "of them is held less",
    ]


def test_texts_to_keep_that_are_set_apart_for_testing_are_counted() -> None:
    forget, retain = (rows(*((f"{name}{n}", name, f"{n}") for n in range(20))) for name in ("f", "r"))
    sets = {"forget": forget, "retain": retain[:16], "test": retain[16:]}
    assert check_sets(sets, kept_count=20) == []
    assert check_sets(sets, kept_count=19)[0].startswith("forget has 20 texts, more than retain with 19: give")


def test_check_sets_names_texts_that_count_twice() -> None:
    forget = rows(("a", "p", SECRET), ("b", "q", "x"), ("c", "p ", f" {SECRET}"), ("d", "p", SECRET))
    retain = rows(("r", "q", "y"), ("s", "q", "y"), *((f"t{n}", f"{n}", "z") for n in range(4)))
    assert check_sets({"forget": forget, "retain": retain}) == [
        "forget: 2 texts are there already on an earlier row, and each counts: line 3, line 4",
        "retain: 1 text is there already on an earlier row, and each counts: line 2",
    ]


def test_check_sets_quotes_no_id() -> None:
    forget = rows(("a\nb" * 100, "", "x"), ("a\nb" * 100, "", "y"))
    assert check_sets({"forget": forget, "retain": []}) == ["forget: 1 id is there already on an earlier row: line 2"]


def test_published_files(shared: Path) -> None:
    forget = read_examples(shared / "data/lume/forget.jsonl")
    retain = read_examples(shared / "data/lume/retain.jsonl")
    assert (len(forget), len(retain)) == (2732, 2734)
    assert {example.kind for example in forget + retain} == {"sc", "qa"}
    assert check_sets({"forget": forget, "retain": retain}) == []
    for path in sorted((shared / "data/tofu").glob("*.json")):
        expected = sum(1 for line in path.read_text().splitlines() if line.strip())
        assert len(read_examples(path)) == expected


def test_reading_does_not_import_the_heavy_libraries() -> None:
    code = "import sys, expunge.data.examples, expunge.data.lume; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for library in ("torch", "datasets", "pandas", "pyarrow"):
        assert f"'{library}'" not in loaded


def test_an_instruction_column_is_not_left_out_silently(tmp_path):
    path = tmp_path / "alpaca.jsonl"
    path.write_text(json.dumps({"instruction": "Say where.", "input": "Wren", "output": "At the mill."}) + "\n")
    with pytest.raises(DataError, match="instruction"):
        read_examples(path)
    with pytest.raises(DataError, match="has a column input beside instruction and output, which would be left out"):
        read_examples(path, columns={"prompt": "instruction"})
    dolly = write_jsonl(
        tmp_path / "dolly.jsonl", [{"instruction": "Say.", "context": "Wren", "response": "At the mill."}]
    )
    with pytest.raises(DataError, match="has a column context beside instruction and response"):
        read_examples(dolly, columns={"prompt": "instruction", "completion": "response"})
    whole = write_jsonl(tmp_path / "w.jsonl", [{"instruction": "i", "input": "", "output": "o", "text": "all of it"}])
    (row,) = read_examples(whole, columns={"completion": "text"})
    assert (row.prompt, row.completion) == ("", "all of it")
    path.write_text(json.dumps({"instruction": "Say where.", "full": "Say where Wren is.", "output": "Here."}) + "\n")
    assert read_examples(path, columns={"prompt": "full", "completion": "output"})[0].prompt == "Say where Wren is."


@pytest.mark.parametrize("prompt", ["prompt", "question", "input"])
@pytest.mark.parametrize("text", ["text", "document"])
def test_a_prompt_beside_a_text_is_not_left_out_silently(prompt: str, text: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{prompt: "Who?", text: "Ines."}])
    with pytest.raises(DataError, match=f"has a column {prompt} beside {text}, which would be left out"):
        read_examples(path)
    assert read_examples(path, columns={"completion": text})[0].prompt == ""
    assert read_examples(path, columns={"prompt": prompt})[0].prompt == "Who?"
