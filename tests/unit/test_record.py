"""One pass gives the records of all texts, whatever the batching, the head and the adapter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.tokenize import TokenizedExample
from expunge.evaluation import teacher_forcing
from expunge.evaluation.metrics import TokenRecord
from expunge.evaluation.teacher_forcing import token_records
from expunge.kernels import Head, token_stats
from expunge.model.load import load_model
from expunge.model.logps import PASS_TOKENS, sequence_logps
from tiny import save_tiny


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(save_tiny(tmp_path_factory.mktemp("model"), "qwen3")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    lengths = [9, 2, 17, 1, 30, 5, 12]
    return [
        TokenizedExample(f"row{i}", torch.randint(3, 200, (length,), generator=generator).tolist(), length // 2)
        for i, length in enumerate(lengths)
    ]


def plain(loaded, row, span):
    """The record from the model's own logits, one text at a time, in fp64."""
    targets = list(row.targets(span))
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    logits, labels = logits[[t - 1 for t in targets]], [row.input_ids[t] for t in targets]
    logp = logits.log_softmax(-1)
    chosen = logp[range(len(labels)), labels]
    mean = (logp.exp() * logp).sum(-1)
    var = (logp.exp() * (logp - mean[:, None]) ** 2).sum(-1)
    return chosen, chosen == logp.amax(-1), mean, var


def assert_records(found, expected_of, rows, tolerance=1e-4):
    assert [record.id for record in found] == [row.id for row in rows]
    for record, row in zip(found, rows, strict=True):
        logps, hits, mean, var = (values.numpy() for values in expected_of(row))
        np.testing.assert_allclose(record.logps, logps, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(record.hits, hits)
        np.testing.assert_allclose(record.mean_logp, mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(record.var_logp, var, rtol=tolerance, atol=tolerance)
        assert (record.logps.dtype, record.hits.dtype) == (np.float64, np.bool_)


@pytest.mark.parametrize("span", ["completion", "all"])
@pytest.mark.parametrize("max_tokens", [1, 40, 8192])
def test_equals_the_plain_pass(loaded, rows, span, max_tokens, monkeypatch):
    monkeypatch.setitem(PASS_TOKENS, "cpu", max_tokens)
    done = []
    found = token_records(loaded, rows, span=span, progress=done.append)
    assert_records(found, lambda row: plain(loaded, row, span), rows)
    assert sum(done) == len(rows)


def test_a_pass_that_does_not_fit_is_done_in_halves(loaded, rows, monkeypatch):
    refused, done = [], []

    def small(states, head, targets):
        if len(targets) > 30:
            refused.append(len(targets))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return token_stats(states, head, targets)

    monkeypatch.setattr(teacher_forcing, "token_stats", small)
    found = token_records(loaded, rows, span="all", progress=done.append)
    assert_records(found, lambda row: plain(loaded, row, "all"), rows)
    assert refused
    assert sum(done) == len(rows)


def test_a_head_of_unknown_form(loaded, rows):
    unknown = replace(loaded, head=Head(None), packable_length=0)
    assert_records(token_records(unknown, rows), lambda row: plain(loaded, row, "completion"), rows)


def test_log_probabilities_are_those_of_the_plain_forward(loaded, rows):
    records = token_records(loaded, rows, span="all")
    expected = sequence_logps(loaded, [row.input_ids for row in rows])
    for record, logps in zip(records, expected, strict=True):
        np.testing.assert_allclose(record.logps, logps.numpy(), atol=1e-5)


def test_no_rows(loaded):
    assert token_records(loaded, []) == []


def test_a_stretch_of_a_record():
    record = TokenRecord("a", *(np.arange(4.0) + i for i in range(4)))
    assert (record[1:3].logps.tolist(), record[1:3].var_logp.tolist(), record[1:3].id) == ([1, 2], [4, 5], "a")
    assert len(record[:-1]) == 3
