"""The words of a text in any script, as every metric that looks for words counts them."""

import unicodedata
from collections.abc import Sequence

import regex

LETTERS = "".join(rf"\p{{Script={name}}}" for name in ("Thai", "Lao", "Khmer", "Myanmar", "Tibetan"))
"""Scripts of letters that are written without spaces between words: one of them alone says nothing."""
UNSPACED = rf"\p{{Script=Han}}\p{{Script=Hiragana}}{LETTERS}"
"""Scripts that are written without spaces between words: there each character (grapheme cluster) counts as a word."""
LETTER = regex.compile(f"[{LETTERS}]")
"""What begins with one of `LETTERS`."""
_ALONE = rf"{UNSPACED}\p{{Extended_Pictographic}}\p{{Regional_Indicator}}"
_WORD = regex.compile(rf"(?=[{_ALONE}])\X|[[\p{{L}}\p{{M}}\p{{N}}]--[{_ALONE}]]+", regex.V1)
_ACCENTS = regex.compile(r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}]\p{Mn}*)\p{Mn}")
"""Marks on letters that are often left out; in other scripts a mark makes another letter."""
_INVISIBLE = regex.compile(r"\p{Cf}+")
"""Joiners, soft hyphens and marks of direction; Unicode's rules of words (UAX 29, WB4) look past them."""
_FORMS = regex.compile(r"[\uff01-\uffee]+|[\p{Nd}--[0-9]]|\p{Variation_Selector}", regex.V1)
"""Wide and narrow forms, digits of other scripts, and what chooses the look of a sign: the same text in print."""


def words(text: str) -> list[str]:
    """Words in order, without regard to case, composition (NFC), width, the script of digits, punctuation and space.

    A word is a run of letters, their marks and digits; in scripts without spaces, a character with its marks; and an
    emoji. Of ASCII text these are the words of rouge-score, before stemming.
    """
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", _FORMS.sub(_form, visible(text)).casefold()))
    return found


def visible(text: str) -> str:
    """The text composed (NFC), without joiners and other characters that cannot be seen."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text))


def unaccented(text: str) -> str:
    """The text without the accents of Latin, Greek and Cyrillic letters: "José" as "Jose"."""
    return text if text.isascii() else _ACCENTS.sub("", unicodedata.normalize("NFD", text))


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """How many words, or tokens, two texts begin with alike."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def _form(found: regex.Match[str]) -> str:
    """The usual form of a sign: digits are 0 to 9, wide letters those of ASCII, variation selectors nothing."""
    plain = unicodedata.normalize("NFKC", found[0])
    return "".join(str(unicodedata.decimal(sign, sign)) for sign in plain if not "\ufe00" <= sign <= "\ufe0f")
