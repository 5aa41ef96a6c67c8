"""Checkpoints of a run: its state and its place, whole or not at all, and of no other run.

RUN/checkpoints/step-00000100/state.safetensors   tensors; in the header the run's fingerprint, the step, and the hash
                                                  of the run's log up to there
RUN/checkpoints/step-00000100/checkpoint.json     the hash of that file
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.errors import RunError
from expunge.utils import files, folders, listing
from expunge.utils.reading import read_object

KEPT = 2
"""Checkpoints that stay: where the last one is damaged, the one before is used."""


def last(folder: Path) -> str | None:
    """Name of the newest checkpoint, whole or not; None where there is none."""
    return max((path.name for path in folder.glob("step-*")), default=None)


def save(folder: Path, tensors: Mapping[str, Tensor], *, log: Sequence[bytes], step: int, fingerprint: str) -> None:
    """Write the state after `step` steps, whole or not at all; older checkpoints beyond the last `KEPT` go.

    Raises:
        RunError: The system refuses; the checkpoints before are as they were.
    """
    before = last(folder)
    try:
        with folders.temporary_folder(folder / f"step-{step:08d}") as temporary:
            state = temporary / "state.safetensors"
            about = {"run": fingerprint, "step": str(step), "log": files.fingerprint(*log[:step])}
            save_file(dict(tensors), state, metadata=about)
            files.write_json(temporary / "checkpoint.json", {"sha256": files.sha256_file(state)})
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            listing.remove_listed(folder.parent, f"{folder.name}/{old.name}")
    except (OSError, SafetensorError, RunError) as error:
        rest = f"the last good one is {before}" if before else "there is none yet"
        raise RunError(
            f"cannot write the checkpoint of step {step} ({_reason(error)}); {rest}: look at the disk, then go on "
            "with --resume"
        ) from error


def newest(
    folder: Path, log: Sequence[bytes], *, fingerprint: str, warn: Callable[[str], None]
) -> tuple[int, dict[str, Tensor]]:
    """The newest whole checkpoint that the log goes as far as: its step and state; 0 and nothing where there is none.

    `warn` takes a line about each newer one that is damaged.

    Raises:
        RunError: It is one of another run, or the log was changed.
    """
    for place in sorted(folder.glob("step-*"), reverse=True):
        found = _whole(place)
        if found is None:
            warn(f"--resume: {place} is damaged and passed over: an earlier state is gone on from")
            continue
        step, run, then = found
        if run != fingerprint:
            raise RunError(f"--resume: {place} is a checkpoint of another run: remove it, or start with --overwrite")
        if step <= len(log):
            if then != files.fingerprint(*log[:step]):
                raise RunError(f"--resume: metrics.jsonl is not the log that {place} was saved with: put that one back")
            return step, load_file(place / "state.safetensors")
    return 0, {}


def _whole(place: Path) -> tuple[int, str, str] | None:
    """The step, the run and the log of a checkpoint whose state has the hash that it should have, or None."""
    state = place / "state.safetensors"
    try:
        note = read_object(place / "checkpoint.json", fields={"sha256": str})
        if files.sha256_file(state) != note["sha256"]:
            return None
        with safe_open(state, framework="pt") as header:
            about = header.metadata()
        return int(about["step"]), about["run"], about["log"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, RunError, SafetensorError):
        return None


def _reason(error: BaseException) -> str:
    """The system's reason within an error."""
    found = next((e for e in (error, error.__cause__) if isinstance(e, OSError)), None)
    return (found.strerror if found else None) or str(error).strip().splitlines()[0]
