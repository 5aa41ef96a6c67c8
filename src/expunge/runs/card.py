"""The adapter's model card: README.md with the Hub's metadata, without any text of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from expunge.config import SETS

NOT_SCORED = (
    "A higher loss on the texts to forget does not prove by itself that they are gone: score the adapter with",
    "`expunge evaluate` before relying on it.",
)
HIDDEN = {*SETS, "model", "data", "split", "columns", "output", "save_every", "report_to", "shard_base"}
"""Settings that a card leaves out: they name the user's files, or change nothing about the adapter."""


@dataclass(frozen=True)
class Line:
    """One line of the card's table of scores.

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
    manifest: Mapping[str, Any],
    *,
    benchmark: str = "",
    scores: Sequence[Line] = (),
    verdict: str = "",
) -> str:
    """The card of a finished run.

    Args:
        manifest: The run's manifest.
        benchmark: What the adapter was scored on; empty when it was not.
        scores: What was measured.
        verdict: What they say together, in one sentence.
    """
    settings = manifest["settings"]
    model = str(settings["model"])
    metadata: dict[str, Any] = {
        "base_model": model,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["expunge", "machine-unlearning", "lora"],
    }
    if scores:
        metadata["model-index"] = [
            {
                "name": f"{model.rstrip('/').rpartition('/')[2]}, unlearned",
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
        f"| {name} | {counts[name]:,} | {pair['before']:.2f} | {pair['after']:.2f} |"  # coarse: see docs/reliability.md
        for name, pair in manifest["loss_nats_per_completion_token"].items()
    ]
    terms = [
        f"| {_cell(own['name'])} | {own['weight']:g} | `{_cell(own['formula'])}` | {_cell(own['source'])} |"
        for own in manifest.get("terms", ())
    ]
    shown = [
        f"| {name} | {_cell(str(value))} |"
        for name, value in settings.items()
        if name not in HIDDEN and value is not None
    ]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(metadata, sort_keys=False).rstrip(),
            "---",
            "",
            "# Unlearning adapter",
            "",
            f"A LoRA adapter for `{model}` that makes it forget {manifest['rows']['forget']:,} texts,",
            f"trained by Expunge {manifest['versions']['expunge']}.",
            "",
            "## Loss",
            "",
            "The sum of these terms, each times its weight.",
            "",
            "| term | weight | formula | source |",
            "|---|---:|---|---|",
            *terms,
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
            *shown,
            "",
            "## Use",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{model}")',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
            "```",
            "",
        ]
    )


def _results(benchmark: str, scores: Sequence[Line], verdict: str) -> list[str]:
    return [
        f"## Scores on {benchmark}",
        "",
        verdict,
        "",
        "| score | before | after | retrained |",
        "|---|---|---|---|",
        *(f"| {_cell(f'{score.label} {score.arrow}')} | {' | '.join(map(_cell, score.shown))} |" for score in scores),
    ]


def _cell(text: str) -> str:
    """Text that cannot leave its cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
