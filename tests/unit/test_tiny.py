"""The tiny models and tokenizers are what the other tests take them for."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import ARCHITECTURES, TEXTS, TOKENIZERS, VOCAB_SIZE, save_tiny, tiny_model, tiny_tokenizer


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids).logits


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_runs_and_spreads_its_logits(arch):
    model = tiny_model(arch)
    ids = torch.arange(24).reshape(2, 12) * 5 % VOCAB_SIZE
    out = logits(model, ids)
    assert out.shape == (2, 12, VOCAB_SIZE)
    assert out.dtype == torch.float32
    assert 1 < out.std() < 4
    assert not model.training
    assert model.config._attn_implementation == "eager"
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    assert torch.equal(out, logits(tiny_model(arch), ids)), "the seed decides"
    assert not torch.equal(out, logits(tiny_model(arch, seed=1), ids))


def test_models_have_what_they_are_there_for():
    assert tiny_model("llama").config.num_key_value_heads < tiny_model("llama").config.num_attention_heads
    assert tiny_model("mistral").config.sliding_window < 12
    gemma2 = tiny_model("gemma2")
    ids = torch.arange(12)[None]
    capped = logits(gemma2, ids)
    gemma2.config.final_logit_softcapping = None
    assert (logits(gemma2, ids) - capped).abs().max() > 0.5
    assert type(tiny_model("gemma3")).__name__ == "Gemma3ForCausalLM"
    assert tiny_model("cohere").logit_scale not in (None, 1)
    assert tiny_model("qwen3", num_hidden_layers=1).config.num_hidden_layers == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_tokenizer_keeps_the_texts(kind):
    tokenizer = tiny_tokenizer(kind)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
        assert len(ids) < len(text)
        assert (ids[0] == tokenizer.bos_token_id) == (kind in ("bos", "sentencepiece"))
        assert ids[-1] != tokenizer.eos_token_id
    assert (tokenizer.pad_token_id is not None) == (kind in ("left", "sentencepiece-slow"))
    assert tokenizer.is_fast == (kind != "sentencepiece-slow")
    assert (tokenizer.chat_template is not None) == (kind == "chat")


def test_padding_side_and_chat_template():
    assert tiny_tokenizer("left").padding_side == "left"
    tokenizer = tiny_tokenizer("chat")
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|user|>\nWhere?<|end|>\n<|assistant|>\nHere.<|end|>\n"
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>\nWhere?<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(("arch", "kind"), [("olmo", "bytelevel"), ("llama", "sentencepiece"), ("gpt2", "bos")])
def test_a_saved_folder_loads_as_any_model(tmp_path, arch, kind):
    folder = save_tiny(tmp_path / "model", arch, kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    assert ids.max() < model.config.vocab_size
    assert (model.config.eos_token_id, model.config.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    expected = tiny_model(arch, vocab_size=model.config.vocab_size, bos_token_id=None, eos_token_id=0)
    assert torch.allclose(logits(model.eval(), ids), logits(expected, ids), atol=1e-5)
