"""Fixtures of all tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key of hashes is made in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def patience() -> Iterator[None]:
    """On a machine that is slow today nothing says that it is still at work: tests count lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expunge.utils.progress.SILENT", 600.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def stop_signals() -> None:
    """Stop signals do what they do in a terminal, also where the tests run in the background or under nohup."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(autouse=True, scope="session")
def short_replay_texts() -> Iterator[None]:
    """Texts that a tiny model writes itself are as random at 24 tokens as at 96, and take a third of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expunge.model.replay.NEW_TOKENS", 24)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with data, golden vectors and subjects beside the project; skips where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs the data folder ../shared beside the project")
    return path
