"""What is measured on: the bundled subject with the official split, or random OLMo models with its lengths.

`python -m bench.workload` rewrites lengths.json, which stands in where the data folder beside the project is absent.
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, OlmoConfig, PreTrainedTokenizerFast

from expunge.data.lume import read_lume
from expunge.data.tokenize import PromptFormat, TokenizedExample, tokenize_all
from expunge.model.load import LoadedModel, load_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared"
SUBJECT = SHARED / "subjects" / "olmo-5m-validation"
SEMEVAL = SHARED / "data" / "semeval"
SUMMARY = Path(__file__).with_name("lengths.json")
QUANTILES = 32

SHAPES = {  # hidden, layers, heads, MLP, vocabulary, tied head
    "olmo-tiny": (64, 2, 4, 128, 512, True),
    "olmo-100m": (768, 12, 12, 3072, 50304, True),
    "olmo-1b": (2048, 16, 16, 8192, 50304, True),
    "olmo-7b": (4096, 32, 32, 11008, 50304, False),
}
Sides = dict[str, list[TokenizedExample]]
"""`forget` and `retain` rows."""


def olmo_config(shape: str) -> OlmoConfig:
    """The configuration of one of `SHAPES`."""
    hidden, layers, heads, mlp, vocab, tied = SHAPES[shape]
    return OlmoConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp,
        vocab_size=vocab, tie_word_embeddings=tied, max_position_embeddings=2048, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip


def one_word() -> PreTrainedTokenizerFast:
    """A tokenizer of one word, for models that are given token ids."""
    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@contextmanager
def random_model(shape: str) -> Iterator[str]:
    """A model folder with random weights in one of `SHAPES` and a tokenizer of one word, while the context lasts."""
    torch.manual_seed(0)
    with TemporaryDirectory(prefix="bench-") as folder:
        AutoModelForCausalLM.from_config(olmo_config(shape), dtype=torch.float32).save_pretrained(folder)
        one_word().save_pretrained(folder)
        yield folder


def subject_rows(split: str) -> Sides:
    """The official split as the subject was trained on it."""
    data, tokenizer, prompt_format = read_lume(SEMEVAL, split), load_tokenizer(str(SUBJECT)), PromptFormat("none", True)
    return {
        side: tokenize_all(tokenizer, rows, prompt_format, max_length=1024)
        for side, rows in (("forget", data.forget), ("retain", data.retain))
    }


def random_rows(split: str, vocab_size: int) -> Sides:
    """Random token ids in rows of the official split's lengths, in tokens of the subject's tokenizer."""
    rng = random.Random(f"ids {split}")
    return {
        side: [
            TokenizedExample(f"{side}-{number}", [rng.randrange(vocab_size) for _ in range(total)], start)
            for number, (total, start) in enumerate(pairs)
        ]
        for side, pairs in official_lengths(split).items()
    }


@cache
def official_lengths(split: str) -> dict[str, list[tuple[int, int]]]:
    """Tokens and completion start of each row of both sides; drawn from lengths.json where there is no data folder."""
    if SUBJECT.is_dir() and SEMEVAL.is_dir():
        return {side: [(len(row), row.completion_start) for row in rows] for side, rows in subject_rows(split).items()}
    summary = json.loads(SUMMARY.read_text())[split]
    return {side: _draw(**values) for side, values in summary.items()}


def rows_for(loaded: LoadedModel, split: str, *, copies: int = 1) -> Sides:
    """The rows that belong to a model: the official ones for the subject, random ones for all others."""
    is_subject = Path(loaded.base.name_or_path or "") == SUBJECT
    sides = subject_rows(split) if is_subject else random_rows(split, loaded.base.config.vocab_size)
    return {side: rows * copies for side, rows in sides.items()}


def _draw(rows: int, lengths: Sequence[float], prompt_share: Sequence[float]) -> list[tuple[int, int]]:
    """Rows spread evenly over the quantiles of `lengths`, straight lines between them."""
    drawn = []
    for number in range(rows):
        place = (number + 0.5) / rows * (len(lengths) - 1)
        low = int(place)
        total = max(3, round(lengths[low] + (place - low) * (lengths[low + 1] - lengths[low])))
        drawn.append((total, min(total - 1, max(1, round(total * prompt_share[low])))))
    return drawn


def _summarize(pairs: Sequence[tuple[int, int]]) -> dict[str, object]:
    """Number of rows, quantiles of their lengths, and the prompt's mean share between two quantiles."""
    pairs = sorted(pairs)
    edges = [round(part * (len(pairs) - 1) / QUANTILES) for part in range(QUANTILES + 1)]
    shares = []
    for low, high in pairwise(edges):
        stretch = pairs[low : high + 1]
        shares.append(round(sum(start for _, start in stretch) / sum(total for total, _ in stretch), 3))
    return {"rows": len(pairs), "lengths": [pairs[edge][0] for edge in edges], "prompt_share": shares}


if __name__ == "__main__":
    found = {split: official_lengths(split) for split in ("train", "validation")}
    SUMMARY.write_text(
        json.dumps({split: {s: _summarize(p) for s, p in sides.items()} for split, sides in found.items()}) + "\n"
    )
