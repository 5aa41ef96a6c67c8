"""Sampling draws from the model's own distribution, whatever the rows are batched with."""

import random
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from expunge.data.examples import Example
from expunge.data.tokenize import TokenizedExample
from expunge.evaluation import generate as generation
from expunge.evaluation.generate import generate, greedy, sample
from expunge.model.decoding import batching_obstacle
from expunge.model.head import find_head
from expunge.model.load import LoadedModel
from expunge.model.replay import write_texts
from expunge.model.source import Source
from tiny import tiny_model, tiny_tokenizer

OWN_SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 1},
    {"do_sample": True, "min_p": 0.5, "temperature": 0.3, "top_k": 2, "top_p": 0.4},
    {"typical_p": 0.3},
    {"epsilon_cutoff": 0.2, "eta_cutoff": 0.2},
    {"suppress_tokens": list(range(3, 300, 2))},
    {"num_beams": 3},
    {"num_return_sequences": 2, "do_sample": True},
    {"min_new_tokens": 12},
    {"sequence_bias": [[[70], 50.0]]},
    {"eos_token_id": list(range(3, 200))},
    {"return_dict_in_generate": True},
    {"max_time": 1e-6},
]
"""What a model's `generation_config.json` may ask for."""


def loaded(arch: str = "llama") -> LoadedModel:
    tokenizer = tiny_tokenizer("bytelevel")
    model = tiny_model(arch, vocab_size=len(tokenizer) + 3)
    return LoadedModel(model, tokenizer, find_head(model)[0], torch.float32, Source("tiny", "tiny"))


def test_the_first_token_has_the_models_distribution() -> None:
    model = loaded()
    prompt = model.tokenizer("Marta Quillon")["input_ids"]
    drawn = sample(model, [prompt] * 4000, max_new_tokens=1, temperature=0.7, seed=3)
    with torch.no_grad():
        logits = model.model(torch.tensor([prompt])).logits[0, -1]
    want = (logits / 0.7).softmax(-1)
    got = torch.bincount(torch.tensor([tokens[0] for tokens in drawn]), minlength=len(want)) / 4000
    assert (got - want).abs().max() < 0.03  # the standard error of a share of 4,000 is at most 0.008
    assert want.max() > 0.05


def test_the_second_token_depends_on_the_first() -> None:
    model = loaded()
    prompt = model.tokenizer("Marta Quillon")["input_ids"]
    drawn = sample(model, [prompt] * 3000, max_new_tokens=2, seed=5)
    first = max({tokens[0] for tokens in drawn}, key=lambda token: sum(tokens[0] == token for tokens in drawn))
    second = torch.tensor([tokens[1] for tokens in drawn if tokens[0] == first and len(tokens) == 2])
    with torch.no_grad():
        want = model.model(torch.tensor([[*prompt, first]])).logits[0, -1].softmax(-1)
    got = torch.bincount(second, minlength=len(want)) / len(second)
    assert (got - want).abs().max() < 4 * (0.25 / len(second)) ** 0.5


def test_one_seed_one_result_and_a_cold_sample_is_greedy() -> None:
    model = loaded()
    prompts = [model.tokenizer(text)["input_ids"] for text in ("Marta", "Her phone number is", "Once")]
    assert sample(model, prompts, seed=1, max_new_tokens=9) == sample(model, prompts, seed=1, max_new_tokens=9)
    assert sample(model, prompts, seed=1, max_new_tokens=9) != sample(model, prompts, seed=2, max_new_tokens=9)
    assert sample(model, prompts, temperature=1e-4, max_new_tokens=9) == greedy(model, prompts, max_new_tokens=9)


def test_draws_of_a_row_follow_each_other() -> None:
    model = loaded()
    rows = [Example("a", "Marta", "x"), Example("b", "Her phone number is", "x")]
    said = generate(
        model,
        rows,
        "forget",
        encode_prompt=lambda row: model.tokenizer(row.prompt)["input_ids"],
        samples=3,
        max_new_tokens=4,
    )
    assert [answer.prompt for answer in said] == [
        model.tokenizer(row.prompt)["input_ids"] for row in rows for _ in range(3)
    ]
    assert all(1 <= len(answer.tokens) <= 4 for answer in said)


def test_draws_share_one_reading_of_their_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = loaded(), []
    prompts = [model.tokenizer(text)["input_ids"] for text in ("Marta", "Her phone number is")]
    one_by_one = [sample(model, [prompt], max_new_tokens=1, temperature=1e-4)[0] for prompt in prompts]
    pad = generation.pad_right
    monkeypatch.setattr(generation, "pad_right", lambda rows, device: read.append(len(rows)) or pad(rows, device))
    drawn = sample(model, [prompt for prompt in prompts for _ in range(20)], seed=4, max_new_tokens=6)
    assert sum(read) < 2 * len(prompts)  # by a pass
    assert len({*map(tuple, drawn[:20])}) > 10
    cold = sample(model, [prompt for prompt in prompts for _ in range(3)], max_new_tokens=1, temperature=1e-4)
    assert cold == [tokens for tokens in one_by_one for _ in range(3)]


def rows(count: int) -> list[TokenizedExample]:
    chance = random.Random(4)
    return [TokenizedExample(f"r{i}", [chance.randrange(3, 90) for _ in range(12)], 4) for i in range(count)]


@pytest.fixture(scope="module")
def replay_texts() -> list[TokenizedExample]:
    """What the tiny Llama writes by itself."""
    return write_texts(loaded(), rows(6)[:3], rows(6)[3:], tokens=300, seed=1)


@pytest.mark.parametrize("settings", OWN_SETTINGS, ids=lambda settings: min(settings))
def test_replay_texts_do_not_depend_on_the_models_own_generation_settings(
    settings: dict[str, Any], replay_texts: list[TokenizedExample]
) -> None:
    model = loaded()
    config = model.base.generation_config = GenerationConfig(**settings)
    assert write_texts(model, rows(6)[:3], rows(6)[3:], tokens=300, seed=1) == replay_texts
    assert model.base.generation_config is config


def recurrent() -> LoadedModel:
    """A model that is decoded one row at a time."""
    sizes = {"vocab_size": 131, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MambaForCausalLM(MambaConfig(**sizes, eos_token_id=0, bos_token_id=1, pad_token_id=0)).eval()
        for parameter in model.parameters():
            parameter.data.mul_(4 if parameter.dim() == 2 else 1)
    return LoadedModel(model, tiny_tokenizer("bytelevel"), find_head(model)[0], torch.float32, Source("tiny", "tiny"))


@pytest.mark.parametrize("settings", OWN_SETTINGS, ids=lambda settings: min(settings))
def test_one_at_a_time_is_the_plain_argmax_whatever_the_models_own_settings(settings: dict[str, Any]) -> None:
    model = recurrent()
    assert batching_obstacle(model.base)
    prompt = [11, 12, 13]
    model.base.generation_config = GenerationConfig(eos_token_id=0)
    drawn = sample(model, [prompt], seed=1, max_new_tokens=9)
    want = list(prompt)
    with torch.no_grad():
        while len(want) < 12:
            want.append(int(model.base(torch.tensor([want])).logits[0, -1].argmax()))
    assert len({*want}) < len(want), "a penalty on what was said must have something to bite on"

    model.base.generation_config = GenerationConfig(**{"eos_token_id": 0, **settings, "bos_token_id": 1})
    stops = {*settings.get("eos_token_id", [])}
    assert greedy(model, [prompt], max_new_tokens=9)[0] == until(want[3:], stops)
    assert sample(model, [prompt], seed=1, max_new_tokens=9)[0] == until(drawn[0], stops)


def until(tokens: list[int], stops: set[int]) -> list[int]:
    """Tokens up to the first stop, which is part of it."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens)) + 1]
