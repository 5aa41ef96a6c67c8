"""Is the fact said, in whatever sentence: by the key words of the answer (`expunge.data.key_words`)."""

from collections.abc import Sequence

from expunge.evaluation.metrics.generations import any_of_k, contains
from expunge.evaluation.metrics.registry import knowledge

SOURCE = "this project, docs/evaluation.md"


@knowledge("key_fact", family="text", source=SOURCE, by_task=True)
def key_fact(text: str, keywords: Sequence[str]) -> float:
    """Whether the answer holds at least half of the row's key words"""
    return float(says(text, keywords))


@knowledge("key_fact_at_k", on="forget", over="k", label=lambda k: f"key_fact_at_{k}", family="text", source=SOURCE)
def key_fact_at_k(samples: Sequence[str], keywords: Sequence[str], k: int) -> float:
    """Probability that one of k samples holds at least half of the row's key words"""
    return any_of_k([says(sample, keywords) for sample in samples], k)


def says(text: str, keywords: Sequence[str]) -> bool:
    """Whether at least half of some key words, and one at least, stand in a text."""
    return 2 * sum(contains(text, word) for word in keywords) >= max(1, len(keywords))
