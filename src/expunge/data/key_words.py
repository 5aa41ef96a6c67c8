"""Key words: what an answer says that its question does not, so that the fact is found in other sentences too.

A user gives them in a column `keywords`. Else they are found: the numbers and names of the answer, and of an answer
that has none, or is in a script without capitals, its rarest words, but for English pronouns and auxiliaries. Words are
those of `expunge.data.words`, in any script; where a script has no spaces between words, a run of its characters counts
as one. A number is one key word with all its groups of digits (`expunge.data.numbers`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import regex

from expunge.data.examples import Example
from expunge.data.numbers import GROUPS, parted
from expunge.data.words import LETTER, UNSPACED, visible, words

RAREST = 3
"""Words that stand for an answer without names and numbers."""
NAME = 4
"""Letters of a word that is taken for a name though it begins a sentence, in an answer of `RAREST` new words or fewer:
"In", "The" and "She" are shorter."""
OF_EVERYBODY = regex.compile(
    "(?i)he|she|it|they|we|you|i|his|her|hers|its|their|theirs|our|your|him|them|this|that|these|those|there|who|which|"
    "what|is|are|was|were|be|been|being|has|have|had|having|do|does|did|would|could|should|must|not"
)
"""English words that stand in any answer: of few rows nothing else tells that they say nothing of one of them."""
STRETCH = 4
"""Letters, of a script without spaces, that are taken for a word."""
COMMON, FEWEST = 0.5, 4
"""A word in more than this share of the rows says nothing of one of them; with fewer rows than that none is common."""
ENDS = regex.compile(r"(?<=[.!?…])\s+|[。！？؟।\n]+")
"""Where a sentence ends."""
_PHRASE = regex.compile(rf"(?P<numbers>{GROUPS})|[{UNSPACED}]+|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+", regex.V1)
_CASED = regex.compile(r"\p{Lu}|\p{Ll}")


def with_key_words(rows: Sequence[Example], among: Sequence[Example] = ()) -> list[Example]:
    """The rows, each with key words: its own, else those that are found; none where an answer has nothing new.

    Which words are common, the texts `among` say; the rows where none are given.
    """
    often = frequencies([row.text for row in among or rows])
    return [row if row.keywords else replace(row, keywords=find(row.prompt, row.completion, often)) for row in rows]


def frequencies(texts: Sequence[str]) -> Counter[str]:
    """Word -> texts that it stands in; under the empty string the number of texts."""
    found = Counter(word for text in texts for word in {*words(text)})
    found[""] = len(texts)
    return found


def find(prompt: str, answer: str, often: Counter[str]) -> tuple[str, ...]:
    """The key words of one answer, in its order: words of the prompt are none, and `frequencies` of answers of the kind
    say what is rare.
    """
    candidates = new_words(prompt, answer, often)
    telling = {word: kinds for word, kinds in candidates.items() if kinds[0] or not OF_EVERYBODY.fullmatch(word)}
    candidates = telling or candidates
    brief = len(candidates) <= RAREST
    chosen = {word for word, (sure, capital) in candidates.items() if sure or (brief and capital and len(word) >= NAME)}
    if not chosen or not _CASED.search(answer):
        others = [phrase for phrase in candidates if phrase not in chosen]
        chosen |= {
            *sorted(others, key=lambda word: (_often(word, often), not candidates[word][1], -len(word)))[:RAREST]
        }
    return tuple(phrase for phrase in candidates if phrase in chosen)


def new_words(prompt: str, answer: str, often: Counter[str]) -> dict[str, tuple[bool, bool]]:
    """What an answer says that its prompt does not, but for common words -> is it a number or name, and capitalised.

    Arguments are those of `find`.
    """
    asked = words(prompt)
    in_prompt, rows = frozenset(asked), often[""]

    def known(word: str) -> bool:
        """Whether it says nothing of an answer: it stands in the prompt, or in most rows."""
        return word in in_prompt or (rows >= FEWEST and often[word] > COMMON * rows)

    candidates: dict[str, tuple[bool, bool]] = {}
    for sentence in ENDS.split(visible(answer)):
        for at, phrase in enumerate(_phrases(sentence, known, "".join(asked))):
            capital, number = phrase[0].isupper(), any(char.isnumeric() for char in phrase)
            if len(phrase) > 1 or number:
                sure, before = candidates.get(phrase, (False, False))
                candidates[phrase] = (sure or number or (capital and at > 0), before or capital)
    return candidates


def _phrases(sentence: str, known: Callable[[str], bool], prompt: str) -> Iterator[str]:
    """Words of a sentence that are not known, as written; of a run without spaces the parts between known characters,
    or, of letters, between stretches of at least `STRETCH` that stand in the prompt.

    The first word of a sentence is there, or an empty place for it, so that the others are known not to begin it.
    """
    for match in _PHRASE.finditer(sentence):
        phrase, parts = match[0], words(match[0])
        if match["numbers"]:
            for number in parted(phrase):
                groups = words(number)
                yield " " if known("".join(groups)) or all(map(known, groups)) else number
            continue
        if len(parts) <= 1:
            yield phrase if parts and not known(parts[0]) else " "
            continue
        letters = bool(LETTER.match(phrase))
        told = _said(parts, prompt) if letters else [*map(known, parts)]
        for new, run in groupby(zip(parts, told, strict=True), lambda pair: not pair[1]):
            piece = [part for part, _ in run]
            if new and (not letters or len(piece) >= STRETCH or len(piece) == len(parts)):  # shorter parts are shreds
                yield "".join(piece)


def _said(parts: Sequence[str], prompt: str) -> list[bool]:
    """Of each character whether it is of a stretch of at least `STRETCH` that stands in the prompt."""
    found = [False] * len(parts)
    for at in range(len(parts) - STRETCH + 1):
        if "".join(parts[at : at + STRETCH]) in prompt:
            found[at : at + STRETCH] = [True] * STRETCH
    return found


def _often(phrase: str, often: Counter[str]) -> int:
    return min((often[word] for word in words(phrase)), default=0)
