"""A tiny model that knows made-up texts by heart."""

import random
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from tiny import TEXTS, save_tokenizer, tiny_model, tiny_tokenizer

WORDS = sorted({word for word in " ".join(TEXTS).split() if word.isalpha() and word.isascii() and len(word) < 7})
Row = dict[str, str]


def made_up(count: int, rng: random.Random) -> list[Row]:
    """Words without sense, as unlikely as others of the same kind until they are learned by heart."""
    return [
        {"prompt": " ".join(rng.choices(WORDS, k=3)), "completion": " ".join(rng.choices(WORDS, k=6))}
        for _ in range(count)
    ]


def teach(folder: Path, rows: list[Row], rng: random.Random, steps: int = 150) -> None:
    """Train a model until it knows `rows` by heart, and texts of their kind as well as these can be guessed."""
    tokenizer = tiny_tokenizer("bytelevel")
    end = tokenizer.eos_token_id
    size = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.06}
    model = tiny_model("llama", vocab_size=len(tokenizer) + 3, eos_token_id=end, **size)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        texts = rng.sample(rows, len(rows) // 2) + made_up(12, rng)
        ids = [[*tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"], end] for row in texts]
        longest = max(map(len, ids))
        inputs = torch.tensor([tokens + [end] * (longest - len(tokens)) for tokens in ids])
        targets = torch.tensor([tokens + [-100] * (longest - len(tokens)) for tokens in ids])
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        cross_entropy(model(inputs).logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(folder)
    save_tokenizer(folder, "bytelevel")
