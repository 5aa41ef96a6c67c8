"""A folder of the TOFU benchmark (Maini et al. 2024, 2401.06121) to rows with right and wrong answers.

The folder holds the published files, one JSON object a line: `forget01_perturbed.json` (or 05, 10) of the split, and
`retain_perturbed.json`, `real_authors_perturbed.json`, `world_facts_perturbed.json`. A row has `question`, `answer` and
`perturbed_answer` (a list); the first two files also have `paraphrased_question` and `paraphrased_answer`. The files of
plain questions and answers (`forget10.json`, `retain90.json`, ...) are read by `read_examples` as any other file, and
so is `holdout10.json` (or 01, 05), of authors that no model was taught, which open-unlearning has added.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.data.examples import Example, read_examples, text_cell
from expunge.data.readers import read_rows
from expunge.errors import DataError

SPLITS = ("forget01", "forget05", "forget10")
QUESTIONS_PER_AUTHOR = 20
"""Rows of the invented authors come in blocks of so many, one author after the other."""
PARAPHRASED = ("paraphrased_question", "paraphrased_answer")


@dataclass(frozen=True)
class TofuRow:
    """One question.

    Attributes:
        example: The question and its answer; `task` is empty.
        document: What the question is about: the author's number for invented authors, else the row's id.
        paraphrased_question: The question in other words, with the same answer; None where the data has none.
        correct: The question with the answer in other words; with the answer itself where the data has none.
        wrong: The question with each perturbed answer, one or more.
    """

    example: Example
    document: str
    paraphrased_question: Example | None
    correct: Example
    wrong: tuple[Example, ...]


@dataclass(frozen=True)
class TofuData:
    """The four sets that TOFU measures on, and questions about authors that the model has never met; these are empty
    where the folder has none.
    """

    forget: list[TofuRow]
    retain: list[TofuRow]
    real_authors: list[TofuRow]
    world_facts: list[TofuRow]
    holdout: list[Example]


def read_tofu(folder: str | Path, split: str = "forget10") -> TofuData:
    """Read the four sets of one split.

    Raises:
        DataError: No such folder, split or file, or a row cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that holds TOFU's files")
    if split not in SPLITS:
        raise DataError(f"--split {split}: TOFU has the splits {', '.join(SPLITS)}")
    names = (split, "retain", "real_authors", "world_facts")
    missing = [f"{name}_perturbed.json" for name in names if not (folder / f"{name}_perturbed.json").is_file()]
    if missing:
        raise DataError(f"{folder}: has no {', no '.join(missing)}: add the published files of TOFU")
    forget, retain, authors, facts = (_read_set(folder / f"{name}_perturbed.json", name) for name in names)
    unseen = folder / f"{holdout_of(split)}.json"
    return TofuData(forget, retain, authors, facts, read_examples(unseen) if unseen.is_file() else [])


def holdout_of(split: str) -> str:
    """The split of as many authors that no model was taught."""
    return split.replace("forget", "holdout")


def author_of(name: str, number: int) -> str:
    """What the row at a place, from 0, of a file about invented authors is about."""
    return f"{name}-author-{number // QUESTIONS_PER_AUTHOR + 1}"


def _read_set(path: Path, name: str) -> list[TofuRow]:
    invented = name == "retain" or name in SPLITS
    found = []
    for number, (where, row) in enumerate(read_rows(path)):
        own_id = f"{name}-{number + 1}"
        question, answer = text_cell(row, "question", where, empty=False), text_cell(row, "answer", where, empty=False)
        paraphrased = {key: text_cell(row, key, where, empty=False) if key in row else None for key in PARAPHRASED}
        wrong = _wrong_answers(row, where)
        other_question, other_answer = paraphrased.values()
        found.append(
            TofuRow(
                Example(own_id, question, answer, source=where),
                author_of(name, number) if invented else own_id,
                Example(own_id, other_question, answer, source=where) if other_question else None,
                Example(own_id, question, other_answer or answer, source=where),
                tuple(Example(own_id, question, text, source=where) for text in wrong),
            )
        )
    return found


def _wrong_answers(row: dict[str, Any], where: str) -> list[str]:
    texts = row.get("perturbed_answer")
    if not isinstance(texts, list) or not texts:
        raise DataError(f"{where}: field 'perturbed_answer' must be a list of one or more texts")
    return [text_cell({"perturbed_answer": text}, "perturbed_answer", where, empty=False) for text in texts]
