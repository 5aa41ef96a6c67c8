"""Every causal architecture of the installed transformers, tried in a tiny configuration: `python -m dev.models`.

Writes docs/models.md: a row each with what holds, and where something does not, why.
"""

import copy
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from expunge.data.sampler import Step
from expunge.data.tokenize import TokenizedExample
from expunge.errors import UserError
from expunge.evaluation.generate import greedy
from expunge.model.adapter import add_adapter, trainable
from expunge.model.decoding import batching_obstacle
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.model.saved import save_adapter
from expunge.train.before import ask_untouched
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
REFUSED = "is not causal here"
"""What the refusal of an encoder says."""
CHECKS = ("loads", "batch = alone", "adapter = PEFT", "resume", "merge = adapter", "greedy = one at a time", "bf16")
SAMPLE = (
    "llama", "gpt2", "mixtral", "qwen3_moe", "mamba", "phimoe", "gpt_neox", "gemma3", "bert", "deepseek_v3",
    "deepseek_v4", "gemma3n_text", "laguna", "nemotron_h", "opt", "bart", "llama4_text",
)  # fmt: skip
"""Architectures that the tests hold: `bert` by its refusal, `deepseek_v4` for its projections by groups, `gemma3n_text`
for what it changes in place; `opt` and `bart`, which go past the part that ends in the final states, and `llama4_text`,
which has none of the name that its class gives; as reported, `laguna` because PEFT renames parts of a saved adapter
when it loads it (huggingface/peft#3711), `mamba` and `nemotron_h` because rows that are generated together change each
other (huggingface/transformers#31540 and #48256)."""
ROWS = [[5, 9, 2, 7, 30, 31, 8], [4, 4, 60, 61, 62, 3, 9, 10, 11], [12, 40, 41]]
VOCAB = 131
NEW = 6
"""Tokens that are generated after each row."""
LARGEST = 30_000_000
"""Weights of a model that still counts as tiny."""
LAYERS = 2
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "embedding_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "projector_hidden_size": 32, "vision_output_dim": 32,
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "depth",
         "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
         "num_encoder_attention_heads", "num_decoder_attention_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "n_positions": 128, "rotary_dim": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "state_size": 4, "mamba_d_head": 16, "mamba_head_dim": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "n_groups": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "image_size": 28, "patch_size": 14, "intermediate_layers_indices": [0], "out_hidden_size": 32,
    "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCAB, "laurel_rank": 4, "num_kv_shared_layers": 0,
}  # fmt: skip
FITS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_expand": 2, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4,
                                                                   "mrope_section": [2, 1, 1]}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * LAYERS, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"], "head_dim": 12, "index_head_dim": 8,
        "index_n_heads": 2, "index_topk": 16, "shared_experts_intermediate_size": 16, "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4, "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8, "swa_head_dim": 12,
        "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
    "emu3": {"vocabulary_map": {"<image>": 5}},
    "emu3_vqgan": {"base_channels": 32, "codebook_size": 64, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_expand": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {"indexer_compress_ratio": 4, "indexer_budget": 16, "indexer_n_heads": 2, "indexer_kv_heads": 1,
                       "indexer_head_dim": 8},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["hybrid", "linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a configuration needs beside its sizes so that they fit together."""
DRAFTS = "no language model by itself: it drafts from another model's states and cache (ignores its input_ids)"
UNTRIED = {
    "gemma3n": "its vision tower needs the package timm; gemma3n_text is the same language model",
    "gemma4_assistant": DRAFTS,
    "gemma4_unified_assistant": DRAFTS,
    **dict.fromkeys(
        ("musicgen", "musicgen_melody"), "no text model: its class reads several streams of audio codes at once"
    ),
}
"""Architectures in the list of causal ones of which no tiny model on tokens can be made, and why."""


@dataclass
class Row:
    """What was found of one architecture.

    Attributes:
        name: Its `model_type`.
        holds: Check -> whether it holds; those that were not reached are absent.
        why: Where one does not, the reason; and what is left out.
    """

    name: str
    holds: dict[str, bool] = field(default_factory=dict)
    why: str = ""

    @property
    def whole(self) -> bool:
        """Whether all hold."""
        return all(self.holds.get(check) for check in CHECKS)


def sizes(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Settings of a tiny model: those of `SIZES` that a configuration has, in its parts as well, and its own."""
    known, found = kind(), {}
    for key, value in SIZES.items():
        if key in known.to_dict() or hasattr(type(known), key) or key in known.attribute_map:
            try:
                setattr(copy.copy(known), key, value)
            except (AttributeError, NotImplementedError):  # it is derived from others
                continue
            found[key] = value
    if "kv_lora_rank" in found:  # latent attention has no groups of heads, and calls the part that turns its head
        found |= {"num_key_value_heads": found["num_attention_heads"], "head_dim": found["qk_rope_head_dim"]}
    layers, attribute = getattr(known, "layer_types", None), kind.attribute_map.get("layer_types", "layer_types")
    if layers and not (isinstance(derived := getattr(kind, attribute, None), property) and derived.fset is None):
        found[attribute] = list(layers[-LAYERS:])
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(known, name, None)
        if isinstance(part, PretrainedConfig):
            found[name] = type(part)(**sizes(type(part)))
    return found | FITS.get(kind.model_type, {})


def tiny(name: str, **more: Any) -> PreTrainedModel:
    """A random model of an architecture, as small as its configuration lets itself be made.

    Where the language model alone has a configuration that no class is found for, it is the whole checkpoint.
    """
    config = CONFIG_MAPPING[name](**sizes(CONFIG_MAPPING[name]) | more)
    kind: Any = AutoModelForCausalLM
    with torch.device("meta"):
        empty = kind.from_config(config)
        if type(empty.config) not in AutoModelForCausalLM._model_mapping:
            kind = AutoModelForImageTextToText
            empty = kind.from_config(config)
    size = sum(weight.numel() for weight in empty.parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} weights at the least")
    torch.manual_seed(0)
    model: PreTrainedModel = kind.from_config(config, dtype=torch.float32).eval()
    return model


def examine(name: str, folder: Path, **more: Any) -> Row:
    """Try one architecture, with settings beside its sizes or without; whatever fails is a reason, not an end."""
    row = Row(" ".join([name, *more]))
    try:
        model = tiny(name, **more)
    except Exception as error:  # which sizes a configuration takes is its own affair
        if name in UNTRIED:
            row.why = f"not tried: {UNTRIED[name]}"
            return row
        row.why = f"not tried: no tiny configuration ({type(error).__name__}: {' '.join(str(error).split())[:70]})"
        return row
    try:
        for check, held in _checks(model, folder, row):
            row.holds[check] = held
    except UserError as error:
        row.why = str(error).replace(str(folder), "MODEL")
        row.holds[CHECKS[len(row.holds)]] = False
    except Exception as error:  # a fault, which the table is to show
        row.why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        row.holds[CHECKS[len(row.holds)]] = False
    return row


def _checks(model: PreTrainedModel, folder: Path, row: Row) -> Iterator[tuple[str, bool]]:
    from tiny import save_tokenizer

    model.save_pretrained(folder / "base")
    save_tokenizer(folder / "base", "bytelevel")
    loaded = load_model(str(folder / "base"), dtype="float32", device="cpu")
    yield CHECKS[0], True
    together = sequence_logps(loaded, ROWS)
    alone = [sequence_logps(loaded, [ids])[0] for ids in ROWS]
    yield CHECKS[1], _close(together, alone)
    add_adapter(loaded, rank=2, alpha=4.0, modules="all-linear", seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(loaded.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    notes = loaded.told()
    obstacle = batching_obstacle(loaded.base)
    row.why = "; ".join([*notes, *([f"generates one row at a time: {obstacle}"] if obstacle else [])])
    right = sequence_logps(loaded, ROWS)
    (folder / "adapter").mkdir()
    save_adapter(loaded, folder / "adapter", ROWS)
    yield CHECKS[2], True
    yield CHECKS[3], _resumes(folder)
    assert isinstance(loaded.model, PeftModel)
    loaded.model = loaded.model.merge_and_unload()
    yield CHECKS[4], _close(sequence_logps(loaded, ROWS), right)
    together = greedy(loaded, ROWS, max_new_tokens=NEW)
    yield CHECKS[5], together == [greedy(loaded, [ids], max_new_tokens=NEW)[0] for ids in ROWS]
    yield CHECKS[6], learns_in_bf16(folder / "base")


def _trainer(model: Path, **settings: Any) -> Trainer:
    """A run on `ROWS` before its first step."""
    from training import prepared

    texts = [TokenizedExample(str(place), ids, 1) for place, ids in enumerate(ROWS)]
    trainer = Trainer(prepared(model, forget=texts, retain=texts, target_modules="all-linear", **settings))
    ask_untouched(trainer, Reporter(quiet=True))
    return trainer


def _resumes(folder: Path) -> bool:
    """Whether two steps, a checkpoint, and two more on a model that was loaded again give the adapter of four."""
    steps = [Step(0, [place % 3], [(place + 1) % 3], number=place) for place in range(4)]

    def trained(trainer: Trainer, places: range) -> Trainer:
        for place in places:
            trainer.train_step(steps[place])
        return trainer

    def fresh() -> Trainer:
        return _trainer(folder / "base")

    whole, first, second = trained(fresh(), range(4)), trained(fresh(), range(2)), fresh()
    save_file(first.state(), folder / "state.safetensors")
    second.load_state(load_file(folder / "state.safetensors"))
    trained(second, range(2, 4))
    found = second.state()
    return all(torch.equal(value, found[key]) for key, value in whole.state().items())


def learns_in_bf16(model: Path) -> bool:
    """Whether a step in bfloat16 moves what the model says."""
    trainer = _trainer(model, dtype="bfloat16", learning_rate=0.1)
    before = sequence_logps(trainer.loaded, ROWS)
    trainer.train_step(Step(0, [0], [1]))
    return not _close(sequence_logps(trainer.loaded, ROWS), before)


def _close(found: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=2e-4) for a, b in zip(found, right, strict=True))


def table(names: list[str]) -> Iterator[Row]:
    """Rows of these architectures, in their order; two of an encoder that can be made a decoder."""
    for name in names:
        row = Row(name)
        for more in ({}, {"is_decoder": True}):
            if more and not (REFUSED in row.why and "is_decoder" in CONFIG_MAPPING[name]().to_dict()):
                continue
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = examine(name, Path(folder), **more)
            sys.stderr.write(f"{row.name}: {row.holds} {row.why[:80]}\n")
            yield row


def line(row: Row) -> str:
    """A row of the table as Markdown."""
    signs = {True: "yes", False: "**no**", None: ""}
    cells = " | ".join(signs[row.holds.get(check)] for check in CHECKS)
    return f"| {row.name} | {cells} | {row.why.replace('|', '/')} |"


def page(lines: Mapping[str, str]) -> str:
    """The page as Markdown.

    Args:
        lines: Architecture -> its row.
    """
    whole = sum(f"|{' yes |' * len(CHECKS)}" in text for text in lines.values())
    refused = sum(REFUSED in text for text in lines.values())
    head = [
        "# Models",
        "",
        f"Every causal architecture of transformers {version('transformers')} with PEFT {version('peft')}, random and",
        f"tiny, on the CPU, in fp32 but for the last check; {whole} of {len(lines)} rows hold all, {refused} are",
        "encoders, which are refused (those that `is_decoder` makes causal have a second row), and the others say why.",
        "Made by `python -m dev.models`; with names behind it, their rows alone are made again. Whole runs have been",
        "made of two real language models, SmolLM2-135M-Instruct (Llama) and Gemma-3-270M, and of subjects of 1 to 5 M",
        "parameters: [results.md](results.md).",
        "",
        "Checkpoints may hold fp32, fp16, bf16 or several of them (what is fp32 beside narrower weights, as biases of",
        "routers, stays so). FP8 in blocks and MXFP4 are widened to bf16, and so is a GGUF file (`expunge[gguf]`);",
        "other quantized formats (GPTQ, AWQ, bitsandbytes, compressed-tensors, FBGEMM) are refused.",
        "",
        "- loads: weights, head and causality are proven; a refusal says why",
        "- batch = alone: log-probabilities of rows together (packed or padded) are those of each row alone",
        "- adapter = PEFT: the saved adapter, loaded with plain PEFT, says what was measured",
        "- resume: two training steps, a checkpoint and two more end at the adapter of four, bit for bit",
        "- merge = adapter: the model with the adapter folded in says what the adapter says",
        "- greedy = one at a time: texts generated together are those of each prompt alone, token by token",
        "- bf16: a step in bfloat16 moves what the model says",
        "",
        f"| architecture | {' | '.join(CHECKS)} | |",
        f"|---|{'---|' * len(CHECKS)}---|",
    ]
    return "\n".join([*head, *(lines[name] for name in sorted(lines))]) + "\n"


def main() -> None:
    """Try all, or those that are named, and write their rows into the page, one as soon as it is made."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    lines = {}
    if names := sys.argv[1:]:
        there = [text for text in PAGE.read_text(encoding="utf-8").splitlines() if text.startswith("| ")][1:]
        lines = {text.split(" | ")[0].removeprefix("| "): text for text in there}
    for row in table(names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        lines[row.name] = line(row)
        PAGE.write_text(page(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
