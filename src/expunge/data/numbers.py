"""Numbers of several groups of digits, and dates, whatever signs and words stand between the groups.

A telephone number, a date, an amount is one number: who says a part of it has not said it.
"""

from collections.abc import Sequence

import regex

from expunge.data.words import UNSPACED, visible, words

LONG_NUMBER = 6
"""Digits of a number that is found however they are grouped: two of them are not the same by chance."""
SPACED, WHOLE, MOST = 7, 9, 19
"""Groups with spaces alone between them are one number of at least `SPACED` and at most `MOST` digits; one of `WHOLE`
digits is complete without its neighbours."""
PREFIX = 3
"""Digits of a first group that may be left out before `WHOLE` others: a country's code."""
YEARS = range(1000, 2100)
"""Two of them are a range, and no number."""
FOUR, DAYS, SHORTEST = 4, 31, 3
"""Digits of a year, days of a month, letters of its name."""
DATES = [[4, m, d] for m in (1, 2) for d in (1, 2)] + [[d, m, y] for d in (1, 2) for m in (1, 2) for y in (2, 4)]
"""Digits of the groups of a date."""
Date = tuple[int, int, int]
"""Year, month and day."""
_EDGE = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]"
_SPACE = r"[ \u00a0\u2009\u202f]"
_THOUSANDS = r"(?<!\p{Nd}{4})[,'’](?=\p{Nd}{3}(?!\p{Nd}))"
_SIGN = rf"{_SPACE}?[-\u2010-\u2015\u2212\uff0d./()]{{1,2}}{_SPACE}?|{_SPACE}|:|{_THOUSANDS}"
GROUPS = rf"(?<!{_EDGE})\p{{Nd}}+(?:(?:{_SIGN})\p{{Nd}}+)*(?!{_EDGE})"
"""Groups of digits that may be one number, or several: a pattern of version 1 of `regex`."""
_GROUPS = regex.compile(GROUPS, regex.V1)
_PART = regex.compile(rf"(\p{{Nd}}+)({_SIGN})?", regex.V1)
_SEPARATOR = regex.compile(rf"(?<=\p{{Nd}}){_THOUSANDS}")
_APART = regex.compile(rf"(?:{_SPACE}|[()])+")
_THOUSAND_SPACES = regex.compile(rf"\p{{Nd}}{{1,3}}(?:{_SPACE}\p{{Nd}}{{3}})+")
_DIGITS = regex.compile(r"\p{Nd}+")
_BRACKET = regex.compile(rf"{_SPACE}?[()]+{_SPACE}?")
_MONTH = regex.compile(
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY = regex.compile(r"(\d{1,2})(?:st|nd|rd|th)?")
_LITTLE = {"of", "the", "de", "del", "den"}
"""Words within a date."""


def numbers(text: str, fewest: int = 1) -> list[str]:
    """The numbers of a text as they are written, each with all its groups; of groups of so many characters at least."""
    found = (match[0] for match in _GROUPS.finditer(visible(text)))
    return [number for groups in found if len(groups) >= fewest for number in parted(groups)]


def parted(groups: str) -> list[str]:
    """The numbers that a match of `GROUPS` is: two years are two, and so is what follows a date or whole number."""
    found: list[list[str]] = [[]]
    piece, count, size = "", 0, 0
    for digits, sign in _PART.findall(groups):
        size = size + 1 if piece else 1
        piece, count = piece + digits, count + len(digits)
        dated = size == 3 and FOUR in map(len, words(piece)) and bool(date_of(words(piece)))
        whole = dated or (count >= WHOLE and (size > 1 or len(digits) >= WHOLE))
        if sign and not _APART.fullmatch(sign) and (sign == sign.strip() or not whole):
            piece += sign
            continue
        found[-1] += [piece, sign]
        piece = ""
        if whole:
            found.append([])
            count = 0
    return [number for pieces in found if pieces for number in _joined(pieces)]


def is_number(word: str) -> bool:
    """Whether a key word is a number, with all its groups."""
    groups = words(word)
    return bool(groups) and all(map(str.isdecimal, groups))


def stands(number: str, text: str, without: Sequence[str] = ()) -> bool:
    """Whether all of a number stands in a text: its digits however they are grouped, its groups in order with a word
    between two of them at most, with other signs for thousands or none, or the date that it is in another writing.

    Args:
        number: The number.
        text: Where it is looked for.
        without: The groups to look for where others of the number may be left out.
    """
    groups, said = words(number), words(text)
    if any(_regrouped(digits, said) for digits in spellings(number)):
        return True
    if any(_in_order(wanted, said) for wanted in (groups, without) if wanted):
        return True
    plain, unsigned = words(_SEPARATOR.sub("", number)), _SEPARATOR.sub("", text)
    if (len(plain) < len(groups) or len(unsigned) < len(text)) and _in_order(plain, words(unsigned)):
        return True
    dates = date_of(groups)
    return bool(dates) and bool({*dates, *((year, 0, day) for year, _, day in dates)} & _dates(said))


def spellings(number: str) -> list[str]:
    """The digits of a number, and those without a country's code."""
    groups = words(number)
    whole, rest = "".join(groups), "".join(groups[1:])
    return [whole, rest] if len(groups[0]) <= PREFIX and len(rest) >= WHOLE else [whole]


def date_of(groups: Sequence[str]) -> set[Date]:
    """The dates that three groups of digits, or one of eight, can mean; none where they are no date."""
    if len(groups) == 1 and len(groups[0]) == 8:
        groups = groups[0][:FOUR], groups[0][FOUR:-2], groups[0][-2:]
    if [*map(len, groups)] not in DATES or not all(map(str.isdecimal, groups)):
        return set()
    first, second, third = map(int, groups)
    if len(groups[0]) == FOUR:
        found = {(first, second, third)}
    else:
        years = (third,) if len(groups[2]) == FOUR else (1900 + third, 2000 + third)
        found = {order for year in years for order in ((year, second, first), (year, first, second))}
    return {date for date in found if date[0] in YEARS and 1 <= date[1] <= len(_MONTHS) and 1 <= date[2] <= DAYS}


def _joined(pieces: Sequence[str]) -> list[str]:
    """Pieces with spaces or brackets between them as one number, where they are one; each by itself where not."""
    whole = _BRACKET.sub(" ", "".join(pieces[:-1])).replace("(", "").replace(")", "")
    groups = words(whole)
    if len(groups) == 2 and all(len(group) == FOUR and int(group) in YEARS for group in groups):
        return [match[0] for match in _DIGITS.finditer(whole)]
    spaced = SPACED <= sum(map(len, groups)) <= MOST or _THOUSAND_SPACES.fullmatch(whole)
    return [whole] if len(pieces) == 2 or spaced else [*pieces[::2]]


def _regrouped(digits: str, said: Sequence[str]) -> bool:
    """Whether words in a row are together these digits, if they are many; or a word behind a country's code."""
    if len(digits) < LONG_NUMBER:
        return False
    for at, first in enumerate(said):
        coded = first.isdecimal() and first.endswith(digits) and len(first) <= len(digits) + PREFIX
        if coded and len(digits) >= WHOLE:
            return True
        run, more = first, at + 1
        while run != digits and digits.startswith(run) and more < len(said):
            run, more = run + said[more], more + 1
        if run == digits:
            return True
    return False


def _in_order(groups: Sequence[str], said: Sequence[str]) -> bool:
    """Whether groups stand behind each other, with at most one word that is no number between two of them."""
    for at, word in enumerate(said):
        place = at if word == groups[0] else -1
        for group in groups[1:] if place >= 0 else ():
            beside = said[place + 1 : place + 3]
            if beside[:1] == [group]:
                place += 1
            elif beside[1:] == [group] and not beside[0].isnumeric():
                place += 2
            else:
                place = -1
                break
        if place >= 0:
            return True
    return False


def _dates(said: Sequence[str]) -> set[Date]:
    """The dates that words tell, in figures or with the month's name; month 0 where that is not an English one."""
    plain = [word for word in said if word not in _LITTLE]
    found: set[Date] = set()
    for one, two, three in zip(plain, plain[1:], plain[2:], strict=False):
        found |= date_of((one, two, three))
        for day, name, year, any_name in ((one, two, three, True), (three, two, one, True), (two, one, three, False)):
            number, english = _DAY.fullmatch(day), _MONTH.fullmatch(name)
            named = english or (any_name and len(name) >= SHORTEST and name.isalpha())
            if number and named and len(year) == FOUR and year.isdecimal():
                found.add((int(year), _MONTHS.index(name[:3]) + 1 if english else 0, int(number[1])))
    return found
