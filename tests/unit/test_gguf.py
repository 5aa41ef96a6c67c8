"""A GGUF file as `--model`: its weights, tokenizer and chat template, and what is made of it."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.errors import ModelError
from expunge.model.adapter import add_adapter, trainable
from expunge.model.export import export
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.model.saved import attach_adapter, save_adapter
from tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

ROWS = [[5, 9, 2, 7, 30, 31, 8], [4, 4, 60, 61, 62, 3, 9, 10]]
NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """A Llama model and its tokenizer as llama.cpp writes them, in fp32; names of the GGUF specification."""
    config, tokenizer = model.config, tiny_tokenizer("chat")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].__getitem__)
    tokens += [f"[UNUSED{at}]" for at in range(config.vocab_size - len(tokens))]
    special = {token["content"] for token in backend["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    )
    writer.add_bos_token_id(tokens.index("<|user|>"))  # another than the end: they were taken for each other
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        block = f"blk.{parts[2]}." if "layers" in parts else ""
        writer.add_tensor(f"{block}{NAMES[parts[-2]]}.weight", _rows(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rows(name: str, tensor: Tensor, config: object) -> np.ndarray:
    """GGUF pairs the rotary dimensions of queries and keys in another order."""
    if ".q_proj." in name or ".k_proj." in name:
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads  # type: ignore[attr-defined]
        tensor = tensor.reshape(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
    return tensor.float().contiguous().numpy()


@pytest.mark.parametrize("given", ["small.gguf", "."])
def test_a_gguf_file_is_loaded_trained_on_and_merged(given: str, tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer("chat")))
    (tmp_path / "base").mkdir()
    write_gguf(model, tmp_path / "base/small.gguf")
    name = str(tmp_path / "base" / given)
    loaded = load_model(name, dtype="float32", device="cpu")
    with torch.no_grad():
        right = model(input_ids=torch.tensor([ROWS[0]])).logits[0, :-1].log_softmax(-1)
    (found,) = sequence_logps(loaded, [ROWS[0]])
    torch.testing.assert_close(found, right.gather(-1, torch.tensor(ROWS[0])[1:, None])[:, 0], rtol=1e-4, atol=1e-4)
    text, tokenizer = "Question: Where does Tobias Wren live?<|end|>", tiny_tokenizer("chat")
    assert loaded.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.tokenizer.eos_token, loaded.tokenizer.bos_token) == (tokenizer.eos_token, "<|user|>")
    turns = [{"role": "user", "content": "Who?"}]
    assert loaded.tokenizer.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(
        turns, tokenize=False
    )

    add_adapter(loaded, rank=2, alpha=4.0, modules="all-linear", seed=0)
    with torch.no_grad():
        for parameter in trainable(loaded.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    right = sequence_logps(loaded, ROWS)
    (tmp_path / "run/adapter").mkdir(parents=True)
    save_adapter(loaded, tmp_path / "run/adapter", ROWS)
    named = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "base/small.gguf")

    merged = load_model(name, dtype="float32", device="cpu")
    attach_adapter(merged, str(tmp_path / "run"))
    merged.model = merged.model.merge_and_unload()
    (tmp_path / "merged").mkdir()
    export(merged, tmp_path / "merged", torch.float32)
    again = load_model(str(tmp_path / "merged"), dtype="float32", device="cpu")
    for found, wanted in zip(sequence_logps(again, ROWS), right, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert again.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.tokenizer.chat_template == CHAT_TEMPLATE


def test_what_is_no_gguf_file_or_one_of_several_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelError, match=r"a\.gguf: cannot read its configuration"):
        load_model(str(tmp_path), dtype="float32", device="cpu")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="holds 2 GGUF files: name one"):
        load_model(str(tmp_path), dtype="float32", device="cpu")
