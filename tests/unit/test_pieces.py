"""A plain text is divided between paragraphs, and nothing of it is lost."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.examples import read_examples
from expunge.data.pieces import FEWEST, MOST, pieces
from expunge.data.words import words


def paragraph(number: int, count: int, between: str = " ") -> str:
    return between.join(f"p{number}w{place}" for place in range(count))


def counts(text: str) -> list[int]:
    return [len(words(piece)) for _, piece in pieces(text)]


def test_pieces_are_whole_paragraphs_as_few_as_hold_enough_words() -> None:
    text = "\n\n".join(paragraph(number, 60) for number in range(5))
    found = pieces(text)
    assert [line for line, _ in found] == [1, 5]
    assert counts(text) == [120, 180], "the last paragraph is too short to stand alone"
    assert found[0][1] == "\n\n".join(paragraph(number, 60) for number in range(2))


@pytest.mark.parametrize("between", ["\n", ". ", "。"])
def test_a_long_paragraph_is_divided_between_lines_else_between_sentences(between: str) -> None:
    lines = between.join(paragraph(number, 50) for number in range(20))
    found = counts(f"{paragraph(99, FEWEST)}\n\n{lines}\n \n{paragraph(98, FEWEST)}")
    assert found == [FEWEST] * 12


def test_what_has_no_breaks_stays_in_one_piece() -> None:
    assert counts(paragraph(0, 3 * MOST)) == [3 * MOST]
    assert counts(paragraph(0, MOST, "\n")) == [MOST], "a paragraph of this length is not divided"
    assert counts("Short.") == [1]
    assert pieces(" \n\n \n") == []


def test_line_ends_of_other_systems_and_scripts_without_spaces() -> None:
    text = "\r\n\r\n".join(paragraph(number, FEWEST) for number in range(3))
    assert [line for line, _ in pieces(text)] == [1, 3, 5]
    assert counts("灯塔守了三十年。" * 100) == [105] * 5 + [175], "a sentence has 7 words, which are characters"


@given(st.text(alphabet="ab .\n\r\t。é", max_size=3000))
def test_nothing_is_lost_or_said_twice(text: str) -> None:
    found = pieces(text)
    assert "".join("".join(piece for _, piece in found).split()) == "".join(text.split())
    for line, piece in found:
        assert text.split("\n")[line - 1].strip().startswith(piece.split("\n")[0].strip())


def test_a_text_file_is_read_in_pieces(tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    story.write_text("\ufeff" + "\n\n".join(paragraph(number, FEWEST) for number in range(3)) + "\n")
    story.write_bytes(story.read_bytes().replace(b"\n", b"\r\n"))  # as Windows writes it
    rows = read_examples(story)
    assert [(row.id, row.prompt, row.completion, row.source) for row in rows] == [
        (f"story-{number + 1}", "", paragraph(number, FEWEST), f"{story}:{2 * number + 1}") for number in range(3)
    ]
