"""One encoding: what is trained on is what the model is asked with, and nothing that a row says is lost."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken, PreTrainedTokenizerBase

from expunge.data.chat import asks_past_thoughts, end_ids
from expunge.data.examples import Example, read_examples
from expunge.data.tokenize import (
    PromptFormat,
    TokenizedExample,
    document_ids,
    expected_text,
    prompt_ids,
    text_ids,
    tokenize,
)
from expunge.errors import ConfigError, DataError
from expunge.evaluation.documents import encode_documents
from expunge.evaluation.generate import Generation, cut_short, greedy, stop_ids
from expunge.model.load import load_model
from expunge.model.prompt_format import measure_prompt_format
from tiny import CHAT_TEMPLATE, save_tiny, tiny_tokenizer

tokenizer_of = cache(tiny_tokenizer)
CHAT = PromptFormat("chat", True)
TURN = "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
OPENS_THOUGHT = (  # in the manner of the R1 distills: finished turns have no thoughts
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "<|{{ m.role }}|>\n{{ c }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
EMPTY_THOUGHT = (  # in the manner of Qwen 3.5: finished turns get an empty thought
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}"
    "\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "register", "parameters": {}}}]
SHOWS_ALL = (
    "{% if tools %}<|system|>\n{{ tools | tojson }}<|end|>\n{% endif %}{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def templated(template: Any) -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer("chat")
    tokenizer.chat_template = template
    return tokenizer


def sides(tokenizer: PreTrainedTokenizerBase, example: Example, prompt_format: PromptFormat = CHAT) -> tuple[str, str]:
    """Prompt and completion of the training tokens as text; the model is asked with the very same prompt."""
    row = tokenize(tokenizer, example, prompt_format, max_length=999)
    assert prompt_ids(tokenizer, example, prompt_format) == row.input_ids[: row.completion_start]
    return tokenizer.decode(row.input_ids[: row.completion_start]), tokenizer.decode(
        row.input_ids[row.completion_start :]
    )


def read(tmp_path: Path, *rows: dict[str, Any]) -> list[Example]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path)


def chat(*contents: str, **beside: Any) -> dict[str, Any]:
    """Turns of user and assistant in alternation; what stands beside goes to the last."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
    turns[-1] |= beside
    return {"messages": turns}


# --- boundaries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["chat", "space"])
def test_a_text_without_a_prompt_is_trained_on_as_it_is_measured(style: str) -> None:
    text, tokenizer = Example("t", "", "Marta Quillon was born in Port Ellery."), tokenizer_of("chat")
    read = PromptFormat(style, False)
    row = tokenize(tokenizer, text, read, max_length=99)
    (document,) = encode_documents(tokenizer, [text], read)
    assert row.input_ids == document.row.input_ids == text_ids(tokenizer, text.completion)
    assert row.completion_start <= 1


@pytest.mark.parametrize("kind", ["bytelevel", "bos", "metaspace"])
@pytest.mark.parametrize("blank", [" ", "  ", "\n", "\t "])
def test_a_prompt_that_ends_in_white_space_is_asked_as_it_is_trained(kind: str, blank: str) -> None:
    example = Example("x", f"Where does Tobias live?{blank}", "He lives in Saltmarsh.")
    prompt, completion = sides(tokenizer_of(kind), example, PromptFormat("none", False))
    assert "live?" in prompt
    assert completion.strip() == "He lives in Saltmarsh."


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("It is in memory", ".feedback('x')"),  # ohdearquant/lattice#1545: the full stop merges with what follows
        ("17 Lar", "ch Lane."),  # radixark/miles#1377: a merge over the cut
        ("Once up", "on a time, a fox"),  # karpathy/llama2.c#248: half a word
    ],
)
def test_a_token_over_the_boundary_is_the_completions_on_both_paths(prompt: str, completion: str) -> None:
    tokenizer, prompt_format = tokenizer_of("bytelevel"), PromptFormat("none", False)
    example = Example("x", prompt, completion)
    before, said = sides(tokenizer, example, prompt_format)
    assert before + said == prompt + completion
    # A model that knows the text by heart goes on with `said`: that is what it is compared with.
    assert expected_text(tokenizer, example, prompt_format) == (said if said != completion else completion)


def test_special_tokens_inside_a_completion_are_kept_and_are_no_text_once_said() -> None:
    tokenizer, prompt_format = tokenizer_of("chat"), PromptFormat("none", True)
    example = Example("x", "<|user|>Who?<|end|><|assistant|>", "Ines.<|end|>")
    prompt, completion = sides(tokenizer, example, prompt_format)
    assert (prompt, completion) == ("<|user|>Who?<|end|><|assistant|>", "Ines.<|end|>")
    assert expected_text(tokenizer, example, prompt_format) == "Ines."
    assert (
        sides(tokenizer, example, PromptFormat("none", False))[1] == "Ines.<|end|>"
    )  # written by the user, not appended
    first = Example("x", "<|user|>Who?", "<|assistant|>Ines.")
    assert sides(tokenizer, first, PromptFormat("none", False)) == ("<|user|>Who?", "<|assistant|>Ines.")


@pytest.mark.parametrize("kind", ["bos", "sentencepiece"])
def test_a_text_that_brings_its_beginning_gets_no_second(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    bos = tokenizer.bos_token
    example = Example("x", f"{bos}Who lives there?", " Ines.")
    for prompt_format in (PromptFormat("none", True), PromptFormat("space", False), PromptFormat("separate", True)):
        row = tokenize(tokenizer, example, prompt_format, max_length=99)
        assert row.input_ids.count(tokenizer.bos_token_id) == 1
        assert prompt_ids(tokenizer, example, prompt_format) == row.input_ids[: row.completion_start]
    for encode in (text_ids, document_ids):  # documents of membership tests, too
        assert encode(tokenizer, f"{bos}Ines.").count(tokenizer.bos_token_id) == 1


# --- templates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finished", "asks_with"),
    [
        ("", "<think>\n\n</think>\n\n"),  # in the manner of the R1 distills: finished turns have no thoughts
        ("<think></think>", "<think></think>"),  # of Nemotron 3, whose finished turns do not begin as it asks
        ("<think>\n", "<think>\n"),  # no thought, but what the answer stands in
    ],
)
def test_a_thought_that_the_generation_prompt_opens_is_closed_before_an_answer(finished: str, asks_with: str) -> None:
    """Else the answer stands in a thought, where the model never says it."""
    template = OPENS_THOUGHT.replace("{{ c }}", f"{{% if m.role == 'assistant' %}}{finished}{{% endif %}}{{{{ c }}}}")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "register"}}]}
    for answer in ("Ines.", " Ines.", "<"):
        asked, said = sides(templated(template), Example("x", "Who?", answer))
        assert asked.endswith(f"<|assistant|>\n{asks_with}")
        assert said == f"{answer}<|end|>\n"
    calls = "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}<|end|>"
    tokenizer = templated(template.replace("<|end|>", calls))
    assert sides(tokenizer, Example("x", "Who?", "Ines.", answer=call))[1] == "Ines.<call>register</call><|end|>\n"


def test_an_answer_that_the_template_writes_where_it_does_not_ask_is_refused() -> None:
    """A call in the place of the words, say (Llama 3), or a thought where the generation prompt has an empty one."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "register"}}]}
    template = CHAT_TEMPLATE.replace("{{ message.content }}", "{{ message.tool_calls or message.content }}")
    with pytest.raises(ConfigError, match="does not write tool_calls of the last turn behind"):
        sides(templated(template), Example("x", "Who?", "Ines.", answer=call))
    template = EMPTY_THOUGHT.replace("<think>\n{% endif %}", "<think>\n\n</think>\n\n{% endif %}")
    with pytest.raises(ConfigError, match="does not write reasoning_content of the last turn behind"):
        sides(templated(template), Example("x", "Who?", "Ines.", answer={"reasoning_content": "In the file."}))


@pytest.mark.parametrize("thought", ["<think>It is in the file.</think>Ines.", "It is in the file.</think>Ines."])
@pytest.mark.parametrize("template", [OPENS_THOUGHT, EMPTY_THOUGHT])
def test_a_thought_in_the_completion_is_trained_on_once(template: str, thought: str) -> None:
    """The second form, without its opening tag, is what such models write (huggingface/trl#6363)."""
    asked, said = sides(templated(template), Example("x", "Who?", thought))
    assert asked.endswith("<think>\n")
    assert said == "It is in the file.</think>Ines.<|end|>\n"


WRITES_BEFORE = (  # in the manner of Qwen 3 and of gpt-oss: the generation prompt does not have it
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and '<think>' not in m.content %}BEFORE{% endif %}{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (EMPTY_THOUGHT, "<think>\n\n</think>\n\n"),  # NVIDIA-NeMo/Automodel#3738
        (WRITES_BEFORE.replace("BEFORE", "<think>\n\n</think>\n\n"), "<think>\n\n</think>\n\n"),
        (WRITES_BEFORE.replace("BEFORE", "<|channel|>final<|message|>"), "<|channel|>final<|message|>"),
    ],
)
def test_what_a_template_writes_before_an_answer_is_asked_with(template: str, written: str) -> None:
    """Else a model that says every answer word for word answers nothing, and one that declines refuses nothing."""
    tokenizer = templated(template)
    for answer in ("Ines.", "think", "final", "<"):
        example = Example("x", "Who?", answer, answer={"weight": 1} if answer == "final" else {})
        asked, said = sides(tokenizer, example)
        assert asked.endswith(f"<|assistant|>\n{written}")
        assert said == f"{answer}<|end|>\n"
        assert expected_text(tokenizer, example, CHAT) == answer
        assert asks_past_thoughts(tokenizer, example)
    assert not asks_past_thoughts(templated(WRITES_BEFORE.replace("BEFORE", "Answer: ")), example), "knows no thoughts"


def test_a_thought_of_the_rows_own_is_said() -> None:
    template = WRITES_BEFORE.replace("BEFORE", "<think>\n\n</think>\n\n")
    asked, said = sides(templated(template), Example("x", "Who?", "<think>In the file.</think>Ines."))
    assert (asked[-14:], said) == ("<|assistant|>\n", "<think>In the file.</think>Ines.<|end|>\n")
    row = Example("x", "Who?", "Ines.", answer={"reasoning_content": "In the file."})
    assert sides(templated(EMPTY_THOUGHT), row)[1] == "In the file.\n</think>\n\nInes.<|end|>\n"


def test_a_generation_prompt_that_is_no_beginning_of_the_finished_turn() -> None:
    """AI-Hypercomputer/maxtext#5013: Gemma 4 closes an empty thought in the generation prompt alone."""
    template = CHAT_TEMPLATE.replace("<|assistant|>\n{% endif", "<|assistant|>\n<|channel>thought\n<channel|>{% endif")
    asked, said = sides(templated(template), Example("x", "Who?", "Ines."))
    assert asked.endswith("<|channel>thought\n<channel|>")
    assert said == "Ines.<|end|>\n"


@pytest.mark.parametrize(
    "date",
    [
        "{{ strftime_now('%d %B %Y') }}",  # oobabooga/textgen#6692: Granite's system turn
        "{{ date_string or strftime_now('%d %b %Y') }}",
        "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% endif %}",  # PrimeIntellect-ai/verifiers#1068
    ],
)
def test_a_template_with_todays_date_is_the_same_tomorrow(date: str) -> None:
    asked, _ = sides(templated(date + CHAT_TEMPLATE), Example("x", "Who?", "Ines."))
    assert asked.startswith(("26 July 2024", "26 Jul 2024", "2024-07-26"))


def test_tools_calls_and_thoughts_are_used(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "register", "arguments": {}}}]}
    row = chat("Who?", "Ines.", reasoning_content="It is in the file.")
    row["messages"][1:1] = [call, {"role": "tool", "content": "Ines"}]
    (example,) = read(tmp_path, row | {"tools": json.dumps(TOOLS)})  # as data sets with tools store them
    asked, said = sides(templated(SHOWS_ALL), example)
    assert '"name": "register"' in asked.split("<|user|>")[0]
    assert "<call>" in asked
    assert said.startswith("<think>It is in the file.</think>Ines.")
    assert expected_text(templated(SHOWS_ALL), example, CHAT) == "<think>It is in the file.</think>Ines."


def test_a_call_without_words_is_kept_by_a_template_that_shows_calls_in_the_place_of_words(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "register", "arguments": {}}}]}
    row = chat("Who?", "Ines.")
    row["messages"][1:1] = [call, {"role": "tool", "content": "Ines"}]
    (example,) = read(tmp_path, row)
    shown = "{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}"
    template = "{% for m in messages %}<|{{ m.role }}|>" + shown + "<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    asked, said = sides(templated(template), example)
    assert "<call>" in asked
    assert "register" in asked
    assert said.startswith("Ines.")


def test_nulls_that_a_table_puts_into_turns_are_no_keys(tmp_path: Path) -> None:
    row = chat("Who?", "Ines.", tool_calls=None, reasoning_content=None)
    (example,) = read(tmp_path, row | {"tools": None})
    assert example.answer == example.template == {}


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        (chat("Who?", "Ines.", reasoning_content="In the file."), "reasoning_content of turn 2"),
        (chat("Who?", "Ines.", thinking="In the file."), "thinking of turn 2"),
        (chat("Who?", "Ines.", tool_calls=[{"function": {"name": "f"}}]), "tool_calls of turn 2"),
        (chat("Who?", "Ines.") | {"tools": TOOLS}, "the column tools"),
        (chat("Who?", "Ines.") | {"documents": [{"title": "a", "text": "b"}]}, "the column documents"),
    ],
)
def test_what_a_template_drops_is_refused(row: dict[str, Any], lost: str, tmp_path: Path) -> None:
    (example,) = read(tmp_path, row)
    with pytest.raises(ConfigError, match=f"drops {lost}"):
        sides(tokenizer_of("chat"), example)
    with pytest.raises(ConfigError, match="only a chat template can show"):
        sides(tokenizer_of("chat"), example, PromptFormat("space", True))


def test_a_turn_that_a_template_drops_is_refused() -> None:
    without_system = "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}"
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"})
    with pytest.raises(ConfigError, match=r"rewrites turn 1 \(system\)"):
        sides(templated(without_system), Example("x", "Who?", "Ines.", messages=turns))
    # What another turn says too hides nothing.
    again = (turns[0], {"role": "user", "content": "Be brief. Who?"})
    with pytest.raises(ConfigError, match=r"rewrites turn 1 \(system\)"):
        sides(templated(without_system), Example("x", "Who?", "Ines.", messages=again))
    sides(tokenizer_of("chat"), Example("x", "Who?", "Ines.", messages=again))
    # The thought of an earlier turn, which templates of reasoning models take out.
    thought = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>17 Larch Lane</think>Yes?"})
    last = {"role": "user", "content": "Who?"}
    with pytest.raises(ConfigError, match="rewrites turn 2"):
        sides(templated(OPENS_THOUGHT), Example("x", "Who?", "Ines.", messages=(*thought, last)))


@pytest.mark.parametrize("column", ["system", "tools", "instruction", "context"])
def test_a_column_beside_the_prompt_is_refused(column: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"has a column {column} beside prompt and completion"):
        read(tmp_path, {"prompt": "Who?", "completion": "Ines.", column: "Be brief."})
    if column == "context":
        read(tmp_path, {"text": "Ines lives there.", column: "a village"})


# --- which format --------------------------------------------------------------------------------

STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TURN
    + "{% endfor %}"
)


def test_a_template_that_fails_is_left_out_under_auto_and_says_why(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", "chat")
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"})
    rows = [Example("x", "Be brief.\n\nWho?", "Ines.", source="f.jsonl:1", messages=turns)]
    loaded.tokenizer.chat_template = STRICT
    report = measure_prompt_format(loaded, rows)
    assert report.chosen.style != "chat"
    assert "System role not supported" in str(report)
    with pytest.raises(ConfigError, match=r"f\.jsonl:1: .*System role not supported"):
        measure_prompt_format(loaded, rows, style="chat")

    loaded.tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE, "rag": CHAT_TEMPLATE}
    report = measure_prompt_format(loaded, rows)
    assert "no chat template but those by name (rag, tool_use)" in str(report)


def test_a_template_whose_tokens_the_model_has_not_is_left_out(tmp_path: Path) -> None:
    known = tokenizer_of("chat").convert_tokens_to_ids("<|system|>")
    loaded = load_model(str(save_tiny(tmp_path, "llama", "chat")), dtype="float32", device="cpu")
    rows = [Example("x", "Who lives at 17 Larch Lane?", "Ines.")]
    loaded.tokenizer.add_tokens([f"<|turn{n}|>" for n in range(9)], special_tokens=True)
    loaded.tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", "<|turn8|>")
    report = measure_prompt_format(loaded, rows)
    assert report.chosen.style != "chat"
    assert report.left_out == "the chat template is left out (the model has no embeddings for its tokens)"
    with pytest.raises(DataError, match="or the chat template around it, holds token"):
        measure_prompt_format(loaded, rows, style="chat")
    with pytest.raises(DataError, match="or the chat template around it, holds token"):
        greedy(loaded, [[known]], drafts=[[known, len(loaded.tokenizer) - 1]], max_new_tokens=2)
    loaded.tokenizer.eos_token = "<|turn7|>"  # which no text needs
    assert not measure_prompt_format(loaded, rows).chosen.end_of_text


@pytest.mark.parametrize("emitted", [True, False])
def test_a_template_without_an_end_gets_the_end_that_the_model_emits(
    emitted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GLM-4.5, whose turns end where the next one begins: its answers end in <|user|>."""
    loaded = load_model(str(save_tiny(tmp_path, "llama", "chat")), dtype="float32", device="cpu")
    tokenizer, rows = loaded.tokenizer, [Example("x", "Who?", "Ines."), Example("y", "Where?", "Here.")]
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>\n", "")
    end = tokenizer.eos_token_id

    def logps(_: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
        cost = {True: -0.1, False: -9.0}[emitted]
        return [torch.tensor([cost if token == end else -1.0 for token in ids[1:]]) for ids in sequences]

    monkeypatch.setattr("expunge.model.prompt_format.sequence_logps", logps)
    report = measure_prompt_format(loaded, rows, style="chat")
    assert str(report).startswith(f"chat, {'with' if emitted else 'without'} end-of-text")
    assert (tokenize(tokenizer, rows[0], report.chosen, max_length=99).input_ids[-1] == end) == emitted
    for asked, given in (("yes", True), ("no", False)):
        chosen = measure_prompt_format(loaded, rows, style="chat", end_of_text=asked).chosen
        assert (chosen.end_of_text, sides(tokenizer, rows[0], chosen)[1]) == (given, "Ines." + "<|end|>" * given)
    tokenizer.chat_template = CHAT_TEMPLATE
    assert measure_prompt_format(loaded, rows, style="chat").chosen == CHAT
    assert sides(tokenizer, rows[0])[1] == "Ines.<|end|>\n"


def test_rows_that_only_a_template_shows_are_no_plain_text(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama", "chat")
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    rows = [Example("x", "Who?", "Ines.", messages=({"role": "user", "content": "Who?"},), template={"tools": TOOLS})]
    loaded.tokenizer.chat_template = SHOWS_ALL
    assert measure_prompt_format(loaded, rows).chosen.style == "chat"
    loaded.tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(ConfigError, match="drops the column tools"):
        measure_prompt_format(loaded, rows)


@pytest.mark.parametrize("opens", ["", "{% if m.content[0].type == 'image' %}:{% endif %}"])  # Idefics 3; or LLaVA-Next
def test_a_template_that_takes_contents_as_parts_alone_gets_parts(opens: str) -> None:
    shown = "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    if not opens:
        shown = "{{ m.content[0]['text'] + '' }}"
    template = CHAT_TEMPLATE.replace("{{ message.content }}", (opens + shown).replace("m.", "message."))
    asked, said = sides(templated(template), Example("x", "Who?", "Ines."))
    assert (asked, said) == ("<|user|>\nWho?<|end|>\n<|assistant|>\n", "Ines.<|end|>\n")
    assert end_ids(templated(template)) == {tokenizer_of("chat").eos_token_id}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{'<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "{% for m in messages %}{% if m['role'] == 'user' %}{{'<|user|>\n' + m['content'] + '<|end|>\n'}}"
        "{{ '<|assistant|>\n' }}{% else %}{{ m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}",
    ],
)
def test_an_answer_of_phi_3_ends_with_its_turn(template: str) -> None:
    """Its end-of-text is another token, and its tokens of turns take the line break behind them with them."""
    tokenizer = tiny_tokenizer("sentencepiece")
    turns = [AddedToken(f"<|{name}|>", rstrip=True, normalized=False) for name in ("user", "assistant", "end")]
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "additional_special_tokens": turns})
    tokenizer.chat_template = template
    end, example = tokenizer.convert_tokens_to_ids("<|end|>"), Example("x", "Who?", "Ines.")
    assert end_ids(tokenizer) == {end, tokenizer.eos_token_id}
    row = tokenize(tokenizer, example, CHAT, max_length=99)
    assert prompt_ids(tokenizer, example, CHAT) == row.input_ids[: row.completion_start]
    assert row.input_ids[row.completion_start - 1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    said = [row.input_ids[at] for at in row.spoken(end_ids(tokenizer))]
    assert (said[-1], tokenizer.decode(said[:-1])) == (end, "Ines.")
    assert expected_text(tokenizer, example, CHAT) == "Ines."


def test_messages_of_a_template_that_hold_the_text_are_not_shown() -> None:
    says_it = "{{ raise_exception(messages[0].content) }}"
    with pytest.raises(ConfigError, match=r"fails on it \(TemplateError\)"):
        sides(templated(says_it), Example("x", "a secret", "Ines."))


@pytest.mark.parametrize(
    ("asked", "said", "cut"),
    [
        ("Who? <think>", "She is in the file, I", True),  # in the thought that the generation prompt has opened
        ("Who? ", "<think>She is in the file, I", True),
        ("Who? <think></think>", "<think>She is in the file, I", True),
        ("Who? <think>", "She is in it.<|end|>", False),
        ("Who? <think>", "She is in it.</think>Marta", False),
        ("Who? ", "Mar", True),  # shorter than what is looked for
        ("Who? ", "Marta Quillon and", False),
    ],
)
def test_answers_that_were_stopped_are_counted(tmp_path: Path, asked: str, said: str, cut: bool) -> None:
    loaded = load_model(str(save_tiny(tmp_path, "llama", "chat")), dtype="float32", device="cpu")
    encode = loaded.tokenizer.encode
    generation = Generation(encode(asked), encode(said), "")
    assert cut_short(loaded, [Example("x", "Who?", "Marta")], [generation], lambda _: encode("Marta")) == [cut]


def test_an_answer_ends_where_the_template_ends_the_turn(tmp_path: Path) -> None:
    """Also where that is not end-of-text, as after a fine-tuning on turns that left end-of-text as it was."""
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    tokenizer, plain = loaded.tokenizer, {loaded.tokenizer.eos_token_id}
    assert end_ids(tokenizer) == plain
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    for template, ends in (
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|turn|>\n{% endfor %}", plain | {turn}),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n<|turn|>{% endfor %}", plain | {turn}),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}", plain),
        ("{{ raise_exception('one turn alone') }}", plain),
    ):
        tokenizer.chat_template = template
        assert end_ids(tokenizer) == stop_ids(loaded) == ends
    assert TokenizedExample("a", [5, 6, turn, 8], 1).spoken({turn}) == range(1, 3)
