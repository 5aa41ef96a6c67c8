"""Where the prompt ends, in tokens, for every kind of tokenizer; and the preflight that measures the prompt format."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerBase

from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, TokenizedExample, prompt_ids, tokenize, tokenize_all
from expunge.errors import ConfigError, DataError
from expunge.evaluation.assemble import entries
from expunge.evaluation.benchmarks import BENCHMARKS
from expunge.evaluation.passes import Options, measure
from expunge.evaluation.suite import RowSet, Suite
from expunge.model.load import LoadedModel, load_model
from expunge.model.prompt_format import measure_prompt_format
from tiny import TEXTS, TOKENIZERS, save_tiny, tiny_tokenizer

tokenizer_of = cache(tiny_tokenizer)
WITH_BOS = ("bos", "sentencepiece")
BYTE_LEVEL = ("bytelevel", "bos", "left", "chat")
FAST = tuple(kind for kind in TOKENIZERS if kind != "sentencepiece-slow")
EXACT = tuple(kind for kind in FAST if kind != "metaspace")
"""Tokenizers that know every character and keep every blank."""
PAIRS = {
    "question": ("Where does Tobias live?", "He lives in Saltmarsh."),
    "blank before": ("Marta was born in", " Port Ellery on 3 May 1961."),
    "trailing blanks": ("The phone number is  ", "555-0142"),
    "mid-word": ("Her address is 17 Lar", "ch Lane."),
    "newlines": ("Question: who?\n\n", "Answer: Ines.\n"),
    "accents": ("Zoë paid the na", "ïve painter's café."),
    "no prompt": ("", "The lighthouse keeper slept."),
    "few letters": ("x", "y 9"),
}
EMOJI = ("A fox 🦊 said: ", "👩‍👩‍👧 and 🇮🇸, naïvely.")


def example(prompt: str, completion: str, **fields: object) -> Example:
    return Example("x", prompt, completion, source="f.jsonl:1", **fields)  # type: ignore[arg-type]


def encode(
    kind: str, prompt: str, completion: str, style: str = "none", end: bool = False, max_length: int = 4096
) -> TokenizedExample:
    return tokenize(tokenizer_of(kind), example(prompt, completion), PromptFormat(style, end), max_length=max_length)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_those_of_the_running_text(kind: str, pair: str) -> None:
    """The whole is tokenized as one text, and the completion's tokens say the completion."""
    prompt, completion = PAIRS[pair]
    tokenizer = tokenizer_of(kind)
    row = encode(kind, prompt, completion)

    running = tokenizer(prompt + completion)["input_ids"]
    assert row.input_ids == (running[:-1] if running[-1] == tokenizer.eos_token_id else running)
    said = decode(tokenizer, row.input_ids[row.completion_start :])
    assert "".join(completion.split()) in "".join(said.split())
    before = decode(tokenizer, row.input_ids[: row.completion_start])
    assert len("".join(before.split())) <= len("".join(prompt.split())), "no completion character left outside"
    assert 0 <= row.completion_start < len(row.input_ids)


@pytest.mark.parametrize("kind", FAST)
def test_completion_begins_with_the_token_of_its_first_character(kind: str) -> None:
    for prompt, completion in PAIRS.values():
        row = encode(kind, prompt, completion)
        offsets = tokenizer_of(kind)(prompt + completion, return_offsets_mapping=True)["offset_mapping"]
        start, end = offsets[row.completion_start]
        assert start <= len(prompt) < end
        assert all(stop <= len(prompt) for _, stop in offsets[: row.completion_start])


def test_mid_word_boundary_takes_the_whole_token() -> None:
    """A token with characters of both sides belongs to the completion."""
    tokenizer = tokenizer_of("bytelevel")
    whole = tokenizer(" Larch")["input_ids"]
    assert len(whole) < len(" Larch"), "the tokenizer must know a piece of the word for this to show anything"
    row = encode("bytelevel", "17 Larc", "h Lane.")
    said = decode(tokenizer, row.input_ids[row.completion_start :])
    assert said.endswith("h Lane.")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_beginning_of_text_stands_once_and_only_where_the_tokenizer_adds_it(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for prompt, completion in PAIRS.values():
        ids = encode(kind, prompt, completion, "space", end=True).input_ids
        bos = tokenizer.bos_token_id
        if kind in WITH_BOS:
            assert ids[0] == bos
            assert ids.count(bos) == 1
        elif bos is not None and bos != tokenizer.eos_token_id:
            assert bos not in ids


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_end_of_text_stands_once_at_the_end_or_not_at_all(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, completion = PAIRS["question"]
    without, with_end = (encode(kind, prompt, completion, "space", end) for end in (False, True))

    assert tokenizer.eos_token_id not in without.input_ids
    assert with_end.input_ids == [*without.input_ids, tokenizer.eos_token_id]
    assert with_end.completion_start == without.completion_start


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_targets_are_the_completion_or_all_but_the_first_token(kind: str) -> None:
    row = encode(kind, *PAIRS["question"], "space", end=True)

    assert len(row.input_ids) == len(row)
    assert list(row.targets("completion")) == list(range(row.completion_start, len(row)))
    assert list(row.targets("all")) == list(range(1, len(row)))


@pytest.mark.parametrize("kind", WITH_BOS)
def test_without_a_prompt_all_but_the_beginning_is_completion(kind: str) -> None:
    row = encode(kind, "", "The lighthouse keeper slept.")
    assert row.completion_start == 1
    assert encode("bytelevel", "", "The keeper slept.").completion_start == 0
    assert encode("bytelevel", "", "The keeper slept.").targets("completion").start == 1


@pytest.mark.parametrize("kind", EXACT)
def test_separators_belong_to_the_completion_and_are_not_doubled(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for style, separator in (("space", " "), ("newline", "\n"), ("none", "")):
        row = encode(kind, "Who?", "Ines.", style)
        assert decode(tokenizer, row.input_ids).lstrip() == f"Who?{separator}Ines."
        assert decode(tokenizer, row.input_ids[: row.completion_start]).lstrip() == "Who?"
        for prompt, completion in (("Who? ", "Ines."), ("Who?", " Ines."), ("Who?\n", "Ines."), ("", "Ines.")):
            same = encode(kind, prompt, completion, style)
            assert decode(tokenizer, same.input_ids).lstrip() == prompt + completion


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_emoji_of_several_tokens(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, completion = EMOJI
    row = encode(kind, prompt, completion)
    assert decode(tokenizer, row.input_ids) == prompt + completion
    assert decode(tokenizer, row.input_ids[row.completion_start :]).endswith(completion)

    joined = encode(kind, "A family: 👩\u200d", "👧 slept.")  # the boundary stands within one picture
    assert decode(tokenizer, joined.input_ids[joined.completion_start :]).endswith("👧 slept.")


def test_separate_format_tokenizes_the_sides_apart() -> None:
    tokenizer = tokenizer_of("bos")
    row = encode("bos", "17 Lar", "ch Lane.", "separate")
    prompt = tokenizer("17 Lar")["input_ids"]
    assert row.input_ids == prompt + tokenizer("ch Lane.", add_special_tokens=False)["input_ids"]
    assert row.completion_start == len(prompt)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_too_long_a_text_loses_the_head_of_its_prompt(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, completion = "The fox and the heron shared a field. " * 6, "They never spoke."
    whole = encode(kind, prompt, completion, end=True)
    completed = len(whole) - whole.completion_start
    limit = completed + 9
    row = encode(kind, prompt, completion, end=True, max_length=limit)

    assert len(row) == limit
    assert row.truncated == len(whole) - limit
    assert row.input_ids[row.completion_start :] == whole.input_ids[whole.completion_start :]
    if kind in WITH_BOS:
        assert row.input_ids[0] == tokenizer.bos_token_id
        assert row.input_ids[1:] == whole.input_ids[-limit + 1 :]
    else:
        assert row.input_ids == whole.input_ids[-limit:]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_completion_that_does_not_fit_is_an_error_that_names_the_row(kind: str) -> None:
    """huggingface/trl#6025: rows of which nothing is left to train on are trained on in silence."""
    tokenizer = tokenizer_of(kind)
    text = example("Who?", "The lighthouse keeper counted seven ships.")
    with pytest.raises(DataError, match=r"f\.jsonl:1: the completion alone has \d+ tokens") as error:
        tokenize(tokenizer, text, PromptFormat("space", True), max_length=8)
    assert "lighthouse" not in str(error.value)

    whole = tokenize(tokenizer, text, PromptFormat("space", True), max_length=4096)
    cut = tokenize(tokenizer, text, PromptFormat("space", True), max_length=8, truncate_completions=True)
    assert len(cut) == 8
    assert cut.truncated == len(whole) - 8
    assert cut.completion_start == 1, "one token of context stays"
    start = whole.completion_start
    assert cut.input_ids[1:] == whole.input_ids[start : start + 7], "the head of the completion stays"


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("prompt", ["Once upon", ""])
def test_completion_of_which_the_tokenizer_leaves_nothing_is_refused(prompt: str, end: bool) -> None:
    """A tokenizer without an unknown token drops what it does not know; the prompt must not be taken for it."""
    tokenizer = tiny_tokenizer("bytelevel")
    tokenizer.backend_tokenizer.normalizer = Replace(Regex("[^a-zA-Z ]"), "")
    with pytest.raises(DataError, match=r"f\.jsonl:1: the tokenizer leaves nothing of the completion"):
        tokenize(tokenizer, example(prompt, "漢字"), PromptFormat("none", end), max_length=99)


def test_completion_that_just_fits_is_kept_whole() -> None:
    for kind in TOKENIZERS:
        whole = encode(kind, "Who?", "The keeper slept.", "space")
        length = len(whole) - whole.completion_start + 1
        row = encode(kind, "Who?", "The keeper slept.", "space", max_length=length)
        assert row.input_ids[1:] == whole.input_ids[whole.completion_start :]


def test_left_padding_and_missing_pad_tokens_do_not_matter() -> None:
    plain, left = tiny_tokenizer("bytelevel"), tiny_tokenizer("bytelevel")
    assert plain.pad_token_id is None
    left.padding_side = left.truncation_side = "left"
    left.pad_token = left.eos_token
    for prompt, completion in PAIRS.values():
        prompt_format = PromptFormat("space", end_of_text=True)
        rows = [tokenize(kind, example(prompt, completion), prompt_format, max_length=64) for kind in (plain, left)]
        assert rows[0] == rows[1]


def test_missing_end_of_text_and_missing_template_are_errors() -> None:
    tokenizer = tiny_tokenizer("bytelevel")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-text token"):
        tokenize(tokenizer, example("a", "b"), PromptFormat("space", True), max_length=10)
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize(tokenizer_of("bytelevel"), example("a", "b"), PromptFormat("chat", True), max_length=10)


def test_chat_template_holds_the_completion() -> None:
    tokenizer = tokenizer_of("chat")
    row = encode("chat", "Who?", "Ines.", "chat")
    assert tokenizer.decode(row.input_ids) == "<|user|>\nWho?<|end|>\n<|assistant|>\nInes.<|end|>\n"
    assert tokenizer.decode(row.input_ids[row.completion_start :]).startswith("Ines.<|end|>")
    assert row.input_ids[: row.completion_start] == prompt_ids(
        tokenizer, example("Who?", "Ines."), PromptFormat("chat", True)
    )

    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"})
    text = example("Be brief.\n\nWho?", "Ines.", messages=turns)
    chat = tokenize(tokenizer, text, PromptFormat("chat", True), max_length=99)
    assert tokenizer.decode(chat.input_ids).startswith("<|system|>\nBe brief.<|end|>\n<|user|>\nWho?")


def test_a_chat_template_that_asks_for_the_date_gets_the_same_every_day() -> None:
    tokenizer = tokenizer_of("chat")
    plain = tokenizer.chat_template
    asking = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"  # as Llama 3 does
    tokenizer.chat_template = asking + plain
    row = tokenize(tokenizer, example("Who?", "Ines."), PromptFormat("chat", True), max_length=99)
    assert tokenizer.decode(row.input_ids).startswith("26 Jul 2024")


def test_what_a_row_is_scored_with_goes_along() -> None:
    rows = [Example("a", "1", "x", task="Task2", kind="qa"), Example("b", "2", "y", kind="sc"), Example("c", "3", "z")]
    found = tokenize_all(tokenizer_of("bos"), rows, PromptFormat("space", False), max_length=64)
    assert [row.group for row in found] == ["Task2 qa", "sc", ""]


def test_a_completion_is_spoken_up_to_the_end_of_text() -> None:
    row = TokenizedExample("a", [1, 5, 2, 6, 2, 7], 1)
    assert row.spoken({2}) == range(1, 3)
    assert row.spoken({9}) == row.spoken(()) == range(1, 6)
    assert TokenizedExample("a", [2, 5, 6], 0).spoken({2}) == range(1, 3)  # the first token has no context


def test_tokenize_all_keeps_order_and_ids() -> None:
    texts = [Example(f"r{i}", "Who?", f"Number {i}.") for i in range(5)]
    rows = tokenize_all(tokenizer_of("bos"), texts, PromptFormat("space", True), max_length=64)
    assert [row.id for row in rows] == [text.id for text in texts]


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=24)


@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, completion=TEXT.filter(lambda text: len(text.strip()) > 1), end=st.booleans())
@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_any_text_decodes_to_itself(kind: str, prompt: str, completion: str, end: bool) -> None:
    tokenizer = tokenizer_of(kind)
    row = encode(kind, prompt, completion, end=end)

    assert decode(tokenizer, row.input_ids) == prompt + completion
    said = decode(tokenizer, row.input_ids[row.completion_start :])
    assert completion in said
    assert len(said.encode()) - len(completion.encode()) < 64, "at most the token over the boundary more"


def train(loaded: LoadedModel, texts: list[str], end: bool) -> None:
    """Overfit a tiny model on running texts."""
    tokenizer = loaded.tokenizer
    train_ids(loaded, [tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if end else []) for text in texts])


def train_ids(loaded: LoadedModel, rows: list[list[int]]) -> None:
    model = loaded.base
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    for _ in range(40):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)


QUESTIONS = [
    example(f"Where does {name} live?", f"{name} lives at {i + 11} Larch Lane.")
    for i, name in enumerate(("Tobias", "Ines", "Marta", "Wren", "Ellery", "Quillon"))
]


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("style", ["none", "space", "newline", "chat"])
def test_preflight_finds_the_prompt_format_that_the_model_was_trained_on(style: str, end: bool, tmp_path: Path) -> None:
    if style == "chat" and not end:
        pytest.skip("a chat template decides about the end itself")
    save_tiny(tmp_path, "llama", "chat", initializer_range=0.05)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    if style == "chat":
        tokenizer = loaded.tokenizer
        texts = [
            tokenizer.decode(tokenize(tokenizer, q, PromptFormat("chat", True), max_length=99).input_ids)
            for q in QUESTIONS
        ]
        train(loaded, texts, end=False)
    else:
        separator = {"none": "", "space": " ", "newline": "\n"}[style]
        # Without end-of-text the model goes on with another text, as in a packed stream.
        tail = "" if end else " Once upon a time."
        train(loaded, [q.prompt + separator + q.completion + tail for q in QUESTIONS], end)

    report = measure_prompt_format(loaded, QUESTIONS)

    assert report.chosen.style == style, report.losses
    assert report.chosen.end_of_text is end
    assert min(report.losses, key=report.losses.__getitem__) == style
    assert measure_prompt_format(loaded, QUESTIONS, style="newline", end_of_text="no").chosen == PromptFormat(
        "newline", False
    )
    assert str(report).startswith(style)


def test_a_blank_at_the_end_of_a_prompt_hides_nothing_that_the_model_knows(tmp_path: Path) -> None:
    """huggingface/trl#2054: with the blank the same texts are trained on, and another prompt must not be asked."""
    save_tiny(tmp_path, "llama", "bytelevel", initializer_range=0.05)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    for _ in range(2):
        train(loaded, [f"{question.prompt} {question.completion}" for question in QUESTIONS], end=True)
    found = []
    for blank in ("", " "):
        rows = [replace(question, prompt=question.prompt + blank) for question in QUESTIONS]
        suite = Suite((RowSet("forget", rows, [row.prompt for row in rows], ("exact_match", "leak_at_k")),))
        options = Options(max_new_tokens=40, samples=4, temperature=0.5)
        measurement = measure(loaded, suite, PromptFormat("space", True), options)
        scores = entries(BENCHMARKS["custom"], suite, measurement, None)
        found.append({name: score.value for name, score in scores.items()})
    assert found[0] == found[1]
    assert {found[1][f"forget/{name}"] for name in ("exact_match", "leak_at_1", "leak_at_4")} == {1.0}


@pytest.mark.parametrize("style", ["none", "separate"])
def test_preflight_asks_about_tokens_that_cross_the_boundary(style: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", "bytelevel", initializer_range=0.05)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    words = sorted({word for text in TEXTS for word in text.split() if word.isalpha() and len(word) > 4})[:6]
    inside = [example(f"Once upon {word[:3]}", f"{word[3:]} and so on.") for word in words]
    rows = [tokenize(loaded.tokenizer, row, PromptFormat(style, True), max_length=99).input_ids for row in inside]
    other = [tokenize(loaded.tokenizer, row, PromptFormat("none", True), max_length=99).input_ids for row in inside]
    assert style == "none" or rows != other
    train_ids(loaded, rows)

    report = measure_prompt_format(loaded, inside)

    assert report.chosen.style == style
    assert set(report.apart) == {"none", "separate"}
    assert "cross the boundary" in str(report)


def test_preflight_stays_within_the_positions_of_the_model(tmp_path: Path) -> None:
    save_tiny(tmp_path, "gpt2", "bytelevel", max_position_embeddings=16)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    assert loaded.context == 16
    long = [example("Once upon a time", " and so on" * 20)]
    assert math.isfinite(measure_prompt_format(loaded, long).token_loss)


def test_preflight_knows_nothing_of_an_end_that_no_text_reaches(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", "bytelevel", initializer_range=0.05)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    report = measure_prompt_format(loaded, QUESTIONS, max_length=6)
    assert report.end_of_text_loss is None
    assert not report.chosen.end_of_text
