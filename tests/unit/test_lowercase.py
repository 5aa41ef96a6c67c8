"""Forget texts in lower case: how often a run trains on them, and that a step sees their own tokens and targets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expunge.data.examples import Example
from expunge.data.lowercase import in_lower_case
from expunge.data.tokenize import TokenizedExample
from expunge.train.before import find_reference
from expunge.train.setup import Prepared
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter
from tiny import save_tiny
from training import made_up, prepared

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lowercase") / "model"
    save_tiny(folder, "llama")
    return folder


def run_of(model: Path, *, lower: list[TokenizedExample], unseen: int = 9, **settings: object) -> Prepared:
    """A run whose forget rows are `lower` in lower case."""
    found = prepared(
        model, forget=made_up(8, 1), retain=made_up(6, 2), unseen=made_up(unseen, 3), tokens_per_step=64,
        **{"loss": "target_kl", "recipe": "default", "replay_weight": 0.0, "context_tokens": 0} | settings,
    )  # fmt: skip
    selection = found.selection and replace(
        found.selection, members=lower, nonmembers=made_up(unseen, 6), unseen=made_up(unseen, 6)
    )
    found.lower = replace(found, forget=lower, selection=selection)
    return found


def test_what_is_said_is_put_in_lower_case_and_a_template_is_not() -> None:
    turns = ({"role": "system", "content": "Be BRIEF."}, {"role": "user", "content": "Who is Ada?", "name": "Eve"})
    row = Example(
        "A1", "Be BRIEF.\n\nWho is Ada?", "A MIRROR-Maker.", "Task1", "qa", "File:3", turns, {"name": "Bot"},
        {"tools": [{"Name": "T"}]}, ("MIRROR",),
    )  # fmt: skip
    found = in_lower_case(row)
    assert (found.prompt, found.completion) == ("be brief.\n\nwho is ada?", "a mirror-maker.")
    assert found.messages == (
        {"role": "system", "content": "be brief."}, {"role": "user", "content": "who is ada?", "name": "Eve"},
    )  # fmt: skip
    assert replace(found, prompt=row.prompt, completion=row.completion, messages=turns) == row
    assert in_lower_case(replace(row, messages=None)).messages is None


def test_a_row_is_trained_on_in_both_forms_each_with_its_own_tokens_and_targets(model: Path) -> None:
    run = Trainer(run_of(model, lower=made_up(8, 5), lowercase_share=0.4))
    find_reference(run, QUIET)
    forget, rows = run.rows.sides["forget"], 8
    assert [row.input_ids for row in forget.rows[rows:]] == [row.input_ids for row in made_up(8, 5)]
    steps = [step for _, step in zip(range(400), run.rows.plan.steps(), strict=False)]
    seen = [at for step in steps for at in run.rows.chosen(step)["forget"]]
    assert [at % rows for at in seen] == [at for step in steps for at in step.forget]
    share = sum(at >= rows for at in seen) / len(seen)
    assert share == pytest.approx(0.4, abs=3 * (0.24 / len(seen)) ** 0.5)
    assert {at for at in seen if at >= rows} == set(range(rows, 2 * rows)), "every row has its turn"
    first, again = ([run.rows.chosen(step) for step in steps[:5]] for _ in range(2))
    assert first == again, "what resumes sees it"

    assert run.prepared.lower is not None
    alone = replace(run_of(model, lower=[]), forget=made_up(8, 5), selection=run.prepared.lower.selection, lower=None)
    other = Trainer(alone)
    find_reference(other, QUIET)
    for at in range(rows):
        found, wanted = forget.values["target_nll"][rows + at], other.rows.sides["forget"].values["target_nll"][at]
        torch.testing.assert_close(found, wanted)
    step = next(candidate for candidate in steps if min(run.rows.chosen(candidate)["forget"]) >= rows)
    torch.testing.assert_close(run.gradient(step), other.gradient(step))
    torch.testing.assert_close(run.adapter.gradients, other.adapter.gradients)
    assert run.rows.size(step) == other.rows.size(step)


def test_other_texts_stand_before_texts_in_lower_case_too(model: Path) -> None:
    run = Trainer(run_of(model, lower=made_up(8, 5), lowercase_share=0.5, context_tokens=6))
    find_reference(run, QUIET)
    placed = [
        (at >= 8, run.rows.sides_of(step)["forget"].rows[at].context > 0)
        for _, step in zip(range(40), run.rows.plan.steps(), strict=False)
        for at in run.rows.chosen(step)["forget"]
    ]
    assert set(placed) == {(lower, after) for lower in (False, True) for after in (False, True)}
