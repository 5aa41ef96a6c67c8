"""One unlearning run on disk: opened, logged to, checkpointed, resumed and closed with a manifest.

RUN/adapter/        standard PEFT adapter with a model card
RUN/config.yaml     the resolved settings, for people
RUN/manifest.json   settings, versions, hashes, hardware, timings, peak memory, losses before and after
RUN/metrics.jsonl   a line per step
RUN/checkpoints/    adapter and optimizer state, while the run lasts
RUN/.expunge/       the run's own: list of its files and lock

A run that is to replace another one (`--overwrite`) is written beside it and takes its place when it is finished.
"""

import json
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from expunge.config import SETS, UnlearnConfig
from expunge.config.checks import flag
from expunge.errors import RunError
from expunge.runs import checkpoints, directory, settings
from expunge.runs.card import model_card
from expunge.runs.lock import Lock, take_back
from expunge.runs.manifest import (
    PLACES,
    RunFacts,
    changed_settings,
    differences,
    first_half,
    identity_of,
    other_versions,
    start_of,
    versions,
)
from expunge.runs.reads import check_apart, check_started_here
from expunge.runs.record import CALIBRATION, adapter_hashes, read_manifest, read_steps
from expunge.utils import coarse, files, folders, listing
from expunge.utils.distributed import current
from expunge.utils.ranks import is_writer

READS = ("model", "origin", *SETS, "data", "from_manifest")
"""Settings that name what a run reads."""
TRACKED = "tensorboard"
"""Folder of a run that a tracker writes into."""
SUMMARY = ("stopped", "best_step", "scale", "reached", "verdict", "target", "texts")
"""What the manifest tells of the selection; the rest is in calibration.json."""


@dataclass(frozen=True)
class RunResult:
    """What training has come to.

    Attributes:
        losses: Set -> `before`, `after`: mean negative log-likelihood of completion tokens (nats per token).
        texts: Set -> rows that its losses are means over.
        steps: Optimizer steps.
        timed_steps: Those of them since the run was started, or resumed.
        ended: Why there are no more.
        training_seconds: Time in the training loop, for `timed_steps`.
        total_seconds: Time since the run was started, or resumed.
        selection: What calibration.json should hold; None where no unseen text steered the run.
        contexts: `tokens` of other texts before half of the forget texts, in the mean, and the `ratio` of target NLLs
            there; None where they were trained on alone, and of a run that `--finish` ended, which does not look.
        warnings: Findings that the user was told of since the manifest's first half was written.
        unseen_doubts: Why the unseen texts may be none, or of another kind.
    """

    losses: dict[str, dict[str, float]]
    texts: dict[str, int]
    steps: int
    timed_steps: int
    ended: str
    training_seconds: float
    total_seconds: float
    selection: dict[str, Any] | None = None
    contexts: dict[str, float] | None = None
    warnings: list[str] = field(default_factory=list)
    unseen_doubts: list[str] = field(default_factory=list)


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


@dataclass
class Run:
    """The run directory of one run. Nothing is written before `open`, and nothing by any process but the first.

        with Run.check(config) as run:
            ...
            run.open(config, facts)
            step, tensors, lines = run.restore(warn)
            ...
            run.log(line)
            run.save_checkpoint(tensors, step)
            ...
            outcome = run.finish(result, save_adapter)

    Attributes:
        config: The settings, resolved from `open` on.
        output: Where the finished run is.
        fingerprint: Of all that the run depends on, from `open` on.
    """

    config: UnlearnConfig
    output: Path
    fingerprint: str = ""
    _replaces: bool = False
    """Whether the run is written beside the one that it is to replace."""
    _locks: list[Lock] = field(default_factory=list)
    _few: bool = False
    """Whether the log is coarse."""
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def path(self) -> Path:
        """Where the run's files are written."""
        return directory.staged(self.output) if self._replaces else self.output

    @classmethod
    def check(cls, config: UnlearnConfig) -> "Run":
        """Look whether the run directory can be used, and lock it, before anything is loaded or written.

        With `dry_run` nothing is locked.

        Raises:
            RunError: It exists and neither `--overwrite` nor `--resume` is given, there is nothing to resume, or
                another process is at work in it.
            ConfigError: It holds what the run is to read.
        """
        run = cls(config, Path(config.output))
        if is_writer() and not config.dry_run:
            take_back(run.output)
        check_apart(run.output, {name: getattr(config, name) for name in READS})
        if not is_writer():
            return run
        if not config.resume:
            directory.check_new(run.output, overwrite=config.overwrite)
        elif not run.output.is_dir():
            raise RunError(f"--resume: {run.output} holds no run: leave --resume out to start one")
        if config.dry_run:
            return run
        run._locks.append(Lock(run.output))
        try:
            directory.recover(run.output)
            if config.resume:
                run._check_resumable()
            else:
                directory.check_new(run.output, overwrite=config.overwrite)
                run._replaces = not directory.is_empty(run.output)
        except BaseException:
            run.close()
            raise
        return run

    def _check_resumable(self) -> None:
        self._replaces = directory.is_staged(self.output)
        if self._replaces:
            self._locks.append(Lock(self.path))
        if not (self.path / "manifest.json").exists():
            raise RunError(f"--resume: {self.output} holds no run (no manifest.json): leave --resume out to start one")
        earlier = self.earlier()
        if earlier["status"] == "done":
            self._complete()  # a run that is cut off between its last two breaths leaves this
            raise RunError(f"--resume: the run in {self.output} is finished: there is nothing left to do")
        if changed := changed_settings(earlier, self.config):
            flags = ", ".join(map(flag, changed))
            raise RunError(
                f"--resume: the run in {self.path} was started with other {', '.join(changed.values())}: leave {flags} "
                "out to go on with it, or start another with a new --output"
            )
        if self.config.finish and not checkpoints.last(self.path / "checkpoints"):
            raise RunError("--finish: no step of this run has been saved: leave it out to go on")
        places = {name: getattr(self.config, name) for name in READS}
        check_started_here(self.output, earlier.get("start", {}).get("output", ""), places)

    def close(self) -> None:
        """Give the run directory free."""
        while self._locks:
            self._locks.pop().release(self.output)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, config: UnlearnConfig, facts: RunFacts) -> None:
        """Create the directory with the resolved settings and the manifest's first half, or check them on `--resume`.

        Raises:
            RunError: A resumed run differs from the one that is there; the message names the difference.
        """
        self._replaces = current().gather(self._replaces)[0]  # the writer has looked
        earlier = self.earlier() if config.resume else None
        if config.from_manifest:
            earlier = read_manifest(config.from_manifest, "--from-manifest")
        config = replace(config, revision=facts.base_commit or config.revision)  # which whoever goes on from it loads
        self.config, self._device = config, facts.device
        self._few = coarse.few({name: len(rows) for name, rows in facts.rows.items()})
        identity = identity_of(config, facts)
        what = {name: value for name, value in identity["settings"].items() if name not in PLACES}
        self.fingerprint = files.fingerprint(json.dumps([identity | {"settings": what}, versions()], sort_keys=True))
        if found := differences(earlier, identity, PLACES) if earlier else []:
            resumed = f"--resume: the run in {self.path} was started with"
            had = resumed if config.resume else f"--from-manifest: the run of {config.from_manifest} had"
            mend = "give what it was started with, or start another run with a new --output"
            raise RunError(f"{had} other {', '.join(found)}: {mend}")
        if config.resume and earlier:
            if changed := other_versions(earlier):
                raise RunError(
                    f"--resume: the run in {self.path} was started with other versions ({', '.join(changed)}): install "
                    "those again to go on, or begin anew with --overwrite"
                )
            if is_writer():
                listing.sweep(self.path)
                listing.sweep(self.path / "checkpoints")
                if config.report_to:
                    listing.note_folder(self.path, TRACKED)
                now = json.loads(json.dumps(identity["settings"]))
                if now != earlier["settings"] or not (self.path / settings.FILE).exists():
                    settings.write_settings(self.path, config)
                if now != earlier["settings"]:  # the data, or the model, lie elsewhere now
                    moved = {"settings": now, "start": start_of(config)}
                    files.write_json(self.path / "manifest.json", {**earlier, **moved}, overwrite=True)
            return
        if not is_writer():
            return
        directory.make(self.path, replaces=self._replaces)
        if self._replaces:
            self._locks.append(Lock(self.path))
        if config.report_to:
            listing.note_folder(self.path, TRACKED)
        manifest = {"schema": 1, "status": "running", "started": _now(), **first_half(identity, facts, config)}
        files.write_json(self.path / "manifest.json", manifest)  # from here on it is a run that can be resumed
        settings.write_settings(self.path, config)

    def earlier(self) -> dict[str, Any]:
        """The manifest of the run that is to be resumed.

        Raises:
            RunError: It cannot be read.
        """
        return read_manifest(self.path / "manifest.json", "--resume")

    def told(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A line of the log as it may be written: coarse where it rests on few texts."""
        return coarse.line(line) if self._few else dict(line)

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
            checkpoints.save(self.path / "checkpoints", state, log=self._log(), step=step, fingerprint=self.fingerprint)

    def _log(self) -> list[bytes]:
        """The whole lines of metrics.jsonl."""
        metrics = self.path / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        return [line for line in lines if line.endswith(b"\n")]

    def restore(self, warn: Callable[[str], None]) -> tuple[int, dict[str, Tensor], list[dict[str, Any]]]:
        """The newest whole checkpoint: its step, its tensors, and the lines of metrics.jsonl up to there; `warn` takes
        a line about what is damaged.

        The step is 0 and the rest empty where there is none. The log is cut back to the step.

        Raises:
            RunError: A checkpoint is one of another run, or the log was changed since.
        """
        metrics, lines = self.path / "metrics.jsonl", self._log()
        step, tensors = checkpoints.newest(self.path / "checkpoints", lines, fingerprint=self.fingerprint, warn=warn)
        told = [] if step == 0 else list(islice(read_steps(metrics), step))
        if metrics.exists() and is_writer():
            files.write_bytes(metrics, b"".join(lines[:step]), overwrite=True)
        return step, tensors, told

    def finish(self, result: RunResult, save_adapter: Callable[[Path], str | None]) -> Outcome:
        """Write the adapter with its card and complete the manifest; checkpoints go, they are not needed any more.

        Args:
            result: What training has come to.
            save_adapter: Writes the adapter into the folder that it is given; gives what the manifest calls its base.

        Raises:
            RunError: The system refuses; the run can be resumed then.
        """
        outcome = Outcome(self.output, self.output / "adapter", result.losses, result.steps, result.training_seconds)
        if not is_writer():
            return outcome
        path, selection = self.path / "manifest.json", result.selection or {}
        manifest = read_manifest(path, "--output")
        manifest |= {
            "status": "done",
            "warnings": [*manifest.get("warnings", []), *result.warnings],
            "unseen_doubts": result.unseen_doubts,
            "finished": _now(),
            "steps": result.steps,
            "timed_steps": result.timed_steps,
            "ended": result.ended,
            "loss_nats_per_completion_token": coarse.losses(result.losses, result.texts),
            "loss_texts": result.texts,
            "selection": {key: selection[key] for key in SUMMARY} if "verdict" in selection else None,
            "contexts": result.contexts,
            "training_seconds": round(result.training_seconds, 3),
            "total_seconds": round(result.total_seconds, 3),
            "peak_memory_bytes": peak_memory(self._device),
        }
        if result.selection:
            files.write_json(self.path / CALIBRATION, result.selection, overwrite=True)
        with folders.temporary_folder(self.path / "adapter") as folder:
            manifest["adapter_base"] = save_adapter(folder)
            (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
        manifest |= adapter_hashes(self.path / "adapter")
        files.write_json(path, manifest, overwrite=True)
        self._complete()
        return outcome

    def _complete(self) -> None:
        """Remove what a finished run does not need, and let it take the place of the one that it replaces."""
        with files.refusal("cannot tidy up", self.path):
            listing.remove_listed(self.path, "checkpoints")
            listing.sweep(self.path)
        if self._replaces:
            directory.replace(self.output)
            self._replaces = False


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: of the device's allocator on CUDA, resident of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def standing(config: UnlearnConfig) -> str:
    """What an interruption has left of a run, and how to go on."""
    run = Run(config, Path(config.output))
    run._replaces = directory.is_staged(run.output)
    try:
        running = run.earlier()["status"] != "done"
    except RunError:
        running = False
    if not running:
        return "nothing was written"
    saved = checkpoints.last(run.path / "checkpoints")
    rest = "; the run that it is to replace is as it was" if run._replaces else ""
    return f"--resume goes on with the run in {run.output}, from {saved or 'its beginning'}{rest}"


def lacks_report(config: UnlearnConfig) -> bool:
    """Whether a run was cut off when all of it was done but its page."""
    run = Run(config, Path(config.output))
    try:
        done = is_writer() and run.earlier()["status"] == "done"
    except RunError:
        return False
    return done and not (run.path / "report.html").exists()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
