"""Every causal architecture of the installed transformers, tried in a tiny configuration: `python -m dev.models`.

Writes docs/models.md: a row each with what holds, and where something does not, why.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from expunge.errors import UserError
from expunge.evaluation.generate import batching_obstacle
from expunge.model.adapter import add_adapter, save_adapter, trainable
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
CHECKS = ("loads", "batch = alone", "adapter = PEFT", "merge = adapter")
SAMPLE = ("llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "qwen3_moe", "mamba", "phimoe", "gpt_neox", "bert")
"""Architectures that the tests hold; `bert` by its refusal."""
ROWS = [[5, 9, 2, 7, 30, 31, 8], [4, 4, 60, 61, 62, 3, 9, 10, 11], [12, 40, 41]]
VOCAB = 131
LARGEST = 20_000_000
"""Weights of a model that still counts as tiny."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "embedding_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "n_positions": 128,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "state_size": 4,
    "rotary_dim": 4,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


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


def tiny(name: str) -> PreTrainedModel:
    """A random model of an architecture, as small as its configuration lets itself be made."""
    known = AutoConfig.for_model(name)
    wanted = {key: value for key, value in SIZES.items() if hasattr(known, key)}
    if "qk_rope_head_dim" in wanted:  # latent attention turns a part of each head alone, and calls that its head
        wanted["head_dim"] = wanted["qk_rope_head_dim"]
    layers = getattr(known, "layer_types", None)
    try:
        config = AutoConfig.for_model(name, **wanted, **({"layer_types": list(layers[-2:])} if layers else {}))
    except AttributeError:  # some derive the kinds of their layers
        config = AutoConfig.for_model(name, **wanted)
    with torch.device("meta"):
        size = sum(own.numel() for own in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} weights at the least")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def examine(name: str, folder: Path) -> Row:
    """Try one architecture; whatever fails is a reason, not an end."""
    row = Row(name)
    try:
        model = tiny(name)
    except Exception as error:  # which sizes a configuration takes is its own affair
        row.why = f"not tried: no tiny configuration ({type(error).__name__})"
        return row
    try:
        for check, held in _checks(model, folder, row):
            row.holds[check] = held
    except UserError as error:
        if "tokens alone (The size of tensor" in str(error):
            row.why = "not tried: its tiny configuration does not fit together"
            return row
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
    assert isinstance(loaded.model, PeftModel)
    loaded.model = loaded.model.merge_and_unload()
    yield CHECKS[3], _close(sequence_logps(loaded, ROWS), right)


def _close(found: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=2e-4) for a, b in zip(found, right, strict=True))


def table(names: list[str]) -> list[Row]:
    """Rows of these architectures, in their order."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(examine(name, Path(folder)))
        sys.stderr.write(f"{name}: {rows[-1].holds} {rows[-1].why[:80]}\n")
    return rows


def page(rows: list[Row]) -> str:
    """The page as Markdown."""
    whole = sum(row.whole for row in rows)
    lines = [
        "# Models",
        "",
        f"Every causal architecture of transformers {version('transformers')} with PEFT {version('peft')}, random and",
        f"tiny, in fp32 on the CPU: {whole} of {len(rows)} hold everything. Made by `python -m dev.models`.",
        "",
        "- loads: weights, head and causality are proven; a refusal says why",
        "- batch = alone: log-probabilities of rows together (packed or padded) are those of each row alone",
        "- adapter = PEFT: the saved adapter, loaded with plain PEFT, says what was measured",
        "- merge = adapter: so does the model with the adapter folded in",
        "",
        f"| architecture | {' | '.join(CHECKS)} | |",
        f"|---|{'---|' * len(CHECKS)}---|",
    ]
    signs = {True: "yes", False: "**no**", None: ""}
    for row in rows:
        cells = " | ".join(signs[row.holds.get(check)] for check in CHECKS)
        lines.append(f"| {row.name} | {cells} | {row.why.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try all, or those that are named, and write the page when all were tried."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    names = sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    text = page(table(names))
    if sys.argv[1:]:
        sys.stdout.write(text)
    else:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
