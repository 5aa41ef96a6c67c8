"""The membership attack: losses of documents, and how well they tell members from the rest."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.data.examples import Example
from expunge.errors import DataError
from expunge.evaluate.membership import document_nlls
from expunge.evaluate.semeval import membership_auc
from expunge.model.head import find_head
from expunge.model.load import LoadedModel

LOSSES = st.lists(st.integers(0, 6).map(lambda tenths: tenths / 10), min_size=1, max_size=12)


class Letters:
    """A tokenizer of lower-case letters with a beginning-of-text token."""

    def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, *(ord(letter) - 87 for letter in text)]}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    return LoadedModel(model, Letters(), find_head(model)[0], torch.float32)


def test_the_loss_of_a_document_is_the_models_own_mean_loss(loaded: LoadedModel) -> None:
    documents = [Example("a", "", "theharbour"), Example("b", "some", "thing"), Example("c", "", "x")]
    counts: list[int] = []
    got = document_nlls(loaded, documents, progress=counts.append)
    for row, loss in zip(documents, got, strict=True):
        ids = torch.tensor([Letters()(row.prompt + row.completion, False)["input_ids"]])
        assert loss == pytest.approx(loaded.model(ids, labels=ids).loss.item(), abs=1e-6)
    assert sum(counts) == 3


def test_a_long_document_counts_up_to_the_context_and_says_so(loaded: LoadedModel) -> None:
    long, lines = "abcdefghij" * 5, []
    both = document_nlls(loaded, [Example("a", "", long), Example("b", "", long[:31])], say=lines.append)
    assert both[0] == pytest.approx(both[1], abs=1e-6)
    assert lines == ["1 of 2 documents are longer than 32 tokens and count up to there"]
    assert document_nlls(loaded, [Example("a", "", long)], max_length=5) == pytest.approx(
        document_nlls(loaded, [Example("a", "", long[:4])]), abs=1e-6
    )


def test_a_document_of_one_token_is_refused_without_its_text(loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"^docs\.jsonl:7: has 1 tokens"):
        document_nlls(loaded, [Example("a", "", "", source="docs.jsonl:7")])


@given(members=LOSSES, others=LOSSES)
def test_auc_is_the_share_of_pairs_with_ties_as_one_half(members: list[float], others: list[float]) -> None:
    pairs = [(a < b) + 0.5 * (a == b) for a, b in itertools.product(members, others)]
    auc = membership_auc(members, others)
    assert auc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    labels = [1] * len(members) + [0] * len(others)
    assert auc == pytest.approx(roc_auc_score(labels, [-loss for loss in members + others]), abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="loss of non-member 2"):
        membership_auc([1.0], [0.5, bad])
    with pytest.raises(DataError, match="no member losses"):
        membership_auc([], [0.5])
