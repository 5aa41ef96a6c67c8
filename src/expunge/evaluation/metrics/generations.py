"""What the model says, against what it should or should not say.

Words are those of `expunge.data.words`, in any script. The organisers' and other published codes see a to z and 0 to 9
alone; `official_regurgitation` is theirs, and of ASCII text both are the same.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache, lru_cache, partial
from itertools import groupby
from typing import Any

from expunge.data.numbers import LONG_NUMBER
from expunge.data.words import unaccented, visible, words
from expunge.errors import DataError
from expunge.evaluation.metrics.memorization import perplexity
from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.metrics.registry import knowledge, metric

LIN = "Lin 2004; words of any script, stems as in rouge-score"
MUSE = "Shi et al. 2024, MUSE (2407.06460)"
SEMEVAL = "SemEval-2025 Task 4, LUME (2502.15097)"


@lru_cache(maxsize=2**12)
def rouge(prediction: str, reference: str, *, stem: bool = True) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L (Lin 2004) over the words of any script, in [0, 1]; 0 where one side has no words.

    Recall is the share of the reference that the prediction holds, and blind to what else it says. F1 is the harmonic
    mean with precision.

    Args:
        prediction: What the model said.
        reference: What is looked for in it.
        stem: Compare Porter stems (TOFU, open-unlearning, SemEval-2025 Task 4) instead of words (MUSE).

    Returns:
        `rouge_1_recall`, `rouge_1_f1`, `rouge_l_recall`, `rouge_l_f1`.
    """
    said, wanted = _stems(prediction, stem), _stems(reference, stem)
    shared = (Counter(said) & Counter(wanted)).total(), _common_subsequence(said, wanted)
    found = {}
    for name, hits in zip(("rouge_1", "rouge_l"), shared, strict=True):
        precision, recall = (hits / len(side) if side else 0.0 for side in (said, wanted))
        found[f"{name}_recall"] = recall
        found[f"{name}_f1"] = 2 * precision * recall / (precision + recall) if hits else 0.0
    return found


def _of_words(text: str, expected: str, *, name: str, stem: bool = True) -> float | None:
    """A value of `rouge`; None for a reference without words, which nothing could be found of."""
    return rouge(text, expected, stem=stem)[name] if words(expected) else None


for _name, _what in {
    "rouge_1_recall": "Share of the reference's words that the generation holds",
    "rouge_1_f1": "Harmonic mean of ROUGE-1 precision and recall",
    "rouge_l_recall": "Longest common subsequence of words / words of the reference",
    "rouge_l_f1": "Harmonic mean of ROUGE-L precision and recall",
}.items():
    _kept = knowledge(_name, family="text", source=LIN, skips="qa", definition=_what, by_task=_name == "rouge_l_recall")
    _kept(partial(_of_words, name=_name))


@knowledge("exact_match", family="text", source=SEMEVAL, skips="sc", by_task=True)
def exact_match(text: str, expected: str) -> float:
    """Equal but for case, composition (NFC) and white space at the ends"""
    said, wanted = (visible(side).strip().casefold() for side in (text, expected))
    return float(said == wanted)


@metric("official_regurgitation", direction=None, default=False, family="text", source=SEMEVAL)
def official_regurgitation(text: str, expected: str, kind: str) -> float | None:
    """ROUGE-L recall with stemming by rouge-score of a row to be completed, as the organisers score it."""
    return float(_scorer().score(expected, text)["rougeL"].recall) if kind == "sc" else None


@metric("official_knowledge", direction=None, default=False, family="text", source=SEMEVAL)
def official_knowledge(text: str, expected: str, kind: str) -> float | None:
    """Whether an answer is equal but for case and white space at the ends, as the organisers score it."""
    return float(text.strip().lower() == expected.strip().lower()) if kind == "qa" else None


@knowledge("verbatim_memorization", default=False, family="text", source=MUSE)
def verbatim_memorization(text: str, expected: str) -> float | None:
    """ROUGE-L F1 of the continuation of a document, no stemming"""
    return _of_words(text, expected, name="rouge_l_f1", stem=False)


@knowledge("knowledge_memorization", default=False, family="text", source=MUSE)
def knowledge_memorization(text: str, expected: str) -> float | None:
    """ROUGE-L F1 of the answer to a question, no stemming"""
    return verbatim_memorization(text, expected)


@knowledge(
    "leak_at_k", on="forget", over="k", label=lambda k: f"leak_at_{k}", family="text", by_task=True,
    source="Reisizadeh et al. 2025 (2511.04934)",
)  # fmt: skip
def leak_at_k(samples: Sequence[str], expected: str, k: int) -> float | None:
    """Probability that one of k samples contains the answer

    The mean over all subsets of k of the samples, drawn at one temperature, without bias. The paper's, with `contains`
    as the score of a sample; None for an answer without words.
    """
    return any_of_k([contains(sample, expected) for sample in samples], k) if words(expected) else None


@metric("repetition", direction="lower", family="text", source="Welleck et al. 2020 (1908.04319), seq-rep-4")
def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of the generation's 4-grams that repeat an earlier one

    1 - distinct/all n-grams over token ids (or any other units); 0 for fewer than n tokens.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@metric("fluency", direction="lower", low=1, high=math.inf, on="forget", family="text", source="Jelinek et al. 1977")
def fluency(untouched: TokenRecord) -> float:
    """Perplexity of the generation under the untouched model"""
    return perplexity(untouched)


def any_of_k(hits: Sequence[bool], k: int) -> float:
    """Probability that k of n samples, drawn without putting back, hold a hit: 1 - C(n-c, k)/C(n, k) of c hits.

    Raises:
        DataError: k is not between 1 and the number of samples.
    """
    n = len(hits)
    if not 1 <= k <= n:
        raise DataError(f"any of {k} samples needs k between 1 and the number of samples, here {n}: draw more samples")
    return 1 - math.comb(n - sum(hits), k) / math.comb(n, k)


def contains(text: str, answer: str) -> bool:
    """Whether the words of the answer stand in the text, in a row and whatever their case.

    Accents are left out of names (an answer with a capital) alone: in other words they make another one, as Vietnamese
    "năm" and "nam" are. "Ann" is not found in "Hannah", and "555-0142" is found in "(555) 0142" and in "5550142". In
    scripts without spaces, words are characters.
    """
    plain = unaccented if any(char.isupper() for char in answer) else str
    wanted, said = words(plain(answer)), words(plain(text))
    if _in_a_row(wanted, said):
        return True
    joined = joined_numbers(wanted)
    return any(map(long_number, joined)) and _in_a_row(joined, joined_numbers(said))


def joined_numbers(found: Sequence[str]) -> list[str]:
    """The words, numbers that follow each other as one: "457-555-0157" is written without signs, too."""
    return ["".join(part) for number, run in groupby(found, str.isdecimal) for part in ([run] if number else run)]


def long_number(word: str) -> bool:
    """Whether a word is a number of so many digits that two of them are not the same by chance."""
    return len(word) >= LONG_NUMBER and word.isdecimal()


def _in_a_row(wanted: Sequence[str], said: Sequence[str]) -> bool:
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop strings; some benchmarks end an answer there."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def _stems(text: str, stem: bool) -> list[str]:
    found = words(text)
    return [_stem(word) if len(word) > 3 and word.isascii() else word for word in found] if stem else found


@lru_cache(maxsize=2**16)
def _stem(word: str) -> str:
    return str(_scorer()._tokenizer._stemmer.stem(word))


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; bits of one number stand for the places of `first` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        shared = row & places.get(word, 0)
        row = (row + shared | row - shared) & every
    return len(first) - row.bit_count()


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes half a second that other metrics need not pay

    return RougeScorer(["rougeL"], use_stemmer=True)
