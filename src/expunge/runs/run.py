"""One unlearning run on disk: opened, logged to, checkpointed, resumed and closed with a manifest.

RUN/adapter/        standard PEFT adapter with a model card
RUN/config.yaml     the resolved settings
RUN/manifest.json   versions, hashes, hardware, timings, peak memory, energy, losses before and after
RUN/metrics.jsonl   a line per step
RUN/checkpoints/    adapter and optimizer state, while the run lasts
RUN/cache/          the reference where it is large, while the run lasts
"""

import dataclasses
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from expunge.config import SETS, UnlearnConfig
from expunge.data.holdout import FILE as CALIBRATION
from expunge.data.tokenize import hash_rows
from expunge.errors import RunError
from expunge.model.adapter import save_adapter
from expunge.model.energy import energy_joules
from expunge.runs.card import model_card
from expunge.runs.manifest import PLACES, differences, hardware, model_fingerprint, read_manifest, versions
from expunge.train.setup import Prepared
from expunge.utils import files
from expunge.utils.distributed import current

if TYPE_CHECKING:
    from expunge.train.trainer import Trainer

KEPT_CHECKPOINTS = 2
SUMMARY = ("stopped", "best_step", "scale", "reached", "verdict", "target", "texts")
"""What the manifest tells of the selection; the rest is in calibration.json."""
NOT_SETTINGS = {"overwrite", "resume", "dry_run", "from_manifest"}
"""What is said about one start of a run alone."""
NOT_PART_OF_THE_RESULT = {*NOT_SETTINGS, "output", "save_every", "report_to", "shard_base"}
"""Settings that may differ between a run and its resumption."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run gives back.

    Attributes:
        output: The run directory.
        adapter: The adapter's folder in it.
        losses: Set -> `before`, `after`: mean negative log-likelihood of completion tokens (nats per token).
        steps: Optimizer steps.
        training_seconds: Time in the training loop.
    """

    output: Path
    adapter: Path
    losses: dict[str, dict[str, float]]
    steps: int
    training_seconds: float


def is_writer() -> bool:
    """Whether this process writes and speaks: the first of those that share a run (their launcher sets `RANK`)."""
    return int(os.environ.get("RANK", "0")) == 0


class Run:
    """The run directory of one run. Nothing is written before `open`, and nothing by any process but the first."""

    def __init__(self, config: UnlearnConfig) -> None:
        self.config = config
        self.path = Path(config.output)
        self.fingerprint = ""
        """Of all that the run depends on, once it is open."""
        self._energy: float | None = None
        """What the device had used when the run began; None of a resumed run."""

    @classmethod
    def check(cls, config: UnlearnConfig) -> "Run":
        """Look whether the run directory can be used, before anything is loaded or written.

        Raises:
            RunError: It exists and neither `--overwrite` nor `--resume` is given, or there is nothing to resume.
        """
        run = cls(config)
        if not is_writer():
            return run
        if config.resume:
            if not (run.path / "manifest.json").exists():
                raise RunError(f"--resume: {run.path} holds no run (no manifest.json): leave --resume out to start one")
            if run.earlier()["status"] == "done":
                run.clear()  # cut off between its last two breaths, a run leaves its checkpoints
                raise RunError(f"--resume: the run in {run.path} is finished: there is nothing left to do")
        else:
            files.check_new(run.path, overwrite=config.overwrite)
        return run

    def open(self, config: UnlearnConfig, prepared: Prepared) -> None:
        """Create the directory with the resolved settings and the manifest's first half, or check them on `--resume`.

        Raises:
            RunError: A resumed run differs from the one that is there; the message names the difference.
        """
        identity = {
            "settings": {
                **{k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_PART_OF_THE_RESULT},
                "device": prepared.loaded.device.type,  # whichever it is of several
            },
            "data": {name: hash_rows(getattr(prepared, name)) for name in SETS},
            "model_sha256": model_fingerprint(config.model, getattr(prepared.loaded.base.config, "_commit_hash", None)),
        }
        self.fingerprint = files.fingerprint(json.dumps([identity, versions()], sort_keys=True))
        if config.from_manifest:
            found = differences(read_manifest(config.from_manifest, "--from-manifest"), identity, PLACES)
            if found:
                raise RunError(f"--from-manifest: the run of {config.from_manifest} had other {', '.join(found)}")
        if config.resume:
            found = differences(self.earlier(), identity)
            if found:
                raise RunError(f"--resume: the run in {self.path} was started with other {', '.join(found)}")
            if is_writer():
                files.sweep(self.path)
                files.sweep(self.path / "checkpoints")
                if not (self.path / "config.yaml").exists():
                    self._write_settings(config)
            return
        if not is_writer():
            return
        files.new_run_dir(self.path, overwrite=config.overwrite)
        manifest = {
            "schema": 1,
            "status": "running",
            "started": _now(),
            **identity,
            "rows": {name: len(getattr(prepared, name)) for name in SETS},
            "tokens": {name: sum(map(len, getattr(prepared, name))) for name in SETS},
            "join": {"chosen": str(prepared.join.join), "nats_per_completion": prepared.join.losses},
            "warnings": prepared.warnings,
            "versions": {"python": platform.python_version(), **versions()},
            "hardware": hardware(prepared.loaded.device),
        }
        files.write_json(self.path / "manifest.json", manifest)  # from here on it is a run that can be resumed
        self._energy = energy_joules(prepared.loaded.device)
        self._write_settings(config)

    def _write_settings(self, config: UnlearnConfig) -> None:
        settings = {
            k: v
            for k, v in dataclasses.asdict(config).items()
            if k not in ("overwrite", "resume", "dry_run", "from_manifest")
        }
        files.write_text(self.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False))

    def earlier(self) -> dict[str, Any]:
        """The manifest of the run that is to be resumed.

        Raises:
            RunError: It cannot be read.
        """
        return read_manifest(self.path / "manifest.json", "--resume")

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if is_writer():
            files.append_line(self.path / "metrics.jsonl", line)

    def save_checkpoint(self, trainer: "Trainer", step: int) -> None:
        """Write adapter and optimizer state after `step` steps, whole or not at all; older ones beyond the last go.

        Raises:
            RunError: The system refuses; the checkpoints before are as they were.
        """
        if not is_writer():
            return
        folder = self.path / "checkpoints"
        last = max((path.name for path in folder.glob("step-*")), default=None)
        try:
            files.flush(self.path / "metrics.jsonl")  # a checkpoint never knows of a step that its log has lost
            folder.mkdir(mode=0o700, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
            try:
                save_file(trainer.state(), temporary / "state.safetensors")
                files.write_json(
                    temporary / "checkpoint.json",
                    {"step": step, "sha256": files.sha256_file(temporary / "state.safetensors")},
                )
                files.replace_dir(temporary, folder / f"step-{step:08d}")
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            for old in sorted(folder.glob("step-*"))[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
        except (OSError, SafetensorError, RunError) as error:
            rest = f"the last good one is {last}" if last else "there is none yet"
            raise RunError(
                f"cannot write the checkpoint of step {step} ({_reason(error)}); {rest}: look at the disk, then go on "
                "with --resume"
            ) from error

    def restore(self, trainer: "Trainer") -> int:
        """Load the newest whole checkpoint and cut metrics.jsonl back to it; returns its step, 0 when there is none.

        A checkpoint is whole when its state has the hash that its checkpoint.json names, and the log all its steps.
        """
        step = 0
        metrics = self.path / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        logged = sum(line.endswith(b"\n") for line in lines)
        for folder in sorted((self.path / "checkpoints").glob("step-*"), reverse=True):
            found = _whole_checkpoint(folder)
            if found is not None and found <= logged:
                log = [json.loads(line) for line in lines[:found]]
                trainer.load_state(load_file(folder / "state.safetensors"), log)
                step = found
                break
        if metrics.exists() and is_writer():
            files.write_bytes(metrics, b"".join(lines[:step]), overwrite=True)
        return step

    def finish(
        self,
        prepared: Prepared,
        *,
        before: dict[str, float],
        after: dict[str, float],
        steps: int,
        selection: dict[str, Any] | None,
        training_seconds: float,
        total_seconds: float,
    ) -> Outcome:
        """Write the adapter with its card and complete the manifest; checkpoints go, they are not needed any more."""
        losses = {name: {"before": before[name], "after": after[name]} for name in after}
        outcome = Outcome(self.path, self.path / "adapter", losses, steps, training_seconds)
        if not is_writer():
            return outcome
        path = self.path / "manifest.json"
        manifest = json.loads(path.read_text()) | {
            "status": "done",
            "finished": _now(),
            "steps": steps,
            "loss_nats_per_completion_token": losses,
            "loss_texts": {name: len(prepared.told[name]) for name in losses},
            "selection": selection and {key: selection[key] for key in SUMMARY},
            "training_seconds": round(training_seconds, 3),
            "total_seconds": round(total_seconds, 3),
            "peak_memory_bytes": peak_memory(prepared.loaded.device),
            "energy_joules": self._energy_used(prepared.loaded.device),
        }
        card = model_card(prepared.config, manifest)
        model = prepared.loaded.model
        if selection:
            files.write_json(self.path / CALIBRATION, selection, overwrite=True)
        save_adapter(model, self.path / "adapter", base_name=prepared.config.model, card=card)
        manifest["adapter_sha256"] = files.sha256_file(self.path / "adapter" / "adapter_model.safetensors")
        files.write_json(path, manifest, overwrite=True)
        self.clear()
        return outcome

    def _energy_used(self, device: torch.device) -> float | None:
        """Of the whole run; None where the device does not tell, or several shared the run."""
        now = energy_joules(device) if self._energy is not None and current().count == 1 else None
        return None if now is None else round(now - self._energy, 1)

    def clear(self) -> None:
        """Remove what a finished run does not need."""
        if is_writer():
            for name in ("checkpoints", "cache"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            files.sweep(self.path)


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: of the device's allocator on CUDA, resident of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def standing(config: UnlearnConfig) -> str:
    """What an interruption has left of a run, and how to go on."""
    run = Run(config)
    try:
        running = run.earlier()["status"] != "done"
    except RunError:
        running = False
    if not running:
        return "nothing was written"
    saved = max((path.name for path in (run.path / "checkpoints").glob("step-*")), default=None)
    return f"--resume goes on with the run in {run.path}, " + (f"from {saved}" if saved else "from its beginning")


def lacks_report(config: UnlearnConfig) -> bool:
    """Whether a run was cut off when all of it was done but its page."""
    run = Run(config)
    try:
        done = is_writer() and run.earlier()["status"] == "done"
    except RunError:
        return False
    return done and not (run.path / "report.html").exists()


def _whole_checkpoint(folder: Path) -> int | None:
    """The step of a checkpoint that is whole, or None."""
    try:
        note = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        whole = files.sha256_file(folder / "state.safetensors") == note["sha256"]
        return int(note["step"]) if whole else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, RunError):
        return None


def _reason(error: BaseException) -> str:
    """The system's reason within an error."""
    found = next((e for e in (error, error.__cause__) if isinstance(e, OSError)), None)
    return (found.strerror if found else None) or str(error).strip().splitlines()[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
