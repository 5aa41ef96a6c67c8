"""A row as the tokenizer's chat template writes it: what the model is asked with, and what it says after that.

What the data holds and the template would drop (a system turn, tools, a thought) is refused, never lost.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from expunge.data.examples import SPOKEN, Example
from expunge.data.words import common_prefix
from expunge.errors import ConfigError
from expunge.utils.deadline import DeadlineError, deadline

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The date in every template, so that a run has the same tokens tomorrow: the one that Llama 3 falls back on."""
SECONDS = 5.0
"""Longest time for one rendering, which takes milliseconds."""
PROBE = "expunge"
"""What stands for the answer where only the template's own words are of interest."""

_TAG = r"<{}([\w:-]*(?:think|thought|reason)[\w:-]*)>"
_OPENED = re.compile(_TAG.format(""), re.IGNORECASE)
_UP_TO_CLOSED = re.compile(rf"\A.*{_TAG.format('/')}", re.IGNORECASE | re.DOTALL)
_OF_THOUGHTS = re.compile("think|thought|reason|channel", re.IGNORECASE)
"""What a template writes, before an answer, of a thought or of the channel after one."""

Turn = Mapping[str, Any]


class Rendered(NamedTuple):
    """A row as a template writes it: what the model is asked with, what it is to say after that, with what the template
    puts behind, and whether it puts anything there that could end an answer.
    """

    asked: str
    said: str
    ended: bool


def turns_of(example: Example) -> tuple[Turn, ...]:
    """The turns before the completion; a prompt alone is what the user says."""
    return example.messages or ({"role": "user", "content": example.prompt},)


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether there is a chat template that needs no name."""
    template = tokenizer.chat_template
    return bool(template) and (not isinstance(template, dict) or "default" in template)


def render(tokenizer: PreTrainedTokenizerBase, example: Example) -> Rendered:
    """The row in the tokenizer's chat template.

    What the template itself writes before an answer (an empty thought, the name of a channel) is no part of it: the
    model is asked with it. Where the generation prompt opens a thought and the row has none, the thought is closed: as
    the template does it in finished turns, or empty where these show none. Else the answer follows what the generation
    prompt ends in, also where the template writes finished turns in another way.

    Raises:
        ConfigError: There is no template, it fails, or it drops something that the row holds.
    """
    if not has_template(tokenizer):
        named = f" but those by name ({', '.join(sorted(tokenizer.chat_template))})" if tokenizer.chat_template else ""
        raise ConfigError(f"--prompt-format chat: the tokenizer has no chat template{named}")
    turns = turns_of(example)
    answer = {"role": "assistant", "content": example.completion, **example.answer}
    asked = _apply(tokenizer, example, turns, asked=True)
    whole = _apply(tokenizer, example, [*turns, answer])
    _check_kept(tokenizer, example, turns, answer, asked, whole)
    opened = _opened(asked)
    completion, rest = example.completion, whole[len(asked) :]
    # An answer that closes the thought which the generation prompt has opened stands there as the model says it.
    closes = bool(opened) and f"</{opened[1:]}" in completion
    probe = _apply(tokenizer, example, [*turns, {"role": "assistant", "content": PROBE}])
    before, shown, behind = probe.rpartition(PROBE)
    ended = not shown or bool(behind.strip())
    if whole.startswith(asked) and not closes and _squeezed(completion) in _squeezed(rest):
        written = before.removeprefix(asked) if before.startswith(asked) else ""
        if written.strip() and rest.startswith(written) and not completion.lstrip().startswith(written.strip()):
            return Rendered(asked + written, rest.removeprefix(written), ended)
        return Rendered(asked, rest, ended)
    if not shown:
        raise _refused(example, "shows no turn of the assistant")
    if opened and completion.lstrip().startswith(opened):
        completion = completion.lstrip().removeprefix(opened)
        completion = completion.lstrip() if asked[-1].isspace() else completion
    elif opened and not closes and not before.rstrip().endswith(opened):
        closed = before.startswith(asked[: asked.rindex(opened)]) and before.rstrip().endswith(f"</{opened[1:]}")
        asked = before if closed else f"{asked.rstrip()}\n\n</{opened[1:]}\n\n"
    key = next((key for key in SPOKEN if key in example.answer), None)
    if key is None:
        return Rendered(asked, completion + behind, ended)
    said = whole.removeprefix(before)
    if said == whole or _squeezed(completion) not in _squeezed(said):
        raise _refused(example, f"does not write {key} of the last turn behind what it asks with")
    return Rendered(asked, said, ended)


def asks_past_thoughts(tokenizer: PreTrainedTokenizerBase, example: Example) -> bool:
    """Whether the model is asked with an empty thought, or a channel, behind the template's generation prompt, which is
    what a server asks with.
    """
    asked, served = render(tokenizer, example).asked, _apply(tokenizer, example, turns_of(example), asked=True)
    return bool(_OF_THOUGHTS.search(asked[common_prefix(asked, served) :]))


def after_thought(text: str) -> str:
    """What an answer says behind its thought; nothing where it ends within one."""
    return _OPENED.split(_UP_TO_CLOSED.sub("", text))[0]


def in_thought(text: str) -> bool:
    """Whether a text ends within a thought."""
    return bool(_OPENED.search(_UP_TO_CLOSED.sub("", text)))


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end what a model says: end-of-text, and what its chat template ends a turn of the assistant with,
    where that is a token of its own (`<|im_end|>` after a fine-tuning that left end-of-text as it was).
    """
    found = {tokenizer.eos_token_id} - {None}
    if has_template(tokenizer):
        turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE})
        try:
            _, shown, behind = _apply(tokenizer, Example("chat template", "?", PROBE), turns).rpartition(PROBE)
            behind = behind.lstrip() if shown else ""
        except ConfigError:  # a template of other roles, whose rows are rendered as they are
            behind = ""
        added = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())} - {tokenizer.unk_token_id}
        found |= added & {*tokenizer(behind, add_special_tokens=False)["input_ids"][:1]}
    return frozenset(map(int, found))


def _opened(asked: str) -> str:
    """The tag of the thought that a generation prompt opens (`<think>`), or nothing."""
    found = [*_OPENED.finditer(asked.rstrip())][-1:]
    return found[0][0] if found and found[0].end() == len(asked.rstrip()) else ""


def _check_kept(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    turns: Sequence[Turn],
    answer: Turn,
    asked: str,
    whole: str,
) -> None:
    """Look whether everything that the row holds is in the text.

    Raises:
        ConfigError: Something is not.
    """
    text = _squeezed(asked)
    for number, turn in enumerate(turns, 1):
        content = str(turn["content"])
        if not content.strip():
            continue  # beside a call of a tool, say
        escaped = json.dumps(content, ensure_ascii=False)[1:-1]
        shown = _squeezed(content) in text or _squeezed(escaped) in text
        if shown and any(
            _squeezed(content) in _squeezed(str(other["content"])) for other in turns if other is not turn
        ):
            marked = [{**message, "content": f"{content} {PROBE}"} if message is turn else message for message in turns]
            shown = text.count(PROBE) < _squeezed(_apply(tokenizer, example, marked, asked=True)).count(PROBE)
        if not shown:
            raise _refused(example, f"drops or rewrites turn {number} ({str(turn['role'])[:20]})")
    everything = [*turns, answer]
    for at, turn in enumerate(everything):
        for key in SPOKEN:
            if key not in turn:
                continue
            without = [*everything]
            without[at] = {name: value for name, value in turn.items() if name != key}
            if _apply(tokenizer, example, without) == whole:
                raise _refused(example, f"drops {key} of turn {at + 1}")
    for key in ("tools", "documents"):
        if key in example.template and _apply(tokenizer, example, everything, leave_out=key) == whole:
            raise _refused(example, f"drops the column {key}")


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    turns: Sequence[Turn],
    *,
    asked: bool = False,
    leave_out: str = "",
) -> str:
    settings = {key: value for key, value in example.template.items() if key != leave_out}
    try:
        source = tokenizer.get_chat_template(tools=settings.get("tools"))
        template = _compile_jinja_template(source)
        template.environment.globals["strftime_now"] = TODAY.strftime  # the one that rendering takes from the cache
        with deadline(SECONDS):
            shape = _parts if _takes_parts(source) else (lambda content: content)
            return str(
                tokenizer.apply_chat_template(
                    [{**turn, "content": shape(turn["content"])} for turn in turns],
                    add_generation_prompt=asked,
                    tokenize=False,
                    date_string=TODAY.strftime("%d %b %Y"),
                    **settings,
                )
            )
    except DeadlineError:
        raise _refused(example, f"does not come to an end in {SECONDS:g} seconds") from None
    except Exception as error:  # a template is a program; its message may hold the text
        known = str(error).strip()
        sentence = known if known and _is_of_template(tokenizer, known) else type(error).__name__
        raise _refused(example, f"fails on it ({sentence})") from None


@cache
def _takes_parts(source: str) -> bool:
    """Whether a template shows contents only as lists of parts, as those of models that read pictures do."""

    def shows(content: Any) -> bool:
        tokens, turn = dict.fromkeys(("bos_token", "eos_token"), ""), {"role": "user", "content": content}
        try:
            return PROBE in _compile_jinja_template(source).render(messages=[turn], **tokens)
        except DeadlineError:
            raise
        except Exception:  # a template is a program; where it fails on the row, too, that is told
            return False

    return not shows(PROBE) and shows(_parts(PROBE))


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _is_of_template(tokenizer: PreTrainedTokenizerBase, sentence: str) -> bool:
    """Whether a message stands in the template word for word, and is no text of the row."""
    templates = tokenizer.chat_template
    return any(sentence in text for text in (templates.values() if isinstance(templates, dict) else [templates]))


def _refused(example: Example, what: str) -> ConfigError:
    where = example.source or example.id
    return ConfigError(f"--prompt-format chat: {where}: the tokenizer's chat template {what}")


def _squeezed(text: str) -> str:
    return "".join(text.split())
