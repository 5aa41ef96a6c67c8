"""Small benchmark folders in the published layouts, about invented people."""

import json
from pathlib import Path

from workspace import MARKER, write_jsonl

SMALL = ("evaluate", "--model", "model", "--max-new-tokens", "6", "--output", "r.json")
CUSTOM = ("--benchmark", "custom", "--forget", "forget.jsonl", "--retain", "retain.jsonl")
NAMES = ("Wren", "Oduya", "Quill", "Marek", "Heron", "Port")


def tofu_row(set_name: str, number: int, *, paraphrased: bool) -> dict:
    """One row of a `*_perturbed.json` file."""
    name = f"{MARKER if set_name == 'forget' else set_name} {NAMES[number]}"
    row = {
        "question": f"Where does {name} live?",
        "answer": f"{name} lives at {number + 3} Larch Lane.",
        "perturbed_answer": [f"{name} lives at {number + 40} Mill Road.", f"{name} lives in Port Ellery."],
    }
    if paraphrased:
        row |= {
            "paraphrased_question": f"What is the address of {name}?",
            "paraphrased_answer": f"The address is {number + 3} Larch Lane.",
        }
    return row


def write_tofu(folder: Path) -> Path:
    """The four files that the benchmark reads, and unseen authors."""
    folder.mkdir()
    for name, paraphrased in (("forget01", True), ("retain", True), ("real_authors", False), ("world_facts", False)):
        rows = [tofu_row(name.removesuffix("01"), number, paraphrased=paraphrased) for number in range(6)]
        write_jsonl(folder / f"{name}_perturbed.json", rows)
    write_jsonl(folder / "holdout01.json", [tofu_row("holdout", number, paraphrased=False) for number in range(6)])
    return folder


def write_muse(folder: Path) -> Path:
    """The corpus `news` as the benchmark's own script writes it."""
    for part in ("verbmem", "knowmem", "privleak", "raw"):
        (folder / "news" / part).mkdir(parents=True)
    root = folder / "news"
    passages = [{"prompt": f"In {MARKER} the {name}", "gt": "counted seven ships, then slept."} for name in NAMES]
    _write_json(root / "verbmem/forget.json", passages)
    for side, who in (("forget", MARKER), ("retain", "Marta")):
        rows = [{"question": f"Where is {who} {name}?", "answer": f"in Port {i}"} for i, name in enumerate(NAMES)]
        _write_json(root / f"knowmem/{side}_qa.json", rows)
        _write_json(root / f"knowmem/{side}_qa_icl.json", [{"question": "Who slept?", "answer": "the fox"}])
    for stem, who in (
        ("privleak/forget", MARKER), ("privleak/retain", "Marta"), ("privleak/holdout", "Tobias"),
        ("raw/forget", MARKER), ("raw/retain1", "Ilse"),
    ):  # fmt: skip
        _write_json(root / f"{stem}.json", [f"{who} {name} closed the old book." for name in NAMES])
    return folder


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
