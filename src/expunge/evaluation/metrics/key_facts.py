"""Is the fact said, in whatever sentence: by the key words of the answer (`expunge.data.key_words`)."""

import re
from collections.abc import Sequence
from itertools import groupby

from expunge.data.words import words
from expunge.evaluation.metrics.generations import any_of_k, contains, joined_numbers, long_number
from expunge.evaluation.metrics.registry import knowledge

SOURCE = "this project, docs/evaluation.md"
LEFT_OUT = r"\d{0,3}"
"""Between two groups of a number one may stand that is no key word, since most rows have it."""


@knowledge("key_fact", family="text", source=SOURCE, by_task=True)
def key_fact(text: str, keywords: Sequence[str], expected: str) -> float:
    """Whether the answer holds at least half of the row's key words"""
    return float(says(text, keywords, expected))


@knowledge(
    "key_fact_at_k", on="forget", over="k", label=lambda k: f"key_fact_at_{k}", family="text", source=SOURCE,
    by_task=True,
)  # fmt: skip
def key_fact_at_k(samples: Sequence[str], keywords: Sequence[str], expected: str, k: int) -> float:
    """Probability that one of k samples holds at least half of the row's key words"""
    return any_of_k([says(sample, keywords, expected) for sample in samples], k)


def says(text: str, keywords: Sequence[str], answer: str) -> bool:
    """Whether at least half of some key words of an answer, and one at least, stand in a text.

    Key words that are the groups of one number of the answer stand in the same number without its signs, too.
    """
    numbers, known = ([*filter(long_number, joined_numbers(words(string)))] for string in (text, answer))
    said = 0
    for numeric, run in groupby(keywords, str.isdecimal):
        part = [*run]
        groups = ["".join(words(word)) for word in part] if numeric else []
        number = re.compile(LEFT_OUT.join(groups))
        whole = long_number("".join(groups)) and all(any(map(number.fullmatch, found)) for found in (numbers, known))
        said += len(part) if whole else sum(contains(text, word) for word in part)
    return 2 * said >= max(1, len(keywords))
