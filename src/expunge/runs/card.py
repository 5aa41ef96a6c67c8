"""The adapter's model card: README.md with the Hub's metadata, without any text of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from expunge.config import UnlearnConfig

NOT_SCORED = (
    "A higher loss on the texts to forget does not prove by itself that they are gone: score the adapter with",
    "`expunge evaluate` before relying on it.",
)
TERMS = {
    "forget_weight": "npo(forget)",
    "rest_weight": "kl(others)",
    "retain_weight": "nll(retain)",
    "kl_weight": "kl(retain)",
    "anchor_weight": "kl(anchors)",
    "instead_weight": "nll(instead)",
}
SHOWN = (
    "recipe", "epochs", "learning_rate", "schedule", "beta", "level", "forget_weight", "rest_weight", "retain_weight",
    "kl_weight", "kl_direction", "anchor_weight", "instead_weight",
    "forget_span", "kl_span", "lora_rank", "lora_alpha", "target_modules", "tokens_per_step", "rows_per_step",
    "join", "end_of_text", "dtype", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """One measured number for the card.

    Attributes:
        key: Its name in results files.
        label: What the card calls it.
        arrow: Which way is better, as a sign.
        value: Of the unlearned model.
        shown: The values of the untouched model, of this one and of a reference as text, with intervals.
    """

    key: str
    label: str
    arrow: str
    value: float
    shown: tuple[str, str, str]


def model_card(
    config: UnlearnConfig,
    manifest: dict[str, Any],
    *,
    benchmark: str = "",
    scores: Sequence[Score] = (),
    verdict: str = "",
) -> str:
    """The card of a finished run.

    Args:
        config: The resolved settings.
        manifest: The run's manifest.
        benchmark: What the adapter was scored on; empty when it was not.
        scores: What was measured.
        verdict: What they say together, in one sentence.
    """
    metadata = {
        "base_model": config.model,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["expunge", "machine-unlearning", "lora", "npo"],
    }
    if scores:
        metadata["model-index"] = [
            {
                "name": f"{config.model.rstrip('/').rpartition('/')[2]}, unlearned",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": benchmark, "type": benchmark},
                        "metrics": [{"type": score.key, "name": score.label, "value": score.value} for score in scores],
                    }
                ],
            }
        ]
    counts = manifest.get("loss_texts", manifest["rows"])
    losses = [
        f"| {name} | {counts[name]:,} | {pair['before']:.3f} | {pair['after']:.3f} |"
        for name, pair in manifest["loss_nats_per_completion_token"].items()
    ]
    weights = {name: getattr(config, name) for name in TERMS} | ({} if config.instead else {"instead_weight": 0})
    method = "loss = " + " + ".join(f"{name} * {term}" for name, term in TERMS.items() if weights[name])
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
            f"(arXiv 2503.13690): `{method}`.",
            "",
            "## Losses",
            "",
            "Mean negative log-likelihood of the completion tokens, in nats per token.",
            "",
            "| texts | rows | before | after |",
            "|---|---:|---:|---:|",
            *losses,
            "",
            *(_results(benchmark, scores, verdict) if scores else NOT_SCORED),
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


def _results(benchmark: str, scores: Sequence[Score], verdict: str) -> list[str]:
    return [
        f"## Scores on {benchmark}",
        "",
        verdict,
        "",
        "| score | before | after | reference |",
        "|---|---|---|---|",
        *(f"| {_cell(f'{score.label} {score.arrow}')} | {' | '.join(map(_cell, score.shown))} |" for score in scores),
    ]


def _cell(text: str) -> str:
    """Text that cannot leave its cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
