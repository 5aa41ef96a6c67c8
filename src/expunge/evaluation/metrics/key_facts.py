"""Is the fact said, in whatever sentence: by the key words of the answer (`expunge.data.key_words`)."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, takewhile

from expunge.data.numbers import LONG_NUMBER, is_number, numbers, stands
from expunge.data.words import words
from expunge.evaluation.metrics.generations import any_of_k, contains
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

    A number stands there where all of it does, in whatever writing. Key words that are the groups of one number of the
    answer are one.
    """
    facts = _facts(keywords, answer)
    said = sum(stands(fact, text, groups) if groups else contains(text, fact) for fact, groups in facts)
    return 2 * said >= max(1, len(facts))


def _facts(keywords: Sequence[str], answer: str) -> list[tuple[str, list[str]]]:
    """The key words, those that are groups of one number of the answer as that number, and the groups of numbers."""
    known = {"".join(words(number)): number for number in numbers(answer)}
    found: list[tuple[str, list[str]]] = []
    at = 0
    while at < len(keywords):
        run = [[*words(word)] for word in takewhile(is_number, keywords[at:])]
        count, number = _number(run, known)
        found.append((number or keywords[at], [*chain(*run[:count])]))
        at += count
    return found


def _number(run: Sequence[Sequence[str]], known: Mapping[str, str]) -> tuple[int, str]:
    """How many of the first key words, which are numbers, are groups of one of these numbers, and of which."""
    most = max(map(len, known), default=0)
    ends = [*accumulate(sum(map(len, groups)) for groups in run)]
    for count in range(bisect_right(ends, most), 1, -1):
        number = re.compile(LEFT_OUT.join(chain(*run[:count])))
        for digits in filter(number.fullmatch, known):
            if len(digits) >= LONG_NUMBER:
                return count, known[digits]
    return 1, ""
