"""`python -m experiments.taught`: train subjects of other architectures on other data, each with a retrained one.

    python -m experiments.taught --output FOLDER [--subjects llama neox qwen gpt2]

`llama` (grouped heads) knows rows of LUME outside the SemEval validation split, `neox` (GPT-NeoX) questions and answers
of TOFU. `qwen` (Qwen3) and `gpt2` know other rows of the two; no setting of the recipes was chosen on them. Each starts
on texts of the same kind, then reads its forget and retain set until it knows them by heart, and the retrained
model the retain set alone, with as many passes. A subject's folder holds `subject/`, `retrained/` and `data/`
with the forget and retain rows and the documents of the membership attack.
"""

import argparse
import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bench.workload import SEMEVAL, SHARED
from experiments.demo.subject import CONTEXT, train, train_tokenizer
from experiments.real import QUESTIONS, document, text, write
from expunge.data.examples import Example, read_examples
from expunge.data.lume import read_lume
from expunge.data.tokenize import tokenize
from expunge.demo.teach import PROMPT_FORMAT

LEARNING_RATES = (3e-3, 1.5e-3)
"""Peak learning rates of the start and of the passes over the sets."""
PASSES = 60
VOCABULARY = 2048
GROUPS = {"forget": 14, "retain": 20, "unseen": 20}
"""LUME: stories, people and biographies of each set, of each task."""
AUTHORS = {"forget": 10, "retain": 15, "unseen": 10}
"""TOFU: authors of each set, with 20 questions each."""
FREQUENT = 20
"""General texts in each pass."""


@dataclass(frozen=True)
class Sets:
    """The rows of a subject; `general` is for the start, and `unseen` for the attack alone."""

    forget: list[Example]
    retain: list[Example]
    unseen: list[Example]
    general: list[Example]


def lume(seed: int) -> Sets:
    """Whole stories, people and biographies of LUME, none of them of the validation split."""
    official = read_lume(SEMEVAL, "validation")
    used = {document(row) for row in (*official.forget, *official.retain)}
    rng = random.Random(seed)
    left: dict[str, dict[str, list[list[Example]]]] = {}
    for side in ("forget", "retain"):
        rows = read_examples(SHARED / "data" / "lume" / f"{side}.jsonl")
        groups = [list(group) for name, group in groupby(rows, document) if name not in used]
        rng.shuffle(groups)
        left[side] = {
            task: [group for group in groups if group[0].task == task] for task in ("Task1", "Task2", "Task3")
        }
    sets: dict[str, list[Example]] = {}
    for name, side in (("forget", "forget"), ("unseen", "forget"), ("retain", "retain")):
        sets[name] = []
        for groups in left[side].values():
            sets[name] += chain.from_iterable(groups[: GROUPS[name]])
            del groups[: GROUPS[name]]
    general = [row for tasks in left.values() for groups in tasks.values() for group in groups for row in group]
    return Sets(**sets, general=general)


def tofu(seed: int) -> Sets:
    """Authors of TOFU; whole answers are scored by their overlap, so every row counts as a completion."""
    rows = [*_tofu("forget10"), *_tofu("retain90")]
    authors = [rows[at : at + QUESTIONS] for at in range(0, len(rows), QUESTIONS)]
    random.Random(seed).shuffle(authors)
    sets = {}
    for name, count in AUTHORS.items():
        sets[name] = list(chain.from_iterable(authors[:count]))
        del authors[:count]
    return Sets(**sets, general=list(chain.from_iterable(authors)))


def llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """1.2 M parameters, grouped-query attention, tied head."""
    return LlamaForCausalLM(
        LlamaConfig(
            **_common(tokenizer), hidden_size=160, intermediate_size=320, num_hidden_layers=4, num_attention_heads=5,
            num_key_value_heads=1,
        )
    )  # fmt: skip


def neox(tokenizer: PreTrainedTokenizerFast) -> GPTNeoXForCausalLM:
    """1.1 M parameters, fused projections with biases, parallel residual, head of its own."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **_common(tokenizer) | {"tie_word_embeddings": False}, hidden_size=128, intermediate_size=512,
            num_hidden_layers=3, num_attention_heads=4, hidden_dropout=0.0, attention_dropout=0.0,
        )
    )  # fmt: skip


def qwen(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """1.8 M parameters, grouped-query attention with normalised queries and keys, tied head."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            **_common(tokenizer), hidden_size=192, intermediate_size=448, num_hidden_layers=4, num_attention_heads=6,
            num_key_value_heads=2, head_dim=32,
        )
    )  # fmt: skip


def gpt2(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """1.1 M parameters, learned positions, fused projections stored the other way round, tied head."""
    return GPT2LMHeadModel(
        GPT2Config(
            **_common(tokenizer), n_embd=144, n_layer=3, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    )


@dataclass(frozen=True)
class Teaching:
    """How a subject is made: its architecture, what it learns, and what is added to the seed that draws the rows."""

    architecture: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    read: Callable[[int], Sets]
    other_rows: int = 0


SUBJECTS = {
    "llama": Teaching(llama, lume),
    "neox": Teaching(neox, tofu),
    "qwen": Teaching(qwen, lume, other_rows=1),
    "gpt2": Teaching(gpt2, tofu, other_rows=1),
}


def make(name: str, folder: Path, seed: int) -> None:
    """Train one subject and its retrained model, and write their data."""
    teaching = SUBJECTS[name]
    sets = teaching.read(seed + teaching.other_rows)
    sides = {"member": sets.forget, "nonmember": sets.unseen}
    longer = {name: [row for row in rows if row.kind == "sc" and row.task != "Task2"] for name, rows in sides.items()}
    write({"forget": sets.forget, "retain": sets.retain, **longer}, folder / "data")
    tokenizer = train_tokenizer((text(row) for row in chain(sets.general, sets.retain, sets.forget)), VOCABULARY)
    start = begin(name, sets, tokenizer, seed)
    for kind, rows in (("subject", sets.forget + sets.retain), ("retrained", sets.retain)):
        learn(copy.deepcopy(start), rows, sets, tokenizer, seed, f"{name} {kind}").save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)


def retrain(name: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A retrained model of the subject that `make` makes with seed 0, with other first weights and another order of the texts."""
    teaching = SUBJECTS[name]
    sets = teaching.read(teaching.other_rows)
    return learn(begin(name, sets, tokenizer, seed), sets.retain, sets, tokenizer, seed, f"{name} retrained {seed}")


def begin(name: str, sets: Sets, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """The model of which subject and retrained model are made: it has read texts of the same kind."""
    torch.manual_seed(seed)
    model = SUBJECTS[name].architecture(tokenizer)
    train(model, [_encode(tokenizer, sets.general)] * 2, LEARNING_RATES[0], seed, f"{name} start")
    return model


def learn(
    model: PreTrainedModel,
    rows: list[Example],
    sets: Sets,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    label: str,
) -> PreTrainedModel:
    """The model, changed in place: it knows `rows` by heart."""
    known, general, rng = _encode(tokenizer, rows), _encode(tokenizer, sets.general), random.Random(seed)
    passes = [known + rng.sample(general, FREQUENT) for _ in range(PASSES)]
    train(model, passes, LEARNING_RATES[1], seed, label)
    return model


def _tofu(name: str) -> list[Example]:
    rows = read_examples(SHARED / "data" / "tofu" / f"{name}.json")
    return [replace(row, id=f"{name}-{at}sc1", task="Task1", kind="sc") for at, row in enumerate(rows)]


def _encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Example]) -> list[list[int]]:
    return [
        tokenize(tokenizer, row, PROMPT_FORMAT, max_length=CONTEXT, truncate_completions=True).input_ids for row in rows
    ]


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def main() -> None:
    """Make what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m experiments.taught", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of all subjects")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.subjects:
        if not (args.output / name / "retrained").is_dir():
            make(name, args.output / name, args.seed)


if __name__ == "__main__":
    main()
