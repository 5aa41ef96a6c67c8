"""From many answers to one question to the fact that they agree on, and the names that stand beside it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from expunge.data.chat import after_thought
from expunge.data.key_words import ENDS, new_words
from expunge.data.words import UNSPACED, visible, words
from expunge.evaluation.metrics.generations import contains, joined_numbers
from expunge.evaluation.metrics.key_facts import says
from expunge.evaluation.metrics.refusal import refuses

AGREE = 0.5
"""A word is agreed on when more than this share of the answers hold it, and said of everybody when it is in more than
this share of the answers about half of the other names."""
RARE = 0.02
"""A word that is no number or name is said of everybody, too, in more than this share of all answers about others."""
LETTERS, MOST = 5, 5
"""Shortest key word that is no number or name; most key words of a fact, numbers and names first."""
SENTENCES = 3
"""Sentences of an answer that count: a model that goes on has left the question."""
SHORT = 5
"""Letters of a name that is long enough to be known with an ending."""
MENTIONED = 2
"""Answers in which a name must stand to be a neighbour."""
PARTICLES = ("van", "von", "de", "der", "du", "da", "di", "la", "le", "al", "bin", "ibn")
"""Words without a capital within a name."""
ARTICLES = {"the", "el", "il", "los", "las", "les", "das", "die"}
"""First words of a name that do not stand for it alone; `PARTICLES` do not where they are written small."""
_CAPITAL = r"\p{Lu}[\p{L}\p{M}'’-]+"
_NAME = regex.compile(rf"{_CAPITAL}(?:[ \u00a0](?:(?:{'|'.join(PARTICLES)}) )*{_CAPITAL})+")


@dataclass(frozen=True)
class Fact:
    """What the answers to one question come to.

    Attributes:
        state: `kept`, `varies`, `of everybody`, `declined`, or `about it` (a neighbour's that says the name to forget).
        answer: The answer that holds most of what they agree on; empty where it is not kept.
        keywords: The words that they agree on and that are not said of everybody.
        said: Answers that say it.
        asked: Answers that were given.
        others: Other names of which it is said too.
    """

    state: str
    answer: str = ""
    keywords: tuple[str, ...] = ()
    said: int = 0
    asked: int = 0
    others: int = 0


def agreed(known: str, answers: Sequence[str], others: Sequence[Sequence[str]], often: Counter[str]) -> Fact:
    """What the answers to a question agree on, without what is said of other names as well.

    Args:
        known: Words that are no key words: the question, and the name in all its spellings.
        answers: The model's answers, the most likely one first.
        others: For each other name the answers to the same question.
        often: How often words stand in answers about other names (`key_words.frequencies`).
    """
    given = [short(answer) for answer in answers]
    count = len(given)
    if 2 * sum(map(refuses, given)) > count:
        return Fact("declined", asked=count)
    shared: dict[str, tuple[bool, float, str]] = {}  # word -> is it a number or name, share of answers, as written
    for answer in given:
        for word, (sure, _) in new_words(known, answer, often).items():
            key, share = " ".join(joined_numbers(words(word))), _share(word, given)
            if share > AGREE and (sure or len(word) >= LETTERS or " " in key):
                shared[key] = max(shared.get(key, (False, 0.0, word)), (sure, share, word))
    if not shared:
        return Fact("varies", asked=count)
    ranked = sorted(shared.values(), reverse=True)
    own_words = [word for sure, _, word in ranked if not _of_everybody(word, sure, others, often)][:MOST]
    if not own_words:
        return Fact("of everybody", asked=count)
    while len(own_words) > 1 and sum(says(answer, own_words, answer) for answer in given) <= AGREE * count:
        own_words.pop()  # each is in most answers, but not together
    best = max(given, key=lambda answer: (sum(contains(answer, word) for word in own_words), -len(answer)))
    keywords = tuple(word for word in own_words if contains(best, word))
    return Fact(
        "kept",
        to_the_point(best, keywords),
        keywords,
        sum(says(answer, keywords, best) for answer in given),
        count,
        sum(2 * sum(says(short(answer), keywords, best) for answer in theirs) > len(theirs) for theirs in others),
    )


def short(answer: str) -> str:
    """The first sentences of an answer behind its thought, without one that was cut off; all of an answer that is one
    cut sentence.
    """
    paragraph = after_thought(answer).strip().split("\n\n")[0].strip()
    ends = [match.start() for match in ENDS.finditer(paragraph)]
    if paragraph and paragraph[-1] in '.!?…。！？؟।"”':
        ends.append(len(paragraph))
    return paragraph[: ends[min(SENTENCES, len(ends)) - 1]].strip() if ends else paragraph


def to_the_point(answer: str, keywords: Sequence[str]) -> str:
    """An answer up to the end of the sentence that says the last of its key words."""
    for match in ENDS.finditer(answer):
        if all(contains(answer[: match.start()], word) for word in keywords):
            return answer[: match.start()].strip()
    return answer


def mentioned(answers: Sequence[str], names: Sequence[str], most: int, others: Sequence[str] = ()) -> list[str]:
    """Names of several words that stand in most answers beside a name, in scripts with capitals.

    Args:
        answers: What was said of the name.
        names: The name and its other spellings, which are none.
        most: How many to give.
        others: What was said of made-up names: a name that stands there too is said of everybody.
    """
    known = {word for name in names for word in words(name)}
    found = [{match[0] for match in _NAME.finditer(visible(short(answer)))} for answer in answers]
    every = {name for group in found for name in group}
    # A word that begins the sentence is no part of a name that stands elsewhere without it: "With Niels Bohr".
    plain = {name: rest if (rest := name.partition(" ")[2]) in every else name for name in every}
    counts = Counter(plain[name] for group in found for name in group if not known & {*words(name)})
    beside = [name for name, count in counts.most_common() if count >= MENTIONED]
    return [name for name in beside if not any(contains(answer, name) for answer in others)][:most]


def renamed(text: str, names: Sequence[str], other: str, *, parts: bool) -> str:
    """The text about another name.

    Args:
        text: A question or an answer.
        names: The name and its other spellings.
        other: The name to say in their place.
        parts: Whether first and last word stand for the whole name, as those of a person's do; no article does.
    """
    old, new = names[0].split(), other.split()
    apart = old[0].casefold() in ARTICLES or old[0] in (*PARTICLES, "a", "an")
    first = {} if apart else {old[0]: new[0]}
    ends = first | {old[-1]: new[-1]} if parts and len(old) > 1 else {}
    said = dict.fromkeys(names, other) | ends
    found = (_alone(name, part=name in ends) for name in sorted(said, key=len, reverse=True))
    return str(regex.sub("|".join(found), lambda match: said[match[0]], text))


def _alone(name: str, *, part: bool) -> str:
    """A pattern of a name that begins no word, and that a `part` of a name, or a short name, is no beginning of.

    What is long may have an ending; scripts without case attach particles, or have no spaces.
    """
    short = len(name) < SHORT and name.lower() != name.upper()
    begin = "" if regex.match(f"[{UNSPACED}]", name[0]) else r"(?<!\w)"
    end = r"(?!\w)" if part or short else ""
    return f"{begin}{regex.escape(name)}{end}"


def _share(word: str, answers: Sequence[str]) -> float:
    return sum(contains(answer, word) for answer in answers) / len(answers)


def _of_everybody(word: str, sure: bool, others: Sequence[Sequence[str]], often: Counter[str]) -> bool:
    if not sure and max(often[part] for part in words(word)) > RARE * often[""]:
        return True
    return bool(others) and 2 * sum(_share(word, theirs) > AGREE for theirs in others) >= len(others)
