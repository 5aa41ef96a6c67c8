"""Your own files: texts that must be forgotten, texts that must be kept, and texts like the former, never seen."""

from expunge.config import EvaluateConfig
from expunge.data.examples import Example, parse_columns, read_examples
from expunge.data.holdout import check_unseen
from expunge.evaluation.benchmarks.measurement import document_of
from expunge.evaluation.benchmarks.suite import FORCED, SAID, Documents, RowSet, Suite


def read(config: EvaluateConfig) -> Suite:
    """The files; whatever they allow is measured, and the rest is said."""
    columns = parse_columns(config.columns) if config.columns else None
    files = {name: getattr(config, name) for name in ("forget", "retain", "holdout")}
    read = {name: read_examples(file, columns=columns) for name, file in files.items() if file}
    missing = []
    if "retain" not in read:
        missing.append("No retain set was given (--retain): whether the rest is kept was not measured.")
    documents = None
    if "holdout" in read:
        check_unseen(files["holdout"], read["forget"], read["holdout"])
        documents = Documents(read["forget"], read["holdout"], names=("forget", "holdout"), even=True)
    else:
        missing.append("No unseen texts were given (--holdout): no membership attack was run.")
    sets = tuple(_rows(name, read[name]) for name in ("forget", "retain") if name in read)
    return Suite(sets, documents, not_measured=tuple(missing))


def _rows(name: str, examples: list[Example]) -> RowSet:
    metrics = (*FORCED, *SAID, *(["fluency"] if name == "forget" else []))
    # LUME's kinds come with its ids, and only these say which rows are about one document.
    documents = [document_of(example.id) if example.kind else example.id for example in examples]
    return RowSet(name, examples, documents, metrics)
