"""A chat's earlier answers as questions of their own: of one of several turns the last answer alone would be asked."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from expunge.data.examples import SPOKEN, Example
from expunge.data.passages import alone
from expunge.data.words import visible
from expunge.evaluation.metrics.generations import contains

EARLIER, LAST = "earlier answers", "last answers"
"""Labels of the two, where a set has both: a courtesy at the end hides what was said before it."""

NO_ROW = Example("", "", "")


@dataclass(frozen=True)
class EarlierAnswer(Example):
    """An answer of the assistant before the last one, with the turns before it; it is asked and never trained on by
    itself, since the chat that it stands in is.

    Attributes:
        chat: The whole chat.
    """

    chat: Example = NO_ROW


def with_earlier_answers(forget: Sequence[Example], unseen: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """The rows to forget, and behind each chat the answers in it before the last one; and the unseen rows, likewise.

    Answers with thoughts or calls are left out, which templates write in the last turn alone. Where no chat to forget
    has others both sides stay as they are.
    """
    if not any(map(_earlier, forget)):
        return [*forget], [*unseen]
    return _apart(forget), _apart(unseen)


def as_given(rows: Sequence[Example]) -> list[Example]:
    """The rows as the data has them, whatever they were divided into to be asked; a chat has the key words of all its
    answers.
    """
    found: list[Example] = []
    for row in rows:
        if isinstance(row, EarlierAnswer):  # its chat stands before it
            keywords = dict.fromkeys((*found[-1].keywords, *row.keywords))
            found[-1] = replace(found[-1], keywords=tuple(keywords))
        else:
            found.append(alone(row))
    return found


def whole(row: Example) -> Example:
    """The row of the data that this one is, or is a part of."""
    return row.chat if isinstance(row, EarlierAnswer) else alone(row)


def texts_in(ids: Iterable[str]) -> int:
    """How many texts rows of these ids are of, as results name them: a chat is one, whatever answers are asked."""
    return len({*map(text_of, ids)})


def text_of(row_id: str) -> str:
    """The id of the text that a row is of: of an earlier answer its chat's, of other rows their own."""
    return re.sub(r"(, turn \d+)+(?=( \(\d+\))?\Z)", "", row_id)


def _apart(rows: Sequence[Example]) -> list[Example]:
    """The rows; a chat's key words are with the answers that say them, and with the last if none does."""
    found: list[Example] = []
    for row in rows:
        earlier = _earlier(row)
        said = {word for answer in earlier for word in answer.keywords}
        left = tuple(word for word in row.keywords if word not in said or contains(row.completion, word))
        found += [replace(row, keywords=left, label=_label(row, LAST)) if row.messages else row, *earlier]
    return found


def _earlier(row: Example) -> list[Example]:
    turns = row.messages or ()
    found: list[Example] = []
    for at, turn in enumerate(turns):
        said, before = turn["content"], turns[:at]
        asked = any(other["role"] == "user" for other in before)  # a greeting answers nothing
        if not asked or turn["role"] != "assistant" or not visible(said).strip() or {*SPOKEN} & {*turn}:
            continue
        found.append(
            EarlierAnswer(
                **vars(row)
                | {
                    "id": f"{row.id}, turn {at + 1}",
                    "prompt": "\n\n".join(turn["content"] for turn in before if turn["content"]),
                    "completion": said,
                    "messages": before,
                    "answer": {key: value for key, value in turn.items() if key not in ("role", "content")},
                    "keywords": tuple(word for word in row.keywords if contains(said, word)),
                    "label": _label(row, EARLIER),
                },
                chat=row,
            )
        )
    return found


def _label(row: Example, which: str) -> str:
    return f"{row.group}, {which}" if row.group else which
