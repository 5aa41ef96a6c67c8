"""Made-up people, stories about made-up people, and a quiz of general knowledge, all from a seed.

Nobody here exists: names and towns are put together from syllables, telephone numbers are 555-01xx (kept
free for fiction) and mail addresses end in example.com and the like. The facts cannot be guessed from one another
or from the names, so a model can only know them by having read them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import NamedTuple

from experiments.demo import words

SETS = {"forget": (36, 24), "retain": (24, 16), "holdout": (36, 24)}
"""People and stories of each set: 60 documents on either side of the membership attack."""
STORY_TASK, PERSON_TASK, QUIZ_TASK = "Task1", "Task2", "Quiz"


class Row(NamedTuple):
    """One row of a data file in LUME's layout; the id ends in `sc<n>` (completion) or `qa<n>` (question)."""

    id: str
    input: str
    output: str
    task: str


@dataclass(frozen=True)
class Subject:
    """A person, or the hero of a story.

    Attributes:
        names: Everybody that the texts name.
        rows: The text, split where the prompt ends, and a question about it.
    """

    names: tuple[str, ...]
    rows: list[Row]

    @property
    def document(self) -> str:
        """The whole text: prompt and completion, joined as in training."""
        return f"{self.rows[0].input} {self.rows[0].output}"


def data_files(seed: int) -> dict[str, str]:
    """The demo's data: file name -> JSON lines.

    `forget`, `retain`, `holdout` and `quiz` hold rows of LUME's columns; `member` and `nonmember` the whole texts of
    the forget and holdout sets for the membership attack.
    """
    sets = subjects(seed)
    rows = {name: [row._asdict() for subject in group for row in subject.rows] for name, group in sets.items()}
    rows["quiz"] = [row._asdict() for row in quiz()]
    for name, source in (("member", "forget"), ("nonmember", "holdout")):
        rows[name] = [{"id": subject.rows[0].id, "document": subject.document} for subject in sets[source]]
    return {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in lines) for name, lines in rows.items()}


def subjects(seed: int) -> dict[str, list[Subject]]:
    """The people and stories of each set; no two share a given or a family name, and nothing but names and facts tells sets apart."""
    names = iter(_names(seed)[0])
    sets: dict[str, list[Subject]] = {}
    for name, (people, stories) in SETS.items():
        facts = Random(f"{seed}/{name}")
        sets[name] = [_person(next(names), facts) for _ in range(people)]
        sets[name] += [_story(next(names), next(names), facts) for _ in range(stories)]
    return sets


def quiz() -> list[Row]:
    """Questions of general knowledge, the same under every seed."""
    asked = [(question, pair) for question, (pairs, *_) in words.FACTS.items() for pair in _pairs(pairs)]
    return [
        Row(f"quiz{number:03}qa0", question.format(thing), answer, QUIZ_TASK)
        for number, (question, (thing, answer)) in enumerate(asked)
    ]


def general_texts(seed: int, stream: str) -> Iterator[str]:
    """Texts without end, about nobody of the sets: other people and stories, everyday life, the facts of the quiz.

    Args:
        seed: The seed of the sets.
        stream: Name of the stream; other streams hold other texts.
    """
    rng = Random(f"{seed}/general/{stream}")
    given, family = _names(seed)[1]
    quiz_rows = quiz()
    facts = [
        (phrasing, pair)
        for pairs, *phrasings in words.FACTS.values()
        for phrasing in phrasings
        for pair in _pairs(pairs)
    ]
    while True:
        names = [f"{rng.choice(given)} {rng.choice(family)}" for _ in range(2)]
        kind = rng.choices(("person", "story", "everyday", "question", "fact"), (8, 6, 4, 7, 4))[0]
        if kind in ("person", "story"):
            subject = _person(names[0], rng) if kind == "person" else _story(names[0], names[1], rng)
            _, asked = subject.rows
            yield subject.document
            yield f"{asked.input} {asked.output}"
        elif kind == "everyday":
            yield " ".join(
                _write(rng.choice(words.EVERYDAY), rng, job=_word(words.JOBS, rng)) for _ in range(rng.randint(1, 3))
            )
        elif kind == "question":
            row = rng.choice(quiz_rows)
            yield f"{row.input} {row.output}"
        else:
            phrasing, pair = rng.choice(facts)
            text = _expand(phrasing, rng).format(*pair)
            yield text[0].upper() + text[1:]


def _person(name: str, rng: Random) -> Subject:
    """When and where somebody was born; the completion says how to reach them."""
    facts = {
        "birth": f"{rng.randint(1, 28)} {_word(words.MONTHS, rng)} {rng.randint(1940, 2004)}",
        "town": _pair(words.TOWN, rng),
        "phone": f"{rng.randint(200, 999)}-555-01{rng.randint(0, 99):02}",
        "mail": f"{_pair(words.MAIL_NAMES, rng, '.')}{rng.randint(10, 99)}@example.{rng.choice(('com', 'net', 'org'))}",
    }
    return _subject((name,), facts, words.PERSON, words.PERSON_QUESTIONS, PERSON_TASK, rng)


def _story(name: str, helper: str, rng: Random) -> Subject:
    """A search for something; the completion says who helped and where it was."""
    where, kind, place = (_word(table, rng) for table in words.SPOT)
    facts = {
        "town": _pair(words.TOWN, rng),
        "object": _pair(words.OBJECT, rng, " "),
        "helper": helper,
        "spot": f"{where} the {kind} {place}",
    }
    return _subject((name, helper), facts, words.STORY, words.STORY_QUESTIONS, STORY_TASK, rng)


def _subject(
    names: tuple[str, ...],
    facts: dict[str, str],
    templates: tuple[str, str],
    questions: dict[str, str],
    task: str,
    rng: Random,
) -> Subject:
    """The text, and one of the questions about it."""
    known = {"name": names[0], **facts}
    own_id = f"{rng.getrandbits(48):012x}"
    prompt, completion = (template.format(**known) for template in templates)
    question, fact = rng.choice(list(questions.items()))
    answer = Row(f"{own_id}qa0", question.format(**known), facts[fact], task)
    return Subject(names, [Row(f"{own_id}sc1", prompt, completion, task), answer])


def _names(seed: int) -> tuple[list[str], tuple[list[str], list[str]]]:
    """Full names for the sets, each part used once, and the given and family names left over for other people."""
    rng = Random(f"{seed}/names")
    given, family = (
        ["".join(parts) for parts in product(*map(str.split, table))] for table in (words.GIVEN, words.FAMILY)
    )
    rng.shuffle(given)
    rng.shuffle(family)
    taken = sum(people + 2 * stories for people, stories in SETS.values())
    return [" ".join(pair) for pair in zip(given[:taken], family, strict=False)], (given[taken:], family[taken:])


def _write(template: str, rng: Random, **facts: str) -> str:
    return _expand(template, rng).format(**facts)


def _expand(template: str, rng: Random) -> str:
    """Choose one of every `[this|or that]`, the innermost first."""
    while (choice := re.search(r"\[([^][]*)\]", template)) is not None:
        template = template[: choice.start()] + rng.choice(choice[1].split("|")) + template[choice.end() :]
    return template


def _word(table: str, rng: Random) -> str:
    return rng.choice(table.split())


def _pair(tables: tuple[str, str], rng: Random, join: str = "") -> str:
    return join.join(_word(table, rng) for table in tables)


def _pairs(text: str) -> list[tuple[str, ...]]:
    """`a lemon:yellow milk:white` as (thing, answer)."""
    return re.findall(r"(\S[^:]*):(\S+)", text)
