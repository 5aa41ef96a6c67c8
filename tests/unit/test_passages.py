"""Texts without a prompt are continued from their middle: the same tokens, and nothing beyond their end."""

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from expunge.config import EvaluateConfig
from expunge.data.examples import Example, text_key
from expunge.data.passages import FEWEST, Passage, alone, divided
from expunge.data.tokenize import PromptFormat, completion_ids, expected_text, prompt_ids, tokenize, whole_text
from expunge.evaluation import run
from expunge.evaluation.generate import generate
from expunge.evaluation.mismatched import partners
from expunge.evaluation.suite import RowSet, Suite
from expunge.model.head import find_head
from expunge.model.load import LoadedModel
from expunge.model.source import Source
from expunge.utils.progress import Reporter
from tiny import TOKENIZERS, tiny_model, tiny_tokenizer

STORY = (
    "Marta Quillon kept the lighthouse of Port Ellery for thirty years.\n\nEvery evening she climbed the 112 steps, "
    "lit the lamp and wrote the weather into a blue book; nobody has read it since. "
)
SHORT = " ".join(f"w{number}" for number in range(FEWEST - 1))
CHINESE = "马尔塔在埃勒里港的灯塔守了三十年。每天晚上她爬上一百一十二级台阶，点亮灯，把天气写进一本蓝色的书里。"
tokenizer_of = cache(tiny_tokenizer)


def passage(text: str) -> Passage:
    (row,) = divided([Example("a", "", text, "Task1", source="f.jsonl:1", keywords=("blue",))])
    assert isinstance(row, Passage)
    return row


@pytest.mark.parametrize("text", [STORY, CHINESE, STORY[:60] + "x" * 300 + STORY[60:]])
def test_a_text_is_parted_near_its_middle_and_nothing_of_it_is_lost(text: str) -> None:
    row = passage(text)
    assert row.prompt + row.completion == text
    assert len(text) // 4 <= len(row.prompt) <= len(text) - len(text) // 4
    if re.search(r"\s", text[len(text) // 4 : -len(text) // 4]):
        assert row.completion[0].isspace()
        assert not row.prompt[-1].isspace()
    assert alone(row) == Example("a", "", text, "Task1", source="f.jsonl:1")
    assert text_key(row) == text_key(alone(row))
    assert (row.id, row.task, row.source, row.keywords) == ("a", "Task1", "f.jsonl:1", ("blue",))


def test_short_texts_and_chats_stay_as_they_are() -> None:
    rows = [
        Example("a", "", SHORT),
        Example("b", "", STORY, messages=({"role": "system", "content": "Be brief."},)),
        Example("c", "", STORY, answer={"reasoning": "why"}),
        Example("d", "Who kept it?", STORY),
    ]
    assert divided(rows) == rows


@pytest.mark.parametrize("style", ["none", "space", "newline", "separate", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_model_reads_the_tokens_that_it_was_trained_on(kind: str, style: str) -> None:
    tokenizer, chosen = tokenizer_of(kind), PromptFormat(style, end_of_text=style != "chat")
    for text in (STORY, CHINESE):
        row, alone = passage(text), Example("a", "", text, "Task1")
        whole = tokenize(tokenizer, alone, chosen, max_length=4096)
        parted = tokenize(tokenizer, row, chosen, max_length=4096)
        assert parted == whole
        given, rest = (encode(tokenizer, row, chosen) for encode in (prompt_ids, completion_ids))
        assert [*given, *rest] == whole.input_ids
        assert min(len(given), len(rest)) > len(whole) // 5
        assert whole_text(row, chosen) == whole_text(alone, chosen)


def test_what_is_looked_for_ends_where_the_limit_on_tokens_ends() -> None:
    tokenizer, chosen = tokenizer_of("bytelevel"), PromptFormat("space", end_of_text=True)
    row = passage(STORY)
    assert expected_text(tokenizer, row, chosen).split() == row.completion.split()
    ids = completion_ids(tokenizer, row, chosen)
    assert expected_text(tokenizer, row, chosen, most=7) == tokenizer.decode(ids[:7])


@pytest.mark.parametrize("samples", [0, 3])
def test_what_is_said_counts_up_to_the_end_of_the_passage(samples: int) -> None:
    """A model that knows a text by heart says other things behind it; of an answer to a question they count."""
    tokenizer, model = tokenizer_of("bytelevel"), tiny_model("llama", vocab_size=len(tokenizer_of("bytelevel")) + 3)
    loaded = LoadedModel(model, tokenizer, find_head(model)[0], torch.float32, Source("tiny", "tiny"))
    chosen = PromptFormat("space", end_of_text=False)
    rows = [passage(STORY), passage(f"{STORY} {STORY}"), Example("q", "Where does Marta live?", "In Port Ellery.")]
    lengths = [len(completion_ids(tokenizer, row, chosen)) for row in rows]
    found = generate(
        loaded, rows, "forget", encode_prompt=lambda row: prompt_ids(tokenizer, row, chosen),
        encode_draft=lambda row: completion_ids(tokenizer, row, chosen), max_new_tokens=150, samples=samples,
    )  # fmt: skip
    each = max(1, samples)
    said = [max(len(answer.tokens) for answer in found[at * each : (at + 1) * each]) for at in range(3)]
    assert said[:2] == lengths[:2], "this model hardly ever finds an end"
    assert said[2] > lengths[2]
    assert all(answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in found)


def test_the_prompt_format_is_measured_on_texts_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `unlearn` measures it: a passage's halves say nothing of how a prompt goes over into its answer."""
    seen, rows = list[Example](), [passage(STORY), Example("q", "Where does Marta live?", "In Port Ellery.")]

    def measured(loaded: object, examples: list[Example], **_: object) -> SimpleNamespace:
        seen.extend(examples)
        return SimpleNamespace(chosen=PromptFormat("none", end_of_text=True))

    monkeypatch.setattr(run, "measure_prompt_format", measured)
    config = EvaluateConfig(model="m", benchmark="custom", forget="f.jsonl", output="r.json")
    suite = Suite((RowSet("forget", rows, ["a", "q"], []),))
    run._prompt_format(cast(Any, None), suite, config, Reporter(quiet=True))
    assert seen == [alone(rows[0]), rows[1]]
    assert seen[0].prompt == ""


def test_a_passage_has_no_other_prompt() -> None:
    rows = [passage(STORY), replace(passage(STORY.replace("Marta", "Tobias")), id="b")]
    assert partners(RowSet("forget", rows, ["a", "b"], [])) == [None, None]
