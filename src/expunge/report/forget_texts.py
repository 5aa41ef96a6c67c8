"""Texts of the forget set on the page: for internal use, on request alone, read from where the run read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from expunge.data.columns import parse_columns
from expunge.data.examples import Example, read_examples
from expunge.data.sets import BENCHMARKS
from expunge.errors import DataError
from expunge.evaluation.earlier import with_earlier_answers
from expunge.evaluation.predictions import Prediction, read_any
from expunge.report.run_data import RunData
from expunge.utils.text import numbered

Named = TypeVar("Named", Example, Prediction)
"""What has an id."""


@dataclass(frozen=True)
class Shown:
    """One example.

    Attributes:
        run: Name of the run.
        id: The row's id.
        prompt: What is asked.
        completion: What the data says.
        answers: Name of a kept set of predictions -> what that model said.
    """

    run: str
    id: str
    prompt: str
    completion: str
    answers: dict[str, str]


def shown_examples(run: RunData, count: int) -> list[Shown]:
    """The first forget texts, with what models said where predictions were kept in the run directory.

    With per-example values those come first that the unlearned model still finds most likely. Predictions are folders
    `predictions*` in the run directory, as `expunge evaluate --keep-predictions` writes them.

    Raises:
        DataError: The run's forget texts are not where they were, or cannot be read.
    """
    rows = _named(_forget(run))
    losses = run.values.get("after", {}).get(("forget", "nll"), {})
    ids = sorted(rows, key=lambda identity: losses.get(identity, float("inf")))[:count]
    said = {}
    for folder in sorted(run.path.glob("predictions*")):
        name = folder.name.removeprefix("predictions").strip("_-.") or "after"
        said[name] = {identity: row.model_output.strip() for identity, row in _named(read_any(folder).forget).items()}
    return [
        Shown(
            run.name,
            identity,
            _prompt(rows[identity]),
            rows[identity].completion,
            {name: answers[identity] for name, answers in said.items() if identity in answers},
        )
        for identity in ids
    ]


def _named(rows: Sequence[Named]) -> dict[str, Named]:
    """The rows by their ids, as results name them."""
    return dict(zip(numbered(row.id for row in rows), rows, strict=True))


def _forget(run: RunData) -> Sequence[Example]:
    settings = run.settings
    try:
        if settings.get("benchmark"):
            read = BENCHMARKS[str(settings["benchmark"])]
            return read(str(settings.get("data")), settings.get("split")).forget
        columns = parse_columns(str(settings.get("columns") or ""))
        rows, _ = with_earlier_answers(read_examples(str(settings.get("forget")), columns=columns), [])
        return rows
    except DataError as error:
        raise DataError(f"--show-examples: the forget texts of {run.path} cannot be read again: {error}") from None


def _prompt(row: Example) -> str:
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in row.messages or ()) or row.prompt
