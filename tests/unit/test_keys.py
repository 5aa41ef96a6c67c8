"""Hashes under the user's key: equal for equal data, private, and of one key only."""

import stat
from unittest.mock import Mock

import pytest

from expunge.config import EvaluateConfig, UnlearnConfig
from expunge.errors import RunError
from expunge.evaluation.run import evaluate
from expunge.train.loop import unlearn
from expunge.utils import keys
from expunge.utils.files import fingerprint


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_key_is_made_once_private_and_used_again(home):
    first = keys.keyed("a", "b")
    assert stat.S_IMODE((home / "expunge" / "key").stat().st_mode) == 0o600
    keys._read.cache_clear()
    assert keys.keyed("a", "b") == first != keys.keyed("ab")
    assert keys.of_this_key(first)
    assert fingerprint("a", "b") not in first


def test_another_key_gives_other_hashes_that_are_known_as_such(tmp_path, monkeypatch):
    first = keys.keyed("a")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert keys.keyed("a").partition(":")[2] != first.partition(":")[2]
    assert not keys.of_this_key(first)


def test_a_key_that_cannot_be_made_or_is_none_is_one_line_with_a_way_out(home, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match="set XDG_STATE_HOME"):
        keys.keyed("a")
    with monkeypatch.context() as patch:
        patch.delenv("XDG_STATE_HOME")
        patch.setattr(keys.Path, "expanduser", Mock(side_effect=RuntimeError("no home")))
        with pytest.raises(RunError, match=r"no home folder: .* set XDG_STATE_HOME"):
            keys.keyed("a")
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    (home / "expunge").mkdir(parents=True)
    (home / "expunge" / "key").write_bytes(b"short")
    with pytest.raises(RunError, match="is no key of 32 bytes"):
        keys.keyed("a")


def test_of_two_first_runs_the_first_ones_key_stays(home, monkeypatch):
    path, write, others = home / "expunge" / "key", keys.files.write_bytes, bytes(range(32))

    def slow(file, data, *, overwrite=False):
        write(file, data, overwrite=overwrite)
        if file != path and not path.exists():
            write(path, others)  # by another process, meanwhile

    monkeypatch.setattr(keys.files, "write_bytes", slow)
    keys.keyed("a")
    assert path.read_bytes() == others
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_a_key_that_cannot_be_made_is_told_before_weights_load(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "forget.jsonl").write_text('{"prompt": "Who?", "completion": "Nobody."}\n')
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    for room in ("train.setup", "evaluation.run"):
        monkeypatch.setattr(f"expunge.{room}.load_model", None)
    model, output, forget = (str(tmp_path / name) for name in ("model", "output", "forget.jsonl"))
    for call, config in (
        (unlearn, UnlearnConfig(model=model, output=output, forget=forget, device="cpu")),
        (evaluate, EvaluateConfig(model=model, output=output, forget=forget, device="cpu")),
    ):
        with pytest.raises(RunError, match="set XDG_STATE_HOME"):
            call(config)
