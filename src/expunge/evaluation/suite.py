"""What a benchmark asks for: rows, documents, and the metrics of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from expunge.data.columns import TEMPLATE
from expunge.data.examples import Example
from expunge.data.families import families
from expunge.data.holdout import texts_fingerprint, without_selection
from expunge.data.key_words import with_key_words
from expunge.data.tokenize import PromptFormat
from expunge.errors import DataError
from expunge.evaluation.earlier import NO_ROW, EarlierAnswer, as_given, whole
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.metrics.registry import HOLDOUT
from expunge.runs.record import read_calibration
from expunge.utils.files import write_text
from expunge.utils.keys import keyed
from expunge.utils.text import numbered

NEAR_DUPLICATE = 0.8
"""Part of the word triples of the shorter of two texts that makes them one document: another last word, another full
stop. Sentences of one template about different people share less, and are documents of their own."""


@dataclass(frozen=True)
class RowSet:
    """Rows that one set of metrics is taken of.

    Attributes:
        name: `forget`, `retain`, `real_authors` or `world_facts`.
        examples: The rows.
        documents: What each row is about; rows about one document are resampled together.
        metrics: Names in `METRICS`; rows that lack what one needs do not get it.
        paraphrased: The same questions in other words; None for a row without, and altogether where the data has none.
        correct: The right answer that the truth ratio takes, row by row; empty where the data has no wrong answers.
        wrong: Wrong answers, row by row.
        max_new_tokens: Longest generation, in tokens; the run's setting when None.
        cut_reference: Compare generations with the first `max_new_tokens` tokens of the completion.
        stops: Strings at which an answer ends.
        by_task: Report the rows of each task by themselves too.
        suffix: Ends the names of its metrics in results; of paraphrased questions, which are asked as a set apart.
    """

    name: str
    examples: Sequence[Example]
    documents: Sequence[str]
    metrics: Sequence[str]
    paraphrased: Sequence[Example | None] = ()
    correct: Sequence[Example] = ()
    wrong: Sequence[Sequence[Example]] = ()
    max_new_tokens: int | None = None
    cut_reference: bool = False
    stops: Sequence[str] = ()
    by_task: bool = True
    suffix: str = ""

    def wants(self, *needs: str) -> bool:
        """Whether one of the metrics needs one of these."""
        return any({*needs} & {*METRICS[name].needs} for name in self.metrics)


@dataclass(frozen=True)
class Documents:
    """The two sides of the membership attacks, as whole texts.

    Attributes:
        members: Texts that the model was trained on and must have forgotten.
        nonmembers: Texts like them that it has never seen.
        names: What the two sides are called in the file of row values.
        even: Cut both sides to the smaller of their median lengths in tokens; long texts are easier to predict, so
            sides of different lengths could be told apart by that alone.
        shares: The k of the min-k attacks.
        labels: What the texts of both sides are about, as in `RowSet.documents`; their ids where it is not given.
    """

    members: Sequence[Example]
    nonmembers: Sequence[Example]
    names: tuple[str, str] = ("member", "nonmember")
    even: bool = False
    shares: tuple[float, ...] = (0.2,)
    labels: tuple[Sequence[str], Sequence[str]] = ((), ())

    def __post_init__(self) -> None:
        if not any(self.labels):
            ids = ([row.id for row in side] for side in (self.members, self.nonmembers))
            object.__setattr__(self, "labels", tuple(ids))


@dataclass(frozen=True)
class Suite:
    """One benchmark's data, ready to be measured.

    Attributes:
        sets: Rows, the forget set first.
        documents: For the membership attacks; None where the data has no unseen texts.
        prompt_format: The benchmark's own; measured on the model when None.
        alone: Prompts are encoded by themselves when the model is asked, as the organisers' script does, and not as the
            beginning of the text that is trained on.
        split: The split that was read; None where there are none.
        not_measured: What the data lacks, in plain sentences.
        given: Fingerprints of the data as it was given, where documents have been left out of it; None where not.
    """

    sets: tuple[RowSet, ...]
    documents: Documents | None = None
    prompt_format: PromptFormat | None = None
    alone: bool = False
    split: str | None = None
    not_measured: tuple[str, ...] = field(default=())
    given: Mapping[str, str] | None = None

    def __getitem__(self, name: str) -> RowSet:
        return next(rows for rows in self.sets if rows.name == name)

    def fingerprints(self) -> Mapping[str, str]:
        """Of the rows of every set and of the documents, as they were given; see `data_fingerprint`."""
        if self.given is not None:
            return self.given
        sides: dict[str, list[Example]] = {}
        for rows in self.sets:
            parts = {"": rows.examples, "/paraphrased": [row or NO_ROW for row in rows.paraphrased]}
            for part, examples in (parts | {"/answers": [*rows.correct, *chain(*rows.wrong)]}).items():
                if examples:
                    sides.setdefault(rows.name + part, []).extend(examples)
        if self.documents:
            sides |= {"members": [*self.documents.members], "nonmembers": [*self.documents.nonmembers]}
        return {name: data_fingerprint(examples) for name, examples in sides.items()}


def texts_fingerprints(suite: Suite) -> dict[str, str]:
    """What stands for the texts of each set that a run is given, too, whatever their ids and parts are called."""
    told = ("forget", "retain", "test", HOLDOUT)
    sets = {rows.name: rows.examples for rows in reversed(suite.sets) if rows.name in told}
    return {name: texts_fingerprint(as_given(sets[name])) for name in told if sets.get(name)}


def data_fingerprint(examples: Sequence[Example]) -> str:
    """What stands for rows where their texts must not be told: a hash under the user's key of all that they say."""
    beside = ("label", "chat")  # the chat of an earlier answer is a row, too
    plain = ({key: value for key, value in vars(row).items() if key not in beside} | {"source": ""} for row in examples)
    return keyed(*(json.dumps(row, sort_keys=True, default=str) for row in plain))


def with_facts(suite: Suite) -> Suite:
    """The suite with key words on the rows that are asked for facts; a paraphrased question has those of its row."""

    def told(part: RowSet) -> RowSet:
        if not any("keywords" in METRICS[name].needs for name in part.metrics):
            return part
        rows = with_key_words(part.examples, as_given(part.examples))  # answers of one chat share its words
        again = [
            None if other is None else replace(other, keywords=row.keywords)
            for row, other in zip(rows, part.paraphrased, strict=bool(part.paraphrased))
        ]
        return replace(part, examples=rows, paraphrased=again)

    return replace(suite, sets=tuple(map(told, suite.sets)))


def write_key_words(path: str | Path, rows: Sequence[Example]) -> None:
    """Write rows with their key words, to be read, mended and given as data, for the owner alone.

    Raises:
        RunError: The file exists.
    """
    fields = ("id", "prompt", "completion", "task", "kind", "keywords")
    lines = []
    for row in as_given(rows):
        line = {name: getattr(row, name) for name in fields}
        if row.messages:  # a chat, whose prompt is more than one text
            answer = {"role": "assistant", "content": line.pop("completion"), **row.answer}
            beside = {name: value for name, value in row.template.items() if name in TEMPLATE}
            kwargs = {name: value for name, value in row.template.items() if name not in TEMPLATE}
            line |= {"messages": [*row.messages, answer], **beside}
            line |= {"chat_template_kwargs": kwargs} if kwargs else {}
            del line["prompt"]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def with_families(suite: Suite) -> Suite:
    """The suite with near-duplicate rows of a set about one document, so that intervals do not count a text twice."""
    names = {rows.name: [part for part in suite.sets if part.name == rows.name] for rows in suite.sets}
    documents = {name: _joined(parts) for name, parts in names.items()}
    sets = tuple(
        replace(rows, documents=[documents[rows.name][label] for label in rows.documents]) for rows in suite.sets
    )
    return replace(suite, sets=sets)


def _joined(parts: Sequence[RowSet]) -> dict[str, str]:
    """Document of some rows -> the first one that holds a near-duplicate of one of its rows."""
    pairs = [pair for part in parts for pair in zip(part.examples, part.documents, strict=True)]
    whole_rows = [(row, label) for row, label in pairs if not isinstance(row, EarlierAnswer)]  # its chat tells for it
    rows, labels = [row for row, _ in whole_rows], [label for _, label in whole_rows]
    above = {label: label for label in labels}

    def root(label: str) -> str:
        while above[label] != label:
            label = above[label]
        return label

    for label, first in zip(labels, families(rows, NEAR_DUPLICATE), strict=True):
        above[root(label)] = root(labels[first])
    return {label: root(label) for label in above}


def reported(suite: Suite, run: Path) -> Suite:
    """The suite without the membership texts that steered the run's adapter.

    Raises:
        DataError: None is left.
    """
    documents = suite.documents
    calibration = read_calibration(run)
    if documents is None or calibration is None:
        return suite
    given = zip((documents.members, documents.nonmembers), documents.labels, strict=True)
    sides, labels = zip(*(_left(*side, calibration) for side in given), strict=True)
    if not all(sides):
        raise DataError(f"--adapter {run}: every membership text steered it: none is left to report on")
    note = (
        f"Membership is reported on the {len(sides[0])} and {len(sides[1])} texts that did not steer the "
        f"adapter (of {len(documents.members)} and {len(documents.nonmembers)})."
    )
    kept = replace(documents, members=sides[0], nonmembers=sides[1], labels=labels)
    sets = tuple(_left_rows(rows, calibration) if rows.name == HOLDOUT else rows for rows in suite.sets)
    notes = (*suite.not_measured, note)
    return replace(suite, sets=sets, documents=kept, not_measured=notes, given=suite.fingerprints())


def _left(
    examples: Sequence[Example], labels: Sequence[str], calibration: dict[str, Any]
) -> tuple[list[Example], list[str]]:
    """The rows that steered nothing; an id that the data repeats has the number that it has among all rows."""
    given = [*map(whole, examples)]  # of which a part may be asked
    known = set(map(id, without_selection(given, calibration)))
    names = numbered(example.id for example in examples)
    left = [i for i, example in enumerate(given) if id(example) in known]
    return [replace(examples[i], id=names[i]) for i in left], [labels[i] for i in left]


def _left_rows(rows: RowSet, calibration: dict[str, Any]) -> RowSet:
    """The rows of a set that steered nothing."""
    examples, documents = _left(rows.examples, rows.documents, calibration)
    return replace(rows, examples=examples, documents=documents)
