"""What one model's passes over a suite leave: a number per row and metric, and the texts that it said."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from expunge.evaluation.values import Values


def document_of(row_id: str) -> str:
    """What a LUME row is about: its id without the `sc` or `qa` and counter at its end."""
    return re.sub(r"(sc|qa)[0-9]+\Z", "", row_id)


@dataclass
class Measurement:
    """Everything that was measured on one model.

    Attributes:
        rows: (set, metric) -> values. Metrics of paraphrased questions end in `/paraphrased`.
        attacks: Attack -> scores of members and non-members, larger = more likely a member.
        said: Set -> generation for each row, None where the row has no prompt.
        drift: Loss of unseen documents less that of the untouched model (nats per token); None without an adapter.
        cut_to: Tokens that the documents of both sides were cut to; None where they were not.
        not_measured: Plain sentences.
    """

    rows: dict[tuple[str, str], Values] = field(default_factory=dict)
    attacks: dict[str, tuple[Values, Values]] = field(default_factory=dict)
    said: dict[str, list[str | None]] = field(default_factory=dict)
    drift: Values | None = None
    cut_to: int | None = None
    not_measured: list[str] = field(default_factory=list)

    def mean(self, set_name: str, metric: str) -> float:
        """Mean over the rows of a set."""
        return float(self.rows[set_name, metric].values.mean())

    def table(self, names: tuple[str, str] | None) -> Mapping[tuple[str, str], Values]:
        """(set, metric) -> values of everything, the attacks' scores among them under the sets `names`."""
        attacks = {
            (name, f"membership/{attack}"): values
            for attack, sides in self.attacks.items()
            for name, values in zip(names or (), sides, strict=True)
        }
        return {**self.rows, **attacks}
