"""Sampling draws from the model's own distribution, whatever the rows are batched with."""

import torch

from expunge.data.examples import Example
from expunge.evaluate.generate import generate, greedy, sample
from expunge.kernels import Head
from expunge.model.head import find_head
from expunge.model.load import LoadedModel
from tiny import tiny_model, tiny_tokenizer


def loaded(arch: str = "llama") -> LoadedModel:
    tokenizer = tiny_tokenizer("bytelevel")
    model = tiny_model(arch, vocab_size=len(tokenizer) + 3)
    head, plain = find_head(model)
    assert isinstance(head, Head)
    return LoadedModel(model, tokenizer, head, torch.float32, plain)


def test_the_first_token_has_the_models_distribution() -> None:
    model = loaded()
    prompt = model.tokenizer("Marta Quillon")["input_ids"]
    drawn = sample(model, [prompt] * 4000, max_new_tokens=1, temperature=0.7, seed=3)
    with torch.no_grad():
        logits = model.model(torch.tensor([prompt])).logits[0, -1]
    want = (logits / 0.7).softmax(-1)
    got = torch.bincount(torch.tensor([own[0] for own in drawn]), minlength=len(want)) / 4000
    assert (got - want).abs().max() < 0.03  # the standard error of a share of 4,000 is at most 0.008
    assert want.max() > 0.05


def test_the_second_token_depends_on_the_first() -> None:
    model = loaded()
    prompt = model.tokenizer("Marta Quillon")["input_ids"]
    drawn = sample(model, [prompt] * 3000, max_new_tokens=2, seed=5)
    first = max({own[0] for own in drawn}, key=lambda token: sum(own[0] == token for own in drawn))
    second = torch.tensor([own[1] for own in drawn if own[0] == first and len(own) == 2])
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
    assert [own.prompt for own in said] == [model.tokenizer(row.prompt)["input_ids"] for row in rows for _ in range(3)]
    assert all(1 <= len(own.tokens) <= 4 for own in said)
