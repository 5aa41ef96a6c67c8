"""Your own files: texts that must be forgotten, texts that must be kept, and texts like the former, never seen."""

from collections.abc import Sequence
from dataclasses import replace

from expunge.config import EvaluateConfig, UnlearnConfig
from expunge.config.evaluate import OWN_FILES
from expunge.data.columns import parse_columns
from expunge.data.examples import Example, read_examples
from expunge.data.holdout import long_alone
from expunge.data.passages import Passage, divided
from expunge.data.sets import read_sets
from expunge.errors import DataError
from expunge.evaluation.earlier import whole, with_earlier_answers
from expunge.evaluation.measurement import document_of
from expunge.evaluation.metrics.registry import HOLDOUT, default_metrics
from expunge.evaluation.mismatched import DRAWN, floored
from expunge.evaluation.suite import Documents, RowSet, Suite


def read(config: EvaluateConfig) -> Suite:
    """The files, as a run reads them; whatever they allow is measured, and the rest is said.

    Raises:
        DataError: A file cannot be read, or all texts to keep are to be forgotten.
    """
    found = read_sets(UnlearnConfig(model="", **{name: getattr(config, name) for name in OWN_FILES}), refuse=False)
    notes = [f"{line}." for line in found.warnings]
    forget, retain, test, unseen = (  # each kind is reported by itself
        [replace(row, label=row.group) for row in rows]
        for rows in (found.forget, found.retain, found.test, found.holdout)
    )
    if not (config.retain or config.test):
        notes.append("No texts to keep were given (--retain, --test): whether the rest is kept was not measured.")
    documents = None
    if unseen:
        members, nonmembers = long_alone(forget, unseen)  # those that a run is steered by, too
        documents = Documents(members, nonmembers, names=("forget", HOLDOUT), even=True)
        short = len(forget) - len(members), len(unseen) - len(nonmembers)
        if any(short):
            notes.append(
                f"Membership is judged on the longer texts: {short[0]} to forget and {short[1]} unseen ones, much "
                "shorter than most, are left out of it."
            )
    else:
        notes.append("Without unseen texts (--holdout) no membership attack was run.")
    forget = divided(forget)  # how others go on, which few know by heart, says nothing of what is kept
    if any(isinstance(row, Passage) for row in forget):
        unseen = divided(unseen)
    forget, unseen = with_earlier_answers(forget, unseen)
    sets = tuple(_rows(name, rows) for name, rows in (("forget", forget), ("retain", retain), ("test", test)) if rows)
    if documents:  # what the forget set's metrics come to on texts that nobody has seen: their targets
        sets = (*sets, replace(_rows(HOLDOUT, unseen), metrics=floored(sets[0].metrics, DRAWN)))
    if config.paraphrased:
        asked = read_examples(config.paraphrased, columns=parse_columns(config.columns))
        again = _by_id(config.paraphrased, asked, forget)
        sets = (replace(sets[0], paraphrased=[again.pop(row.id, None) for row in forget]), *sets[1:])
        if again:
            notes.append(f"{len(again)} rows of --paraphrased are for ids that --forget has not, and were left out.")
    return Suite(sets, documents, not_measured=tuple(notes))


def _by_id(file: str, again: Sequence[Example], forget: Sequence[Example]) -> dict[str, Example]:
    """Id -> the question in other words.

    Raises:
        DataError: Two rows are for one id, or no row is for a text to forget.
    """
    found: dict[str, Example] = {}
    for row in again:
        if row.id in found:
            raise DataError(f"--paraphrased {file}: {row.source}: is a second one for its id: give one row for an id")
        found[row.id] = row
    if not {row.id for row in forget} & {*found}:
        raise DataError(f"--paraphrased {file}: no row has the id of a text to forget")
    return found


def _rows(name: str, examples: list[Example]) -> RowSet:
    # LUME's kinds come with its ids, and only these say which rows are about one document; `qa1`, `qa2`, ... do not.
    documents = [document_of(whole(example).id) if example.kind else whole(example).id for example in examples]
    if "" in documents or (len({*documents}) == 1 and len(documents) > 1):
        documents = [whole(example).id for example in examples]
    metrics = default_metrics(name)
    if all(isinstance(row, Passage) for row in examples):  # a text that is gone on with asks nothing
        metrics = tuple(metric for metric in metrics if metric != "refusal")
    return RowSet(name, examples, documents, metrics)
