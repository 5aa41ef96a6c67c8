"""The same metric of an answer under another row's prompt, and whether a prompt still leads to its answer."""

from pathlib import Path

import pytest
import torch

from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat
from expunge.evaluation.assemble import entries
from expunge.evaluation.benchmarks import BENCHMARKS
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.mismatched import DRAWN, floored, partners, under
from expunge.evaluation.passes import Options, measure
from expunge.evaluation.suite import RowSet, Suite, with_facts
from expunge.model.load import load_model
from tiny import save_tiny

METRICS = (
    "nll",
    "probability",
    "exact_memorization",
    "rouge_l_recall",
    "key_fact",
    "repetition",
    "fluency",
    "leak_at_k",
)


def rows(*examples: Example) -> RowSet:
    return RowSet("forget", examples, [example.id for example in examples], METRICS)


def test_a_row_meets_the_prompt_of_another_of_its_kind_with_another_answer():
    row_set = rows(
        Example("a", "Where is A?", "Ulm", "T1"),
        Example("b", "Where is B?", "Ulm", "T1"),
        Example("c", "Where is C?", "Bern", "T1"),
        Example("d", "Who is D?", "Dora", "T2"),
        Example("e", "", "A text", "T1"),
    )
    assert partners(row_set) == [2, 2, 0, None, None]
    about_one = RowSet("forget", row_set.examples, ["x"] * 5, METRICS)
    assert partners(about_one) == [None] * 5
    met = under(row_set.examples[2], row_set.examples[0])
    assert (met.id, met.prompt, met.completion) == ("a", "Where is C?", "Ulm")
    assert floored(METRICS) == ["probability", "exact_memorization", "rouge_l_recall", "key_fact"]
    assert floored(METRICS, DRAWN) == [*floored(METRICS), "leak_at_k"], "answers are drawn to unseen prompts, too"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Measurement]:
    """A tiny model that has learned four answers by heart."""
    folder: Path = tmp_path_factory.mktemp("model")
    save_tiny(folder, "llama")
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    suite = with_facts(Suite((rows(*(Example(f"{n}", f"w{n} v{n}", f"said {n} {n * 37}") for n in range(4))),)))
    format_ = PromptFormat("space", end_of_text=True)
    ids = [
        loaded.tokenizer(f"{example.prompt} {example.completion}")["input_ids"] for example in suite.sets[0].examples
    ]
    optimizer = torch.optim.Adam(loaded.base.parameters(), 3e-3)
    loaded.base.requires_grad_(True)
    for _ in range(60):
        for sequence in ids:
            loss = loaded.base(input_ids=torch.tensor([sequence]), labels=torch.tensor([sequence])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return suite, measure(loaded, suite, format_, Options(max_new_tokens=8))


def test_what_only_the_own_prompt_leads_to_is_less_likely_under_another(measured: tuple[Suite, Measurement]):
    suite, measurement = measured
    found = entries(BENCHMARKS["custom"], suite, measurement, None)
    for name in ("probability", "exact_memorization"):
        score, floor = found[f"forget/{name}"], found[f"forget/{name}/mismatched"]
        change = found[f"forget/{name}/own_minus_mismatched"]
        assert score.value > floor.value + 0.2
        assert floor.direction is None
        assert change.value == pytest.approx(score.value - floor.value)
        assert change.low <= change.value <= change.high
        assert (change.n, change.target) == (4, 0.0)
    assert "forget/repetition/mismatched" not in found
