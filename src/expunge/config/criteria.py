"""The one set of success criteria: early stopping aims at it, calibration keeps to it and the verdict judges by it."""

from dataclasses import dataclass

from expunge.errors import ConfigError


@dataclass(frozen=True)
class Criteria:
    """When unlearning counts as a success.

    Attributes:
        target_auc: Membership AUC (by loss, min-k and the like) of a model that never saw the forgotten texts: 0.5 by
            chance, or a retrained model's.
        auc_tolerance: Largest distance of an AUC from `target_auc`; the standard deviation of an AUC of as few texts by
            chance where that is larger.
        max_exact_match: Largest share of the forget completions that greedy decoding still says word for word; more
            where it guesses as large a share of completions that were never seen.
        min_retain: Least share that every retain score keeps of what the untouched model has.
        max_drift: Largest relative change of the loss of unseen texts, either way.
        max_repetition: Largest rise of the share of repeated four-grams in what is said in place of forgotten texts.
    """

    target_auc: float = 0.5
    auc_tolerance: float = 0.05
    max_exact_match: float = 0.05
    min_retain: float = 0.98
    max_drift: float = 0.05
    max_repetition: float = 0.1


@dataclass(frozen=True)
class Goal:
    """What an adapter should reach.

    Attributes:
        auc: Membership AUC of a model that never saw the forgotten texts: 0.5, or the retrained twin's.
        retain: Least of the retain texts that must be kept (`signals.kept`), as a share.
        drift: Largest relative change of the unseen texts' loss.
    """

    auc: float = 0.5
    retain: float = 0.97
    drift: float = 0.05


def read_goal(target: str, floor: str, ceiling: str) -> Goal:
    """The goal that `auc=0.5`, `retain=0.97` and `drift=0.05` write.

    Raises:
        ConfigError: One of them is not of that form; the message names its flag.
    """
    return Goal(
        _named("--target", "auc", target), _named("--floor", "retain", floor), _named("--ceiling", "drift", ceiling)
    )


def _named(flag: str, name: str, text: str) -> float:
    found, equals, value = text.partition("=")
    try:
        number = float(value)
        if found.strip() == name and equals and 0 <= number <= 1:
            return number
    except ValueError:
        pass
    raise ConfigError(f"{flag} {text}: write {name}=NUMBER, the number between 0 and 1")
