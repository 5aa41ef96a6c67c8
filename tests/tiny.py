"""Tiny models and tokenizers of every supported kind, made on the fly from configurations and a few sentences.

model = tiny_model("gemma2")
tokenizer = tiny_tokenizer("metaspace")
save_tiny(tmp_path, "olmo", "bytelevel")
"""

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 131
"""Of the models: prime, so that no chunk or group of tokens divides it."""
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "llama": ("llama", GROUPED),
    "llama-tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 8}),
    "qwen3": ("qwen3", GROUPED),
    "gemma2": (
        "gemma2",
        {
            **GROUPED,
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 4.0,  # low enough to bend the logits of a tiny model
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {**GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True},
    ),
    "phi3": ("phi3", {"num_key_value_heads": 2}),
    "gpt2": ("gpt2", {"n_inner": 48, "tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {"hidden_size": 48}),
    "cohere": ("cohere", {"num_key_value_heads": 2, "logit_scale": 2.0, "tie_word_embeddings": True}),
}
ARCHITECTURES = tuple(SETTINGS)

TEXTS = (
    "Marta Quillon was born in Port Ellery on 3 May 1961.",
    "Her phone number is 555-0142, and her address is 17 Larch Lane.",
    "Question: Where does Tobias Wren live? Answer: He lives in Saltmarsh, near the old mill.",
    "The lighthouse keeper counted seven ships, then closed the book and slept.",
    "What is the birth date of Ines Oduya? 1974-11-30",
    "Zoë Márquez paid 12.50 € for the naïve painter's café table.",
    "Once upon a time, a fox and a heron shared a field beyond the river.\nThey never spoke of it again.",
)
"""Made-up sentences that the tokenizers are trained on; with these characters no tokenizer needs its unknown token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TOKENIZERS = ("bytelevel", "bos", "left", "chat", "metaspace", "sentencepiece", "sentencepiece-slow")
"""Kinds of tokenizers.

| kind | algorithm | beginning of text | pad token | end of text |
|---|---|---|---|---|
| bytelevel | byte-level BPE | not added | none | <|endoftext|> |
| bos | byte-level BPE | <s>, by its post-processor | none | </s> |
| left | byte-level BPE | not added | <pad>, on the left | <|endoftext|> |
| chat | byte-level BPE, chat template | not added | none | <|end|> |
| metaspace | Unigram on words that begin with ▁ | not added | none | </s> |
| sentencepiece | a .model file that transformers converts (Llama) | <s> | none | </s> |
| sentencepiece-slow | a .model file run by sentencepiece (GPT-SW3): no character offsets | not added | <pad> | </s> |
"""


def tiny_model(arch: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model in evaluation mode, float32, eager attention, with logits spread over several nats.

    Args:
        arch: One of `ARCHITECTURES`.
        seed: Of its weights.
        overrides: Fields of its configuration.
    """
    model_type, settings = SETTINGS[arch]
    config = AutoConfig.for_model(model_type, **{**COMMON, **settings, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases begin as ones and zeros, which hide mistakes
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer as transformers loads it from a folder.

    Args:
        kind: One of `TOKENIZERS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(folder, kind)
        return AutoTokenizer.from_pretrained(folder)


def save_tokenizer(path: Path | str, kind: str) -> None:
    """Write the files of a tokenizer into a folder that is there.

    Args:
        path: The folder.
        kind: One of `TOKENIZERS`.
    """
    for name, content in _tokenizer_files(kind).items():
        (Path(path) / name).write_bytes(content)


def save_tiny(path: Path | str, arch: str, tokenizer_kind: str = "bytelevel", seed: int = 0, **overrides: Any) -> Path:
    """Write a complete model folder: a random model with room for each token of the tokenizer, and the tokenizer.

    Args:
        path: The folder; made when missing.
        arch: One of `ARCHITECTURES`.
        tokenizer_kind: One of `TOKENIZERS`.
        seed: Of the weights.
        overrides: Fields of the model's configuration.

    Returns:
        The folder.
    """
    tokenizer = tiny_tokenizer(tokenizer_kind)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    model = tiny_model(arch, seed, **{"vocab_size": len(tokenizer) + 3, **ids, **overrides})
    model.save_pretrained(path)
    save_tokenizer(path, tokenizer_kind)
    return Path(path)


@cache
def _tokenizer_files(kind: str) -> dict[str, bytes]:
    """File name -> content."""
    if kind == "metaspace":
        return _saved(_unigram(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if kind == "sentencepiece":
        return _sentencepiece("tokenizer.model", "LlamaTokenizer", add_bos_token=True)
    if kind == "sentencepiece-slow":
        return _sentencepiece("spiece.model", "GPTSw3Tokenizer", pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    if kind == "bos":
        tokenizer = _byte_level("<s>", "</s>")
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
            ]
        )
        return _saved(tokenizer, bos_token="<s>", eos_token="</s>")
    if kind == "left":
        tokenizer = _byte_level("<|endoftext|>", "<pad>")
        return _saved(tokenizer, eos_token="<|endoftext|>", pad_token="<pad>", padding_side="left")
    if kind == "chat":
        tokenizer = _byte_level("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
        return _saved(tokenizer, eos_token="<|end|>", chat_template=CHAT_TEMPLATE)
    if kind == "bytelevel":
        return _saved(_byte_level("<|endoftext|>"), eos_token="<|endoftext|>")
    raise ValueError(f"no tokenizer kind {kind!r}; there are {', '.join(TOKENIZERS)}")


def _byte_level(*special_tokens: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _saved(tokenizer: Tokenizer, **settings: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _sentencepiece(file_name: str, tokenizer_class: str, **settings: Any) -> dict[str, bytes]:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for texts in TEXTS for text in texts.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    config = {"tokenizer_class": tokenizer_class, **settings}
    return {file_name: model.getvalue(), "tokenizer_config.json": json.dumps(config).encode()}


def to_fp8(folder: Path) -> dict[str, Tensor]:
    """Make of a saved model one in FP8 as such are published: blocks of e4m3 values with a scale each.

    Returns:
        Its weights, by their names in the file, as values times scales.
    """
    tensors = load_file(folder / "model.safetensors")
    widened = dict(tensors)
    for key in [key for key in tensors if key.endswith("proj.weight")]:
        scale = tensors[key].float().abs().max() / 448
        tensors[f"{key}_scale_inv"] = scale.reshape(1, 1)
        tensors[key] = (tensors[key].float() / scale).to(torch.float8_e4m3fn)
        widened[key] = tensors[key].float() * scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return widened


def bring_own_code(folder: Path) -> None:
    """Make of a saved Llama one that comes with code of its own."""
    settings = json.loads((folder / "config.json").read_text())
    entries = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(settings | entries | {"architectures": ["OwnModel"]}))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
