"""What each metric means: definition, direction, range and source."""

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower", "target"]
Family = Literal["memorization", "text", "membership", "utility"]


@dataclass(frozen=True)
class Metric:
    """How to read a metric.

    Attributes:
        name: As in results files.
        direction: Which values are better on texts that are to be forgotten (or of a whole model): `higher`, `lower`,
            or those near `target`.
        low: Smallest possible value.
        high: Largest possible value.
        source: Paper or repository that it comes from.
        definition: In one line.
        family: What it looks at.
        target: The value of a perfect unlearning that is known without a reference; for direction `target` alone.
        retain_direction: The better direction on texts that are to be kept, where it is another.
    """

    name: str
    direction: Direction
    low: float
    high: float
    source: str
    definition: str
    family: Family
    target: float | None = None
    retain_direction: Direction | None = None

    def direction_on(self, split: str) -> Direction:
        """The better direction on `forget` texts, or on those of any other split, which are to be kept."""
        return self.direction if split == "forget" or self.retain_direction is None else self.retain_direction


TOFU = "Maini et al. 2024, TOFU (2401.06121)"
MUSE = "Shi et al. 2024, MUSE (2407.06460)"
EXTRACTION = "Carlini et al. 2021 (2012.07805)"
ROUGE = "Lin 2004; rouge-score"
SEMEVAL = "SemEval-2025 Task 4, LUME (2502.15097)"


def _known(name: str, high: float, source: str, definition: str, family: Family) -> Metric:
    """A metric of how well texts are known: lower is better on those to forget, higher on those to keep."""
    return Metric(name, "lower", 0, high, source, definition, family, retain_direction="higher")


def _attack(name: str, high: float, source: str, definition: str) -> Metric:
    """The score of a membership attack on one text; an owner wants forget texts to look like non-members."""
    return Metric(name, "lower", -math.inf, high, source, definition, "membership")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _known("probability", 1, TOFU, "exp(-mean NLL of the completion tokens)", "memorization"),
        Metric(
            "perplexity",
            "higher",
            1,
            math.inf,
            "Jelinek et al. 1977",
            "exp(mean NLL of the completion tokens)",
            "memorization",
            retain_direction="lower",
        ),
        _known(
            "exact_memorization",
            1,
            "Tirumala et al. 2022 (2205.10770)",
            "share of the completion tokens that are the model's first choice given the text before",
            "memorization",
        ),
        _known(
            "extraction_strength",
            1,
            "Wang et al. 2024 (2406.09179), after Carlini et al. 2021 (2012.07805)",
            "share of the completion that follows word for word from its shortest sufficient beginning",
            "memorization",
        ),
        _known("rouge_1_recall", 1, ROUGE, "share of the reference's words that the generation holds", "text"),
        _known("rouge_1_f1", 1, ROUGE, "harmonic mean of ROUGE-1 precision and recall", "text"),
        _known("rouge_l_recall", 1, ROUGE, "longest common subsequence of words / words of the reference", "text"),
        _known("rouge_l_f1", 1, ROUGE, "harmonic mean of ROUGE-L precision and recall", "text"),
        _known("exact_match", 1, SEMEVAL, "equal but for case and white space at the ends", "text"),
        _known("verbatim_memorization", 1, MUSE, "ROUGE-L F1 of the continuation of a document, no stemming", "text"),
        _known("knowledge_memorization", 1, MUSE, "ROUGE-L F1 of the answer to a question, no stemming", "text"),
        _known(
            "leak_at_k",
            1,
            "Reisizadeh et al. 2025 (2511.04934)",
            "probability that one of k samples contains the answer",
            "text",
        ),
        Metric(
            "repetition",
            "lower",
            0,
            1,
            "Welleck et al. 2020 (1908.04319), seq-rep-4",
            "share of the generation's 4-grams that repeat an earlier one",
            "text",
        ),
        Metric(
            "fluency",
            "lower",
            1,
            math.inf,
            "Jelinek et al. 1977",
            "perplexity of the generation under the untouched model",
            "text",
        ),
        Metric(
            "forget_truth_ratio",
            "target",
            0,
            1,
            TOFU + "; min(R, 1/R) as in its code",
            "min(R, 1/R), R = mean normalised probability of wrong answers / that of the paraphrased right one",
            "memorization",
            target=1,
        ),
        Metric(
            "retain_truth_ratio",
            "higher",
            0,
            1,
            TOFU,
            "max(0, 1 - R), R = mean normalised probability of wrong answers / that of the paraphrased right one",
            "utility",
        ),
        _known(
            "truth_probability",
            1,
            "open-unlearning (prob_mean)",
            "1/(1 + R): the right answer's share of right and mean wrong probability",
            "memorization",
        ),
        _known(
            "normalized_probability",
            1,
            TOFU,
            "the answer's share of the normalised probabilities of all options",
            "memorization",
        ),
        Metric(
            "forget_quality",
            "higher",
            0,
            1,
            TOFU,
            "p-value of the two-sample KS test between the truth ratios of this and a retrained model",
            "memorization",
        ),
        Metric(
            "model_utility",
            "higher",
            0,
            1,
            TOFU,
            "harmonic mean of probability, ROUGE-L recall, truth ratio on retain, real authors, world facts",
            "utility",
        ),
        Metric(
            "privleak",
            "target",
            -100,
            math.inf,
            MUSE,
            "((1 - AUC) - (1 - AUC_retrained)) / (1 - AUC_retrained) in percent, of min-k%",
            "membership",
            target=0,
        ),
        _attack("loss", 0, "Yeom et al. 2018 (1709.01604)", "-mean NLL"),
        _attack("zlib", 0, EXTRACTION, "-mean NLL / bytes of the zlib-compressed text"),
        _attack("lowercase", 0, EXTRACTION, "-mean NLL / mean NLL of the lower-cased text"),
        _attack("min_k", 0, "Shi et al. 2023 (2310.16789)", "mean log p of the share k of least likely tokens"),
        _attack(
            "min_k_plus_plus",
            math.inf,
            "Zhang et al. 2024 (2404.02936)",
            "mean (log p - mu)/sigma of the share k of tokens with the least",
        ),
        _attack("reference", math.inf, EXTRACTION, "mean NLL under a reference model - mean NLL"),
        _attack(
            "gradient_norm", 0, "Wang et al. 2024 (2402.17012)", "-2-norm of the mean NLL's gradient by all parameters"
        ),
    )
}
"""Name -> metric. Means over rows keep the direction and range of their rows."""
