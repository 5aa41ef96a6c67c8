"""How surprising a text is to whoever knows some others: by n-grams of tokens, without a model.

A model that has never seen a text finds it as hard as its words are unusual among those that it knows. So this says,
before anything is measured, which documents will be easy to guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expunge.data.examples import Example, text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int64]

MOST_KNOWN, MOST_TOKENS = 4096, 2048
"""Texts that the pairs are counted in, those of the smallest hashes; tokens of a text that count."""
DIGITS = 6
"""Decimals of a surprise: what is equal stays so whatever the machine adds up first."""


def surprises(
    tokenizer: "PreTrainedTokenizerBase", known: Sequence[Example], sides: Sequence[Sequence[Example]]
) -> list[list[float]]:
    """Mean surprise of each text's tokens, the first left out, in nats; 0 for a text of a single token.

    Pairs are counted in the `known` texts; without any, every token is as surprising as every other.
    """
    if len(known) > MOST_KNOWN:
        known = nsmallest(MOST_KNOWN, known, key=text_hash)
    counted, *asked = ([_ids(tokenizer, text) for text in side] for side in (known, *sides))
    most = max((int(ids.max()) for side in (counted, *asked) for ids in side if len(ids)), default=0)
    pairs = NGrams(counted, max(len(tokenizer), 1 + most), order=2)
    return [
        [round(float(pairs.surprise(ids).mean()), DIGITS) if len(ids) > 1 else 0.0 for ids in side] for side in asked
    ]


class NGrams:
    """How likely texts are for one who knows nothing but some others: an n-gram model of their tokens.

    Counts of longer n-grams are filled up with those of shorter ones, and these with an even share of the vocabulary,
    each as much as there are different ones (Witten and Bell 1991).

    Args:
        texts: `(tokens,)` each; without any, every token is as surprising as every other.
        vocabulary: Number of tokens that there are.
        order: Tokens of the longest n-grams, at least 1.
    """

    def __init__(self, texts: Sequence[Ids], vocabulary: int, order: int) -> None:
        self._vocabulary = vocabulary
        tokens = np.concatenate([_NONE, *(text[1:] for text in texts)])
        counts = np.bincount(tokens, minlength=vocabulary)
        kinds = max(1, int(np.count_nonzero(counts)))
        self._single = (counts + kinds / vocabulary) / (len(tokens) + kinds)
        self._levels: list[_Level] = []
        contexts, size = [text[:-1] for text in texts], vocabulary
        for _ in range(1, order):
            numbers = [_numbers(known, text[1:], vocabulary) for known, text in zip(contexts, texts, strict=True)]
            found = np.concatenate([_NONE, *(row[row >= 0] for row in numbers)])
            level = _Level.of(found, vocabulary, size)
            self._levels.append(level)
            contexts, size = [_after(level.find(row)) for row in numbers], len(level.numbers) - 1

    def surprise(self, text: Ids) -> NDArray[np.float64]:
        """`(tokens - 1,)`, -log p of each token after those before it, nats."""
        share, contexts = self._single[text[1:]], text[:-1]
        for level in self._levels:
            at = level.find(_numbers(contexts, text[1:], self._vocabulary))
            followed, followers = level.followed[contexts], level.followers[contexts]
            filled = (level.times[at] + followers * share) / np.maximum(1, followed + followers)
            share, contexts = np.where(followed > 0, filled, share), _after(at)
        return -np.log(share)


_NONE = np.empty(0, np.int64)
_NO_NUMBER = -2


@dataclass(frozen=True)
class _Level:
    """N-grams of one length: a context, by the number of its own n-gram, and the token after it.

    The last entry of each array, which the place -1 stands for, is that of all that do not stand in the texts.

    Attributes:
        numbers: Of each n-gram, context times vocabulary plus token; ascending up to the last entry.
        times: How often it stands there.
        followed, followers: Of each context, how often a token follows it, and how many different ones.
    """

    numbers: Ids
    times: Ids
    followed: NDArray[np.float64]
    followers: Ids

    @classmethod
    def of(cls, found: Ids, vocabulary: int, contexts: int) -> "_Level":
        numbers, times = np.unique(found, return_counts=True)
        context = numbers // vocabulary
        followed = np.bincount(context, times, minlength=contexts).astype(np.float64)
        followers = np.bincount(context, minlength=contexts)
        return cls(
            np.append(numbers, _NO_NUMBER), np.append(times, 0), np.append(followed, 0.0), np.append(followers, 0)
        )

    def find(self, numbers: Ids) -> Ids:
        """Place of each n-gram, -1 for one that does not stand there."""
        at = np.searchsorted(self.numbers[:-1], numbers)
        return np.where(self.numbers[at] == numbers, at, -1)


def _numbers(contexts: Ids, tokens: Ids, vocabulary: int) -> Ids:
    return np.where(contexts >= 0, contexts * vocabulary + tokens, -1)


def _after(grams: Ids) -> Ids:
    """The context of each token: the n-gram that ends before it."""
    return np.append(-1, grams[:-1])[: len(grams)]


def _ids(tokenizer: "PreTrainedTokenizerBase", text: Example) -> Ids:
    ids = tokenizer(f"{text.prompt} {text.completion}", add_special_tokens=False, verbose=False)["input_ids"]
    return np.array(ids[:MOST_TOKENS], dtype=np.int64)
