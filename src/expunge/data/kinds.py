"""Which kind of text a row is, where the rows themselves do not say it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from expunge.data.examples import Example

ASKED, ALONE = "after a prompt", "texts alone"


def with_kinds(sets: Mapping[str, Sequence[Example]]) -> dict[str, list[Example]]:
    """The sets, by name; where texts of one task to `forget` stand after prompts and without any, the tasks tell them
    apart, since an answer is neither as short nor as hard as a story.
    """
    shapes = {(row.group, _shape(row)) for row in sets["forget"]}
    mixed = {group for group, shape in shapes if shape == ALONE and (group, ASKED) in shapes}

    def named(row: Example) -> Example:
        if row.group not in mixed:
            return row
        return replace(row, task=f"{row.task}, {_shape(row)}" if row.task else _shape(row))

    return {name: [*map(named, rows)] for name, rows in sets.items()}


def _shape(row: Example) -> str:
    return ASKED if row.prompt or row.messages or row.beyond_text else ALONE
