"""What goes to the Hub, told by a stand-in with its client's signatures: who may, what is uploaded, what it says."""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from workspace import FORGET, MARKER, QUICK, RETAIN, UNLEARN, write_jsonl

import expunge
from expunge.cli.main import main
from expunge.errors import ConfigError, RunError
from expunge.runs import hub
from expunge.runs.base import about_base, hub_id
from hub_http import httpx
from tiny import save_tiny


def refusal(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
    return kind("no", response=response)


class Hub:
    """The client of huggingface_hub, as far as it is used; what it was asked to do stands in `done`."""

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.fails: Exception | None = None
        self.role = "write"
        self.there: SimpleNamespace | None = None
        self.base: dict[str, Any] | None = {"license": "apache-2.0", "language": ["en"]}

    def whoami(self) -> dict[str, Any]:
        if self.fails:
            raise self.fails
        return {"name": "me", "auth": {"accessToken": {"role": self.role}}}

    def repo_info(self, repo: str) -> SimpleNamespace:
        if self.there is None:
            raise refusal(404, RepositoryNotFoundError)
        return self.there

    def model_info(self, name: str) -> SimpleNamespace:
        if self.base is None:
            raise refusal(404, RepositoryNotFoundError)
        return SimpleNamespace(card_data=ModelCardData(**self.base))

    def create_repo(self, repo: str, **options: Any) -> str:
        self.done.append((repo, options))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.files = {str(p.relative_to(folder_path)): p.read_bytes() for p in folder_path.rglob("*") if p.is_file()}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found, client = Hub(), create_autospec(HfApi, instance=True)
    for name in ("whoami", "repo_info", "model_info", "create_repo", "upload_folder"):
        getattr(client, name).side_effect = partial(_asked, found, name)
    monkeypatch.setattr(hub, "HfApi", lambda: client)
    return found


def _asked(found: Hub, name: str, *given: Any, **options: Any) -> Any:
    return getattr(found, name)(*given, **options)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a model as the Hub's cache holds it, a run on it and the merged model."""
    folder = tmp_path_factory.mktemp("hub")
    save_tiny(folder / "models--org--tiny" / "snapshots" / "abc", "llama")
    write_jsonl(folder / "forget.jsonl", FORGET)
    write_jsonl(folder / "retain.jsonl", RETAIN)
    with chdir(folder):
        assert main([*UNLEARN, *QUICK, "--model", str(folder / "models--org--tiny/snapshots/abc")]) == 0
        assert main(["merge", "--run", "run", "--output", "merged"]) == 0
    return folder


@pytest.fixture
def here(template: Path) -> Iterator[Path]:
    with chdir(template):
        yield template


# --- who the base is -----------------------------------------------------------------------------


def test_the_id_of_a_base(here: Path) -> None:
    assert hub_id("org/name") == "org/name"
    assert hub_id("gpt2") == "gpt2"
    assert hub_id("models--org--tiny/snapshots/abc") == "org/tiny"
    assert hub_id("merged") is None
    assert hub_id("/gone/for/good") is None
    assert about_base("run")["id"] == "org/tiny"


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\nlanguage:\n- en\n- de\n---\n# A", {"license": "mit", "language": ["en", "de"]}),
        ("---\nlicense: [1, 2]\nlanguage: {a: b}\n---\n", {}),
        ("---\n&a [*a]\n---\n", {}),
        ("# none", {}),
        ("---\n- a\n---\n", {}),
    ],
)
def test_licence_and_language_are_those_of_the_base(card: str, found: dict[str, Any], tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "llama")
    (tmp_path / "model" / "README.md").write_text(card)
    assert about_base(str(tmp_path / "model")) == {"id": None, **found}


# --- what is uploaded ----------------------------------------------------------------------------


def test_an_adapter_goes_with_a_card_that_the_hub_reads(here: Path, api: Hub) -> None:
    assert hub.push("run", "me/forgot") == "https://huggingface.co/me/forgot"

    assert api.done == [("me/forgot", {"private": True, "exist_ok": True})]
    assert set(api.files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    data = ModelCard(api.files["README.md"].decode()).data
    assert (data.base_model, data.library_name, data.license, data.language) == (
        "org/tiny", "peft", "apache-2.0", ["en"],
    )  # fmt: skip
    assert data.get("base_model_relation") == "adapter"
    assert "machine-unlearning" in data.tags
    assert json.loads(api.files["adapter_config.json"])["base_model_name_or_path"] == "org/tiny"
    everything = b"".join(api.files.values())
    assert all(word.encode() not in everything for word in (MARKER, str(here), "forget.jsonl"))
    assert "license" not in Path("run/adapter/README.md").read_text()  # what is here stays as it was


def test_a_base_that_the_hub_does_not_show_keeps_nothing_back(here: Path, api: Hub) -> None:
    api.base = None
    hub.push("run", "me/forgot")
    assert ModelCard(api.files["README.md"].decode()).data.base_model == "org/tiny"


def test_a_merged_model_is_a_finetune(here: Path, api: Hub) -> None:
    api.base = {"license": "other", "license_name": "tiny", "license_link": "LICENSE"}
    hub.push("merged", "me/forgot", public=True)
    assert api.done[0][1]["private"] is False
    data = ModelCard(api.files["README.md"].decode()).data
    assert (data.base_model, data.get("base_model_relation"), data.license_name) == ("org/tiny", "finetune", "tiny")
    assert str(here).encode() not in b"".join(api.files.values())


def test_the_untouched_base_is_no_merged_model_and_a_lost_card_is_said(here: Path, tmp_path: Path, api: Hub) -> None:
    with pytest.raises(RunError, match="neither a finished run nor a merged model"):
        hub.push(here / "models--org--tiny/snapshots/abc", "me/forgot")
    shutil.copytree("merged", tmp_path / "merged")
    (tmp_path / "merged/README.md").unlink()
    with pytest.raises(RunError, match=r"has no README\.md"):
        hub.push(tmp_path / "merged", "me/forgot")
    assert not api.done


@pytest.mark.parametrize("folder", ["run", "run/adapter", "elsewhere", "merged"])
@pytest.mark.parametrize("stray", ["results.parquet", "words.jsonl", "assets/notes.json"])
def test_nothing_that_strayed_into_the_folder_is_uploaded(
    folder: str, stray: str, here: Path, tmp_path: Path, api: Hub
) -> None:
    given = tmp_path / folder
    shutil.copytree({"elsewhere": "run/adapter"}.get(folder, folder.split("/")[0]), tmp_path / folder.split("/")[0])
    place = given / "adapter" if folder == "run" else given
    (place / stray).parent.mkdir(exist_ok=True)
    (place / stray).write_text(MARKER)
    (place / ".DS_Store").write_text(MARKER)
    with pytest.raises(RunError, match=f"holds {stray}, which is no part of .*: move it elsewhere, then push"):
        hub.push(given, "me/forgot")
    assert not api.done
    assert not api.files
    (place / stray).unlink()
    hub.push(given, "me/forgot")
    assert api.files
    assert not any(name.startswith(".") for name in api.files)


def test_a_base_that_is_not_on_the_hub_is_not_named_as_if(tmp_path: Path, here: Path, api: Hub) -> None:
    save_tiny(tmp_path / "mine", "llama")
    with chdir(tmp_path):
        outcome = expunge.unlearn(
            str(tmp_path / "mine"), forget=FORGET, retain=RETAIN, output="run", max_steps=1, push_to_hub="me/forgot"
        )
    card = ModelCard(api.files["README.md"].decode())
    assert card.data.get("base_model") is None
    assert card.data.get("base_model_relation") is None
    assert json.loads(api.files["adapter_config.json"])["base_model_name_or_path"] == "mine"
    assert str(tmp_path).encode() not in b"".join(api.files.values())
    assert outcome.steps == 1
    named = tmp_path / "run/adapter/adapter_config.json"  # as earlier versions named what was given as a relative path
    named.write_text(json.dumps(json.loads(named.read_text()) | {"base_model_name_or_path": "models/mine"}))
    hub.push(tmp_path / "run", "me/forgot")
    assert json.loads(api.files["adapter_config.json"])["base_model_name_or_path"] == "mine"


def test_from_the_command_line(here: Path, api: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "--run", "run", "--push-to-hub", "me/forgot"]) == 0
    assert "hub       https://huggingface.co/me/forgot (private)" in capsys.readouterr().out
    assert main(["push", "--run", "models--org--tiny", "--push-to-hub", "me/forgot"]) == 2
    assert "neither a finished run nor a merged model" in capsys.readouterr().err


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (LocalTokenNotFoundError("x"), "me/forgot: nobody is logged in: `hf auth login`, or set HF_TOKEN"),
        (refusal(401), "nobody is logged in"),
        (refusal(503), r"the Hub cannot be reached or refuses \(it answers 503\)"),
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set"),
        (ConnectionError("x"), r"cannot be reached or refuses \(ConnectionError\)"),
    ],
)  # fmt: skip
def test_nothing_is_trained_for_a_repository_that_cannot_be_written(
    fails: Exception, message: str, tmp_path: Path, here: Path, api: Hub
) -> None:
    api.fails = fails
    with pytest.raises(ConfigError, match=message):
        expunge.unlearn(
            "models--org--tiny/snapshots/abc", forget=FORGET, retain=RETAIN, output=tmp_path / "run",
            push_to_hub="me/forgot",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_name_a_role_and_a_public_repository_that_are_refused(api: Hub) -> None:
    for name in ("me/for/got", "forgot"):
        with pytest.raises(ConfigError, match="write it as owner/name"):
            hub.check_hub(name)
    api.there = SimpleNamespace(private=False)
    with pytest.raises(ConfigError, match="everybody can read it"):
        hub.check_hub("me/forgot")
    hub.check_hub("me/forgot", public=True)
    api.there = SimpleNamespace(private=True)
    with pytest.raises(ConfigError, match="is private: open it on the Hub, or leave --public out"):
        hub.check_hub("me/forgot", public=True)
    hub.check_hub("me/forgot")
    api.role = "read"
    with pytest.raises(ConfigError, match="the token may only read"):
        hub.check_hub("me/forgot")


def test_a_push_that_fails_says_how_to_try_again(here: Path, api: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise refusal(500)

    monkeypatch.setattr(api, "upload_folder", fail)
    with pytest.raises(RunError, match=r"run/adapter: is not on the Hub yet, `expunge push` tries again: .*500"):
        hub.push("run", "me/forgot")


def test_an_adapter_with_a_base_of_its_own_is_merged_first(here: Path, tmp_path: Path, api: Hub) -> None:
    shutil.copytree("run", tmp_path / "run")
    (tmp_path / "run" / "adapter" / "base").mkdir()
    with pytest.raises(RunError, match="merge it, and push the merged model"):
        hub.push(tmp_path / "run", "me/forgot")
    assert api.files == {}


@pytest.mark.parametrize("folder", ["run", "run/adapter"])
def test_a_run_that_was_edited_is_not_uploaded(folder: str, here: Path, tmp_path: Path, api: Hub) -> None:
    shutil.copytree("run", tmp_path / "run")
    settings = tmp_path / "run" / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    with pytest.raises(RunError, match="its adapter is not the one that the manifest was written for"):
        hub.push(tmp_path / folder, "me/forgot")
    assert not api.done
    assert not api.files
