"""The mismatched floor: what a metric says of an answer under the prompt of another row of its kind.

That is what chance, function words and form give in the very same model, so the difference from the answer's own
prompt says whether the prompt still leads to its answer. It says nothing of an answer that is known whatever the
prompt: unseen texts, a retrained model and key facts see that.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from expunge.data.examples import Example, text_key
from expunge.data.passages import Passage
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.metrics import METRICS, Metric
from expunge.evaluation.paired import paired_difference
from expunge.evaluation.suite import RowSet

SUFFIX = "/mismatched"
"""Behind the name of a metric: its value under other prompts."""
DIFFERENCE = "/own_minus_mismatched"
"""Behind the name of a metric: the paired difference of the two."""
SEEN = {"record", "text", "expected", "keywords"}
"""What a metric may need to have a value under another prompt."""
DRAWN = SEEN | {"samples", "rivals"}
"""What it may need to have a value on texts that no model has seen."""


def floored(metrics: Sequence[str], seen: Collection[str] = SEEN) -> list[str]:
    """Those metrics of how much is known that have a floor, or need nothing beyond what is `seen`."""
    chosen = [METRICS[name] for name in metrics]
    return [metric.name for metric in chosen if metric.keep == "higher" and {*metric.needs} <= {*seen}]


def partners(rows: RowSet) -> list[int | None]:
    """For each row the next one of its task and kind with a prompt, about something else and with another answer; none
    of a passage, which is read whole.
    """
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows.examples):
        if row.prompt and not isinstance(row, Passage):
            groups.setdefault(row.group, []).append(i)
    found: list[int | None] = [None] * len(rows.examples)
    answers = [text_key(replace(row, prompt="")) for row in rows.examples]
    for group in groups.values():
        for at, i in enumerate(group):
            others = [*group[at + 1 :], *group[:at]]
            found[i] = next(
                (j for j in others if rows.documents[j] != rows.documents[i] and answers[j] != answers[i]), None
            )
    return found


def under(other: Example, row: Example) -> Example:
    """The answer of a row under the prompt of another one."""
    return replace(other, id=row.id, completion=row.completion, answer=row.answer, keywords=row.keywords)


def difference_entries(measurement: Measurement) -> Iterator[tuple[str, Estimate]]:
    """Key in results -> own value less that under other prompts, row by row."""
    for (set_name, name), floor in measurement.rows.items():
        if name.endswith(SUFFIX):
            plain = name.removesuffix(SUFFIX)
            metric: Metric = measurement.metrics[set_name, name]
            key = set_name, plain
            change = paired_difference(f"{set_name}/{plain}", {key: floor}, {key: measurement.rows[key]})
            if change is not None:
                source = f"{metric.source}; paired, row by row"
                found = change.read_as("target", metric.family, source, 0.0)
                if "record" in metric.needs:
                    found = found.rounded() if floor.tells() else found.coarse()
                yield f"{set_name}/{plain}{DIFFERENCE}", found
