"""What one model's passes over a suite leave: a number per row and metric, and the texts that it said."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from expunge.data.examples import Example
from expunge.data.holdout import FEWEST
from expunge.errors import ModelError
from expunge.evaluation.earlier import text_of, texts_in
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.metrics import Metric, TokenRecord
from expunge.evaluation.stats import mean_estimate
from expunge.utils.coarse import few, telling_parts
from expunge.utils.text import numbered


@dataclass(frozen=True)
class Values:
    """One metric on the rows of a set that have it.

    Attributes:
        ids: Ids of the rows; those that the data repeats are numbered, so that each names one row.
        tasks: Their tasks.
        documents: What each row is about.
        values: float64 `(rows,)`, all finite.
        stopped: Whether the answer behind it could not hold what is looked for; none where nothing is given.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    documents: tuple[str, ...]
    values: NDArray[np.float64]
    stopped: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", numbered(self.ids))
        object.__setattr__(self, "stopped", self.stopped or (False,) * len(self.ids))

    @classmethod
    def of(
        cls,
        what: str,
        examples: Sequence[Example],
        documents: Sequence[str],
        values: Sequence[float | None],
        stopped: Sequence[bool] = (),
    ) -> "Values":
        """The rows whose value is not None.

        Raises:
            ModelError: A value is not a finite number.
        """
        kept = [i for i, value in enumerate(values) if value is not None]
        array = np.array([values[i] for i in kept], dtype=np.float64)
        broken = int(np.count_nonzero(~np.isfinite(array)))
        if broken:
            raise ModelError(
                f"{what} is no finite number on {broken} of {len(array)} rows: this model's outputs are broken, or "
                "--dtype float32 is needed (a metric of your own: give None where it does not apply)"
            )
        ids = numbered(example.id for example in examples)  # before rows are left out: the same in every metric
        return cls(
            tuple(ids[i] for i in kept),
            tuple(examples[i].label or examples[i].task for i in kept),
            tuple(documents[i] for i in kept),
            array,
            tuple(stopped[i] for i in kept) if stopped else (),
        )

    def __add__(self, other: "Values") -> "Values":
        """The rows of both."""
        return Values(
            self.ids + other.ids,
            self.tasks + other.tasks,
            self.documents + other.documents,
            np.concatenate([self.values, other.values]),
            self.stopped + other.stopped,
        )

    @property
    def by_id(self) -> dict[str, float]:
        """Id of each row -> its value."""
        return dict(zip(self.ids, self.values.tolist(), strict=True))

    def of_task(self, task: str) -> "Values":
        """The rows of one task."""
        return self.of_tasks({task})

    def of_tasks(self, tasks: Collection[str]) -> "Values":
        """The rows of some tasks."""
        return self.at([i for i, task in enumerate(self.tasks) if task in tasks])

    def at(self, places: Sequence[int]) -> "Values":
        """The rows at some places, in that order."""
        ids, tasks, documents = (tuple(column[i] for i in places) for column in (self.ids, self.tasks, self.documents))
        return Values(ids, tasks, documents, self.values[list(places)], tuple(self.stopped[i] for i in places))

    def tells(self, task: str = "") -> bool:
        """Whether the exact mean of all rows, or of one task's, gives fewer than `TELLING` texts away."""
        return task in telling_parts(self._texts()) if task else few({"": texts_in(self.ids)})

    def part_tells(self, tasks: Collection[str]) -> bool:
        """Whether the exact mean of some tasks' rows, beside those of all rows and of single tasks, does."""
        counts = self._texts()
        sides = Counter({True: 0, False: 0})
        for hidden in telling_parts(counts):
            sides[hidden in tasks] += counts[hidden]
        return few({str(side): count for side, count in sides.items()})

    def _texts(self) -> Counter[str]:
        """Task -> texts that its rows are of."""
        return Counter(task for task, _ in {*zip(self.tasks, map(text_of, self.ids), strict=True)})

    def mixed_as(self, other: "Values | None") -> tuple["Values", list[float] | None]:
        """Of unseen rows those of tasks that others have (`shared_tasks`), and weights by which each task counts as
        much as it does there; all rows alike where there are no others, or none of these tasks.
        """
        shared = set() if other is None else shared_tasks(other.tasks, self.tasks)
        if other is None or not shared:
            return self, None
        kept, wanted = self.of_tasks(shared), Counter(other.tasks)
        had = Counter(kept.tasks)
        return kept, [wanted[task] / had[task] for task in kept.tasks] if len(shared) > 1 else None

    def estimate(self, mixed_as: "Values | None" = None) -> Estimate:
        """Mean over the rows, in the mixture of tasks of others where these are given; the interval resamples
        documents.
        """
        kept, weights = self.mixed_as(mixed_as)
        return replace(mean_estimate(kept.values, kept.documents, weights=weights), stopped=sum(kept.stopped))


NO_ROWS = Values((), (), (), np.empty(0))
"""Of a metric that was not measured."""


def shared_tasks(forget: Sequence[str], unseen: Sequence[str]) -> set[str]:
    """Tasks to forget of `FEWEST` unseen rows and more, by the task of each row: fewer say next to nothing of a task.
    None where only what has no task is shared.
    """
    counts = Counter(unseen)
    shared = {task for task in forget if counts[task] >= FEWEST}
    return shared if shared - {""} else set()


def document_of(row_id: str) -> str:
    """What a LUME row is about: its id without the `sc` or `qa` and counter at its end."""
    return re.sub(r"(sc|qa)[0-9]+\Z", "", row_id)


@dataclass
class Measurement:
    """Everything that was measured on one model.

    Attributes:
        rows: (set, name in results) -> values. Metrics of paraphrased questions end in `/paraphrased`.
        metrics: (set, name in results) -> the metric; attacks are under the set `membership`.
        attacks: Name in results -> scores of members and non-members, larger = more likely a member.
        names: What these two sides are called in the file of row values.
        documents: Records of members and non-members, for the attack that compares two models.
        said: Set -> generation for each row, None where the row has no prompt.
        drift: Loss of unseen documents less that of the untouched model (nats per token); None without an adapter.
        mmlu: Accuracy on MMLU, in [0, 1], as given or measured; None without.
        utility: Name in results -> what else it can do: utility tasks, a quiz.
        cut_to: Tokens that the documents of both sides were cut to; None where they were not.
        not_measured: Plain sentences on what is missing, was cut or was stopped.
    """

    rows: dict[tuple[str, str], Values] = field(default_factory=dict)
    metrics: dict[tuple[str, str], Metric] = field(default_factory=dict)
    attacks: dict[str, tuple[Values, Values]] = field(default_factory=dict)
    names: tuple[str, str] = ("member", "nonmember")
    documents: tuple[list[TokenRecord], list[TokenRecord]] = ([], [])
    said: dict[str, list[str | None]] = field(default_factory=dict)
    drift: Values | None = None
    mmlu: float | None = None
    utility: dict[str, Estimate] = field(default_factory=dict)
    cut_to: int | None = None
    not_measured: list[str] = field(default_factory=list)

    def add(self, set_name: str, name: str, metric: Metric, values: Values) -> None:
        """Add the values of some rows of a set; empty ones leave no trace."""
        if len(values.ids):
            key = set_name, name
            self.rows[key] = self.rows[key] + values if key in self.rows else values
            self.metrics[key] = metric

    @property
    def table(self) -> Mapping[tuple[str, str], Values]:
        """(set, metric) -> values of everything, the attacks' scores among them under the names of their sides."""
        attacks = {
            (name, f"membership/{attack}"): values
            for attack, sides in self.attacks.items()
            for name, values in zip(self.names, sides, strict=True)
        }
        return {**self.rows, **attacks}
