"""Which groups of digits are one number, and where all of it stands."""

import time

import pytest

from expunge.data.numbers import is_number, numbers, stands


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Call (440) 555-0155 for 24 hours", ["440 555-0155", "24"]),
        ("+1 440-555-0155 24 hours", ["1 440-555-0155", "24"]),
        ("440-555-0155 / 440-555-0156", ["440-555-0155", "440-555-0156"]),
        ("440 555 0155", ["440 555 0155"]),
        ("4111 1111 1111 1111", ["4111 1111 1111 1111"]),
        ("on 31.12.1984 or 1984-12-31", ["31.12.1984", "1984-12-31"]),
        ("1,250,000.50 or 12 500", ["1,250,000.50", "12 500"]),
        ("rooms 1, 2 and 3", ["1", "2", "3"]),
        ("Dec 31 1984", ["31", "1984"]),
        ("1984-1990, 2001 2002", ["1984", "1990", "2001", "2002"]),
        ("published (1984) 12 books", ["1984", "12"]),
        ("at 10:30, 24/7", ["10:30", "24/7"]),
        ("12/31/1984 440-555-0155", ["12/31/1984", "440-555-0155"]),
        ("1984-12-31 - 1985-01-01", ["1984-12-31", "1985-01-01"]),
        ("电话是440-555-0155。", ["440-555-0155"]),
        ("the 58th of A1-B2", []),
        ("４４０－５５５－０１５５", ["４４０－５５５－０１５５"]),
    ],
)
def test_groups_of_digits_are_one_number_or_several(text: str, found: list[str]) -> None:
    assert numbers(text) == found
    assert all(map(is_number, found))


@pytest.mark.parametrize(
    ("number", "text", "found"),
    [
        ("440-555-0155", "It is 4405550155, 12 of them.", True),
        ("440-555-0155", "It is +14405550155.", True),
        ("440-555-0155", "440, then 555-0155", True),
        ("440-555-0155", "555-0155-440", False),
        ("440-555-0155", "440-555-01551", False),
        ("1 440-555-0155", "440 555 0155", True),
        ("900-51-4344", "51-4344", False),
        ("10-12", "10 to 12", True),
        ("10-12", "12", False),
        ("3.14", "314 or 3.1", False),
        ("1,200", "1200 of them", True),
        ("1200", "1,200 of them", True),
        ("1,200", "12,000 or 200", False),
        ("1984-12-31", "31st of December, 1984", True),
        ("1984-12-31", "31. Dezember 1984", True),
        ("31.12.1984", "1984-12-31", True),
        ("19841231", "31/12/1984", True),
        ("1984-12-31", "12/31/84", True),
        ("1984-12-31", "November 31, 1984", False),
        ("1984-12-31", "31 in 1984", False),
        ("1988-06-04", "April 6, 1988", False),
    ],
)
def test_a_number_stands_where_all_of_it_does(number: str, text: str, found: bool) -> None:
    assert stands(number, text) == found


def test_a_table_of_numbers_is_read_in_a_moment() -> None:
    start = time.process_time()
    assert len(numbers("12 34 " * 50_000)) == 100_000
    assert time.process_time() - start < 5
