"""The words of a text in any script, as every metric that looks for words counts them."""

import unicodedata

import regex

UNSPACED = "".join(
    rf"\p{{Script={name}}}" for name in ("Han", "Hiragana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)
"""Scripts that are written without spaces between words: there each character (grapheme cluster) counts as a word."""
_WORD = regex.compile(rf"(?=[{UNSPACED}])\X|[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]+", regex.V1)
_INVISIBLE = regex.compile(r"\p{Cf}+")
"""Joiners, soft hyphens and marks of direction; Unicode's rules of words (UAX 29, WB4) look past them."""


def words(text: str) -> list[str]:
    """Words in order, without regard to case, composition (NFC), punctuation and white space.

    A word is a run of letters, their marks and digits; in scripts without spaces, a character with its marks. Of
    ASCII text these are the words of rouge-score, before stemming.
    """
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", visible(text).casefold()))
    return found


def visible(text: str) -> str:
    """The text composed (NFC), without joiners and other characters that cannot be seen."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
