"""The membership attack: losses of documents, and how well they tell members from the rest."""

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, TokenizedExample
from expunge.errors import DataError
from expunge.evaluation.documents import (
    Document,
    after_another,
    encode_documents,
    even_lengths,
    lower_rows,
    lowercased,
)
from expunge.evaluation.metrics import ATTACKS
from expunge.evaluation.metrics.registry import WholeText
from expunge.evaluation.teacher_forcing import token_records
from expunge.model.head import find_head
from expunge.model.load import LoadedModel
from expunge.model.source import Source
from expunge.utils.roc import auc
from tiny import tiny_tokenizer

LOSSES = st.lists(st.integers(0, 6).map(lambda tenths: tenths / 10), min_size=1, max_size=12)


class Letters:
    """A tokenizer of lower-case letters with a beginning-of-text token; capitals are small letters to it."""

    bos_token_id, eos_token, eos_token_id, unk_token_id = 1, None, None, None
    all_special_ids = (1,)

    def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, *(ord(letter) - 87 for letter in text.lower())]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(token + 87) for token in ids if token != 1)


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
    return LoadedModel(model, Letters(), find_head(model)[0], torch.float32, Source("tiny", "tiny"))


def documents(loaded: LoadedModel, *rows: Example, **options: Any) -> list[Document]:
    return encode_documents(loaded.tokenizer, rows, PromptFormat("none", end_of_text=False), **options)


def test_the_loss_of_a_document_is_the_models_own_mean_loss(loaded: LoadedModel) -> None:
    rows = [Example("a", "", "theharbour"), Example("b", "some", "thing"), Example("c", "", "x")]
    records = token_records(loaded, [document.row for document in documents(loaded, *rows)])
    for row, record in zip(rows, records, strict=True):
        ids = torch.tensor([Letters()(row.prompt + row.completion, False)["input_ids"]])
        assert -record.logps.mean() == pytest.approx(loaded.model(ids, labels=ids).loss.item(), abs=1e-6)


def test_a_long_document_counts_up_to_the_bound_and_says_so(loaded: LoadedModel) -> None:
    long, lines = "abcdefghij" * 5, []
    cut, whole = documents(loaded, Example("a", "", long), Example("b", "", "abc"), max_length=32, say=lines.append)
    assert cut.row.input_ids == Letters()(long[:31], False)["input_ids"]
    assert cut.text == long[:31]
    assert whole.text == "abc"
    assert lines == ["1 of 2 documents are longer than 32 tokens and count up to there"]


def test_a_document_of_one_token_is_refused_without_its_text(loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"^docs\.jsonl:7: has 1 tokens"):
        documents(loaded, Example("a", "", "", source="docs.jsonl:7"))


def test_both_sides_are_cut_to_the_smaller_median(loaded: LoadedModel) -> None:
    members = documents(loaded, *(Example(str(n), "", "a" * n) for n in (3, 5, 40)))
    others = documents(loaded, *(Example(str(n), "", "b" * n) for n in (20, 30, 40)))
    cut_members, cut_others, bound = even_lengths(loaded.tokenizer, members, others)
    assert bound == 6  # five letters and the beginning of text
    assert [len(document.row) for document in cut_members] == [4, 6, 6]
    assert [len(document.row) for document in cut_others] == [6, 6, 6]
    assert [document.text for document in cut_others] == ["bbbbb"] * 3


def test_a_chat_is_read_in_the_frame_that_the_model_has_met() -> None:
    tokenizer = tiny_tokenizer("chat")
    turns = ({"role": "system", "content": "Be Brief."}, {"role": "user", "content": "WHO?"})
    chat = Example("c", "Be Brief.\n\nWHO?", "INES Marrow.", messages=turns)
    plain = Example("p", "", "INES Marrow.")
    read = {"prompt_format": PromptFormat("chat", False), "max_length": 200}
    document, other = encode_documents(tokenizer, [chat, plain], **read)
    framed = "<|system|>\nBe Brief.<|end|>\n<|user|>\nWHO?<|end|>\n<|assistant|>\nINES Marrow.<|end|>\n"
    assert tokenizer.decode(document.row.input_ids) == framed
    assert "<|" not in document.text  # zlib compresses what the chat says
    assert tokenizer.decode(lowercased(tokenizer, document).input_ids) == framed.lower()
    assert tokenizer.decode(other.row.input_ids) == "INES Marrow."  # a text alone is no chat

    ids = [document.row.input_ids[at] for at in document.row.targets("completion")]
    assert tokenizer.decode(ids) == framed[framed.index("WHO?") :]  # what is before it may be the same for all
    assert document.text == "WHO?\nINES Marrow."

    (cut,), _, bound = even_lengths(tokenizer, [document], [other])
    assert len(cut) == bound == len(other) < len(document)
    assert tokenizer.decode(cut.row.input_ids).startswith("<|system|>\nBe Brief.")
    assert cut.text == document.text[: len(cut.text)] != document.text
    share = len(cut) / len(document)
    assert len(cut.text) / len(document.text) == pytest.approx(share, abs=1 / len(document.text))
    lower, whole = (lowercased(tokenizer, version) for version in (cut, document))
    kept = (len(lower) - lower.completion_start) / (len(whole) - whole.completion_start)
    assert kept == pytest.approx(share, abs=1 / len(document))


def document(*ids: int, start: int = 0) -> Document:
    return Document(TokenizedExample("d", list(ids), start), " ".join(map(str, ids)))


class Begins:
    """A tokenizer that begins every text with some tokens."""

    unk_token_id = eos_token_id = eos_token = None

    def __init__(self, *leading: int) -> None:
        self.all_special_ids = list(leading)
        self.bos_token_id = leading[0] if len(leading) == 1 else None

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [*self.all_special_ids, *[99] * len(text)]}


def test_another_text_stands_before_a_document_and_is_no_part_of_it() -> None:
    """Beginning-of-text (1) stands once, and the document's first token stays no target."""
    first, second = document(1, *range(100, 300)), document(1, 40, 41)
    row = after_another(document(1, 50, 51, 52), [first, second], Begins(1))
    assert row is not None
    assert row.input_ids == [1, *range(100, 163), 50, 51, 52]
    assert row.targets("completion") == range(64, 67)  # 50 had beginning-of-text before it, and was a target
    bare = after_another(document(50, 51, 52), [second], Begins())
    assert bare is not None
    assert bare.input_ids == [1, 40, 41, 50, 51, 52]
    assert bare.targets("completion") == range(4, 6)
    two = after_another(document(8, 9, 50, 51, start=2), [document(8, 9, 40)], Begins(8, 9))  # as GLM-4 begins texts
    assert two is not None
    assert (two.input_ids, two.targets("completion")) == ([8, 9, 40, 50, 51], range(3, 5))
    itself = after_another(first, [first, second], Begins(1), max_length=8)
    assert itself is not None
    assert itself.input_ids == [1, 40, 41, *range(100, 105)]
    framed = after_another(document(1, 7, 8, 50, 51, start=3), [second], Begins(1))
    assert framed is not None
    assert framed.input_ids[framed.targets("completion").start] == 50
    assert after_another(second, [second], Begins(1)) is None
    assert after_another(document(50, 51), [first], Begins(1), max_length=2) is None


def test_recall_compares_the_same_tokens_alone_and_after_an_unseen_text(loaded: LoadedModel) -> None:
    doc, other = documents(loaded, Example("a", "", "TheHarbour"), Example("b", "", "xofwood"))
    row = after_another(doc, [other], loaded.tokenizer)
    assert row is not None
    alone, after = token_records(loaded, [doc.row, row])
    assert len(alone) == len(after)
    with torch.no_grad():
        logits = loaded.base(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
    span = row.targets("completion")
    logps = [logits[at - 1, row.input_ids[at]].item() for at in span]
    score = ATTACKS["recall"].of(WholeText(alone, doc.text, after_unseen=after))
    assert score == pytest.approx(-sum(logps) / len(logps) / -alone.logps.mean(), rel=1e-5)
    assert ATTACKS["recall"].of(WholeText(alone, doc.text)) is None
    longest = after_another(doc, [other], loaded.tokenizer, len(doc.row))  # as long as the context: its end has no room
    assert longest is not None
    (cut,) = token_records(loaded, [longest])
    assert 0 < len(cut) < len(alone)
    score = ATTACKS["recall"].of(WholeText(alone, doc.text, after_unseen=cut))
    assert score == pytest.approx(cut.logps.mean() / alone.logps[: len(cut)].mean())


def test_what_stands_before_every_text_is_no_target_alone_or_after_another() -> None:
    """GLM-4 begins every text with two tokens."""
    tokenizer = Begins(8, 9)
    doc, other = encode_documents(
        tokenizer, [Example("a", "", "four"), Example("b", "", "sixsix")], PromptFormat("none", False)
    )
    after = after_another(doc, [other], tokenizer)
    assert after is not None
    assert doc.row.targets("completion") == range(2, 6)
    assert len(after.targets("completion")) == 4
    with pytest.raises(DataError, match="nothing to predict"):
        encode_documents(tokenizer, [Example("c", "", "")], PromptFormat("none", False))


def test_texts_without_case_have_no_lower_case() -> None:
    tokenizer = tiny_tokenizer("bytelevel")
    latin, other = ([Example(str(at), "", text * (at + 1)) for at in range(4)] for text in ("Ines A", "山田太郎"))
    plain = PromptFormat("space", False)

    def rows(members: Sequence[Example], nonmembers: Sequence[Example]) -> dict[tuple[str, int], TokenizedExample]:
        sides = {"member": members, "nonmember": nonmembers}
        return lower_rows(tokenizer, {name: encode_documents(tokenizer, side, plain) for name, side in sides.items()})

    assert len(rows(latin, latin)) == 8
    assert rows(other, other) == rows(latin, other) == rows(other, latin) == {}
    assert len(rows(latin, latin[:2] + other[:2])) == 6
    # A cut within a character leaves none that the text has not.
    cut = even_lengths(tokenizer, *(encode_documents(tokenizer, other[:3], plain) for _ in range(2)))[0]
    assert all(doc.text in other[at].text for at, doc in enumerate(cut))


def test_scores_of_all_attacks(loaded: LoadedModel) -> None:
    docs = documents(loaded, Example("a", "", "TheHarbour"), Example("b", "", "x"))
    lower = [lowercased(loaded.tokenizer, document) for document in docs]
    records = token_records(loaded, [document.row for document in docs])
    others = token_records(loaded, [row for row in lower if row is not None])
    first = WholeText(records[0], docs[0].text, others[0])
    logps = records[0].logps
    expected = {
        "loss": logps.mean(),
        "zlib": logps.mean() / len(zlib.compress(b"TheHarbour")),
        "lowercase": -1,  # this tokenizer sees no capitals
        "min_k_20": sum(sorted(logps)[:2]) / 2,
        "min_k_40": sum(sorted(logps)[:4]) / 4,
    }
    found = {
        name: ATTACKS[attack].of(first, **options)
        for attack in ("loss", "zlib", "lowercase", "min_k")
        for name, options in ATTACKS[attack].instances({"share": (0.2, 0.4)})
    }
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert ATTACKS["lowercase"].of(WholeText(records[1], docs[1].text)) is None
    assert ATTACKS["reference"].of(first) is None


@given(members=LOSSES, others=LOSSES)
def test_auc_is_the_share_of_pairs_with_ties_as_one_half(members: list[float], others: list[float]) -> None:
    pairs = [(a < b) + 0.5 * (a == b) for a, b in itertools.product(members, others)]
    area = auc([-loss for loss in members], [-loss for loss in others])
    assert area == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    labels = [1] * len(members) + [0] * len(others)
    assert area == pytest.approx(roc_auc_score(labels, [-loss for loss in members + others]), abs=1e-12)
