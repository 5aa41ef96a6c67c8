"""`python -m experiments.contexts --data FOLDER --model MODEL [--adapter RUN/adapter]`: what is forgotten, where else is it known?

FOLDER holds member.jsonl and nonmember.jsonl (whole documents, as `experiments.real` and the demo's assets have them) and
retain.jsonl. Each document is read as it stands, in other writings, and after other texts; the table has the mean NLL of
forgotten and unseen documents (nats per token of the document) and the AUC by it: 0.5 where nothing tells them apart.
Several models can be compared: `--model subject retrained`; an adapter belongs to the first. The first half of the unseen
documents, and as many forgotten ones, are read; an unseen text that stands before others is of the second half.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from expunge.data.tokenize import text_ids
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps
from expunge.model.saved import attach_adapter
from expunge.utils.roc import auc

Form = tuple[str, Callable[[str], str]]
"""What stands before a document, and how it is written."""


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = _arguments().parse_args(argv)
    sides = [read(args.data / f"{name}.jsonl") for name in ("member", "nonmember")]
    half = len(sides[1]) // 2
    forms = forms_of(read(args.data / "retain.jsonl")[0], sides[1][half])
    print("| model | documents | forgotten, nats | unseen, nats | AUC |\n|---|---|---:|---:|---:|")
    for number, model in enumerate(args.model):
        loaded = load_model(model, dtype=args.dtype)
        if args.adapter and not number:
            attach_adapter(loaded, args.adapter)
        for name, form in forms.items():
            members, unseen = (nlls(loaded, side[:half], form) for side in sides)
            area = auc([-value for value in members], [-value for value in unseen])
            cells = (f"{fmean(members):.2f}", f"{fmean(unseen):.2f}", f"{area:.2f}")
            print(f"| {Path(model).name} | {name} | {' | '.join(cells)} |", flush=True)


def read(file: Path) -> list[str]:
    """The whole texts of a file."""
    rows = map(json.loads, file.read_text().splitlines())
    return [row.get("document") or f"{row['input']} {row['output']}" for row in rows]


def forms_of(kept: str, unseen: str) -> dict[str, Form]:
    """Name -> form."""
    chat = "<|im_start|>user\nTell me what you know.<|im_end|>\n<|im_start|>assistant\n"
    return {
        "as they stand": ("", str),
        "after an unseen text": (f"{unseen}\n\n", str),
        "after a text to keep": (f"{kept}\n\n", str),
        "after a chat's first turn": (chat, str),
        'after "He said:"': ('He said: "', str),
        "in lower case": ("", str.lower),
        "in capitals": ("", str.upper),
        "without punctuation": ("", lambda text: re.sub(r"[.,;:]", "", text)),
        "with two spaces": ("", lambda text: text.replace(" ", "  ")),
    }


def nlls(loaded: LoadedModel, texts: Sequence[str], form: Form) -> list[float]:
    """Mean NLL of each document's tokens in a form; its first token counts where something stands before it."""
    before = text_ids(loaded.tokenizer, form[0]) if form[0] else []
    rows = []
    for text in texts:
        ids = text_ids(loaded.tokenizer, form[1](text))
        rows.append([*before, *ids[1 if before and ids[0] == loaded.tokenizer.bos_token_id else 0 :]])
    return [-float(logps[max(0, len(before) - 1) :].mean()) for logps in sequence_logps(loaded, rows)]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.contexts", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--adapter", help="of the first model")
    parser.add_argument("--dtype", default="auto")
    return parser


if __name__ == "__main__":
    main()
