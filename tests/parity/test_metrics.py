"""Every metric equals the published numbers, and where those depart from the definition ours follows the definition."""

import math

import numpy as np
import pytest
import torch

from dev.parity import ORIGINS, published
from dev.parity.golden import MODELS, Golden
from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, TokenizedExample, tokenize
from expunge.evaluation.gradients import gradient_norms
from expunge.evaluation.metrics import attacks
from expunge.evaluation.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    mean_nll,
    perplexity,
    probability,
)
from expunge.evaluation.metrics.truth_ratio import truth_ratio
from expunge.model.adapter import add_adapter
from expunge.model.load import load_model
from tiny import save_tiny

COVERED = {
    "open-unlearning": {
        *("mean_nll", "probability", "exact_memorization", "extraction_strength", "token log-probability"),
        *("truth_ratio", "forget_truth_ratio", "retain_truth_ratio", "truth_probability", "normalized_probability"),
        *("model_utility", "forget_quality", "privleak", "auc"),
        *("loss", "zlib", "min_k", "min_k_plus_plus", "gradient_norm", "reference"),
        *("generated text", "rouge_1_recall", "rouge_l_recall", "rouge_l_f1"),
    },
    "MUSE": {
        *("verbatim_memorization", "knowledge_memorization", "loss", "lowercase", "zlib", "min_k", "auc", "privleak"),
        *("generated text", "prompt", "rouge_1_recall", "rouge_1_f1", "rouge_l_recall", "rouge_l_f1"),
    },
    "TOFU": {
        *("mean_nll", "probability", "truth_ratio", "forget_truth_ratio", "retain_truth_ratio"),
        *("normalized_probability", "rouge_1_recall", "rouge_l_recall", "generated text", "tokenization"),
        *("model_utility", "forget_quality"),
    },
    "SemEval-2025 Task 4": {"mean_nll", "rouge_l_recall", "exact_match", "auc", "harmonic_mean"},
    "number-level vectors": {
        *("truth_ratio", "forget_truth_ratio", "retain_truth_ratio", "truth_probability", "normalized_probability"),
        *("forget_quality", "harmonic_mean", "model_utility", "privleak", "auc", "zlib"),
        *("min_k", "min_k_plus_plus", "exact_memorization", "extraction_strength", "mean_nll", "probability"),
        *("rouge_1_recall", "rouge_1_f1", "rouge_l_recall", "rouge_l_f1"),
    },
}
"""What the numbers of each origin must have been compared with."""


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared / "golden")


@pytest.mark.parametrize("origin", ORIGINS)
def test_published_numbers(golden, origin):
    found = list(ORIGINS[origin](golden))
    assert {comparison.metric for comparison in found} == COVERED[origin]
    assert [comparison for comparison in found if not comparison.agrees] == []


@pytest.fixture(scope="module", params=MODELS)
def subject(request, golden) -> tuple:
    """A model, some rows, and their logits `(targets, vocab)` in fp64 with labels, from the model itself."""
    loaded = golden.models[request.param]
    rows = [
        tokenize(
            loaded.tokenizer,
            Example(row["id"], row["prompt"], f" {row['text']}"),
            PromptFormat("none", True),
            max_length=512,
        )
        for row in golden.data["completion"]["forget"][:5]
    ]
    views = []
    with torch.no_grad():
        for row in rows:
            logits = loaded.model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
            views.append((logits[row.completion_start - 1 : -1], row.input_ids[row.completion_start :]))
    return request.param, loaded, rows, views


def test_definitions_against_slow_formulas(golden, subject):
    name, _, rows, views = subject
    for record, (logits, labels) in zip(golden.records(name, rows), views, strict=True):
        probabilities = np.exp(logits.numpy() - logits.numpy().max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        chosen = [float(row[label]) for row, label in zip(probabilities, labels, strict=True)]
        hits = [int(row.argmax()) == label for row, label in zip(probabilities, labels, strict=True)]
        logps = [math.log(p) for p in chosen]
        loss = -sum(logps) / len(logps)
        close = {"rel": 1e-4, "abs": 2e-5}
        assert mean_nll(record) == pytest.approx(loss, **close)
        assert probability(record) == pytest.approx(math.prod(p ** (1 / len(chosen)) for p in chosen), **close)
        assert perplexity(record) == pytest.approx(math.exp(loss), **close)
        assert exact_memorization(record) == pytest.approx(sum(hits) / len(hits))
        starts = [k for k in range(len(hits) + 1) if all(hits[k:])]
        assert extraction_strength(record) == pytest.approx(1 - starts[0] / len(hits))
        moments = [(float(p @ np.log(p)), float(p @ np.log(p) ** 2)) for p in probabilities]
        scores = [(logp - mu) / math.sqrt(square - mu**2) for logp, (mu, square) in zip(logps, moments, strict=True)]
        for share in (0.05, 0.2, 0.4, 1.0):
            count = max(1, math.floor(share * len(logps)))
            assert attacks.min_k(record, share) == pytest.approx(sum(sorted(logps)[:count]) / count, **close)
            expected = sum(sorted(scores)[:count]) / count
            assert attacks.min_k_plus_plus(record, share) == pytest.approx(expected, rel=2e-4, abs=2e-4)


def test_gradient_norm_with_an_adapter_is_that_of_the_merged_model(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    rows = [TokenizedExample(str(at), list(range(3 + at, 15 + at)), 0) for at in range(3)]
    add_adapter(loaded, rank=2, alpha=4.0, modules="all-linear", seed=0)
    torch.manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    norms = gradient_norms(loaded, rows)
    merged = loaded.model.merge_and_unload()
    for row, norm in zip(rows, norms, strict=True):
        merged.requires_grad_(True)
        ids = torch.tensor([row.input_ids])
        gradients = torch.autograd.grad(merged(input_ids=ids, labels=ids).loss, list(merged.parameters()))
        assert norm == pytest.approx(torch.cat([grad.flatten() for grad in gradients]).norm().item(), rel=1e-4)


def test_gradient_norm_is_that_of_one_long_vector(golden, subject):
    _, loaded, rows, _ = subject
    before = [parameter.requires_grad for parameter in loaded.model.parameters()]
    norms = gradient_norms(loaded, rows[:2])
    assert [parameter.requires_grad for parameter in loaded.model.parameters()] == before
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    for row, norm in zip(rows, norms, strict=False):
        loaded.model.requires_grad_(True)
        labels = [-100] * row.completion_start + row.input_ids[row.completion_start :]
        loss = loaded.model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([labels])).loss
        gradients = torch.autograd.grad(loss, list(loaded.model.parameters()))
        loaded.model.requires_grad_(False)
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        assert norm == pytest.approx(whole.norm().item(), rel=1e-4)


def test_the_mask_of_a_template_that_ends_in_a_blank_hides_no_token_of_ours(golden):
    stored = golden.read("open_unlearning")["tokenised"]["qa_forget_template_with_trailing_blank"]["items"]
    tokenizer = golden.models["fitted"].tokenizer
    for item, row in zip(stored, golden.data["qa"]["forget"], strict=True):
        prompt = f"Question: {row['question']}\nAnswer: "
        ours = tokenize(
            tokenizer, Example(row["id"], prompt, row["answer"]), PromptFormat("none", True), max_length=4096
        )
        assert ours.input_ids == item["input_ids"]
        assert ours.completion_start == sum(label == -100 for label in item["labels"]) - 1


def test_truth_ratio_is_the_arithmetic_mean_of_the_paper():
    ours = truth_ratio(1.0, [1.0, 3.0])
    assert ours == pytest.approx((math.exp(-1) + math.exp(-3)) / 2 / math.exp(-1))
    assert published.truth_ratio(1.0, [1.0, 3.0]) == pytest.approx(math.exp(-2) / math.exp(-1))


def test_a_row_of_one_token_has_an_empty_record(golden):
    (record,) = golden.records("fitted", [TokenizedExample("x", [5], 0)])
    assert len(record) == 0
