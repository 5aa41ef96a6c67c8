"""A finished run's adapter, or a merged model, on the Hugging Face Hub: private unless it is asked to be public."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from expunge.errors import ConfigError, RunError, UserError
from expunge.model.saved import OWN
from expunge.model.source import BASE
from expunge.runs.base import hub_id
from expunge.runs.card import taken
from expunge.runs.record import MERGED, WEIGHTS, check_adapter_kept, foreign_files, read_manifest
from expunge.runs.settings import check_finished
from expunge.utils import listing
from expunge.utils.reading import read_object

ADAPTER_CONFIG = "adapter_config.json"
OF_ADAPTERS = {
    "README.md", ADAPTER_CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template*.json", "*vocab*.json", "*vocab*.txt", "merges.txt", "tekken.json",
    "emoji.json", "normalizer.json", "*.jinja", "*.model", "*.spm", "*.bpe", "*.tiktoken", "*.py", "LICEN[CS]E*",
    "NOTICE*",
}  # fmt: skip
"""Files of an adapter and of its tokenizer."""


def check_hub(repo: str, *, public: bool = False) -> None:
    """Look whether a repository could be written, before there is anything to write.

    Raises:
        ConfigError: Its name is none, nobody is logged in, with a token that may only read, or the repository is there
            and everybody can read it without `public`, or it is private with it.
    """
    try:
        validate_repo_id(repo)
        named = "/" in repo  # the Hub makes one without an owner, and then does not find it by that name
    except HFValidationError:
        named = False
    if not named:
        raise ConfigError(f"--push-to-hub {repo}: is no name of a repository: write it as owner/name")
    with _reached(f"--push-to-hub {repo}", ConfigError):
        api = HfApi()
        token = (api.whoami().get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise ConfigError(f"--push-to-hub {repo}: the token may only read: log in with one that may write")
        try:
            private = api.repo_info(repo).private
        except RepositoryNotFoundError:
            return
        if not private and not public:
            raise ConfigError(f"--push-to-hub {repo}: everybody can read it: give another one, or --public")
        if private and public:
            raise ConfigError(f"--push-to-hub {repo}: is private: open it on the Hub, or leave --public out")


def push(folder: str | Path, repo: str, *, public: bool = False) -> str:
    """Upload the adapter of a run, an adapter folder or a merged model, with its card.

    What is uploaded names the base by its id on the Hub, or by the name of its folder alone, never by a path of this
    machine; licence and language of the base are asked for where the card has no licence yet.

    Args:
        folder: A finished run, or a folder that `expunge merge` has written.
        repo: `owner/name`; it is made where it is not there, private unless `public`.
        public: Everybody may read it.

    Returns:
        The repository's address.

    Raises:
        ConfigError: As `check_hub`.
        RunError: There is nothing to upload in the folder, or something that is not ours, or the Hub cannot be reached
            or refuses.
    """
    place = _uploadable(Path(folder))
    check_hub(repo, public=public)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        for file in _own_files(place):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / file, copy / file)
        _without_paths(copy, _base_id(place))
        what = "adapter" if (copy / ADAPTER_CONFIG).exists() else "model"
        with _reached(f"{place}: is not on the Hub yet, `expunge push` tries again", RunError):
            api = HfApi()
            _complete_card(api, copy / "README.md")
            url = api.create_repo(repo, private=not public, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=copy, commit_message=f"Unlearned {what}, by Expunge")
        return str(url)


def _uploadable(folder: Path) -> Path:
    check_finished(folder)
    adapter = folder / "adapter" if (folder / "adapter" / ADAPTER_CONFIG).is_file() else folder
    for run in (folder, folder.absolute().parent):
        if (run / "manifest.json").is_file() and (run / "adapter").exists():
            check_adapter_kept(run, read_manifest(run / "manifest.json", "--run"), "--run")
    if not any((adapter / name).is_file() for name in (ADAPTER_CONFIG, MERGED)):
        raise RunError(f"--run {folder}: neither a finished run nor a merged model: there is nothing to upload")
    if not (adapter / "README.md").is_file():
        raise RunError(f"--run {folder}: has no README.md, the card that it was written with: put it back")
    if (adapter / BASE).exists():
        raise RunError(f"--run {folder}: its adapter needs a base of its own: merge it, and push the merged model")
    _own_files(adapter)
    return adapter


def _own_files(place: Path) -> list[str]:
    """What is uploaded of a folder: what Expunge has written there; hidden files stay.

    Raises:
        RunError: Something else lies there: results, texts.
    """
    found = [name for name in listing.files_below(place) if not name.startswith(".")]
    if (place / ADAPTER_CONFIG).is_file():
        kind, strange = "an adapter", [name for name in found if not _of_adapters(PurePosixPath(name))]
    else:
        strange, kind = [name for name in foreign_files(place) if name in found], "the merged model"
    if strange:
        raise RunError(f"--run {place}: holds {strange[0]}, which is no part of {kind}: move it elsewhere, then push")
    return found


def _of_adapters(name: PurePosixPath) -> bool:
    return str(name.parent) in (".", OWN, "additional_chat_templates") and any(map(name.match, OF_ADAPTERS))


def _base_id(adapter: Path) -> str | None:
    """The id on the Hub of what an adapter stands on, as its run has recorded it, else as the adapter names it."""
    manifest = adapter.absolute().parent / "manifest.json"
    if manifest.is_file() and adapter.absolute().name == "adapter":
        recorded: dict[str, str | None] = read_manifest(manifest, "--run").get("base", {})
        if "id" in recorded:
            return recorded["id"]
    return hub_id(_named(adapter / ADAPTER_CONFIG)) if (adapter / ADAPTER_CONFIG).exists() else None


def _named(file: Path) -> str:
    return str(read_object(file, RunError).get("base_model_name_or_path") or "")


def _without_paths(folder: Path, base_id: str | None) -> None:
    for file in folder.rglob(ADAPTER_CONFIG):
        base = _named(file)
        known = base_id if file.parent == folder else hub_id(base)
        settings = read_object(file, RunError) | {"base_model_name_or_path": known or Path(base).name}
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _complete_card(api: HfApi, file: Path) -> None:
    """Licence and language of the base, where the Hub shows it to us and the card does not say."""
    card = ModelCard(file.read_text(encoding="utf-8"))
    base = card.data.get("base_model")
    if not isinstance(base, str) or card.data.get("license"):
        return
    try:
        theirs = api.model_info(base).card_data
    except RepositoryNotFoundError:
        return
    fields: dict[str, Any] = taken(theirs.to_dict()) if theirs else {}
    if fields:
        for name, value in fields.items():
            card.data[name] = value
        card.save(file)


@contextmanager
def _reached(what: str, kind: type[UserError]) -> Iterator[None]:
    """Turn whatever the Hub, or the way there, says into one line."""
    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled:
        raise kind(f"{what}: HF_HUB_OFFLINE is set") from None
    except Exception as error:  # what a network can raise has no bounds
        status = getattr(getattr(error, "response", None), "status_code", None)
        if type(error).__name__ == "LocalTokenNotFoundError" or status == 401:
            raise kind(f"{what}: nobody is logged in: `hf auth login`, or set HF_TOKEN") from None
        reason = f"it answers {status}" if status else type(error).__name__
        raise kind(f"{what}: the Hub cannot be reached or refuses ({reason})") from None
