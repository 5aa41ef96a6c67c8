"""The stored texts, numbers and models, and what a comparison with them is."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.workload import SHARED
from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.generate import greedy
from expunge.evaluation.metrics import TokenRecord
from expunge.evaluation.teacher_forcing import token_records
from expunge.model.load import LoadedModel, load_model

LOSS = 2e-5
"""Tolerance of losses, probabilities and scores, absolute (their README)."""
EXACT = 1e-9
"""Tolerance of what is computed from stored numbers."""
TEXT = 1e-6
"""Tolerance of ROUGE and of shares of tokens."""
MODELS = ("fitted", "random")


@dataclass(frozen=True)
class Comparison:
    """One of our numbers beside a stored one.

    Attributes:
        metric: As in `METRICS`, or a name for what is no metric (a generated text).
        compat: Whose variant in `published` is compared; empty when it is the package's own function that agrees.
        ours: Our number.
        golden: The stored one.
        tolerance: Largest difference that counts as agreement.
        relative: Whether the difference is divided by the stored number.
    """

    metric: str
    compat: str
    ours: float
    golden: float
    tolerance: float
    relative: bool = False

    @property
    def difference(self) -> float:
        """How far apart the two are; two NaN are not apart."""
        if math.isnan(self.ours) or math.isnan(self.golden):
            return 0.0 if math.isnan(self.ours) and math.isnan(self.golden) else math.inf
        return abs(self.ours - self.golden) / (abs(self.golden) or 1.0 if self.relative else 1.0)

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


def compare(
    metric: str,
    ours: Iterable[float],
    golden: Iterable[Any],
    tolerance: float,
    *,
    compat: str = "",
    relative: bool = False,
) -> Iterator[Comparison]:
    """One comparison for each pair; null and "nan" stand for NaN."""
    for number, stored in zip(ours, golden, strict=True):
        value = math.nan if stored is None else float(stored)
        yield Comparison(metric, compat, float(number), value, tolerance, relative)


@dataclass(frozen=True)
class Golden:
    """The folder of golden vectors.

    Attributes:
        root: `golden` in the folder beside the project.
    """

    root: Path = SHARED / "golden"

    def read(self, name: str) -> Any:
        """A JSON file of the metrics."""
        return _numbers(json.loads((self.root / "metrics" / f"{name}.json").read_text(encoding="utf-8")))

    @cached_property
    def data(self) -> Any:
        """Questions, answers, completions and documents."""
        return self.read("data")

    @cached_property
    def models(self) -> dict[str, LoadedModel]:
        """The two small models in fp32 on the CPU."""
        loaded = {}
        for name in MODELS:
            with TemporaryDirectory() as folder:  # the loader wants model and tokenizer side by side
                for source in (self.root / "models" / name, self.root / "models/tokenizer"):
                    for file in source.iterdir():
                        (Path(folder) / file.name).symlink_to(file)
                loaded[name] = load_model(folder, dtype="float32", device="cpu")
        return loaded

    def records(self, model: str, rows: Sequence[TokenizedExample], span: str = "completion") -> list[TokenRecord]:
        """What a model thinks of texts."""
        return token_records(self.models[model], rows, span=span)

    def encode(self, text: str) -> list[int]:
        """Token ids; the tokenizer adds nothing."""
        return list(self.models[MODELS[0]].tokenizer(text)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.models[MODELS[0]].tokenizer.decode(ids, skip_special_tokens=True))

    def documents(self, split: str) -> list[TokenizedExample]:
        """Whole documents; all tokens but the first are targets."""
        texts = [row["text"] for row in self.data["documents"][split]]
        return [TokenizedExample(f"{split}{i}", self.encode(text), 0) for i, text in enumerate(texts)]

    def answers(self, model: str, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Greedy continuations."""
        ids = [self.encode(prompt) for prompt in prompts]
        return [self.decode(tokens) for tokens in greedy(self.models[model], ids, max_new_tokens=max_new_tokens)]


def _numbers(stored: Any) -> Any:
    """What is stored, with the strings that stand for numbers that JSON has no form for as such."""
    if isinstance(stored, dict):
        return {key: _numbers(value) for key, value in stored.items()}
    if isinstance(stored, list):
        return [_numbers(value) for value in stored]
    return float(stored) if stored in ("nan", "inf", "-inf") else stored


def values(table: dict[str, Any], field: str) -> list[Any]:
    """A field of rows that are stored as {"0": {...}, "1": {...}}, in order."""
    return [table[str(i)][field] for i in range(len(table))]


def mean(numbers: Iterable[float]) -> float:
    """Arithmetic mean over what is not NaN."""
    kept = [number for number in numbers if not math.isnan(number)]
    return math.fsum(kept) / len(kept)
