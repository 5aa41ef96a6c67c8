"""Your own files: texts that must be forgotten, texts that must be kept, and texts like the former, never seen."""

from collections.abc import Sequence
from dataclasses import replace

from expunge.config import EvaluateConfig
from expunge.data.columns import parse_columns
from expunge.data.examples import Example, read_examples
from expunge.data.families import normalized
from expunge.data.holdout import long_alone, unseen_texts
from expunge.data.kinds import with_kinds
from expunge.data.passages import Passage, divided
from expunge.data.retain_test import set_apart, without_forgotten
from expunge.errors import DataError
from expunge.evaluation.measurement import document_of
from expunge.evaluation.metrics.registry import HOLDOUT, default_metrics
from expunge.evaluation.mismatched import floored
from expunge.evaluation.suite import Documents, RowSet, Suite


def read(config: EvaluateConfig) -> Suite:
    """The files; whatever they allow is measured, and the rest is said.

    Raises:
        DataError: A file cannot be read, all of the holdout's texts are trained on, or all to keep are to be forgotten.
    """
    columns = parse_columns(config.columns)
    files = {name: getattr(config, name) for name in ("forget", "retain", "test", "holdout")}
    read = with_kinds({name: read_examples(file, columns=columns) for name, file in files.items() if file})
    read = {name: [replace(row, label=row.group) for row in rows] for name, rows in read.items()}  # reported of each
    notes = []
    for name in (own for own in ("retain", "test") if own in read):
        read[name], told = without_forgotten(name, files[name], read[name], read["forget"])
        notes += [f"{line}." for line in told]
    if config.retain_test and "retain" in read:
        read["retain"], apart = set_apart(read["retain"], config.retain_test)
        read |= {"test": apart} if apart else {}
    if config.test:
        given = read["test"]
        read["test"] = unseen_texts(given, [*read["forget"], *read.get("retain", ())])
        if left_out := len(given) - len(read["test"]):
            notes.append(
                f"{left_out} of {len(given)} test texts stand in the forget or retain set too, or nearly so, so they "
                "may have been trained on and were left out."
            )
        if not read["test"]:
            del read["test"]
    if not ({"retain", "test"} & {*read} or config.test):
        notes.append("No texts to keep were given (--retain, --test): whether the rest is kept was not measured.")
    documents, unseen = None, list[Example]()
    if "holdout" in read:
        known = [row for name in ("forget", "retain", "test") for row in read.get(name, ())]
        unseen = never_seen(config.holdout or "", read["holdout"], known)
        if len(unseen) < len(read["holdout"]):
            left_out = len(read["holdout"]) - len(unseen)
            notes.append(
                f"{left_out} of {len(read['holdout'])} holdout texts stand in the forget or retain set too, or "
                "nearly so, so they are no unseen ones and were left out."
            )
        if unseen:
            members, nonmembers = long_alone(read["forget"], unseen)  # those that a run is steered by, too
            documents = Documents(members, nonmembers, names=("forget", HOLDOUT), even=True)
            short = len(read["forget"]) - len(members), len(unseen) - len(nonmembers)
            if any(short):
                notes.append(
                    f"Membership is judged on the longer texts: {short[0]} to forget and {short[1]} unseen ones, much "
                    "shorter than most, are left out of it."
                )
    else:
        notes.append("No unseen texts were given (--holdout): no membership attack was run.")
    read["forget"] = divided(read["forget"])  # how others go on, which few know by heart, says nothing of what is kept
    if any(isinstance(row, Passage) for row in read["forget"]):
        unseen = divided(unseen)
    sets = tuple(_rows(name, read[name]) for name in ("forget", "retain", "test") if name in read)
    if documents:  # what the forget set's metrics come to on texts that nobody has seen: their targets
        sets = (*sets, replace(_rows(HOLDOUT, unseen), metrics=floored(sets[0].metrics)))
    if config.paraphrased:
        again = _by_id(config.paraphrased, read_examples(config.paraphrased, columns=columns), read["forget"])
        sets = (replace(sets[0], paraphrased=[again.pop(row.id, None) for row in read["forget"]]), *sets[1:])
        if again:
            notes.append(f"{len(again)} rows of --paraphrased are for ids that --forget has not, and were left out.")
    return Suite(sets, documents, not_measured=tuple(notes))


def never_seen(file: str, holdout: Sequence[Example], trained_on: Sequence[Example]) -> list[Example]:
    """The texts of `--holdout` that do not stand among the others, and are no near-duplicates of them.

    Raises:
        DataError: All of them stand there.
    """
    known = set(map(_key, trained_on))
    if all(_key(row) in known for row in holdout):
        raise DataError(f"--holdout {file}: all of its texts are to be forgotten or kept: give texts never seen")
    return [row for row in unseen_texts(holdout, trained_on) if _key(row) not in known]


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


def _key(example: Example) -> str:
    return normalized(example.text).replace(" ", "") or example.text


def _rows(name: str, examples: list[Example]) -> RowSet:
    # LUME's kinds come with its ids, and only these say which rows are about one document; `qa1`, `qa2`, ... do not.
    documents = [document_of(example.id) if example.kind else example.id for example in examples]
    if "" in documents or (len({*documents}) == 1 and len(documents) > 1):
        documents = [example.id for example in examples]
    metrics = default_metrics(name)
    if all(isinstance(row, Passage) for row in examples):  # a text that is gone on with asks nothing
        metrics = tuple(own for own in metrics if own != "refusal")
    return RowSet(name, examples, documents, metrics)
