"""An adapter as files: saved, proved to be the one that was measured, and put into a model again."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import ModelError
from expunge.kernels import Head
from expunge.model.adapter import scale_of, set_scale
from expunge.model.checkpoint import move
from expunge.model.fold import check_base_kept, put_adapter
from expunge.model.head import find_head
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps
from expunge.model.proof import check_same, log_probs, probe_rows
from expunge.model.ranks import Pairs, as_one, pairs_of, same_pairs, side_by_side, tensors_of
from expunge.model.source import ADAPTER_FILE, BASE, absolute_name, adapter_folder
from expunge.model.tokenizer_files import write_tokenizer
from expunge.utils.reading import read_object

VERIFIED = 64
"""Forget rows on which a saved adapter is compared with the one that was measured."""
OWN = "own"
"""Folder in an adapter that stands on other adapters: its own ranks alone, for the model with those folded in."""


def save_adapter(
    loaded: LoadedModel, folder: Path, rows: Sequence[Sequence[int]] = (), *, final: Path | None = None
) -> str | None:
    """Write a standard PEFT adapter that is complete on the base that it names, and prove it on `rows`.

    On a model that is itself an adapter, the ranks of both stand side by side in the new one, for the original base,
    and the new ranks alone in the folder `OWN`. Where the first has no such form (DoRA, IA3, ...), the model with it
    folded in goes into the folder `BASE`, which the new adapter names then.

    Args:
        loaded: The model with the adapter, which is taken out of it.
        folder: Where to; it exists.
        rows: Token ids on which the saved adapter must say what the model says.
        final: Where the folder will be in the end; where it is when None.

    Returns:
        The last part of the name of the base that it stands on; None where that is in its folder `BASE`.

    Raises:
        ModelError: It does not, or, where processes share the base, its file holds other weights.
    """
    assert isinstance(loaded.model, PeftModel)
    trained = _trained(loaded, rows)
    source = loaded.source
    place = folder / OWN if source.adapters and loaded.parts else folder
    _save(loaded, place)
    if loaded.lockstep is not None:
        _check_written(loaded, place)
    write_tokenizer(loaded, folder)
    if source.adapters and not _complete(loaded, folder):
        if place != folder:  # PEFT has no configuration for both
            shutil.copytree(place, folder, dirs_exist_ok=True)
            shutil.rmtree(place)
        loaded.model = loaded.model.unload()
        loaded.base.save_pretrained(folder / BASE)
        write_tokenizer(loaded, folder / BASE)
        place = (final or folder).resolve() / BASE
        _configure(folder, _settings(folder) | {"base_model_name_or_path": str(place), "revision": None})
        loaded.note(
            f"adapter: {source.name} has no form that stands beside another one (DoRA, IA3, saved modules ...): this "
            f"one needs the whole model with it folded in, {place}: hand on both, or merge them"
        )
    _verify(loaded, folder, rows, trained, final or folder)
    return None if (folder / BASE).exists() else Path(_settings(folder)["base_model_name_or_path"] or "").name


def verify_saved(
    loaded: LoadedModel, folder: Path, rows: Sequence[Sequence[int]], *, final: Path | None = None
) -> None:
    """Load a saved adapter with plain PEFT and compare what the model says then with what it says now.

    Args:
        loaded: The model with the adapter, which is taken out of it.
        folder: The saved adapter.
        rows: Token ids.
        final: Where the folder will be in the end, for the message; where it is when None.

    Raises:
        ModelError: They differ by more than rounding.
    """
    _verify(loaded, folder, rows, _trained(loaded, rows), final or folder)


def _verify(
    loaded: LoadedModel, folder: Path, rows: Sequence[Sequence[int]], trained: "_Trained | None", final: Path
) -> None:
    if trained is None:
        return
    if isinstance(loaded.model, PeftModel):
        loaded.model = loaded.model.unload()
    plain = loaded
    if (folder / OWN).exists():  # on the original base, whose fold in memory may have been rounded
        name, revision = loaded.source.base_name, loaded.source.revision
        code = loaded.has_own_code  # an `auto_map` in the configuration says nothing of what the user has allowed
        dtype = str(loaded.dtype).removeprefix("torch.")
        loaded.head = Head(None)
        move(loaded.base, torch.device("cpu"))  # done with: both may not fit beside each other
        plain = load_model(name, dtype=dtype, device=str(loaded.device), trust_remote_code=code, revision=revision)
    pairs, below = pairs_of(_put(plain, folder)), [] if plain is loaded else loaded.parts or []
    same = pairs is not None and trained.pairs is not None and same_pairs(pairs, side_by_side([*below, trained.pairs]))
    check_same(
        torch.cat(sequence_logps(plain, rows)),
        trained.right,
        trained.untouched,
        f"{final}: the saved adapter is not the one that was measured",
        dtype=loaded.dtype,
        same_weights=same,
    )


@contextmanager
def rescaled(loaded: LoadedModel, folder: Path, factor: float) -> Iterator[Path]:
    """A copy, while the context lasts, of an adapter on the model, with `factor` times the scale of its training.

    Args:
        loaded: The model with the adapter, as `attach_adapter` leaves it at its trained scale.
        folder: The saved adapter.
        factor: The scale.
    """
    assert isinstance(loaded.model, PeftModel)
    set_scale(loaded.model, factor)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "adapter"
        shutil.copytree(folder, copy)
        if (copy / OWN).exists():
            _save(loaded, copy / OWN)
            _complete(loaded, copy)
        else:
            _configure(copy, _settings(copy) | _alphas(loaded.model))
        yield copy


def _save(loaded: LoadedModel, folder: Path) -> None:
    """The adapter of a model as it is, for the model that it is in."""
    assert isinstance(loaded.model, PeftModel)
    loaded.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a run writes a card of its own
    settings, source = _settings(folder) | _alphas(loaded.model), loaded.source
    settings["base_model_name_or_path"] = absolute_name(source.name if source.adapters else source.base_name)
    settings["revision"] = None if source.adapters and source.on_the_hub else source.revision
    _configure(folder, settings)


def _check_written(loaded: LoadedModel, folder: Path) -> None:
    """Look whether a saved adapter is the one in memory, where no process has the whole base to see what it says."""
    assert isinstance(loaded.model, PeftModel)
    state = get_peft_model_state_dict(loaded.model, save_embedding_layers=False)
    written = load_file(folder / ADAPTER_FILE)
    if state.keys() != written.keys() or not all(torch.equal(state[name].cpu(), written[name]) for name in state):
        raise ModelError(f"{folder}: the saved adapter is not the one that was measured: its weights are others")
    loaded.note(
        "adapter: its file holds the weights that were trained; what a model with it says was not compared, since the "
        "processes share the base (--shard-base)"
    )


def _alphas(model: PeftModel) -> dict[str, Any]:
    """What an adapter_config.json says of the scale of an adapter as it is."""
    factor, config = scale_of(model), model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    pattern = {name: alpha * factor for name, alpha in (config.alpha_pattern or {}).items()}
    return {"lora_alpha": config.lora_alpha * factor, "alpha_pattern": pattern}


def _complete(loaded: LoadedModel, folder: Path) -> bool:
    """Write the adapters that were folded in and the model's own as one; False where PEFT has no form for that."""
    assert isinstance(loaded.model, PeftModel)
    if not loaded.parts or (trained := pairs_of(loaded.model)) is None:
        return False
    stack = (*loaded.source.adapters, folder / OWN)
    whole = as_one([*loaded.parts, trained], [_settings(place) for place in stack])
    if whole is None:
        return False
    pairs, config = whole
    save_file(tensors_of(pairs), folder / ADAPTER_FILE, metadata={"format": "pt"})
    base = absolute_name(loaded.source.base_name)
    _configure(folder, config | {"base_model_name_or_path": base, "revision": loaded.source.revision})
    return True


def _settings(folder: Path) -> dict[str, Any]:
    return read_object(folder / "adapter_config.json", ModelError)


def _configure(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class _Trained:
    """What a saved adapter has to be: log-probabilities of rows with the adapter and without it, and its matrices."""

    right: Tensor
    untouched: Tensor
    pairs: Pairs | None


def _trained(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> _Trained | None:
    """Of the adapter in a model; None where there is nothing to compare on."""
    assert isinstance(loaded.model, PeftModel)
    if not rows or loaded.lockstep is not None:
        return None
    right = torch.cat(sequence_logps(loaded, rows))
    with loaded.model.disable_adapter():
        return _Trained(right, torch.cat(sequence_logps(loaded, rows)), pairs_of(loaded.model))


def attach_adapter(loaded: LoadedModel, name: str, alphas: Mapping[str, Any] | None = None) -> PeftModel:
    """Put a saved adapter into a loaded base model; `loaded.model` becomes the PEFT model.

    On a model into which other adapters were folded goes what the adapter adds to those.

    Args:
        loaded: The base.
        name: Run directory or adapter folder.
        alphas: Fields of its configuration to use instead of those that are there (`lora_alpha`, `alpha_pattern`).

    Raises:
        ModelError: It does not fit the base, or changes it.
    """
    folder = adapter_folder(name)
    place = folder / OWN
    stacked = loaded.source.adapters and place.exists()
    ids = probe_rows(loaded.base)
    untouched = None if loaded.lockstep else log_probs(loaded.base, ids, loaded.autocast())
    model = _put(loaded, place if stacked else folder, alphas)
    if untouched is not None:
        check_base_kept(model, untouched, ids, folder, autocast=loaded.autocast())
    return model


def _put(loaded: LoadedModel, folder: Path, alphas: Mapping[str, Any] | None = None) -> PeftModel:
    """Put a saved adapter into a loaded base; of one that changes the head, the model's own logits are read."""
    loaded.model = model = put_adapter(loaded.base, folder, alphas)
    output = loaded.base.get_output_embeddings()
    changed = isinstance(output, BaseTunerLayer | AuxiliaryTrainingWrapper)
    if loaded.lockstep is None and not changed and loaded.head.weight is not None:
        with loaded.autocast():  # without which layers that were rounded on load refuse states that were not
            changed = find_head(loaded.base)[0].weight is None
    if changed:
        loaded.head, loaded.packable_length = Head(None), 0
    return model
