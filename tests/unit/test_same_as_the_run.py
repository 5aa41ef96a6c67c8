"""What a command on a run stands on is what the run was made with: the base, the texts, how a tokenizer reads them."""

from pathlib import Path

import pytest

from expunge.config import UnlearnConfig
from expunge.data.examples import Example
from expunge.data.tokenize import hash_rows
from expunge.errors import RunError
from expunge.runs.manifest import check_base, known_base
from expunge.runs.texts import check_texts, other_texts, run_rows
from expunge.utils.keys import keyed
from tiny import tiny_tokenizer

TEXTS = [Example("1", "Where does Tobias live?", "In Saltmarsh."), Example("2", "Who?", "Ines.")]
SETTINGS = UnlearnConfig(
    model="m", forget="f.jsonl", retain="r.jsonl", output="o", prompt_format="chat", end_of_text="yes", max_length=99
)


@pytest.mark.parametrize("given", ["small.gguf", "."])
def test_a_gguf_file_is_known_by_what_it_holds(given: str, tmp_path: Path) -> None:
    """ggml-org/llama.cpp#9114: adapters meet GGUF files of whichever origin."""
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF 1")
    name = str(tmp_path / given)
    manifest = {"model_sha256": known_base(name)}
    check_base(name, manifest, "--run")
    file.write_bytes(b"GGUF 2")
    with pytest.raises(RunError, match="is another model than the one that the run was made on"):
        check_base(name, manifest, "--run")


def test_a_name_on_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """tenstorrent/tt-metal#52956: weights that are replaced in place under a name."""
    monkeypatch.setattr("expunge.model.source._downloaded_adapter", lambda name, revision: None)
    assert known_base("some/model") is None  # nobody knows yet what will be loaded
    manifest = {"model_sha256": known_base("some/model", "a" * 40)}
    check_base("some/model", manifest, "--run")
    check_base("some/model", manifest, "--run", "a" * 40)
    with pytest.raises(RunError, match="some/model is another model"):
        check_base("some/model", manifest, "--run", "b" * 40)


def test_texts_that_are_no_longer_those_of_the_run_are_seen() -> None:
    """lisa-lab/pylearn2#870: a file that is another one under its old name."""
    tokenizer = tiny_tokenizer("chat")
    rows = {"forget": run_rows(SETTINGS, tokenizer, TEXTS)}
    manifest = {"data": {"forget": keyed(hash_rows(rows["forget"]))}}
    check_texts(manifest, SETTINGS, rows)
    edited = run_rows(SETTINGS, tokenizer, [TEXTS[0], Example("2", "Who?", "Zoë.")])
    with pytest.raises(RunError, match=r"--forget f\.jsonl: these are not the forget texts that the run was made with"):
        check_texts(manifest, SETTINGS, {"forget": edited})
    other_key = {"data": {"forget": "0" * 8 + ":" + "0" * 64}}
    assert not [
        *other_texts(other_key, SETTINGS, {"forget": edited}),
        *other_texts(manifest, SETTINGS, {"test": edited}),
    ]


@pytest.mark.parametrize("change", ["template", "tokens"])
def test_another_template_or_tokenizer_makes_other_texts(change: str) -> None:
    """hiyouga/LlamaFactory#5476 (the template was changed), dhruvdcoder/xlm-core#50 (the tokenizer was)."""
    tokenizer = tiny_tokenizer("chat")
    manifest = {"data": {"forget": keyed(hash_rows(run_rows(SETTINGS, tokenizer, TEXTS)))}}
    if change == "template":
        tokenizer.chat_template = "{{ 'Be brief. ' }}" + str(tokenizer.chat_template)
    else:
        tokenizer.add_tokens(["Saltmarsh"])
    (sentence,) = other_texts(manifest, SETTINGS, {"forget": run_rows(SETTINGS, tokenizer, TEXTS)})
    assert "or its tokenizer reads them in another way" in sentence
