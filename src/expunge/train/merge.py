"""Adapter and base -> one plain transformers model, checked against the adapter that it replaces."""

import gc
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.config import MergeConfig, UnlearnConfig
from expunge.data.sets import read_sets
from expunge.data.tokenize import TokenizedExample
from expunge.errors import ModelError, RunError
from expunge.model.device import STORED, dtype_of, pick_device
from expunge.model.export import export
from expunge.model.files import weight_headers
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import mean_losses, sequence_logps
from expunge.model.proof import check_same
from expunge.model.saved import attach_adapter
from expunge.runs.card import merged_card
from expunge.runs.directory import check_new
from expunge.runs.loading import load_base
from expunge.runs.manifest import model_fingerprint
from expunge.runs.reads import check_apart, model_folders
from expunge.runs.record import MERGED, foreign_files
from expunge.runs.run import READS
from expunge.runs.settings import run_settings
from expunge.runs.texts import check_texts, run_rows
from expunge.utils import coarse, files, folders
from expunge.utils.progress import Reporter

LOST = 0.1
"""The forgetting survives when the merged model is off by no more than this share of the adapter's rise in forget loss,
on either side."""
LEAST = 1e-4
"""Rise in forget loss (nats per token) below which there is nothing that could survive."""
PROBES = 64
"""Rows of each set on which log-probabilities are compared."""


@dataclass(frozen=True)
class MergeReport:
    """What the check of a merged model found; of few texts no more exact than the manifest is.

    Attributes:
        output: The model's folder.
        dtype: Precision of the written weights; several where the base has several.
        max_logp_difference: Largest difference of a token's log-probability (nats), adapter against merged model; of
            few texts to a power of two.
        losses: `untouched`, `adapter`, `merged`: mean loss on the forget set's completion tokens (nats), of few
            texts to half a nat.
        survives: Whether the adapter raises the loss of the forget set, and the merged model as much.
        off: Loss of the merged model less that of the adapter (nats); None of few texts.
        bound: How far that may be from 0 (nats): `LOST` of the adapter's rise; None of few texts.
        reason: Why it does not survive; empty where it does.
        notes: What was carried over from the base, what was not, what to measure, a line each.
    """

    output: Path
    dtype: str
    max_logp_difference: float
    losses: dict[str, float]
    survives: bool
    off: float | None
    bound: float | None
    reason: str = ""
    notes: list[str] = field(default_factory=list)


def merge(config: MergeConfig, reporter: Reporter | None = None) -> MergeReport:
    """Write the merged model and compare it with the adapter on the run's own texts.

    Sums are taken in fp32, proven there, and rounded once to the dtype that each weight has in the base's files.
    Log-probabilities are compared in fp32 arithmetic, so the difference is that of the rounding of weights alone.

    Raises:
        ConfigError: A setting cannot be used.
        RunError: The run is not a finished one, or not what its manifest says, or the output exists.
        ModelError: The sums are another model, or one of both models does not fit into the memory in fp32.
        DataError: The run's data files are gone; without them nothing can be checked.
    """
    config.validate()
    with (reporter or Reporter(quiet=True)).working("merging, and comparing with the adapter"):
        return _merge(config)


def _merge(config: MergeConfig) -> MergeReport:
    run, target = config.run, Path(config.output)
    settings = run_settings(run, forget=config.forget, retain=config.retain)
    _check_output(target, run, settings, overwrite=config.overwrite)
    sets = read_sets(replace(settings, test=None, retain_test=settings.test_share, holdout=None, instead=None))
    elsewhere = "" if pick_device(config.device).type == "cpu" else "--device cpu or "
    options: dict[str, Any] = {
        "dtype": "float32", "device": config.device, "trust_remote_code": config.trust_remote_code,
        "mend": f"take {elsewhere}a larger machine: a merge computes in float32",  # whatever dtype it writes
    }  # fmt: skip
    manifest, loaded = load_base(run, settings, **options)
    rows = {name: run_rows(settings, loaded.tokenizer, getattr(sets, name)) for name in ("forget", "retain")}
    check_texts(manifest, settings, rows)
    probes = [row.input_ids for side in rows.values() for row in side[:PROBES]]
    losses, right = _fold(loaded, run, rows["forget"], probes)
    with folders.temporary_folder(target) as temporary:
        notes = export(loaded, temporary, None if config.dtype is None else dtype_of(config.dtype, STORED))
        del loaded  # both may not fit beside each other
        gc.collect()
        try:
            merged = load_model(str(temporary), **options)
        except ModelError as error:
            what = f"--output {target}: the merged model"
            raise ModelError(str(error).replace(f"--model {temporary}", what, 1)) from None
        logps = sequence_logps(merged, probes)
        losses["merged"] = mean_losses(merged, {"forget": rows["forget"]})["forget"]
        difference = max((a - b).abs().max().item() for a, b in zip(logps, right, strict=True))
        if not (math.isfinite(losses["merged"]) and math.isfinite(difference)):
            raise ModelError(
                f"--output {target}: the merged model's log-probabilities are not finite: nothing is written"
            )
        dtypes = _dtypes(temporary)
        _write_provenance(temporary, manifest, losses, dtypes)
    if settings.load_in_4bit:
        notes.append(
            "the adapter was trained and measured on weights in 4 bits, and these are the whole ones, which is another "
            f"model: measure it with `expunge evaluate --model {target} ...`"
        )
    exact = not coarse.few({"forget": len(rows["forget"])})
    return MergeReport(
        target,
        dtypes,
        difference if exact else coarse.power_of_two(difference),
        coarse.losses({"forget": losses}, {"forget": len(rows["forget"])})["forget"],
        not (reason := _judge(losses, exact=exact)),
        losses["merged"] - losses["adapter"] if exact else None,
        LOST * max(0.0, losses["adapter"] - losses["untouched"]) if exact else None,
        reason,
        notes,
    )


def _fold(
    loaded: LoadedModel, run: str, forget: Sequence[TokenizedExample], probes: Sequence[Sequence[int]]
) -> tuple[dict[str, float], list[Tensor]]:
    """Fold a run's adapter into its base, in fp32, and prove it; the losses before, and the log-probabilities."""
    losses = {"untouched": mean_losses(loaded, {"forget": forget})["forget"]}
    untouched = sequence_logps(loaded, probes)
    model = attach_adapter(loaded, run)
    losses["adapter"], right = mean_losses(loaded, {"forget": forget})["forget"], sequence_logps(loaded, probes)
    if not all(map(math.isfinite, losses.values())):
        raise RunError(f"--run {run}: the losses with its adapter are not finite: there is nothing to merge")
    loaded.model = model.merge_and_unload()
    form, wanted, without = (torch.cat(logps) for logps in (sequence_logps(loaded, probes), right, untouched))
    what = f"--run {run}: its adapter cannot be merged into its base"
    check_same(form, wanted, without, what, dtype=torch.float32)
    return losses, right


def _judge(losses: Mapping[str, float], *, exact: bool = True) -> str:
    """Why the forgetting is not in the merged model, with numbers where they are to be told; empty where it is."""
    rise = losses["adapter"] - losses["untouched"]
    off = losses["merged"] - losses["adapter"]
    if rise < LEAST:
        by = f" by {rise:.3g} nats" if exact else f" by less than {LEAST:g} nats"
        return f"the adapter raises the loss of the forget set{by}: there is no forgetting to keep"
    if abs(off) > LOST * rise:
        by, of = (f" by {off:+.3g} nats,", f" of {rise:.3g}") if exact else (" by", "")
        return f"the merged model's loss is off{by} more than {LOST:.0%} of the rise{of}"
    return ""


def _dtypes(folder: Path) -> str:
    """The dtypes of a model folder's weights, the most common first."""
    counts = Counter[str]()
    for header in weight_headers(folder).values():
        for entry in header.values():
            counts[entry["dtype"]] += math.prod(entry["shape"])
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
    return " and ".join(names.get(dtype, dtype) for dtype, _ in counts.most_common())


def _check_output(target: Path, run: str, config: UnlearnConfig, *, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier merged model, least of all over what the merge reads.

    Raises:
        RunError: So.
    """
    there = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if there and not overwrite:
        raise RunError(f"--output {target}: exists already: name another folder, or --overwrite to replace it")
    check_apart(target, {"run": run, **{name: getattr(config, name) for name in READS}})
    for folder in model_folders(config.model):
        if target.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"--output {target}: lies in the base's folder {folder}: name another folder")
    if there:
        _check_model_folder(target)
    else:
        check_new(target)


def _check_model_folder(path: Path) -> None:
    """Refuse to replace anything but a folder that `merge` wrote, with nothing else in it.

    Raises:
        RunError: So; the message names what is there or not there.
    """
    refused = f"--output {path}: --overwrite replaces only a model that `expunge merge` wrote"
    if not (path / MERGED).is_file():
        raise RunError(f"{refused}, and this has no {MERGED}")
    if strange := foreign_files(path):
        raise RunError(f"{refused}, and this holds {strange[0]}: name another folder")
    if path.is_symlink() or Path.cwd().is_relative_to(path.resolve()):
        raise RunError(f"--output {path}: --overwrite does not replace a link or the folder you stand in: name another")


def _write_provenance(folder: Path, manifest: Mapping[str, Any], losses: Mapping[str, float], dtypes: str) -> None:
    """A model card, and the list of files with what they were made of."""
    made_of = {
        "model_sha256": manifest["model_sha256"],
        "adapter_sha256": manifest.get("adapter_sha256"),
        "dtype": dtypes,
    }
    (folder / "README.md").write_text(merged_card(manifest, losses, made_of), encoding="utf-8")
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} | {MERGED}
    made_of["adapter_fingerprint"] = manifest.get("adapter_fingerprint")
    made_of["merged_sha256"] = model_fingerprint(str(folder))
    files.write_json(folder / MERGED, {**made_of, "files": sorted(written)})
