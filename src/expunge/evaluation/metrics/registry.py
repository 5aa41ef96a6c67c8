"""`@metric` and `@attack`: what is measured on rows and on documents, each a function with what a reader must know.

A metric is added by a file in this folder (every file is imported) or by decorating a function anywhere: the passes
collect what it needs, and results, tables, `--help` and the docs read it here.

    @metric("brevity", direction="higher", family="text", source="...")
    def brevity(text: str) -> float:
        '1/(1 + characters of the answer)'
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from expunge.errors import ConfigError
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.metrics.record import TokenRecord
from expunge.utils.again import is_again

Direction = Literal["higher", "lower", "target"]
HOLDOUT = "holdout"
"""The set of texts that no model has seen: what a metric of the forget set comes to without knowing them."""
Family = Literal["memorization", "text", "membership", "utility"]
Function = TypeVar("Function", bound=Callable[..., float | None])


@dataclass
class Row:
    """What the passes know of one row; a metric's `needs` are names of these, handed over in that order.

    Attributes:
        record: The completion's tokens, given the prompt.
        kind: `sc` (to be completed), `qa` (a question) or empty.
        expected: What a generation is compared with.
        correct: The right answer in other words (the answer itself where the data has no other words).
        wrong: Wrong answers; None where the data has none.
        rivals: Other rows' answers of the same form, after this row's prompt; None where there are too few.
        text: What the model said, greedily; None where the row has no prompt.
        tokens: The same as token ids.
        untouched: What was said, as the model without its adapter sees it.
        samples: Answers drawn at a temperature.
        keywords: Words that say the fact, in any sentence; None where the row has none.
    """

    record: TokenRecord | None = None
    kind: str = ""
    expected: str = ""
    correct: TokenRecord | None = None
    wrong: Sequence[TokenRecord] | None = None
    rivals: Sequence[TokenRecord] | None = None
    text: str | None = None
    tokens: Sequence[int] | None = None
    untouched: TokenRecord | None = None
    samples: Sequence[str] | None = None
    keywords: Sequence[str] | None = None


@dataclass
class WholeText:
    """What the passes know of one document; an attack's `needs` are names of these, handed over in that order.

    Attributes:
        record: All its tokens but the first.
        text: The text.
        lower: The record of its lower-cased text; None where too little is left of that.
        after_unseen: Its record with an unseen text before it; None where there is no other one, or no room.
        reference: Its record under a model that never saw the forget set; None without one.
        gradient: Norm of the gradient of its mean NLL, a backward pass a text.
    """

    record: TokenRecord
    text: str
    lower: TokenRecord | None = None
    after_unseen: TokenRecord | None = None
    reference: TokenRecord | None = None
    gradient: float | None = None


@dataclass(frozen=True)
class Metric:
    """A metric of rows or of a whole benchmark, or the score that a membership attack gives one text.

    Attributes:
        name: As in results files.
        function: What computes it; None is for what does not apply.
        needs: Names of what it takes, in order; none for a benchmark's own aggregates.
        direction: Which values are better on texts that are to be forgotten (or of a whole model); None where neither
            are: such numbers are kept for each row, for tests, and are no result.
        low: Smallest possible value.
        high: Largest possible value.
        source: Paper or repository that it comes from.
        definition: In one line.
        family: What it measures.
        target: The value of a perfect unlearning that is known without a reference; for direction `target` alone.
        keep: The better direction on texts that are to be kept, where it is another.
        default: Whether rows (documents) get it where no benchmark (no `--attacks`) says otherwise.
        on: `forget` or `others`, where it is for these sets of rows alone.
        skips: Kind of rows that it is not taken of.
        by_task: Whether results give it for each task too.
        over: Name of the function's parameter that it is taken at several values of.
        label: What results call it, by that value; its name where empty.
    """

    name: str
    function: Callable[..., float | None]
    needs: tuple[str, ...]
    direction: Direction | None
    low: float
    high: float
    source: str
    definition: str
    family: Family
    target: float | None = None
    keep: Direction | None = None
    default: bool = True
    on: str = ""
    skips: str = ""
    by_task: bool = False
    over: str = ""
    label: Callable[[Any], str] | None = None

    def direction_on(self, set_name: str) -> Direction | None:
        """The better direction on `forget` texts, or on other ones, which are to be kept; unseen ones have none."""
        if set_name == HOLDOUT:
            return None
        return self.direction if set_name == "forget" or self.keep is None else self.keep

    def instances(self, plan: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What results call it and the options of its function, for each value that the plan has for `over`."""
        for value in plan.get(self.over, ()) if self.over else (None,):
            yield self.label(value) if self.label else self.name, {self.over: value} if self.over else {}

    def of(self, facts: Row | WholeText, **options: Any) -> float | None:
        """Its value; None where something that it needs is not there, or it does not apply.

        Raises:
            ConfigError: The value lies outside of those that the metric says it can have.
        """
        given = [getattr(facts, need) for need in self.needs]
        if any(fact is None for fact in given) or (self.skips and getattr(facts, "kind", "") == self.skips):
            return None
        value = self.function(*given, **options)
        if value is not None and (value < self.low - ROUNDING or value > self.high + ROUNDING):
            raise ConfigError(
                f"metric {self.name}: gave {value:g}, and is registered for {self.low:g} to {self.high:g}: give it the "
                "low= and high= of its values"
            )
        return value

    def read(self, estimate: Estimate, set_name: str = "forget") -> Estimate:
        """The estimate with how to read it, its interval cut to the values that the metric can have."""
        direction = self.direction_on(set_name)
        return replace(
            estimate,
            low=estimate.low if estimate.low != estimate.low else max(estimate.low, self.low),
            high=estimate.high if estimate.high != estimate.high else min(estimate.high, self.high),
            direction=direction,
            target=self.target if direction == "target" else None,
            family=self.family,
            source=self.source,
        )


ROUNDING = 1e-6
"""How far a value may lie outside of the range of its metric."""
METRICS: dict[str, Metric] = {}
"""Name -> metric."""
ATTACKS: dict[str, Metric] = {}
"""Name -> membership attack, as `--attacks` takes it."""


def metric(
    name: str, *, direction: Direction | None, family: Family, source: str, low: float = 0, high: float = 1, **more: Any
) -> Callable[[Function], Function]:
    """Register a metric; see `Metric` for what the arguments mean.

    What it needs are the parameters of the function (those without a default, `over` aside) unless `needs` says so, and
    its definition is the first line of the function's docs unless `definition` does.

    Raises:
        ValueError: The name is taken (by another function: a cell of a notebook may run again), there is no line of
            docs, a need is none of `Row`'s, or `direction` or `family` are none that there are.
    """
    return _register(METRICS, Row, name, direction=direction, family=family, source=source, low=low, high=high, **more)


def knowledge(name: str, **more: Any) -> Callable[[Function], Function]:
    """Register a metric of how much is known, in [0, 1]: lower is better on texts to forget, higher on all others."""
    return metric(name, direction="lower", keep="higher", **more)


def attack(name: str, *, source: str, high: float = 0, **more: Any) -> Callable[[Function], Function]:
    """Register a membership attack: a function whose value is the larger, the likelier the text was trained on.

    Raises:
        ValueError: As for a metric.
    """
    how: dict[str, Any] = {"direction": "lower", "family": "membership", "low": -math.inf, "high": high}
    return _register(ATTACKS, WholeText, name, source=source, **how, **more)


def _register(
    registry: dict[str, Metric], facts: type[Row] | type[WholeText], name: str, **more: Any
) -> Callable[[Function], Function]:
    def keep(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        required = tuple(
            param.name for param in parameters if param.default is param.empty and param.name != more.get("over")
        )
        needs = more.pop("needs", required)
        definition = more.pop("definition", (inspect.getdoc(function) or "").partition("\n")[0].rstrip("."))
        unknown = [need for need in needs if need not in facts.__dataclass_fields__]
        if unknown:
            there = ", ".join(facts.__dataclass_fields__)
            raise ValueError(f"{name}: needs {', '.join(unknown)}; there are {there}")
        if any(name in taken and not is_again(taken[name].function, function) for taken in (METRICS, ATTACKS)):
            raise ValueError(f"{name}: is taken")
        for key, known in (("direction", (*get_args(Direction), None)), ("family", get_args(Family))):
            if more[key] not in known:
                raise ValueError(f"{name}: {key} {more[key]!r} is unknown; there are {', '.join(map(str, known))}")
        if not definition:
            raise ValueError(f"{name}: has no definition: give the function a line of docs")
        for registered in (METRICS, ATTACKS):
            registered.pop(name, None)  # the same one, given again, perhaps as the other of the two
        registry[name] = Metric(name, function, needs, definition=definition, **more)
        return function

    return keep


def default_metrics(set_name: str) -> tuple[str, ...]:
    """The metrics that rows of a set get where no benchmark says otherwise."""
    here = ("", "forget" if set_name == "forget" else "others")
    return tuple(name for name, metric in METRICS.items() if metric.default and metric.needs and metric.on in here)


def default_attacks() -> tuple[str, ...]:
    """The membership attacks that are run where none are named: all that cost no backward pass."""
    return tuple(name for name, attack in ATTACKS.items() if attack.default)


def left_out(given: Sequence[str]) -> list[str]:
    """Those of `default_attacks` that need no other model and are not among the given ones."""
    return [name for name in default_attacks() if name not in given and "reference" not in ATTACKS[name].needs]
