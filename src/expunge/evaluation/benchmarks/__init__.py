"""The benchmarks: each is a data layout, lists of metrics and an aggregation, in one file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from expunge.config import EvaluateConfig
from expunge.evaluation.benchmarks import custom, muse, semeval, tofu
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.suite import Suite


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        read: Its data, as the settings name them.
        aggregate: Its own numbers over all rows, of the model and, where there is one, the reference; the last argument
            is its data.
        fields: Fields of the results file beside those that every benchmark has.
        notes: Sentences on what its numbers do not say.
    """

    read: Callable[[EvaluateConfig], Suite]
    aggregate: Callable[[Measurement, Measurement | None, Suite], dict[str, Estimate]] = (
        lambda measurement, reference, suite: {}
    )
    fields: Callable[[Measurement, Suite], dict[str, Any]] = lambda measurement, suite: {}
    notes: Callable[[Measurement, Suite], list[str]] = lambda measurement, suite: []


_SEMEVAL = Benchmark(semeval.read, semeval.aggregate_entries, semeval.official_fields, semeval.notes)
BENCHMARKS = {
    "semeval": _SEMEVAL,
    "lume": _SEMEVAL,
    "tofu": Benchmark(tofu.read, tofu.aggregate_entries),
    "muse": Benchmark(muse.read, muse.aggregate_entries),
    "custom": Benchmark(custom.read),
}
