"""Numbers to TensorBoard or Weights & Biases while a run goes on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from expunge.errors import ConfigError
from expunge.utils.text import comma_list

TRACKERS = ("tensorboard", "wandb")


def check_trackers(report_to: str | None) -> None:
    """Look whether the trackers that are asked for are known and installed.

    Raises:
        ConfigError: One is not.
    """
    from importlib.util import find_spec

    asked = comma_list(report_to)
    if report_to and not asked:
        raise ConfigError(f"--report-to {report_to}: names no tracker; known are {', '.join(TRACKERS)}")
    for name in asked:
        if name not in TRACKERS:
            raise ConfigError(f"--report-to {name}: unknown; known are {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--report-to {name}: is not installed: pip install 'expunge[{name}]'")


@contextmanager
def _beginning(name: str) -> Iterator[None]:
    """What the tracker's own package fails with (nobody is logged in, a part of it is missing) as one line."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError(f"--report-to {name}: cannot begin ({reason}): log in or mend it, or leave it out") from None


class Trackers:
    """The trackers of one run, by names separated by commas; with none, nothing happens.

    TensorBoard's files go to `folder`; Weights & Biases notes the `settings`. A context manager, which flushes them and
    lets go, whatever happens.
    """

    def __init__(self, report_to: str | None, folder: str, settings: Mapping[str, Any]) -> None:
        self._writer: Any = None
        self._wandb: Any = None
        self._owns = False
        names = comma_list(report_to)
        if "tensorboard" in names:
            with _beginning("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(f"{folder}/tensorboard")
        if "wandb" in names:
            with _beginning("wandb"):
                import wandb

                self._owns = wandb.run is None  # one that is on is the caller's: it gets the numbers and goes on
                self._wandb = wandb.run or wandb.init(project="expunge", config=dict(settings))

    def __enter__(self) -> "Trackers":
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand over the numbers of one step."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step if self._owns else None)

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()
        if self._wandb and self._owns:
            self._wandb.finish()
