"""Files are whole or absent, private, and never replaced unasked."""

import json
import os
import stat
from pathlib import Path

import pytest

from expunge.errors import RunError
from expunge.runs import directory
from expunge.utils import files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def open_umask():
    """Under a permissive umask a file is private only if the code makes it so."""
    earlier = os.umask(0)
    yield
    os.umask(earlier)


def make_run(path: Path) -> Path:
    directory.new_run_dir(path)
    files.write_json(path / "manifest.json", {"schema": 1, "versions": {"expunge": "0.1.0"}})
    return path


def test_files_and_all_new_folders_are_private(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    files.write_text(path, "one\r\ntwo")
    assert path.read_bytes() == b"one\r\ntwo"
    assert mode(path) == 0o600
    assert mode(path.parent) == mode(path.parent.parent) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"], "no temporary file is left"


def test_nothing_is_replaced_unless_asked(tmp_path):
    path = tmp_path / "file"
    files.write_bytes(path, b"first")
    with pytest.raises(RunError, match="--overwrite"):
        files.write_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    path.chmod(0o644)
    files.write_bytes(path, b"second", overwrite=True)
    assert path.read_bytes() == b"second"
    assert mode(path) == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_bytes(path, b"first")

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match=r"No space left on device.*free some space"):
        files.write_bytes(path, b"second", overwrite=True)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_a_file_or_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="Is a directory"):
        files.write_bytes(tmp_path / "folder", b"", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        files.write_bytes(tmp_path / "file" / "below", b"")


def test_json_is_strict_and_keeps_the_order(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"b": [1.5, float("nan"), (float("inf"), "ä\ud800")], "a": {"c": -float("inf")}})
    text = path.read_text("utf-8")
    assert text == '{\n  "b": [\n    1.5,\n    null,\n    [\n      null,\n      "\\u00e4\\ud800"\n    ]\n  ],\n' + (
        '  "a": {\n    "c": null\n  }\n}\n'
    )
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "y.json", {"a": object()})
    assert not (tmp_path / "y.json").exists()


def test_lines_are_appended_to_a_private_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        files.append_line(path, {"step": step, "loss": float("nan")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": i, "loss": None} for i in range(3)]
    assert mode(path) == 0o600
    with pytest.raises(RunError, match="cannot append"):
        files.append_line(tmp_path / "absent" / "metrics.jsonl", {})


def test_a_line_that_the_disk_takes_in_part_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(RunError, match="free some space"):
        files.append_line(tmp_path / "metrics.jsonl", {"step": 1})


def test_a_new_run_directory_is_private_and_an_empty_folder_may_be_used(tmp_path):
    path = tmp_path / "above" / "run"
    assert directory.new_run_dir(path) == path
    assert mode(path) == mode(path.parent) == 0o700
    path.chmod(0o755)
    directory.new_run_dir(path)
    assert mode(path) == 0o700


def test_a_full_folder_is_refused_with_the_ways_out(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"--overwrite.*--resume"):
        directory.new_run_dir(run)
    assert (run / "manifest.json").exists()


def test_overwrite_removes_a_run_and_everything_in_it(tmp_path):
    run = make_run(tmp_path / "run")
    files.write_text(run / "adapter" / "README.md", "card")
    directory.check_new(run, overwrite=True)
    assert (run / "adapter").exists(), "looking changes nothing"
    directory.new_run_dir(run, overwrite=True)
    assert list(run.iterdir()) == []
    assert list(tmp_path.iterdir()) == [run]


def test_overwrite_knows_a_run_that_was_cut_off_before_its_manifest(tmp_path):
    run = directory.new_run_dir(tmp_path / "run")
    files.write_text(run / "config.yaml", "model: m\nforget: f\nretain: r\noutput: run\nrecipe: default\n")
    directory.new_run_dir(run, overwrite=True)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.tex", "years of work"),
        ("manifest.json", '{"name": "some web app", "versions": {}}'),
        ("manifest.json", '{"versions": 3}'),
        ("manifest.json", "[1]"),
        ("manifest.json", "not json"),
        ("config.yaml", "model: m\nport: 80\n"),
        ("config.yaml", "a: [unclosed"),
        ("config.yaml", "- a list"),
    ],
)
def test_overwrite_never_removes_a_folder_that_is_not_a_run(tmp_path, name, content):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(RunError, match="only a run of Expunge"):
        directory.new_run_dir(folder, overwrite=True)
    assert (folder / name).read_text() == content


def test_overwrite_does_not_remove_the_current_folder_or_follow_a_link(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(RunError, match="does not remove a link"):
        directory.new_run_dir(tmp_path / "link", overwrite=True)
    monkeypatch.chdir(run)
    with pytest.raises(RunError, match="the folder you stand in"):
        directory.new_run_dir(".", overwrite=True)
    assert (run / "manifest.json").exists()


def test_a_run_directory_cannot_be_made_where_a_file_stands(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        for check in (directory.check_new, directory.new_run_dir):
            with pytest.raises(RunError, match="not a folder"):
                check(path, overwrite=True)


def test_a_folder_is_published_whole_and_private(tmp_path):
    temporary, final = tmp_path / ".adapter-x", tmp_path / "adapter"
    (temporary / "inner").mkdir(parents=True)
    (temporary / "inner" / "new").write_text("new")
    final.mkdir()
    (final / "old").touch()
    files.replace_dir(temporary, final)
    assert list(tmp_path.iterdir()) == [final]
    assert [p.name for p in final.rglob("*")] == ["inner", "new"]
    assert mode(final) == mode(final / "inner") == 0o700
    assert mode(final / "inner" / "new") == 0o600


def test_a_failed_publication_leaves_the_earlier_folder(tmp_path, monkeypatch):
    temporary, final = tmp_path / ".adapter-x", tmp_path / "adapter"
    temporary.mkdir()
    final.mkdir()
    (final / "old").touch()
    rename = os.rename

    def refuse(source, target):
        if source == temporary:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RunError, match="Input/output error"):
        files.replace_dir(temporary, final)
    assert (final / "old").exists()


def test_a_folder_elsewhere_cannot_be_published(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(ValueError, match="beside"):
        files.replace_dir(tmp_path / "a" / "b", tmp_path / "b")


def test_private_umask_holds_inside_alone(tmp_path):
    with files.private_umask():
        (tmp_path / "inside").touch()
    (tmp_path / "outside").touch()
    assert mode(tmp_path / "inside") == 0o600
    assert mode(tmp_path / "outside") == 0o666


def test_hashes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "file").startswith("ba7816bf8f01cfea")
    with pytest.raises(RunError, match="cannot read"):
        files.sha256_file(tmp_path / "absent")
    assert files.fingerprint("a", b"b") == files.fingerprint(b"a", "b")
    different = {files.fingerprint(*parts) for parts in ((), ("",), ("ab",), ("a", "b"), ("b", "a"), ("", "ab"))}
    assert len(different) == 6
