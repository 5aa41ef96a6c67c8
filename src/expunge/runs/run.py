"""One unlearning run on disk: opened, logged to, checkpointed, resumed and closed with a manifest.

RUN/adapter/        standard PEFT adapter with a model card
RUN/config.yaml     the resolved settings
RUN/manifest.json   versions, hashes, hardware, timings, peak memory, energy, losses before and after
RUN/metrics.jsonl   a line per step
RUN/checkpoints/    adapter and optimizer state, while the run lasts
RUN/cache/          the reference where it is large, while the run lasts
"""

import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from expunge.config import UnlearnConfig
from expunge.data.holdout import FILE as CALIBRATION
from expunge.errors import RunError
from expunge.model.energy import energy_joules
from expunge.runs import checkpoints, directory, settings
from expunge.runs.card import model_card
from expunge.runs.manifest import (
    PLACES,
    RunFacts,
    differences,
    first_half,
    identity_of,
    read_manifest,
    versions,
)
from expunge.utils import files
from expunge.utils.distributed import current

SUMMARY = ("stopped", "best_step", "scale", "reached", "verdict", "target", "texts")
"""What the manifest tells of the selection; the rest is in calibration.json."""


@dataclass(frozen=True)
class RunResult:
    """What training has come to.

    Attributes:
        losses: Set -> `before`, `after`: mean negative log-likelihood of completion tokens (nats per token).
        texts: Set -> rows that its losses are means over.
        steps: Optimizer steps.
        training_seconds: Time in the training loop.
        total_seconds: Time since the run was started, or resumed.
        selection: What calibration.json should hold; None where no unseen texts were followed.
    """

    losses: dict[str, dict[str, float]]
    texts: dict[str, int]
    steps: int
    training_seconds: float
    total_seconds: float
    selection: dict[str, Any] | None = None


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


@dataclass
class Run:
    """The run directory of one run. Nothing is written before `open`, and nothing by any process but the first.

        with Run.check(config) as run:
            ...
            run.open(config, facts)
            step, tensors, lines = run.restore()
            ...
            run.log(line)
            run.save_checkpoint(tensors, step)
            ...
            outcome = run.finish(result, save_adapter)

    Attributes:
        config: The settings, resolved from `open` on.
        fingerprint: Of all that the run depends on, from `open` on.
    """

    config: UnlearnConfig
    fingerprint: str = ""
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _energy: float | None = None
    """What the device had used when the run began; None of a resumed run."""

    @property
    def path(self) -> Path:
        """Where the run's files are."""
        return Path(self.config.output)

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
            directory.check_new(run.path, overwrite=config.overwrite)
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def open(self, config: UnlearnConfig, facts: RunFacts) -> None:
        """Create the directory with the resolved settings and the manifest's first half, or check them on `--resume`.

        Raises:
            RunError: A resumed run differs from the one that is there; the message names the difference.
        """
        self.config, self._device = config, facts.device
        identity = identity_of(config, facts)
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
                if not (self.path / settings.FILE).exists():
                    settings.write_settings(self.path, config)
            return
        if not is_writer():
            return
        directory.new_run_dir(self.path, overwrite=config.overwrite)
        manifest = {"schema": 1, "status": "running", "started": _now(), **first_half(identity, facts)}
        files.write_json(self.path / "manifest.json", manifest)  # from here on it is a run that can be resumed
        self._energy = energy_joules(facts.device)
        settings.write_settings(self.path, config)

    def earlier(self) -> dict[str, Any]:
        """The manifest of the run that is to be resumed.

        Raises:
            RunError: It cannot be read.
        """
        return read_manifest(self.path / "manifest.json", "--resume")

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if is_writer():
            files.append_line(self.path / "metrics.jsonl", line)

    def save_checkpoint(self, state: Mapping[str, Tensor], step: int) -> None:
        """Write the state after `step` steps, whole or not at all; older checkpoints beyond the last two go.

        Raises:
            RunError: The system refuses; the checkpoints before are as they were.
        """
        if is_writer():
            files.flush(self.path / "metrics.jsonl")  # a checkpoint never knows of a step that its log has lost
            checkpoints.save(self.path / "checkpoints", state, step=step, fingerprint=self.fingerprint)

    def restore(self) -> tuple[int, dict[str, Tensor], list[dict[str, Any]]]:
        """The newest whole checkpoint: its step, its tensors, and the lines of metrics.jsonl up to there.

        The step is 0 and the rest empty where there is none. The log is cut back to the step.

        Raises:
            RunError: A checkpoint is one of another run.
        """
        metrics = self.path / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        logged = sum(line.endswith(b"\n") for line in lines)
        step, tensors = checkpoints.newest(self.path / "checkpoints", fingerprint=self.fingerprint, most=logged)
        if metrics.exists() and is_writer():
            files.write_bytes(metrics, b"".join(lines[:step]), overwrite=True)
        return step, tensors, [json.loads(line) for line in lines[:step]]

    def finish(self, result: RunResult, save_adapter: Callable[[Path], None]) -> Outcome:
        """Write the adapter with its card and complete the manifest; checkpoints go, they are not needed any more.

        Args:
            result: What training has come to.
            save_adapter: Writes the adapter's files into the folder that it is given.

        Raises:
            RunError: The system refuses; the run can be resumed then.
        """
        outcome = Outcome(self.path, self.path / "adapter", result.losses, result.steps, result.training_seconds)
        if not is_writer():
            return outcome
        path = self.path / "manifest.json"
        manifest = read_manifest(path, "--output") | {
            "status": "done",
            "finished": _now(),
            "steps": result.steps,
            "loss_nats_per_completion_token": result.losses,
            "loss_texts": result.texts,
            "selection": result.selection and {key: result.selection[key] for key in SUMMARY},
            "training_seconds": round(result.training_seconds, 3),
            "total_seconds": round(result.total_seconds, 3),
            "peak_memory_bytes": peak_memory(self._device),
            "energy_joules": self._energy_used(),
        }
        if result.selection:
            files.write_json(self.path / CALIBRATION, result.selection, overwrite=True)
        self._write_adapter(save_adapter, model_card(manifest))
        manifest["adapter_sha256"] = files.sha256_file(outcome.adapter / "adapter_model.safetensors")
        files.write_json(path, manifest, overwrite=True)
        self.clear()
        return outcome

    def _write_adapter(self, save_adapter: Callable[[Path], None], card: str) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=".adapter-", dir=self.path))
        try:
            save_adapter(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            files.replace_dir(temporary, self.path / "adapter")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _energy_used(self) -> float | None:
        """Joules of the whole run; None where the device does not tell, or several shared the run."""
        now = energy_joules(self._device) if self._energy is not None and current().count == 1 else None
        return None if now is None or self._energy is None else round(now - self._energy, 1)

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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
