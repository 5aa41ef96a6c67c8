"""What a run depends on, as its manifest records it: settings, data, model, versions, hardware; and how two compare."""

import json
import platform
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from expunge.config import SETS, UnlearnConfig
from expunge.config.checks import SAME_ORIGIN
from expunge.data.tokenize import TokenizedExample, hash_rows
from expunge.errors import ConfigError, RunError
from expunge.model.source import base_name, places
from expunge.runs.base import about_base
from expunge.runs.reads import ModelState, check_unchanged
from expunge.runs.settings import recorded
from expunge.utils import coarse, files
from expunge.utils.distributed import current
from expunge.utils.keys import key_file, keyed, of_this_key
from expunge.utils.versions import versions_of

PLACES = {"model", "origin", *SETS, "data"}
"""Settings that say where something is; when a run is repeated, what is there counts."""
NOT_PART_OF_THE_RESULT = {"output", "save_every", "report_to", "shard_base", "push_to_hub", "public"}
"""Settings that may differ between a run and its resumption."""

SETTLED = {"device", "dtype", "max_length", "revision", "retain_weight", "kl_weight", "eval_every"}
"""Settings that a run may record otherwise than they were given: model, machine or missing texts decide."""


@dataclass(frozen=True)
class RunFacts:
    """What a run depends on beside its settings, known once model and texts are loaded.

    Attributes:
        rows: Set -> its tokenized rows; all that say what is trained, or when training stops, belong here.
        texts: Set -> what stands for its texts in results, too (`data.sets.fingerprints`).
        prompt_format: What stands between prompt and completion, as the run has chosen it.
        prompt_format_losses: Prompt format -> mean loss of a completion under it (nats), by which it was chosen.
        terms: Terms of the loss: `name`, `weight`, `formula`, `source` of each.
        device: Where the run computes.
        model_files: State of the files of model and origin before they were loaded.
        base_commit: Commit of a model from the Hub; None of a folder.
        warnings: Findings that the user was told of.
    """

    rows: dict[str, list[TokenizedExample]]
    texts: dict[str, str]
    prompt_format: str
    prompt_format_losses: dict[str, float]
    terms: list[dict[str, Any]]
    device: torch.device
    model_files: ModelState
    base_commit: str | None = None
    warnings: list[str] = field(default_factory=list)


def identity_of(config: UnlearnConfig, facts: RunFacts) -> dict[str, Any]:
    """What a run depends on: settings, data, model.

    Raises:
        ModelError: The model's files were changed since it was loaded.
        ConfigError: The origin is the model itself.
    """
    settings = {name: value for name, value in recorded(config).items() if name not in NOT_PART_OF_THE_RESULT}
    identity = {
        "settings": {**settings, "device": facts.device.type},  # whichever it is of several
        "data": {name: keyed(hash_rows(rows)) for name, rows in facts.rows.items()},
        "model_sha256": model_fingerprint(config.model, facts.base_commit),
        **({"origin_sha256": model_fingerprint(config.origin)} if config.origin else {}),
    }
    check_unchanged(facts.model_files, config.model, config.origin)
    if identity.get("origin_sha256") == identity["model_sha256"]:
        raise ConfigError(SAME_ORIGIN.format(config.origin))
    return identity


def start_of(config: UnlearnConfig) -> dict[str, Any]:
    """Settings that a run was started with and does not depend on; of its device, the kind alone counts."""
    return {name: value for name, value in recorded(config).items() if name in {*NOT_PART_OF_THE_RESULT, "device"}}


def first_half(identity: dict[str, Any], facts: RunFacts, config: UnlearnConfig) -> dict[str, Any]:
    """What a manifest says before the first step; of few texts, counts of tokens and losses are coarse."""
    rows = {name: len(examples) for name, examples in facts.rows.items()}
    tokens = {name: sum(map(len, examples)) for name, examples in facts.rows.items()}
    formats = facts.prompt_format_losses
    if coarse.few(rows):
        tokens = {
            name: coarse.tokens(count) if coarse.few({name: rows[name]}) else count for name, count in tokens.items()
        }
        formats = {name: round(loss) for name, loss in formats.items()}
    return {
        **identity,
        "start": start_of(config),
        "texts": facts.texts,
        "base": about_base(identity["settings"]["model"]),
        "rows": rows,
        "tokens": tokens,
        "terms": facts.terms,
        "prompt_format": {"chosen": facts.prompt_format, "nats_per_completion": formats},
        "warnings": facts.warnings,
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(facts.device),
    }


def differences(earlier: dict[str, Any], identity: dict[str, Any], moved: Container[str] = ()) -> list[str]:
    """What a run depends on and another one had otherwise, save the settings in `moved`."""
    settings = {name: now for name, now in identity["settings"].items() if name not in moved}
    found = [*_other_settings(earlier["settings"], settings).values()]
    for name, now in identity["data"].items():
        then = str(earlier["data"].get(name))
        if then != now:
            unknown = "" if then == "None" or of_this_key(then) else f" (known under another key than {key_file()})"
            found.append(f"rows of the {name} set{unknown}")
    for name in ("model", "origin"):
        if earlier.get(f"{name}_sha256") != identity.get(f"{name}_sha256"):
            found.append(f"the {name}'s weights or configuration")
    return found


def changed_settings(earlier: dict[str, Any], config: UnlearnConfig) -> dict[str, str]:
    """Setting -> how it differs from what a run to resume was started with, of those that need no model to be known."""
    then, left_out = earlier["settings"], PLACES | NOT_PART_OF_THE_RESULT | SETTLED
    chosen = {  # the others are settled by the run later
        name: now
        for name, now in recorded(config).items()
        if config.is_given(name) and now not in (None, "auto") and name in then and name not in left_out
    }
    return _other_settings(then, chosen)


def _other_settings(then: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """Setting -> how it differs from what it was, in words, as a manifest holds both."""
    return {
        name: f"{name} ({then.get(name)!r} then, {now!r} now)"
        for name, now in json.loads(json.dumps(settings)).items()
        if then.get(name) != now
    }


def other_versions(manifest: dict[str, Any]) -> list[str]:
    """Versions of what computes that a run was made with others of, one phrase each."""
    then = manifest.get("versions", {})
    return [f"{name} {then.get(name)} then, {now} now" for name, now in versions().items() if then.get(name) != now]


def other_surroundings(manifest: dict[str, Any], device: torch.device) -> list[str]:
    """What may change the last digits of a repeated run: versions, hardware, processes; one phrase each."""
    then = manifest.get("hardware", {})
    return other_versions(manifest) + [
        f"{name} {then.get(name)} then, {now} now" for name, now in hardware(device).items() if then.get(name) != now
    ]


def model_fingerprint(name: str, commit: str | None = None) -> str:
    """SHA-256 over the weights and configuration of a folder or GGUF file, and of its base where it is an adapter.

    A model from the Hub is known by its name and the commit that was loaded.
    """
    parts = []
    for place in places(name):
        folder = Path(place)
        if folder.is_file():
            parts.append(files.sha256_file(folder))
        elif folder.is_dir():
            configs = [folder / file for file in ("config.json", "adapter_config.json") if (folder / file).exists()]
            parts += [files.sha256_file(path) for path in (*sorted(folder.glob("*.safetensors")), *configs)]
        else:
            parts += [place, commit or ""]
    return files.fingerprint(*parts)


def known_base(name: str, commit: str | None = None) -> str | None:
    """The fingerprint of a model; None of one on the Hub of which it is not known yet which commit will be loaded.

    Args:
        name: The model.
        commit: Of a model on the Hub, once it is loaded.
    """
    if Path(name).exists() and Path(base_name(name)).exists():
        return model_fingerprint(name)
    return model_fingerprint(name, commit) if commit else None


def check_base(name: str, manifest: dict[str, Any], flag: str, commit: str | None = None) -> None:
    """Refuse a base that is not the one that the run was made on.

    Args:
        name: The base.
        manifest: The run's.
        flag: What the message begins with.
        commit: Of a base on the Hub, once it is loaded.

    Raises:
        RunError: Another model lies in the base's place now.
    """
    then = manifest["model_sha256"]
    if known_base(name, commit) not in (None, then):
        mend = "put that one back"
        if not Path(name).exists():
            mend = "name its commit as `revision` in the run's manifest.json and adapter_config.json"
        raise RunError(f"{flag}: {name} is another model than the one that the run was made on: {mend}")


def hardware(device: torch.device) -> dict[str, Any]:
    """What the last digits of a result may depend on beside the versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "name": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": current().count,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Of everything that computes."""
    return versions_of("torch", "transformers", "peft", "accelerate", "safetensors")
