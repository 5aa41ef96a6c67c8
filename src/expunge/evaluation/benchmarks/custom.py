"""Your own files: texts that must be forgotten, texts that must be kept, and texts like the former, never seen."""

from collections.abc import Sequence
from dataclasses import replace

from expunge.config import EvaluateConfig
from expunge.data.examples import Example, parse_columns, read_examples
from expunge.data.families import normalized
from expunge.data.retain_test import set_apart
from expunge.errors import DataError
from expunge.evaluation.measurement import document_of
from expunge.evaluation.metrics.registry import default_metrics
from expunge.evaluation.suite import Documents, RowSet, Suite


def read(config: EvaluateConfig) -> Suite:
    """The files; whatever they allow is measured, and the rest is said.

    Raises:
        DataError: A file cannot be read, or all of the holdout's texts are trained on.
    """
    columns = parse_columns(config.columns) if config.columns else None
    files = {name: getattr(config, name) for name in ("forget", "retain", "test", "holdout")}
    read = {name: read_examples(file, columns=columns) for name, file in files.items() if file}
    notes = []
    if config.retain_test and "retain" in read:
        read["retain"], apart = set_apart(read["retain"], config.retain_test)
        read |= {"test": apart} if apart else {}
    if not {"retain", "test"} & {*read}:
        notes.append("No texts to keep were given (--retain, --test): whether the rest is kept was not measured.")
    documents = None
    if "holdout" in read:
        unseen = never_seen(config.holdout or "", read["holdout"], [*read["forget"], *read.get("retain", [])])
        if len(unseen) < len(read["holdout"]):
            left_out = len(read["holdout"]) - len(unseen)
            notes.append(
                f"{left_out} of {len(read['holdout'])} holdout texts stand in the forget or retain set too (case, "
                "punctuation and white space aside), so they are no unseen ones and were left out."
            )
        documents = Documents(read["forget"], unseen, names=("forget", "holdout"), even=True)
    else:
        notes.append("No unseen texts were given (--holdout): no membership attack was run.")
    sets = tuple(_rows(name, read[name]) for name in ("forget", "retain", "test") if name in read)
    if config.paraphrased:
        again = read_examples(config.paraphrased, columns=columns)
        sets = (replace(sets[0], paraphrased=_by_id(config.paraphrased, again, read["forget"])), *sets[1:])
    return Suite(sets, documents, not_measured=tuple(notes))


def never_seen(file: str, holdout: Sequence[Example], trained_on: Sequence[Example]) -> list[Example]:
    """The texts of `--holdout` that are not trained on.

    Raises:
        DataError: There is none.
    """
    known = set(map(_key, trained_on))
    unseen = [row for row in holdout if _key(row) not in known]
    if not unseen:
        raise DataError(f"--holdout {file}: all of its texts are to be forgotten or kept: give texts never seen")
    return unseen


def _by_id(file: str, again: Sequence[Example], forget: Sequence[Example]) -> list[Example | None]:
    """For each text to forget its question in other words, None where there is none.

    Raises:
        DataError: A row is of no text to forget, or two are of one.
    """
    found: dict[str, Example] = {}
    known = {row.id for row in forget}
    for row in again:
        if row.id not in known or row.id in found:
            why = "a second one for its id" if row.id in found else "for an id that --forget has not"
            raise DataError(f"--paraphrased {file}: {row.source}: is {why}: give one row for an id")
        found[row.id] = row
    return [found.get(row.id) for row in forget]


def _key(example: Example) -> str:
    return normalized(example.text).replace(" ", "") or example.text


def _rows(name: str, examples: list[Example]) -> RowSet:
    # LUME's kinds come with its ids, and only these say which rows are about one document.
    documents = [document_of(example.id) if example.kind else example.id for example in examples]
    return RowSet(name, examples, documents, default_metrics(name))
