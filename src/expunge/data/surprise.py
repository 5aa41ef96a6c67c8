"""How surprising a text is to whoever knows some others: by pairs of tokens, without a model.

A model that has never seen a text finds it as hard as its words are unusual among those that it knows. So this says,
before anything is measured, which documents will be easy to guess.
"""

from collections.abc import Sequence
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
    counted, *asked = ([_ids(tokenizer, own) for own in side] for side in (known, *sides))
    most = max((int(own.max()) for side in (counted, *asked) for own in side if len(own)), default=0)
    pairs = Pairs(counted, max(len(tokenizer), 1 + most))
    return [
        [round(float(pairs.surprise(own).mean()), DIGITS) if len(own) > 1 else 0.0 for own in side] for side in asked
    ]


class Pairs:
    """How often tokens stand together in some texts.

    Counts of pairs are filled up with those of single tokens, and these with an even share of the vocabulary, each as
    much as there are different ones (Witten and Bell 1991).

    Args:
        texts: `(tokens,)` each.
        vocabulary: Number of tokens that there are.
    """

    def __init__(self, texts: Sequence[Ids], vocabulary: int) -> None:
        empty = np.empty(0, np.int64)
        ids = np.concatenate([empty, *(own[1:] for own in texts)])
        self._vocabulary = vocabulary
        counts = np.bincount(ids, minlength=vocabulary)
        kinds = max(1, int(np.count_nonzero(counts)))
        self._single = (counts + kinds / vocabulary) / (len(ids) + kinds)
        self._pairs, self._times = np.unique(
            np.concatenate([empty, *(self._numbers(own) for own in texts)]), return_counts=True
        )
        first = self._pairs // vocabulary
        self._followed = np.bincount(first, self._times, minlength=vocabulary)
        self._followers = np.bincount(first, minlength=vocabulary)
        self._pairs, self._times = np.append(self._pairs, -1), np.append(self._times, 0)  # what is beyond all others

    def surprise(self, text: Ids) -> NDArray[np.float64]:
        """`(tokens - 1,)`, -log p of each token after the one before it, nats."""
        numbers = self._numbers(text)
        single = self._single[text[1:]]
        at = np.searchsorted(self._pairs[:-1], numbers)
        times = self._times[at] * (self._pairs[at] == numbers)
        followed, followers = self._followed[text[:-1]], self._followers[text[:-1]]
        paired = (times + followers * single) / np.maximum(1, followed + followers)
        return -np.log(np.where(followed > 0, paired, single))

    def _numbers(self, text: Ids) -> Ids:
        return text[:-1] * self._vocabulary + text[1:]


def _ids(tokenizer: "PreTrainedTokenizerBase", text: Example) -> Ids:
    ids = tokenizer(f"{text.prompt} {text.completion}", add_special_tokens=False, verbose=False)["input_ids"]
    return np.array(ids[:MOST_TOKENS], dtype=np.int64)
