"""The scale of a finished adapter: a line search between the untouched model (0) and the trained adapter (1).

A scale is judged by the validation metrics on the selection half of the documents; `expunge evaluate` reports on the
others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftModel

from expunge.config.criteria import Criteria
from expunge.train.validation import Validation, ValidationRows, Validator, targets, violation, violations

SCALES = (0.25, 0.5, 0.75, 1.0)
"""Where the search begins; then it halves the distance to the neighbours of the best, `REFINEMENTS` times."""
REFINEMENTS = 4
MOST_SCALES = len(SCALES) + 2 * REFINEMENTS
"""Most scales that `choose_scale` measures."""
WORDS = {
    "auc": "membership AUC {metrics.auc:.2f} ({allowed})",
    "min_k_auc": "membership AUC by min-k {metrics.min_k_auc:.2f} ({allowed})",
    "forget_nll": "forgotten texts have {metrics.forget_nll:.2f} nats per token, unseen ones "
    "{untouched.unseen_nll:.2f}",
    "exact_match": "how surely the completions to forget are still said: {metrics.exact_match:.0%} on average (at most "
    "{said:.0%} wanted)",
    "retained": "{metrics.retained:.1%} of the retain scores kept (at least {criteria.min_retain:.0%} wanted)",
    "drift": "the loss of unseen texts rose by {metrics.drift:.1%} (at most {criteria.max_drift:.0%} wanted)",
}
"""Criterion -> what is said where it is not met."""


@dataclass(frozen=True)
class Calibration:
    """The outcome of a search.

    Attributes:
        scale: The chosen factor.
        reached: Whether all criteria are met at that scale.
        verdict: The same in words.
        curve: Metrics of every scale that was tried, in their order.
    """

    scale: float
    reached: bool
    verdict: str
    curve: list[Validation]


def choose_scale(
    validator: Validator,
    criteria: Criteria,
    *,
    known: Sequence[Validation] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> Calibration:
    """Find the scale with the least violation of the criteria; of several, that whose AUCs are nearest to their target.

    None is above 1: what is not forgotten yet is forgotten by more steps, not by damage.

    Args:
        validator: The model with its adapter, and the texts to judge by.
        criteria: What to reach.
        known: Metrics of scales that were measured already.
        progress: Called with 1 after each scale.
    """
    untouched = validator.untouched
    found = {metrics.scale: metrics for metrics in (untouched, *known)}

    def measure(scale: float) -> None:
        if scale not in found:
            found[scale] = validator.at(scale)
            progress(1)

    def cost(metrics: Validation) -> tuple[float, float]:
        aucs_off = sum(abs(auc - criteria.target_auc) for auc in (metrics.auc, metrics.min_k_auc))
        return violation(metrics, untouched, criteria), aucs_off

    def closest() -> Validation:  # not 0: an adapter that does nothing forgets nothing
        return min((metrics for metrics in found.values() if metrics.scale > 0), key=cost)

    for scale in SCALES:
        measure(scale)
    width = SCALES[1] - SCALES[0]
    for _ in range(REFINEMENTS):
        width /= 2
        best = closest().scale
        for scale in (best - width, best + width):
            if 0 < scale <= SCALES[-1]:
                measure(scale)
    best_metrics = closest()
    curve = sorted(found.values(), key=lambda metrics: metrics.scale)
    reached, verdict = judge(best_metrics, untouched, criteria)
    return Calibration(best_metrics.scale, reached, verdict, curve)


def judge(metrics: Validation, untouched: Validation, criteria: Criteria) -> tuple[bool, str]:
    """Whether all criteria are met on the validation rows, and a sentence on it."""
    failed = [name for name, missing in violations(metrics, untouched, criteria).items() if missing]
    bound = criteria.auc(untouched.auc_sd)
    allowed = f"allowed {bound.least:.2f} to {bound.most:.2f}"
    if not failed:
        aucs = f"membership AUC {metrics.auc:.2f}, by min-k {metrics.min_k_auc:.2f}, {allowed}"
        return True, f"all criteria are met on the selection texts ({aucs})"
    said = criteria.exact_match(untouched.unseen_exact_match).most
    known = {"metrics": metrics, "untouched": untouched, "criteria": criteria, "allowed": allowed, "said": said}
    return False, "; ".join(WORDS[name].format(**known) for name in failed)


def unchosen(model: PeftModel, hashes: Sequence[str]) -> dict[str, Any]:
    """The content of calibration.json for an adapter as it was trained: what stands for the texts that steered it."""
    adapter: Any = model.peft_config["default"]  # a LoraConfig
    return {
        "schema": 1,
        "scale": 1.0,
        "trained_alpha": adapter.lora_alpha,
        "trained_alpha_pattern": dict(adapter.alpha_pattern or {}),
        "selection_hmac": list(hashes),
    }


def record(found: Calibration, criteria: Criteria, trained: Mapping[str, Any], rows: ValidationRows) -> dict[str, Any]:
    """The content of calibration.json: what was chosen, and why; `trained` is as `unchosen` gives it."""
    return {
        **trained,
        "scale": found.scale,
        "reached": found.reached,
        "verdict": found.verdict,
        "target": asdict(criteria),
        "targets": targets(next(metrics for metrics in found.curve if metrics.scale == 0), criteria),
        "curve": [asdict(metrics) for metrics in found.curve],
        "texts": {name: len(getattr(rows, name)) for name in ("members", "nonmembers", "retain", "forget")},
    }
