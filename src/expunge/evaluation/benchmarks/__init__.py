"""The benchmarks: each is a data layout, lists of metrics and an aggregation, in one file.

suite.py        what a benchmark hands to the engine
engine.py       one teacher-forced pass and one generation pass, and all metrics of their rows
measurement.py  what comes out
entries.py      the `metrics` of a results file
"""

from collections.abc import Callable
from dataclasses import dataclass

from expunge.config import EvaluateConfig
from expunge.evaluation.benchmarks import custom, lume, muse, tofu
from expunge.evaluation.benchmarks.entries import Entry
from expunge.evaluation.benchmarks.measurement import Measurement
from expunge.evaluation.benchmarks.suite import Suite

Aggregate = Callable[[Measurement, Measurement | None], dict[str, Entry]]
"""The benchmark's own numbers, of the model and, where there is one, the reference."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        read: Its data, as the settings name them.
        aggregate: Its own numbers over all rows.
        official: Whether its results are those of SemEval-2025 Task 4.
    """

    read: Callable[[EvaluateConfig], Suite]
    aggregate: Aggregate = lambda measurement, reference: {}
    official: bool = False


BENCHMARKS = {
    "semeval": Benchmark(lume.read_semeval, official=True),
    "lume": Benchmark(lume.read_whole, official=True),
    "tofu": Benchmark(tofu.read, tofu.aggregate_entries),
    "muse": Benchmark(muse.read, muse.aggregate_entries),
    "custom": Benchmark(custom.read),
}
