"""Code of your own during a run: four events of transformers' `TrainerCallback`, with a state and a control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.config import UnlearnConfig
from expunge.errors import ConfigError


@dataclass
class TrainState:
    """How far a run is; the names are those of transformers' `TrainerState`.

    Attributes:
        global_step: Optimizer steps that are done.
        max_steps: Most steps that the run takes.
        epoch: Passes over the forget set, the one that is under way included.
        log_history: The lines of metrics.jsonl since this process began, exact also where the file is coarse because
            a set has few texts: numbers alone, no text of the data.
        is_world_process_zero: Whether this process is the one that writes.
    """

    global_step: int
    max_steps: int
    epoch: int = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    is_world_process_zero: bool = True


@dataclass
class TrainControl:
    """What a callback asks for.

    Attributes:
        should_training_stop: End the run after this step; the best state that was evaluated is kept.
    """

    should_training_stop: bool = False


class Callback:
    """Override what you need; a `transformers.TrainerCallback` with these events works as well.

    Losses and stopping do not depend on callbacks, except through `control.should_training_stop`. An error in a
    callback ends the run, which `resume` goes on with.
    """

    def on_train_begin(self, args: UnlearnConfig, state: TrainState, control: TrainControl, **kwargs: Any) -> None:
        """Before the first step; of a resumed run `state.global_step` is where it goes on."""

    def on_step_end(self, args: UnlearnConfig, state: TrainState, control: TrainControl, **kwargs: Any) -> None:
        """After each step; `kwargs["logs"]` is its line of metrics.jsonl, as `TrainState.log_history` has it."""

    def on_evaluate(self, args: UnlearnConfig, state: TrainState, control: TrainControl, **kwargs: Any) -> None:
        """After each evaluation step; `kwargs["metrics"]` are its validation metrics."""

    def on_train_end(self, args: UnlearnConfig, state: TrainState, control: TrainControl, **kwargs: Any) -> None:
        """After the last step, before the state to keep is chosen and saved."""


EVENTS = ("on_train_begin", "on_step_end", "on_evaluate", "on_train_end")


def check_callbacks(given: Sequence[Callback]) -> None:
    """Look whether all can be called.

    Raises:
        ConfigError: One is no callback, or a class in place of an object of it.
    """
    if not isinstance(given, list | tuple):
        raise ConfigError(f"callbacks is of type {type(given).__name__}: give a list of expunge.Callback objects")
    for place, callback in enumerate(given):
        if isinstance(callback, type):
            raise ConfigError(
                f"callbacks[{place}] is the class {callback.__name__}: give an object, {callback.__name__}()"
            )
        missing = [event for event in EVENTS if not callable(getattr(callback, event, None))]
        if missing:
            raise ConfigError(
                f"callbacks[{place}] is of type {type(callback).__name__}, without {', '.join(missing)}: give an "
                "object of a class that is made from expunge.Callback"
            )


def never_called(given: Sequence[Callback]) -> list[str]:
    """What to say of events that a callback listens to and no run has, such as `on_log` of transformers' callbacks."""
    lines = []
    for own in given:
        named = {name for kind in type(own).__mro__ if not _is_plain(kind) for name in vars(kind)}
        if others := sorted(name for name in named if name.startswith("on_") and name not in EVENTS):
            lines.append(
                f"callback {type(own).__name__}: {', '.join(others)} will not be called, for a run has "
                f"{', '.join(EVENTS)}; the line of a step is kwargs['logs'] of on_step_end"
            )
    return lines


def _is_plain(kind: type) -> bool:
    """Whether this is a class that callbacks are made from, whose events do nothing."""
    return kind is Callback or (kind.__module__, kind.__name__) == ("transformers.trainer_callback", "TrainerCallback")


class Callbacks:
    """The callbacks of one run, called in their order."""

    def __init__(self, given: Sequence[Callback], config: UnlearnConfig, state: TrainState) -> None:
        self.given, self._config, self.state, self.control = given, config, state, TrainControl()

    def call(self, event: str, **kwargs: Any) -> None:
        """Hand one event to all."""
        for callback in self.given:
            getattr(callback, event)(self._config, self.state, self.control, **kwargs)

    def step(self, line: Mapping[str, Any]) -> bool:
        """After a step with this line of the log; whether a callback asks to stop."""
        self.state.global_step, self.state.epoch = line["step"], line["epoch"]
        if not self.given:
            return False
        self.state.log_history.append(dict(line))
        self.call("on_step_end", logs=dict(line))
        if "validation" in line:
            self.call("on_evaluate", metrics=dict(line["validation"]))
        return self.control.should_training_stop
