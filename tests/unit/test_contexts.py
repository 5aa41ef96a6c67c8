"""Forget texts after other texts: where they begin, what is a target, what is left out, what changes by step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expunge.config import UnlearnConfig
from expunge.data.contexts import AFTER, Contexts, alone
from expunge.data.tokenize import TokenizedExample
from expunge.train.schedule import make_plan
from expunge.train.targets import target_nlls
from expunge.train.trainer import Trainer
from expunge.utils.distributed import ALONE
from expunge.utils.progress import Reporter
from tiny import save_tiny
from training import Rows, made_up, prepared

BOS, EOS = 1, 2


class Special:
    """The special tokens of a tokenizer."""

    def __init__(self, bos: int | None = None) -> None:
        self.bos_token_id, self.eos_token_id = bos, EOS


def row(*ids: int, start: int = 0, name: str = "a") -> TokenizedExample:
    return TokenizedExample(name, list(ids), start, group="Task1 qa")


def after(rows: Rows, others: Rows, bos: int | None = None, tokens: int = 3, most: int = 99, seed: str = "s") -> Rows:
    return Contexts.of(others, Special(bos)).before(rows, tokens=tokens, max_length=most, seed=seed)


@pytest.mark.parametrize(
    ("own", "bos"),
    [
        (row(BOS, 50, 51, 52, EOS, start=2), BOS),
        (row(50, 51, 52, EOS, start=2), None),
        (row(50, 51, 52, EOS), None),
    ],
)
def test_a_text_after_another_has_the_targets_that_it_has_alone(own: TokenizedExample, bos: int | None) -> None:
    begun = [] if bos is None else [bos]
    other = row(*begun, *range(30, 40), EOS, name="b")
    (found,) = after([own], [other], bos)
    before = found.input_ids[len(begun) : len(begun) + found.context]
    assert 1 <= found.context <= 5
    assert before == list(range(before[0], before[0] + len(before))), "a piece of the other text"
    assert found.input_ids == [*begun, *before, *own.input_ids[len(begun) :]]
    assert found.group == f"Task1 qa{AFTER}"
    for span in ("all", "completion"):
        assert [found.input_ids[at] for at in found.targets(span)] == [own.input_ids[at] for at in own.targets(span)]
    assert replace(alone(found, bos), group=own.group) == own
    assert alone(own, bos) is own


def test_what_stands_before_a_text_changes_and_nothing_else() -> None:
    own = row(BOS, 50, 51, 52, EOS, start=2)
    contexts = Contexts.of([row(BOS, *range(100 * at, 100 * at + 40), EOS) for at in (1, 2, 3)], Special(BOS))
    (first,) = contexts.before([own], tokens=20, max_length=99, seed="s")
    found = [contexts.renewed(first, str(seed)) for seed in range(20)]
    assert len({tuple(again.input_ids) for again in found}) > 12
    assert contexts.renewed(first, "3") == found[3]
    for again in found:
        assert len(again) == len(first)
        assert replace(alone(again, BOS), group=own.group) == own
    assert Contexts([], BOS, frozenset()).renewed(first, "s") is first


def test_no_text_stands_after_itself_or_beyond_the_context() -> None:
    own, other = row(50, 51), row(60, 61, name="b")
    both = [after([own], [own, other], seed=str(at)) for at in range(20)]
    assert {token for (found,) in both for token in found.input_ids[: found.context]} == {60, 61}
    assert after([own], [own]) == after([own], [row(EOS, EOS)]) == after([own], [other], most=2) == []
    (cut,) = after([own], [other], tokens=40, most=3)
    assert (len(cut), cut.context) == (3, 1)


def test_texts_in_context_make_the_epoch_longer_and_leave_the_mix_as_it_is() -> None:
    forget, retain = made_up(40, 1), made_up(20, 2)
    config = UnlearnConfig(model="m", output="o", forget="f", retain="r", tokens_per_step=64)
    plain, both = (
        make_plan(config, {"forget": rows, "retain": retain}) for rows in (forget, [*forget, *after(forget, retain)])
    )
    assert both.retain_per_forget == pytest.approx(plain.retain_per_forget)
    assert both.steps_per_epoch > 1.9 * plain.steps_per_epoch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contexts") / "model"
    save_tiny(folder, "llama")
    return folder


@pytest.mark.parametrize("origin", [False, True])
def test_target_nlls_in_context_are_those_of_unseen_texts_in_context(model: Path, tmp_path: Path, origin: bool) -> None:
    forget, unseen, retain = (made_up(12, seed, group="g") for seed in (1, 2, 3))
    again, theirs = (after(rows, retain) for rows in (forget, unseen))
    save_tiny(tmp_path / "before", "llama", seed=5)
    run = prepared(
        model, forget=forget, in_context=again, retain=retain, unseen=[*unseen, *theirs], loss="target_kl",
        origin=str(tmp_path / "before") if origin else None,
    )  # fmt: skip
    found = target_nlls(run, [], ALONE, Reporter(quiet=True))
    assert [len(found[at]) for at in range(24)] == [len(own.targets("all")) for own in (*forget, *again)]

    @torch.no_grad()
    def nlls(rows: Rows, folder: Path) -> torch.Tensor:
        net = prepared(folder, forget=rows).loaded.base
        values = []
        for own in rows:
            logps = net(torch.tensor([own.input_ids])).logits[0].double().log_softmax(-1)
            values += [-logps[at - 1, own.input_ids[at]] for at in own.targets("all")]
        return torch.stack(values)

    flat = torch.cat([found[at] for at in range(12, 24)]).double()
    if origin:
        ratio = nlls(unseen, model).mean() / nlls(unseen, tmp_path / "before").mean()
        torch.testing.assert_close(flat, ratio * nlls(again, tmp_path / "before"), rtol=1e-4, atol=1e-5)
    else:
        assert flat.mean().item() == pytest.approx(nlls(theirs, model).mean().item(), rel=0.05)
        assert flat.max() <= nlls(theirs, model).max() + 1e-5


def test_a_run_trains_on_both_and_never_twice_after_the_same_tokens(model: Path) -> None:
    forget, retain = made_up(6, 1), made_up(6, 2)
    again = after(forget, retain, tokens=8)
    trainers = [
        Trainer(prepared(model, forget=forget, in_context=again, retain=retain, tokens_per_step=64)) for _ in range(2)
    ]
    first = trainers[0]
    first.compute_reference(Reporter(quiet=True))
    steps = list(first.plan.steps())
    epoch = first.plan.steps_per_epoch
    assert {at for step in steps[:epoch] for at in step.forget} == set(range(12))
    read = []
    for index, step in enumerate(steps[: 2 * epoch]):
        first.train_step(step, index)
        read.append({at: first.sides["forget"].rows[at].input_ids for at in step.forget})
    for at in range(12):
        texts = [own[at] for own in read if at in own]
        assert len(texts) == 2
        assert (texts[0] == texts[1]) == (at < 6)
    # A resumed run reads what the run would have read, whatever it has read before.
    last = trainers[1]
    last.compute_reference(Reporter(quiet=True))
    last.train_step(steps[2 * epoch - 1], 2 * epoch - 1)
    assert {at: last.sides["forget"].rows[at].input_ids for at in steps[2 * epoch - 1].forget} == read[-1]
