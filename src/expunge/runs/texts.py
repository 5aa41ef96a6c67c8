"""The texts of a finished run, as it has read them, and whether they are still those that it was made with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge.config import UnlearnConfig
from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, TokenizedExample, hash_rows, tokenize_all
from expunge.errors import RunError
from expunge.utils.keys import keyed, of_this_key


def run_rows(
    settings: UnlearnConfig, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Example]
) -> list[TokenizedExample]:
    """Texts as a finished run has read them; completions that do not fit are cut."""
    prompt_format = PromptFormat(settings.prompt_format, settings.end_of_text == "yes")
    return tokenize_all(tokenizer, texts, prompt_format, max_length=settings.max_length, truncate_completions=True)


def other_texts(
    manifest: Mapping[str, Any], settings: UnlearnConfig, rows: Mapping[str, Sequence[TokenizedExample]]
) -> Iterator[str]:
    """What is to be said of each set whose tokens are not those in the manifest; a hash by another key tells nothing.

    Args:
        manifest: The run's.
        settings: The run's, which say where its texts are.
        rows: Set -> its texts as `run_rows` reads them.
    """
    for name, examples in rows.items():
        then = str(manifest["data"].get(name))
        if of_this_key(then) and then != keyed(hash_rows(examples)):
            given = "retain" if name == "test" and not settings.test else name  # of which a part is tested on
            yield (
                f"--{given} {getattr(settings, given) or settings.data}: these are not the {name} texts that the run "
                "was made with, or its tokenizer reads them in another way: give those"
            )


def check_texts(
    manifest: Mapping[str, Any], settings: UnlearnConfig, rows: Mapping[str, Sequence[TokenizedExample]]
) -> None:
    """Refuse texts that are not those of the run.

    Raises:
        RunError: So; see `other_texts`.
    """
    for sentence in other_texts(manifest, settings, rows):
        raise RunError(sentence)
