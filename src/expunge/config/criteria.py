"""What an adapter should reach: the membership AUC that is wanted, and the bounds on what it may cost."""

from dataclasses import dataclass

from expunge.errors import ConfigError


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
