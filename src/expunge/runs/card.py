"""Model cards of an adapter and of a merged model: README.md with the Hub's metadata, without any text of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from expunge.config import SETS
from expunge.utils import coarse

HIDDEN = {
    *SETS, "model", "origin", "title", "data", "split", "columns",
}  # fmt: skip
"""Settings that a card leaves out: they say what is forgotten, name files, or change nothing about the adapter."""

TAKEN = ("license", "license_name", "license_link", "language")
"""What a card takes over from its base's."""


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
    reference: str = "retrained",
) -> str:
    """The card of a finished run.

    Args:
        manifest: The run's manifest.
        benchmark: What the adapter was scored on; empty when it was not.
        scores: What was measured.
        verdict: What they say together, in one sentence.
        reference: What the model is that never saw the texts: `retrained` or `origin`.
    """
    settings = {name: value for name, value in manifest["settings"].items() if name not in HIDDEN and value is not None}
    head = metadata(manifest, "adapter", scores=scores, benchmark=benchmark)
    scored = {"scores": scores, "benchmark": benchmark, "verdict": verdict, "reference": reference}
    base = _adapter_base(manifest)
    return _written("adapter", head, manifest, base=base, settings=settings, **scored)


def merged_card(manifest: Mapping[str, Any], losses: Mapping[str, float], made_of: Mapping[str, Any]) -> str:
    """The card of a merged model.

    Args:
        manifest: The run's manifest.
        losses: Model -> mean loss of the completion tokens to forget, nats per token.
        made_of: What the weights were made of, and how they are kept.
    """
    few = coarse.few({"forget": manifest["loss_texts"]["forget"]})
    shown = {name: coarse.nats(loss) if few else loss for name, loss in losses.items()}
    return _written("merged", metadata(manifest, "finetune"), manifest, losses=shown, made_of=made_of)


def _written(name: str, head: Sequence[str], manifest: Mapping[str, Any], **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader("expunge.runs"), trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {"cell": _cell, "nats": _loss}
    page = environment.get_template(f"{name}.md")
    run = {"terms": (), **manifest}
    return "\n".join(head) + "\n" + page.render(run=run, model=model_name(manifest), count="{:,}".format, **more)


def metadata(
    manifest: Mapping[str, Any], relation: str, *, scores: Sequence[Line] = (), benchmark: str = ""
) -> list[str]:
    """The head of a card, a line each, as the Hub reads it.

    Args:
        manifest: The run's manifest.
        relation: Of the model to its base: `adapter` or `finetune`; left out with a base that the Hub does not have.
        scores: What was measured.
        benchmark: On what.
    """
    base = manifest.get("base", {})
    adapter = relation == "adapter"
    name = None if adapter and _adapter_base(manifest) is None else base.get("id")
    about: dict[str, Any] = taken(base) | ({"base_model_relation": relation} if name else {})
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=benchmark, dataset_name=benchmark, metric_type=score.key,
            metric_name=score.label, metric_value=score.value,
        )
        for score in scores
    ]  # fmt: skip
    data = ModelCardData(
        base_model=name,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["expunge", "machine-unlearning", *(["lora"] if adapter else [])],
        model_name=f"{model_name(manifest).rpartition('/')[2]}, unlearned",
        eval_results=results or None,
        **about,
    )
    return ["---", yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True).rstrip(), "---", ""]


def taken(metadata: dict[str, Any]) -> dict[str, Any]:
    """The fields that a card takes over, where they are text or lists of it."""
    fields = {name: metadata.get(name) for name in TAKEN}
    return {
        name: value for name, value in fields.items()
        if (isinstance(value, str) and value) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    }  # fmt: skip


def model_name(manifest: Mapping[str, Any]) -> str:
    """The base's id on the Hub, or the name of its folder without the way there."""
    settings = manifest["settings"]["model"]
    return str(manifest.get("base", {}).get("id") or Path(str(settings)).name)


def _adapter_base(manifest: Mapping[str, Any]) -> str | None:
    """The model that the adapter stands on, which is not that of a run on an adapter; None where it lies with it."""
    name = manifest.get("adapter_base", "")
    return None if name is None else manifest.get("base", {}).get("id") or name or model_name(manifest)


def _loss(nats: float | None) -> str:
    """A loss with few digits, from which nothing can be found out: see docs/reliability.md."""
    return "not finite" if nats is None else f"{nats:.2f}"


def _cell(text: str) -> str:
    """Text that cannot leave its cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
