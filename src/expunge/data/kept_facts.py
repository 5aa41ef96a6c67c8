"""Facts to forget that stand in texts to keep, in other words: a directory beside the question for a number.

Looked for is what tells by itself, a long number or an e-mail address, and else all key words of an answer near the
names that its prompt asks about. Texts that are nearly the same are found by `expunge.data.families`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

import regex

from expunge.data.examples import Example
from expunge.data.key_words import ENDS, with_key_words
from expunge.data.numbers import SPACED, date_of, is_number, numbers, spellings
from expunge.data.words import unaccented, visible, words
from expunge.utils.text import first_few

NEAR = 60
"""Words within which names and key words stand that say one thing."""
BRIEF = 400
"""Characters of a question with its answer; longer ones say many names, which meet in no other text."""
FEWEST = 3
"""Words, of names and key words together, that do not meet by chance."""
COMMON = 8
"""Texts of either side: a number or address that more of both have is in their heads and feet, and nobody's own."""
_LOCAL = r"(?<![\p{L}\p{N}._%+-])[._%+-]*+\K[\p{L}\p{N}][\p{L}\p{N}._%+-]*+"
_ADDRESS = regex.compile(rf"{_LOCAL}@[\p{{L}}\p{{N}}-]+(?:\.[\p{{L}}\p{{N}}-]+)+")
_WORD = re.compile(r"[^\W_]+")


def told_facts(forget: Sequence[Example], retain: Sequence[Example], instead: Sequence[Example] = ()) -> list[str]:
    """A line on the texts to forget whose facts stand in texts to keep or to say instead, if any: counts and ids.

    What the prompts of `instead` say is not told by them.
    """
    kept = [*((row, row.text) for row in retain), *((row, row.completion) for row in instead)]
    places = _places(kept)
    signs = [*map(_telling, forget)]
    by_sign = _by_sign(kept, Counter(chain(*signs)))
    shared = [set[int]().union(*(by_sign[sign] for sign in found)) for found in signs]
    for number, (names, said) in _together(forget, signs, places).items():
        rarest = min((places[word] for word in names | said), key=len)
        both = {at for at in rarest if all(at in places[word] for word in names | said)}
        shared[number] |= {at for at in both if _near(names | said, said, *kept[at])}
    ids = [kept[at][0].id for at in sorted(set[int]().union(*shared))]
    told = (
        f"{sum(map(bool, shared)):,} of {len(forget):,} texts to forget have their fact in texts to keep or to say "
        "instead, too: the run is told to keep what it should forget: leave those rows out, or mend them: "
        f"{first_few(ids, 5)}"
    )
    return [told] if ids else []


def _telling(row: Example) -> set[str]:
    """Long numbers and e-mail addresses that the answers of a row say and its questions do not."""
    turns = [(turn.get("role"), str(turn.get("content") or "")) for turn in row.messages or ()]
    answers = [row.completion, *(content for role, content in turns if role == "assistant")]
    found = {sign for text in answers for sign in _signs(text)}
    asked = [content for role, content in turns if role != "assistant"] if turns else [row.prompt]
    return found - _signs("\n".join(asked)) if found else found


def _signs(text: str) -> set[str]:
    """The long numbers of a text, as digits, but for dates and round ones, and its e-mail addresses."""
    plain = text.replace("\\", "")  # Markdown's
    found = {match[0].casefold() for match in _ADDRESS.finditer(visible(plain))} if "@" in plain else set()
    for number in numbers(plain, SPACED):
        groups = words(number)
        if len("".join(groups).rstrip("0")) >= SPACED and not date_of(groups):
            found |= {*spellings(number)}
    return found


def _by_sign(kept: Sequence[tuple[Example, str]], wanted: Counter[str]) -> dict[str, set[int]]:
    """Number or address -> the texts to keep that it stands in; none of one that many texts of both sides have."""
    found: dict[str, set[int]] = {sign: set() for sign in wanted}
    for at, (_, text) in enumerate(kept if wanted else ()):
        for sign in _signs(text) & wanted.keys():
            found[sign].add(at)
    return {sign: at if min(wanted[sign], len(at)) <= COMMON else set() for sign, at in found.items()}


def _together(
    rows: Sequence[Example], signs: Sequence[set[str]], places: dict[str, set[int]]
) -> dict[int, tuple[set[str], set[str]]]:
    """Place of each brief row that has none of the signs -> the names that it asks about, and its key words where
    these are names and numbers; rows of which all of them stand in texts to keep.
    """
    brief = {at: row for at, row in enumerate(rows) if row.prompt and len(row.text) <= BRIEF and not signs[at]}
    asked = {at: names for at, row in brief.items() if (names := _names(row.prompt)) and names <= places.keys()}
    told = with_key_words([brief[at] for at in asked], [*brief.values()]) if asked else []
    found = {}
    for (at, names), row in zip(asked.items(), told, strict=True):
        said = {word for keyword in row.keywords for word in _plain(keyword)}
        sure = said and all(word[0].isupper() or is_number(word) for word in row.keywords)
        if sure and said <= places.keys() and len(names | said) >= FEWEST:
            found[at] = names, said
    return found


def _names(prompt: str) -> set[str]:
    """The words with a capital that begin no sentence of a prompt."""
    sentences = (_WORD.findall(sentence) for sentence in ENDS.split(visible(prompt)))
    return {word for sentence in sentences for name in sentence[1:] if name[0].isupper() for word in _plain(name)}


def _plain(text: str) -> list[str]:
    """The words of a text in a script with capitals, whatever their case and accents."""
    return _WORD.findall(unaccented(text).casefold())


def _places(kept: Sequence[tuple[Example, str]]) -> dict[str, set[int]]:
    """Word -> the texts to keep that it stands in, with their prompts."""
    places: dict[str, set[int]] = defaultdict(set)
    for at, (row, _) in enumerate(kept):
        for word in {*_plain(row.text)}:
            places[word].add(at)
    return dict(places)


def _near(group: set[str], said: set[str], row: Example, told: str) -> bool:
    """Whether all words of a group stand within `NEAR` words of a row, and those that are said in what it tells."""
    last: dict[str, int] = {}
    for at, word in enumerate(_plain(row.text)):
        if word in group:
            last[word] = at
            if len(last) == len(group) and at - min(last.values()) < NEAR:
                return said <= {*_plain(told)}
    return False
