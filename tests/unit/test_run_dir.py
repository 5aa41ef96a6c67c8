"""Files are whole or absent, private, and never replaced unasked."""

import errno
import json
import os
import signal
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from expunge.config import UnlearnConfig
from expunge.errors import RunError
from expunge.runs import directory
from expunge.runs.lock import Lock, hold
from expunge.runs.manifest import changed_settings
from expunge.runs.settings import recorded
from expunge.utils import files, folders, listing


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def open_umask():
    """Under a permissive umask a file is private only if the code makes it so."""
    earlier = os.umask(0)
    yield
    os.umask(earlier)


def make_run(path: Path) -> Path:
    directory.make(path)
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


def test_a_disk_that_cannot_flush_a_folder_is_written_to(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    files.write_bytes(tmp_path / "file", b"first")
    assert (tmp_path / "file").read_bytes() == b"first"


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
    directory.make(path)
    assert mode(path) == mode(path.parent) == mode(path / ".expunge") == 0o700
    (tmp_path / "empty").mkdir(mode=0o755)
    directory.check_new(tmp_path / "empty")
    directory.make(tmp_path / "empty")
    assert mode(tmp_path / "empty") == 0o700


def test_a_full_folder_is_refused_with_the_ways_out(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"--overwrite.*--resume"):
        directory.check_new(run)
    directory.check_new(run, overwrite=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.tex", "years of work"),
        ("manifest.json", '{"name": "some web app", "versions": {"expunge": "0.1.0"}}'),
        ("config.yaml", "model: m\nforget: f\noutput: run\nrecipe: default\n"),
        (".git/config", "[core]"),
    ],
)
def test_overwrite_never_takes_a_folder_that_is_not_a_run(tmp_path, name, content):
    path = tmp_path / "folder" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(RunError, match="only a run of Expunge"):
        directory.check_new(tmp_path / "folder", overwrite=True)


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt", ".notes-20251127", ".backup-abcdefgh", "adapter/mine.txt", "checkpoints/step-00000001/x", "empty/",
        "checkpoints/.step-abcd1234", "link",
    ],
)  # fmt: skip
def test_overwrite_refuses_a_run_in_which_stands_what_no_run_has_written(tmp_path, name):
    """Hidden names too, whatever they look like."""
    run = make_run(tmp_path / "run")
    files.write_text(run / "adapter" / "README.md", "card")
    path = run / name
    if name.endswith("/"):
        path.mkdir()
    elif name == "link":
        path.symlink_to(tmp_path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    listing.sweep(run)
    assert os.path.lexists(path)
    with pytest.raises(RunError, match=f"holds {name.split('/')[0]}.*which no run has written"):
        directory.check_new(run, overwrite=True)


def test_overwrite_does_not_remove_the_current_folder_or_follow_a_link(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(RunError, match="does not remove a link"):
        directory.check_new(tmp_path / "link", overwrite=True)
    monkeypatch.chdir(run)
    with pytest.raises(RunError, match="the folder you stand in"):
        directory.check_new(".", overwrite=True)


def test_a_run_directory_cannot_be_made_where_a_file_stands(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="not a folder"):
            directory.check_new(path, overwrite=True)


# --- the list of a run ---------------------------------------------------------------------------


def test_a_run_lists_what_is_written_into_it_and_removes_that_alone(tmp_path):
    run = make_run(tmp_path / "run")
    files.append_line(run / "metrics.jsonl", {"step": 1})
    files.write_text(run / "figures" / "loss.svg", "<svg>")
    with folders.temporary_folder(run / "adapter") as folder:
        (folder / "weights").touch()
    (run / "figures" / "mine.svg").write_text("mine")
    assert listing.listed(run) == {"manifest.json", "metrics.jsonl", "figures/loss.svg", "adapter/weights"}
    assert listing.unlisted(run) == ["figures/mine.svg"]
    directory.discard(run)
    assert [path.relative_to(run).as_posix() for path in run.rglob("*")] == ["figures", "figures/mine.svg"]


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../outside", "link/outside", "", ".", "a\u0000b"]
)
def test_a_list_that_a_stranger_wrote_removes_nothing_outside_of_the_run(tmp_path, name):
    run = make_run(tmp_path / "run")
    (tmp_path / "outside").write_text("mine")
    (run / "link").symlink_to(tmp_path)
    with (run / ".expunge" / "files").open("a") as file:
        file.write(f"{json.dumps(name)}\n{json.dumps(name + '/')}\n[1]\nnot json\n")
    directory.discard(run)
    assert (tmp_path / "outside").read_text() == "mine"
    assert os.path.exists("/etc/hostname")


# --- replacing -----------------------------------------------------------------------------------


def make_pair(tmp_path: Path) -> Path:
    """A run, and the one that is to replace it beside it."""
    run = make_run(tmp_path / "run")
    files.write_text(run / "old", "old")
    directory.make(directory.staged(run), replaces=True)
    files.write_text(directory.staged(run) / "new", "new")
    return run


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_begins_where_another_run_was_to_replace_what_is_gone(tmp_path, empty):
    run = make_pair(tmp_path)
    directory.discard(run)
    if empty:
        run.mkdir()
    with pytest.raises(RunError, match="an unfinished run that was to replace one here"):
        directory.check_new(run)
    directory.check_new(run, overwrite=True)
    directory.make(run)
    assert not directory.staged(run).exists()
    assert not directory.is_staged(run)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_run_takes_the_place_of_another_and_what_somebody_put_there_meanwhile_stays(tmp_path, monkeypatch, at_once):
    run = make_pair(tmp_path)
    (run / "mine").write_text("mine")
    if not at_once:
        monkeypatch.setattr(folders, "_exchange_at_once", lambda one, other: False)
    directory.replace(run)
    assert sorted(path.name for path in run.iterdir()) == [".expunge", "mine", "new"]
    assert list(tmp_path.iterdir()) == [run]


def test_an_exchange_that_fails_leaves_both_folders(tmp_path, monkeypatch):
    run = make_pair(tmp_path)
    monkeypatch.setattr(folders, "_exchange_at_once", lambda one, other: False)
    rename = os.rename

    def refuse(source, target):
        if Path(target) == run and "aside" not in str(source):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RunError, match="Input/output error"):
        directory.replace(run)
    assert (run / "old").exists()
    assert directory.is_staged(run)


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_process_killed_within_an_exchange_in_steps_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch, renames):
    run = make_pair(tmp_path)
    monkeypatch.setattr(folders, "_exchange_at_once", lambda one, other: False)
    rename, done = os.rename, []

    def killed(source, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(rename(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        if renames < 3:
            with pytest.raises(KeyboardInterrupt):
                directory.replace(run)
        else:
            directory.replace(run)
    monkeypatch.chdir(tmp_path)
    with hold(Path("run")):
        assert (run / ("old" if renames < 2 else "new")).exists()
        assert not (run / "old").exists() or not (run / "new").exists()
    assert sorted(tmp_path.iterdir()) == ([directory.staged(run), run] if renames < 2 else [run])


def test_a_run_that_a_living_process_exchanges_is_left_to_it(tmp_path):
    run = make_pair(tmp_path)
    lock = Lock(run)
    os.rename(run, folders.aside_of(run))
    with pytest.raises(RunError, match=f"in use by process {os.getpid()} on "):
        Lock(run)
    assert not run.exists()
    os.rename(folders.aside_of(run), run)
    lock.release()


def test_stop_signals_wait_for_the_end_of_an_exchange(tmp_path, monkeypatch):
    run = make_pair(tmp_path)
    at_once = folders._exchange_at_once

    def interrupted(one, other):
        os.kill(os.getpid(), signal.SIGINT)
        return at_once(one, other)

    monkeypatch.setattr(folders, "_exchange_at_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        directory.replace(run)
    assert (run / "new").exists()


# --- the lock ------------------------------------------------------------------------------------


def test_a_run_has_one_owner(tmp_path):
    lock = Lock(tmp_path / "run")
    with pytest.raises(RunError, match=f"in use by process {os.getpid()} on "):
        Lock(tmp_path / "run")
    lock.release()
    assert list(tmp_path.iterdir()) == [], "what was made for the lock is gone with it"


@pytest.mark.parametrize("replaced", [True, False])
def test_the_locks_of_both_runs_go_whether_one_has_replaced_the_other_or_not(tmp_path, replaced):
    run = make_pair(tmp_path)
    locks = [Lock(run), Lock(directory.staged(run))]
    if replaced:
        directory.replace(run)
    for lock in reversed(locks):
        lock.release(run)
    assert not list(tmp_path.rglob("lock"))


def test_the_folder_one_stands_in_is_locked(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "run"))
    with hold(Path()):
        assert (tmp_path / "run/.expunge/lock").exists()
    assert not (tmp_path / "run/.expunge/lock").exists()


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    child = os.fork()
    if child == 0:
        Lock(tmp_path / "run")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run/.expunge/lock").exists()
    directory.check_new(tmp_path / "run")
    Lock(tmp_path / "run").release()


def test_the_lock_of_another_machine_stands_and_the_message_says_the_way_out(tmp_path, monkeypatch):
    lock = Lock(tmp_path / "run")
    os.close(lock._descriptor)  # as where locks are not seen across machines
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(RunError, match=r"if that one is gone, remove .*/run/.expunge/lock"):
        Lock(tmp_path / "run")
    (tmp_path / "run/.expunge/lock").unlink()
    Lock(tmp_path / "run").release()


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_of_the_file_system_the_process_tells(tmp_path, monkeypatch, alive):
    monkeypatch.setattr("expunge.runs.lock._flock", lambda descriptor: None)
    lock = Lock(tmp_path / "run")
    if alive:
        with pytest.raises(RunError, match="in use by process"):
            Lock(tmp_path / "run")
    else:
        note = json.loads((tmp_path / "run/.expunge/lock").read_text()) | {"process": 2**22 + 1}
        (tmp_path / "run/.expunge/lock").write_text(json.dumps(note))
        Lock(tmp_path / "run").release()
    os.close(lock._descriptor)


# --- transactions --------------------------------------------------------------------------------


def test_files_of_a_transaction_change_together(tmp_path):
    files.write_text(tmp_path / "a", "old")
    with files.transaction(tmp_path):
        files.write_text(tmp_path / "a", "new", overwrite=True)
        files.write_text(tmp_path / "below" / "b", "new")
        assert (tmp_path / "a").read_text() == "old"
        assert not (tmp_path / "below" / "b").exists()
    assert (tmp_path / "a").read_text() == (tmp_path / "below" / "b").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "below"]


def test_what_another_thread_writes_is_no_part_of_a_transaction(tmp_path):
    with files.transaction(tmp_path / "run"):
        files.write_text(tmp_path / "run" / "a", "")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(files.write_text, tmp_path / "b", "").result()
        assert (tmp_path / "b").exists()
        assert not (tmp_path / "run" / "a").exists()


def test_a_transaction_that_fails_changes_nothing(tmp_path):
    files.write_text(tmp_path / "a", "old")

    def fails() -> None:
        with files.transaction(tmp_path):
            files.write_text(tmp_path / "a", "new", overwrite=True)
            files.write_text(tmp_path / "a", "new")

    with pytest.raises(RunError):
        fails()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("replaced", [0, 1, 2, 3])
def test_a_transaction_that_is_killed_has_changed_all_or_nothing(tmp_path, monkeypatch, replaced):
    """Its list is the first file that gets its name, and from then on all do."""
    for name in ("a", "b"):
        files.write_text(tmp_path / name, "old")
    replace, done = os.replace, []

    def killed(source, target):
        if len(done) == replaced:
            os._exit(9)
        done.append(replace(source, target))

    child = os.fork()
    if child == 0:
        os.replace = killed
        with files.transaction(tmp_path):
            for name in ("a", "b"):
                files.write_text(tmp_path / name, "new", overwrite=True)
        os._exit(0)
    os.waitpid(child, 0)
    files.settle(tmp_path)
    found = {(tmp_path / name).read_text() for name in ("a", "b")}
    assert found == {"old" if replaced == 0 else "new"}
    listing.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        "[", "3", "[3]", "[[]]", '[["a"]]', '[["/etc/hostname", "x"]]', '[["mine", "x"]]',
        '[[".expunge-x-abcd1234", "../x"]]', '[[".expunge-x-abcd1234", 3]]', '[[".expunge-x-abcd1234", "\\ud800"]]',
        '[[".expunge-x-abcd1234", "\\u0000"]]',
    ],
)  # fmt: skip
def test_a_strangers_list_of_a_transaction_moves_nothing(tmp_path, content):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".expunge-commit-abcd1234").write_text(content)
    with pytest.raises(RunError, match="damaged list"):
        files.settle(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_link_in_a_strangers_run_is_not_written_through(tmp_path):
    run, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    (home / "keys").write_text("mine")
    directory.make(run)
    (run / "out").symlink_to(home)
    (home / ".expunge-x-abcd1234").write_text("theirs")
    (run / ".expunge-commit-abcd1234").write_text('[["out/.expunge-x-abcd1234", "out/keys"]]')
    with pytest.raises(RunError, match="damaged list"):
        files.settle(run)
    (run / ".expunge/files").unlink()
    (run / ".expunge/files").symlink_to(home / "keys")
    (run / "metrics.jsonl").symlink_to(home / "new")
    with pytest.raises(RunError, match="cannot write"):
        files.write_text(run / "report.html", "page")
    with pytest.raises(RunError, match="cannot append"):
        files.append_line(run / "metrics.jsonl", {})
    for name in (".expunge", "adapter"):
        other = tmp_path / f"with {name}"
        other.mkdir()
        (other / name).symlink_to(home)
        with pytest.raises(RunError, match="is a link, and commands on a run write into it"):
            Lock(other)
    assert sorted(path.name for path in home.iterdir()) == [".expunge-x-abcd1234", "keys"]
    assert (home / "keys").read_text() == "mine"


# --- publishing ----------------------------------------------------------------------------------


def test_a_folder_is_published_whole_and_private(tmp_path):
    temporary, final = tmp_path / ".adapter-x", tmp_path / "adapter"
    (temporary / "inner").mkdir(parents=True)
    (temporary / "inner" / "new").write_text("new")
    final.mkdir()
    (final / "old").touch()
    folders.replace_dir(temporary, final)
    assert list(tmp_path.iterdir()) == [final]
    assert [p.name for p in final.rglob("*")] == ["inner", "new"]
    assert mode(final) == mode(final / "inner") == 0o700
    assert mode(final / "inner" / "new") == 0o600


def test_a_failed_publication_leaves_the_earlier_folder(tmp_path, monkeypatch):
    final = tmp_path / "adapter"
    final.mkdir()
    (final / "old").touch()

    def refuse(one, other):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folders, "_exchange_at_once", refuse)
    with pytest.raises(RunError, match="Input/output error"), folders.temporary_folder(final):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "old"]


def test_hashes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "file").startswith("ba7816bf8f01cfea")
    with pytest.raises(RunError, match="cannot read"):
        files.sha256_file(tmp_path / "absent")
    assert files.fingerprint("a", b"b") == files.fingerprint(b"a", "b")
    different = {files.fingerprint(*parts) for parts in ((), ("",), ("ab",), ("a", "b"), ("b", "a"), ("", "ab"))}
    assert len(different) == 6


def test_what_a_run_settles_itself_is_no_other_setting() -> None:
    given = {"max_length": 4096, "kl_weight": 1.0, "learning_rate": None, "dtype": "auto"}
    config = UnlearnConfig(model="model", forget="f.jsonl", output="run", **given)
    settled = {"max_length": 128, "kl_weight": 0.0, "learning_rate": 0.003, "dtype": "float32", "lora_rank": 2}
    earlier = {"settings": recorded(config) | settled}
    assert changed_settings(earlier, config) == {}  # also where the rank is not given
    assert changed_settings(earlier, config.changed(lora_rank=3, output="other", save_every=7)) == {
        "lora_rank": "lora_rank (2 then, 3 now)"
    }


def test_what_a_run_settles_for_want_of_texts_is_no_other_setting() -> None:
    """The command that began a run without unseen texts and texts to keep goes on with it, evaluation steps and all."""
    given = UnlearnConfig(model="m", forget="f", output="o", eval_every=50, retain_weight=1.0, learning_rate=1e-3)
    settled = {"settings": json.loads(json.dumps(recorded(given.without_retain().without_unseen())))}
    assert changed_settings(settled, given) == {}
    assert changed_settings(settled, given.changed(learning_rate=2e-3)).keys() == {"learning_rate"}
