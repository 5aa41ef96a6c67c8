"""Adapter and base -> one plain transformers model, checked against the adapter that it replaces."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from expunge.config import UnlearnConfig
from expunge.data.examples import Example
from expunge.data.tokenize import Join, TokenizedExample, tokenize_all
from expunge.errors import RunError
from expunge.model.adapter import attach_adapter
from expunge.model.load import LoadedModel, base_name, load_model
from expunge.model.logps import mean_losses, sequence_logps
from expunge.runs.directory import check_new
from expunge.runs.reads import check_apart
from expunge.runs.run import READS
from expunge.runs.settings import run_settings
from expunge.train.sets import read_sets
from expunge.utils import folders

SURVIVES = 0.9
"""The forgetting survives when the merged model keeps at least this share of the adapter's rise in forget loss."""
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*token*.json", "*.model",
    "vocab.*", "merges.txt", "chat_template.jinja", "*.py",
)  # fmt: skip
"""What a model folder of transformers holds: all that `--overwrite` may remove."""


@dataclass(frozen=True)
class MergeReport:
    """What the check of a merged model found.

    Attributes:
        output: The model's folder.
        dtype: Precision of the written weights.
        max_logp_difference: Largest difference of a token's log-probability (nats), adapter against merged model.
        losses: `untouched`, `adapter`, `merged`: mean loss on the forget set's completion tokens (nats).
        survives: Whether the forgetting survives the rounding.
    """

    output: Path
    dtype: str
    max_logp_difference: float
    losses: dict[str, float]
    survives: bool


def merge(
    run: str, output: str, *, device: str = "auto", overwrite: bool = False, trust_remote_code: bool = False
) -> MergeReport:
    """Write the merged model and compare it with the adapter on the run's own texts.

    Sums are taken in fp32 and rounded once to the base's dtype. Log-probabilities are compared in fp32 arithmetic, so
    the difference is that of the rounding of weights alone.

    Raises:
        RunError: `run` is not a finished run, or `output` exists.
        DataError: The run's data files are gone; without them nothing can be checked.
    """
    config = run_settings(run)
    target = Path(output)
    there = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if there and not overwrite:
        raise RunError(f"--output {output}: exists already: name another folder, or --overwrite to replace it")
    check_apart(output, {"run": run, **{name: getattr(config, name) for name in READS}})
    if there:
        _check_model_folder(target)
    else:
        check_new(target)
    sets = read_sets(config)

    loaded = load_model(config.model, dtype="float32", device=device, trust_remote_code=trust_remote_code)
    forget, retain = (run_rows(config, loaded.tokenizer, texts) for texts in (sets.forget, sets.retain))
    probes = [row.input_ids for row in (*forget[:64], *retain[:64])]
    untouched = mean_losses(loaded, {"forget": forget})["forget"]
    attach_adapter(loaded, run)
    with_adapter, adapter_logps = mean_losses(loaded, {"forget": forget})["forget"], sequence_logps(loaded, probes)

    stored = _stored_dtype(base_name(config.model), trust_remote_code=trust_remote_code)
    _fold(loaded, stored)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        loaded.base.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        merged = load_model(str(temporary), dtype="float32", device=device, trust_remote_code=trust_remote_code)
        merged_loss, difference = _compare(merged, forget, probes, adapter_logps)
        folders.replace_dir(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    survives = merged_loss - untouched >= SURVIVES * (with_adapter - untouched)
    losses = {"untouched": untouched, "adapter": with_adapter, "merged": merged_loss}
    return MergeReport(target, str(stored).removeprefix("torch."), difference, losses, survives)


def _check_model_folder(path: Path) -> None:
    """Refuse to replace anything but a folder that holds a model and nothing else.

    Raises:
        RunError: So; the message names what is there or not there.
    """
    refused = f"--output {path}: --overwrite replaces only a model folder"
    if not (path / "config.json").is_file():
        raise RunError(f"{refused}, and this has no config.json")
    strange = [own for own in sorted(path.iterdir()) if own.is_dir() or not any(map(own.match, MODEL_FILES))]
    if strange:
        raise RunError(f"{refused}, and this holds {strange[0].name}: name another folder")
    if path.is_symlink() or Path.cwd().is_relative_to(path.resolve()):
        raise RunError(f"--output {path}: --overwrite does not replace a link or the folder you stand in: name another")


def run_rows(
    settings: UnlearnConfig, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Example]
) -> list[TokenizedExample]:
    """Texts as a finished run has read them; completions that do not fit are cut."""
    join = Join(settings.join, settings.end_of_text == "yes")
    return tokenize_all(tokenizer, texts, join, max_length=settings.max_length, truncate_completions=True)


def _stored_dtype(name: str, *, trust_remote_code: bool) -> torch.dtype:
    """The dtype that the base has when transformers loads it by itself: its configuration's, else its files'."""
    code = {"trust_remote_code": trust_remote_code}
    stored = AutoConfig.from_pretrained(name, **code).dtype
    return stored or AutoModelForCausalLM.from_pretrained(name, dtype="auto", use_safetensors=True, **code).dtype


@torch.no_grad()
def _fold(loaded: LoadedModel, dtype: torch.dtype) -> None:
    """Add the adapter to its layers in fp32 and round the whole model to `dtype`; the adapter's layers go."""
    peft_model = loaded.model
    for module in peft_model.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            for name in module.active_adapters:
                weight += module.get_delta_weight(name).to(weight.dtype)
    loaded.model = peft_model.base_model.unload().to(dtype)


def _compare(
    merged: LoadedModel,
    forget: Sequence[TokenizedExample],
    probes: Sequence[Sequence[int]],
    adapter_logps: Sequence[torch.Tensor],
) -> tuple[float, float]:
    logps = sequence_logps(merged, probes)
    differences = [(a - b).abs().max().item() for a, b in zip(logps, adapter_logps, strict=True)]
    return mean_losses(merged, {"forget": forget})["forget"], max(differences)
