"""Files from somebody else: every fault is one of ours, said without a word of the content."""

import json
import threading
import time

import pytest

from expunge.errors import DataError, RunError
from expunge.utils.deadline import DeadlineError, deadline
from expunge.utils.hardening import outline
from expunge.utils.reading import UnreadableError, parse_json, parse_yaml, read_lines, read_object

SECRET = "Zarquon4821"
DEEP = 100_000
BAD_JSON = {
    "half": '{"a": ',
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"a":' * 500 + "1" + "}" * 500,
    "just too deep": "[" * 66 + "]" * 66,
    "a name twice": f'{{"{SECRET}": 1, "{SECRET}": 2}}',
    "a long number": "9" * 5000,
    "words": SECRET,
    "a lone surrogate of bytes": b'"\xed\xa0\x80"',
    "nothing": "",
}
BAD_YAML = {
    "an alias": f"a: &x {SECRET}\nb: *x",
    "an anchor alone": f"a: &x {SECRET}",
    "a merge key": f"base: {{k: {SECRET}}}\nb:\n  <<: {{k: 1}}",
    "a merge key of lists": "<<: [{a: 1}, {b: 2}]",
    "an object of Python": "a: !!python/object/apply:os.system [ls]",
    "a set": "a: !!set {x}",
    "a binary": "a: !!binary aGVsbG8=",
    "a name twice": f"{SECRET}: 1\n{SECRET}: 2",
    "a list as a name": f"? [{SECRET}]\n: 1",
    "unclosed": f"a: [{SECRET}",
    "a date that does not exist": "a: 2026-02-31",
    "deep": "[" * 100 + "]" * 100,
    "very deep": "{a: " * 5000,
    "bytes": b"\xff\xfe\x00",
    "two documents": "a: 1\n---\nb: 2",
    "much": "a: " + "x" * 2**21,
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_none(name):
    text = BAD_JSON[name]
    with pytest.raises(UnreadableError) as caught:
        parse_json(text if isinstance(text, bytes) else text.encode())
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_that_is_none(name):
    text = BAD_YAML[name]
    begun = time.monotonic()
    with pytest.raises(UnreadableError) as caught:
        parse_yaml(text if isinstance(text, bytes) else text.encode())
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 5


def test_what_is_whole_is_read():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\\u00e4"]}') == {"a": [1, 2.5, None, "ä"]}
    assert parse_yaml(b"a: 1\nb: {c: [x, 'y']}\n") == {"a": 1, "b": {"c": ["x", "y"]}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [("[1]", "no JSON object"), ('{"r": true}', "r must be int"), ('{"r": "4"}', "r must be int"), ("{}", "r must be")],
)
def test_fields_have_their_kinds(tmp_path, content, reason):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=rf"x\.json: damaged or something else \({reason}"):
        read_object(tmp_path / "x.json", DataError, fields={"r": int})


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        read_object(tmp_path / "absent.json")


def test_the_last_line_of_a_log_may_be_cut_off_and_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"st')
    assert list(read_lines(path)) == [(1, {"step": 1}), (3, {"step": 2})]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        list(read_lines(path))


# --- deadlines and tracebacks --------------------------------------------------------------------


@pytest.mark.parametrize("inside_thread", [False, True])
def test_code_that_does_not_end_is_ended(inside_thread):
    found = []

    def endless() -> None:
        try:
            with deadline(0.05):
                while True:
                    pass
        except DeadlineError:
            found.append("ended")

    if inside_thread:
        thread = threading.Thread(target=endless)
        thread.start()
        thread.join(5)
    else:
        endless()
    assert found == ["ended"]


def test_code_that_ends_in_time_is_let_alone():
    with deadline(0.05):
        total = sum(range(100))
    time.sleep(0.1)
    assert total == 4950


def test_an_outline_shows_where_and_nothing_of_the_content():
    def parse(cell: str) -> None:
        try:
            json.loads(cell)
            raise KeyError(cell)
        except ValueError as error:
            raise DataError("rows.jsonl:1: invalid JSON") from error

    for cell in (f"{SECRET}", f'"{SECRET}"'):
        with pytest.raises((DataError, KeyError)) as caught:
            parse(cell)
        shown = outline(caught.value)
        assert "in parse" in shown
        assert SECRET not in shown
    assert "KeyError (its message may quote data)" in shown
