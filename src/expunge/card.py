"""The adapter's model card: README.md with the Hub's metadata, without any text of the data."""

from typing import Any

import yaml

from expunge.config import UnlearnConfig

METHOD = "`loss = npo(forget) + retain_weight * nll(retain) + kl_weight * kl(retain)`"
SHOWN = (
    "recipe", "epochs", "learning_rate", "schedule", "beta", "level", "retain_weight", "kl_weight", "kl_direction",
    "forget_span", "kl_span", "lora_rank", "lora_alpha", "target_modules", "tokens_per_step", "rows_per_step",
    "join", "end_of_text", "dtype", "seed",
)  # fmt: skip


def model_card(config: UnlearnConfig, manifest: dict[str, Any]) -> str:
    """The card of a finished run.

    Args:
        config: The resolved settings.
        manifest: The run's manifest.
    """
    metadata = {
        "base_model": config.model,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["expunge", "machine-unlearning", "lora", "npo"],
    }
    losses = [
        f"| {name} | {manifest['rows'][name]:,} | {manifest['tokens'][name]:,} "
        f"| {pair['before']:.3f} | {pair['after']:.3f} |"
        for name, pair in manifest["loss_nats_per_completion_token"].items()
    ]
    settings = [f"| {name} | {getattr(config, name)} |" for name in SHOWN if getattr(config, name) is not None]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(metadata, sort_keys=False).rstrip(),
            "---",
            "",
            "# Unlearning adapter",
            "",
            f"A LoRA adapter for `{config.model}` that makes it forget {manifest['rows']['forget']:,} texts.",
            f"Trained by Expunge {manifest['versions']['expunge']} with low-rank negative preference optimization",
            f"(arXiv 2503.13690): {METHOD}.",
            "",
            "## Losses",
            "",
            "Mean negative log-likelihood of the completion tokens, in nats per token.",
            "",
            "| texts | rows | tokens | before | after |",
            "|---|---|---|---|---|",
            *losses,
            "",
            "A higher loss on the texts to forget does not prove by itself that they are gone: score the adapter with",
            "`expunge evaluate` before relying on it.",
            "",
            "## Settings",
            "",
            "| setting | value |",
            "|---|---|",
            f"| optimizer steps | {manifest['steps']:,} |",
            *settings,
            "",
            "## Use",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{config.model}")',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
            "```",
            "",
        ]
    )
