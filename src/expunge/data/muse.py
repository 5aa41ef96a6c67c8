"""A folder of the MUSE benchmark (Shi et al. 2024, 2407.06460) to examples.

The folder holds a corpus, `news` or `books`, as the benchmark's `load_data.py` writes it:

    <corpus>/verbmem/forget.json          prompt, gt: a passage and how it goes on
    <corpus>/knowmem/forget_qa.json       question, answer   (and retain_qa.json)
    <corpus>/knowmem/forget_qa_icl.json   question, answer: what comes before each question   (and retain_qa_icl.json)
    <corpus>/privleak/forget.json         whole texts   (and retain.json, holdout.json)

A list of strings, a list of objects, one object a line (.jsonl) or .parquet, as the data sets' own files are, are all
read; a file of the data set's configurations (`knowmem/forget_qa-00000-of-00001.parquet`) counts too.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from expunge.data.examples import Example, text_cell
from expunge.data.readers import read_rows
from expunge.errors import DataError

CORPORA = ("news", "books")
SUFFIXES = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class MuseData:
    """What MUSE measures on.

    Attributes:
        verbmem: Passages to forget (prompt) and how they go on (completion).
        forget_qa: Questions on the forget set, each behind its few-shot examples, ready to be continued.
        retain_qa: The same on the retain set.
        forget: Texts of the forget set, without a prompt.
        retain: Texts of the retain set.
        holdout: Texts that the model has never seen.
    """

    verbmem: list[Example]
    forget_qa: list[Example]
    retain_qa: list[Example]
    forget: list[Example]
    retain: list[Example]
    holdout: list[Example]


def read_muse(folder: str | Path, corpus: str = "news") -> MuseData:
    """Read one corpus; `folder` holds it, or is it.

    Raises:
        DataError: No such folder, corpus or file, or a row cannot be used.
    """
    if corpus not in CORPORA:
        raise DataError(f"--split {corpus}: MUSE has the corpora {', '.join(CORPORA)}")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that holds MUSE's {corpus}")
    root = folder / corpus if (folder / corpus).is_dir() else folder
    wanted = {
        "verbmem": ("verbmem/forget", "prompt", "gt"),
        "forget_qa": ("knowmem/forget_qa", "question", "answer"),
        "retain_qa": ("knowmem/retain_qa", "question", "answer"),
        "forget_icl": ("knowmem/forget_qa_icl", "question", "answer"),
        "retain_icl": ("knowmem/retain_qa_icl", "question", "answer"),
        "forget": ("privleak/forget", None, "text"),
        "retain": ("privleak/retain", None, "text"),
        "holdout": ("privleak/holdout", None, "text"),
    }
    files = {name: _find(root, stem) for name, (stem, _, _) in wanted.items()}
    missing = [wanted[name][0] + ".json" for name, path in files.items() if path is None]
    if missing:
        raise DataError(f"{root}: has no {', no '.join(missing)}: add the files of MUSE's {corpus}")
    rows = {name: _read(path, *wanted[name]) for name, path in files.items() if path is not None}
    return MuseData(
        rows["verbmem"],
        few_shot(rows["forget_qa"], rows["forget_icl"]),
        few_shot(rows["retain_qa"], rows["retain_icl"]),
        rows["forget"],
        rows["retain"],
        rows["holdout"],
    )


def few_shot(rows: list[Example], shots: list[Example]) -> list[Example]:
    """Each question as the benchmark asks it: answered ones first, then `Question: ...`, then `Answer: `."""
    before = "".join(f"Question: {shot.prompt}\nAnswer: {shot.completion}\n\n" for shot in shots)
    return [replace(row, prompt=f"{before}Question: {row.prompt}\nAnswer: ") for row in rows]


def _find(root: Path, stem: str) -> Path | None:
    own = [root / f"{stem}{suffix}" for suffix in SUFFIXES]
    if found := next((path for path in own if path.is_file()), None):
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
