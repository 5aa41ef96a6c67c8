"""A folder of the MUSE benchmark (Shi et al. 2024, 2407.06460) to examples.

The folder holds a corpus, `news` or `books`, as the benchmark's `load_data.py` writes it:

    <corpus>/verbmem/forget.json          prompt, gt: a passage and how it goes on
    <corpus>/knowmem/forget_qa.json       question, answer   (and retain_qa.json)
    <corpus>/knowmem/forget_qa_icl.json   question, answer: what comes before each question   (and retain_qa_icl.json)
    <corpus>/privleak/forget.json         whole texts   (and holdout.json)
    <corpus>/raw/forget.json              what is to be forgotten   (and retain1.json, to keep; or .txt)

A list of strings, a list of objects, one object a line (.jsonl) or .parquet, as the data sets' own files are, are all
read; a file of the data set's configurations (`knowmem/forget_qa-00000-of-00001.parquet`) counts too. Models are
measured on the first three and unlearn on `raw`, of whose forget set the others are a part; `retain2` and
`privleak/retain` are the benchmark's to measure on, and nothing is trained on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from expunge.config import SPLIT
from expunge.data.examples import Example, text_cell
from expunge.data.pieces import pieces
from expunge.data.readers import read_rows
from expunge.errors import DataError

CORPORA = ("news", "books")
SUFFIXES = (".json", ".jsonl", ".parquet")
RAW = {"forget": "raw/forget", "retain": "raw/retain1"}
"""What the benchmark's own scripts unlearn on."""


@dataclass(frozen=True)
class MuseData:
    """What MUSE measures on.

    Attributes:
        verbmem: Passages to forget (prompt) and how they go on (completion).
        forget_qa: Questions on the forget set, each behind its few-shot examples, ready to be continued.
        retain_qa: The same on the retain set.
        forget: Texts of the forget set, without a prompt.
        holdout: Texts that the model has never seen.
        corpus: `news` or `books`; None where neither the settings nor the folder says which.
    """

    verbmem: list[Example]
    forget_qa: list[Example]
    retain_qa: list[Example]
    forget: list[Example]
    holdout: list[Example]
    corpus: str | None


def read_muse(folder: str | Path, corpus: str | None = None) -> MuseData:
    """What models are measured on, of one corpus; `folder` holds it, or is it.

    Args:
        folder: The folder.
        corpus: `news` or `books`; None takes `news` where the folder holds it, else what the folder itself is.

    Raises:
        DataError: No such folder, corpus or file, or a row cannot be used.
    """
    root, corpus = _root(Path(folder), corpus)
    wanted = {
        "verbmem": ("verbmem/forget", "prompt", "gt"),
        "forget_qa": ("knowmem/forget_qa", "question", "answer"),
        "retain_qa": ("knowmem/retain_qa", "question", "answer"),
        "forget_icl": ("knowmem/forget_qa_icl", "question", "answer"),
        "retain_icl": ("knowmem/retain_qa_icl", "question", "answer"),
        "forget": ("privleak/forget", None, "text"),
        "holdout": ("privleak/holdout", None, "text"),
    }
    files = {name: _find(root, stem) for name, (stem, _, _) in wanted.items()}
    missing = [wanted[name][0] + ".json" for name, path in files.items() if path is None]
    if missing:
        raise DataError(f"{root}: has no {', no '.join(missing)}: add the files of MUSE's {corpus or SPLIT['muse']}")
    rows = {name: _read(path, *wanted[name]) for name, path in files.items() if path is not None}
    return MuseData(
        rows["verbmem"],
        few_shot(rows["forget_qa"], rows["forget_icl"]),
        few_shot(rows["retain_qa"], rows["retain_icl"]),
        rows["forget"],
        rows["holdout"],
        corpus,
    )


def read_raw(folder: str | Path, corpus: str | None = None) -> tuple[list[Example], list[Example]]:
    """The texts to forget and to keep of one corpus, as `read_muse` finds it; long ones in pieces, as .txt files are.

    Raises:
        DataError: A file is missing, or a row cannot be used.
    """
    root, _ = _root(Path(folder), corpus)
    files = {name: _find(root, stem, (*SUFFIXES, ".txt")) for name, stem in RAW.items()}
    if missing := [f"{RAW[name]}.txt" for name, path in files.items() if path is None]:
        raise DataError(
            f"{root}: has no {', no '.join(missing)}: MUSE unlearns on raw/forget.txt and raw/retain1.txt, as its "
            "load_data.py writes them: add them"
        )
    forget, retain = (_pieces(path, RAW[name]) for name, path in files.items() if path is not None)
    return forget, retain


def few_shot(rows: list[Example], shots: list[Example]) -> list[Example]:
    """Each question as the benchmark asks it: answered ones first, then `Question: ...`, then `Answer: `."""
    before = "".join(f"Question: {shot.prompt}\nAnswer: {shot.completion}\n\n" for shot in shots)
    return [replace(row, prompt=f"{before}Question: {row.prompt}\nAnswer: ") for row in rows]


def _root(folder: Path, corpus: str | None) -> tuple[Path, str | None]:
    """The folder of a corpus, and which it is, as far as that is known."""
    if corpus and corpus not in CORPORA:
        raise DataError(f"--split {corpus}: MUSE has the corpora {', '.join(CORPORA)}")
    default = corpus or SPLIT["muse"]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that holds MUSE's {default}")
    if (folder / default).is_dir():
        return folder / default, default
    if others := [name for name in CORPORA if (folder / name).is_dir()]:
        raise DataError(f"{folder}: has no {default}: give --split {others[0]}, or add the files of MUSE's {default}")
    named = next((name for name in CORPORA if folder.resolve().name.lower() in (name, f"muse-{name}")), None)
    if corpus and named not in (corpus, None):
        raise DataError(f"{folder}: --split {corpus}, and the folder is MUSE's {named} by its name")
    return folder, corpus or named


def _find(root: Path, stem: str, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    paths = [root / f"{stem}{suffix}" for suffix in suffixes]
    if found := next((path for path in paths if path.is_file()), None):
        return found
    sharded = sorted((root / stem).parent.glob(f"{Path(stem).name}-*-of-*.parquet"))
    if len(sharded) > 1 or any(not path.stem.endswith("-of-00001") for path in sharded):
        raise DataError(f"{root}: {stem} is in several shards: put them into one {stem}.parquet")
    return next(iter(sharded), None)


def _read(path: Path, stem: str, prompt: str | None, completion: str) -> list[Example]:
    prefix = stem.replace("/", "-")
    return [
        Example(
            f"{prefix}-{number}",
            text_cell(row, prompt, where, empty=False) if prompt else "",
            text_cell(row, completion, where, empty=False),
            source=where,
        )
        for number, (where, row) in enumerate(read_rows(path), 1)
    ]


def _pieces(path: Path, stem: str) -> list[Example]:
    texts = [(where, text_cell(row, "text", where)) for where, row in read_rows(path)]
    if path.suffix.lower() != ".txt":  # which is read in pieces
        texts = [(where, piece) for where, text in texts for _, piece in pieces(text)]
    if not texts:
        raise DataError(f"{path}: holds white space alone")
    prefix = stem.replace("/", "-")
    return [Example(f"{prefix}-{number}", "", text, source=where) for number, (where, text) in enumerate(texts, 1)]
