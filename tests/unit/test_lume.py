"""The benchmark's folder, as published and laid out anew."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.lume import find_lume, read_lume
from expunge.errors import DataError


def row(row_id: str) -> dict[str, str]:
    return {"id": row_id, "input": "p", "output": "c", "task": "Task1", "split": "x"}


def write_parquet(path: Path, *ids: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row(own_id) for own_id in ids]), path)


def write_jsonl(path: Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in rows))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The organisers' layout, the forget set of `validation` in two shards, documents for `train` alone."""
    data = tmp_path / "data"
    for split in ("train", "validation"):
        write_parquet(data / f"retain_{split}-00000-of-00001.parquet", "asc1", "aqa0")
    write_parquet(data / "forget_train-00000-of-00001.parquet", "bsc1")
    write_parquet(data / "forget_validation-00001-of-00002.parquet", "dqa1")
    write_parquet(data / "forget_validation-00000-of-00002.parquet", "csc1", "cqa0")
    write_jsonl(tmp_path / "mia_data/member.jsonl", {"id": "1", "document": "one"})
    write_jsonl(tmp_path / "mia_data/nonmember.jsonl", {"added": "x", "id": "2", "document": "two", "metadata": {}})
    return tmp_path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "forget.jsonl", row("asc1"))
    write_jsonl(tmp_path / "retain.jsonl", row("bsc1"), row("bqa0"))
    return tmp_path


def test_published_layout(published: Path) -> None:
    data = read_lume(published, "validation")
    assert [(e.id, e.kind, e.task) for e in data.forget] == [
        ("csc1", "sc", "Task1"),
        ("cqa0", "qa", "Task1"),
        ("dqa1", "qa", "Task1"),
    ]
    assert [e.id for e in data.retain] == ["asc1", "aqa0"]
    assert data.member is data.nonmember is None
    data = read_lume(str(published), "train")
    assert [e.id for e in data.forget] == ["bsc1"]
    assert data.member is not None
    assert data.nonmember is not None
    assert [(e.id, e.prompt, e.completion) for e in data.member + data.nonmember] == [
        ("1", "", "one"),
        ("2", "", "two"),
    ]


def test_documents_of_another_split_have_their_own_folder(published: Path) -> None:
    for name in ("member", "nonmember"):
        write_jsonl(published / f"mia_data/validation/{name}.jsonl", {"document": "own"})
    files = find_lume(published, "validation")
    assert files.member == published / "mia_data/validation/member.jsonl"
    assert find_lume(published, "train").member == published / "mia_data/member.jsonl"


def test_the_only_split_needs_no_name_and_of_several_it_is_validation(published: Path) -> None:
    assert find_lume(published) == find_lume(published, "validation")
    for path in (published / "data").glob("*_validation-*"):
        path.unlink()
    assert find_lume(published) == find_lume(published, "train")


def test_what_is_missing_is_named(published: Path) -> None:
    with pytest.raises(DataError, match="has no split test: choose --split train or validation"):
        find_lume(published, "test")
    (published / "data/forget_validation-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"forget_validation-\*\.parquet are 1 of 2 shards"):
        find_lume(published, "validation")
    (published / "data/retain_train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no data/retain_train-\*\.parquet; in data/ there is forget_train-00000"):
        find_lume(published, "train")


@pytest.mark.parametrize("split", [None, "train", "validation"])
@pytest.mark.parametrize("documents", ["", "mia_data"])
def test_plain_layout(plain: Path, split: str | None, documents: str) -> None:
    assert find_lume(plain, split).member is None
    for name in ("member", "nonmember"):
        write_jsonl(plain / documents / f"{name}.jsonl", {"document": name})
    data = read_lume(plain, split)
    assert [e.id for e in data.forget] == ["asc1"]
    assert [e.id for e in data.retain] == ["bsc1", "bqa0"]
    assert data.member is not None
    assert data.nonmember is not None
    assert [e.completion for e in data.member + data.nonmember] == ["member", "nonmember"]


def test_folders_of_splits_as_the_organisers_instructions_write_them(tmp_path: Path) -> None:
    """`to_json` without an orientation: an object of columns in a .jsonl file. Parquet will do, too."""
    for name in ("train", "validation"):
        write_parquet(tmp_path / name / "retain.parquet", f"{name}sc1")
        table = {key: {"0": value, "7": value} for key, value in row(f"{name}qa1").items()}
        (tmp_path / name / "forget.jsonl").write_text(json.dumps(table))
        write_jsonl(tmp_path / f"mia_data/{name if name != 'train' else ''}/member.jsonl", {"document": name})
        write_jsonl(tmp_path / f"mia_data/{name if name != 'train' else ''}/nonmember.jsonl", {"document": "other"})
    assert find_lume(tmp_path) == find_lume(tmp_path, "validation")
    for name in ("train", "validation"):
        data = read_lume(tmp_path, name)
        assert [(e.id, e.kind, e.completion) for e in data.forget] == [(f"{name}qa1", "qa", "c")] * 2
        assert [e.id for e in data.retain] == [f"{name}sc1"]
        assert data.member is not None
        assert (data.member[0].completion, data.split) == (name, name)
        assert [e.id for e in read_lume(tmp_path / name).forget] == [f"{name}qa1"] * 2, "the folder of a split itself"
    with pytest.raises(DataError, match="has no split test: choose --split train or validation"):
        find_lume(tmp_path, "test")
    (tmp_path / "train/retain.parquet").unlink()
    with pytest.raises(DataError, match=r"train: has no retain\.jsonl"):
        find_lume(tmp_path, "train")


def test_half_of_the_plain_layout(plain: Path) -> None:
    write_jsonl(plain / "member.jsonl", {"document": "d"})
    with pytest.raises(DataError, match=r"has no nonmember\.jsonl: membership needs"):
        find_lume(plain)
    (plain / "retain.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no retain\.jsonl; there is forget\.jsonl, member\.jsonl"):
        find_lume(plain)


def test_a_folder_without_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no forget\.jsonl, no retain\.jsonl, no data/forget_.*; there is nothing"):
        find_lume(tmp_path)
    for index in range(10):
        (tmp_path / f"{index}.txt").touch()
    with pytest.raises(DataError, match=r"7\.txt and 2 more$"):
        find_lume(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_lume(tmp_path / "nothere")
    with pytest.raises(DataError, match="no such folder"):
        find_lume(tmp_path / "0.txt")


def test_documents_without_their_column(plain: Path) -> None:
    for name in ("member", "nonmember"):
        write_jsonl(plain / f"{name}.jsonl", {"id": "1", "body": "d"})
    with pytest.raises(DataError, match=r"member\.jsonl: has no column document; columns found: id, body$"):
        read_lume(plain)


@pytest.mark.parametrize(
    ("split", "forget", "retain", "documents"), [("validation", 254, 278, 34), ("train", 1112, 1136, 150)]
)
def test_the_published_data(shared: Path, split: str, forget: int, retain: int, documents: int) -> None:
    data = read_lume(shared / "data/semeval", split)
    assert (len(data.forget), len(data.retain)) == (forget, retain)
    assert data.member is not None
    assert data.nonmember is not None
    assert (len(data.member), len(data.nonmember)) == (documents, documents)
    for examples in (data.forget, data.retain):
        assert set(Counter((e.task, e.kind) for e in examples)) == {
            (f"Task{n}", kind) for n in (1, 2, 3) for kind in ("sc", "qa")
        }
        assert len({e.id for e in examples}) == len(examples)
    assert not any(e.prompt for e in data.member + data.nonmember)


def test_the_whole_benchmark(shared: Path) -> None:
    data = read_lume(shared / "data/lume")
    assert (len(data.forget), len(data.retain), data.member) == (2732, 2734, None)
