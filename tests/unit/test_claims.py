"""What is claimed can be false: the merge's sentence, and that docs/reliability.md names tests that are there."""

import re
from pathlib import Path

import pytest

from expunge.train.merge import _judge

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("adapter", "merged", "survives"),
    [
        (3.0, 3.0, True),
        (3.0, 2.9, True),
        (3.0, 1.2, False),  # rounding gave the texts back
        (3.0, 5.0, False),  # and off the other way, it is another model
        (1.0, 1.0, False),  # the adapter forgot nothing
        (0.5, 0.5, False),
    ],
)
def test_a_merge_says_that_forgetting_survives_only_where_it_does(
    adapter: float, merged: float, survives: bool
) -> None:
    assert (_judge({"untouched": 1.0, "adapter": adapter, "merged": merged}) == "") == survives


def test_every_test_that_the_docs_name_is_there() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    for name in set(re.findall(r"`(tests/[a-z_/]+\.py)`", page)):
        assert (ROOT / name).is_file(), name
    for file, test in set(re.findall(r"`(test_\w+)\.(test_\w+)`", page)):
        found = [path for path in (ROOT / "tests").rglob(f"{file}.py") if f"def {test}(" in path.read_text()]
        assert found, f"{file}.{test}"
