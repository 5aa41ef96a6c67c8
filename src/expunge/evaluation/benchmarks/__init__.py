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
        aggregate: Its own numbers over all rows, of the model and, where there is one, the reference; the last two
            arguments are its data and the accuracy on MMLU.
        fields: Fields of the results file beside those that every benchmark has.
        notes: Sentences on what its numbers do not say; the last argument is the accuracy on MMLU.
    """

    read: Callable[[EvaluateConfig], Suite]
    aggregate: Callable[[Measurement, Measurement | None, Suite, float | None], dict[str, Estimate]] = (
        lambda measurement, reference, suite, mmlu: {}
    )
    fields: Callable[[Measurement, Suite, float | None], dict[str, Any]] = lambda measurement, suite, mmlu: {}
    notes: Callable[[Measurement, Suite, float | None], list[str]] = lambda measurement, suite, mmlu: []


_SEMEVAL = Benchmark(semeval.read, semeval.aggregate_entries, semeval.official_fields, semeval.notes)
BENCHMARKS = {
    "semeval": _SEMEVAL,
    "lume": _SEMEVAL,
    "tofu": Benchmark(tofu.read, tofu.aggregate_entries),
    "muse": Benchmark(muse.read, muse.aggregate_entries),
    "custom": Benchmark(custom.read),
}
