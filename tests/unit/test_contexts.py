"""Forget texts after other texts: where they begin, what is a target, what changes from step to step."""

from pathlib import Path
from statistics import fmean

import pytest
import torch

from expunge.data.contexts import SHARE_ALONE, Contexts
from expunge.data.tokenize import TokenizedExample
from expunge.losses.collate import collate, count
from expunge.train.before import find_reference
from expunge.train.contexts import TOKENS
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter
from tiny import save_tiny
from training import Rows, Told, made_up, moved, prepared

BOS, EOS = 1, 2


class Special:
    """The special tokens of a tokenizer."""

    def __init__(self, bos: int | None = None) -> None:
        self.bos_token_id, self.eos_token_id, self.unk_token_id = bos, EOS, None
        self.all_special_ids = [token for token in (bos, EOS) if token is not None]

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": ([] if self.bos_token_id is None else [self.bos_token_id]) + [5] * len(text)}


def row(*ids: int, start: int = 0, name: str = "a") -> TokenizedExample:
    return TokenizedExample(name, list(ids), start, group="Task1 qa")


def drawn(text: TokenizedExample, others: Rows, bos: int | None = None, tokens: int = 3, most: int = 99) -> Rows:
    """What forty seeds put before a row."""
    contexts = Contexts.of(others, Special(bos), tokens=tokens, max_length=most)
    return [contexts.drawn(text, str(seed)) for seed in range(40)]


@pytest.mark.parametrize(
    ("text", "bos"),
    [
        (row(BOS, 50, 51, 52, EOS, start=2), BOS),
        (row(50, 51, 52, EOS, start=2), None),
        (row(50, 51, 52, EOS), None),
    ],
)
def test_a_text_after_another_has_the_targets_that_it_has_alone(text: TokenizedExample, bos: int | None) -> None:
    begun = [] if bos is None else [bos]
    found = drawn(text, [row(*begun, *range(30, 40), EOS, name="b")], bos)
    assert {each.context for each in found} == set(range(6)), "none, or one to five tokens, three in the mean"
    assert sum(not each.context for each in found) / 40 == pytest.approx(SHARE_ALONE, abs=0.2)
    for each in found:
        before = each.input_ids[len(begun) : len(begun) + each.context]
        assert each.input_ids == [*begun, *before, *text.input_ids[len(begun) :]]
        if before:
            assert before == list(range(before[0], before[0] + len(before))), "a piece of the other text"
        for span in ("all", "completion"):
            targets = [each.input_ids[at] for at in each.targets(span)]
            assert targets == [text.input_ids[at] for at in text.targets(span)]
        assert (each.id, each.group) == (text.id, text.group)


def test_all_that_a_tokenizer_begins_texts_with_stands_first() -> None:
    """GLM-4 begins every text with two tokens, and has no beginning-of-text."""

    class Two(Special):
        all_special_ids = (EOS, 8, 9)

        def __init__(self) -> None:
            self.bos_token_id, self.eos_token_id, self.unk_token_id = None, EOS, None

        def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
            return {"input_ids": [8, 9, *[5] * len(text)]}

    contexts = Contexts.of([row(8, 9, *range(30, 40), name="b")], Two(), tokens=3, max_length=99)
    found = [contexts.before(row(8, 9, 50, 51, start=2), str(seed)) for seed in range(20)]
    for example in found:
        assert example.input_ids[:2] == [8, 9]
        assert example.input_ids[-2:] == [50, 51]
        assert example.completion_start == len(example.input_ids) - 2
        assert not {8, 9} & {*example.input_ids[2:]}


def test_what_stands_before_a_text_is_drawn() -> None:
    text = row(BOS, 50, 51, 52, EOS, start=2)
    others = [row(BOS, *range(100 * at, 100 * at + 40), EOS) for at in (1, 2, 3)]
    found = drawn(text, others, BOS, tokens=20)
    assert len({tuple(each.input_ids) for each in found}) > 15
    assert found == drawn(text, others, BOS, tokens=20)


def test_no_text_stands_after_itself_or_beyond_the_context() -> None:
    text, other = row(50, 51), row(60, 61, name="b")
    assert {token for each in drawn(text, [text, other]) for token in each.input_ids[: each.context]} == {60, 61}
    for others, most in (([text], 99), ([row(EOS, EOS)], 99), ([], 99), ([other], 2)):
        assert drawn(text, others, most=most) == [text] * 40
    cut = drawn(text, [other], tokens=40, most=3)
    assert {len(each) for each in cut} == {2, 3}


def test_what_a_chat_begins_with_is_a_part_of_it_where_no_text_begins_so() -> None:
    class Chat(Special):
        """A tokenizer whose beginning-of-text is what turns begin with, and is set before no text."""

        def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
            return {"input_ids": [5] * len(text)}

    contexts = Contexts.of([row(60, 61, 62)], Chat(BOS), tokens=3, max_length=99)
    found = contexts.before(row(BOS, 50, 51), "s")
    assert found.input_ids[found.context :] == [BOS, 50, 51]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contexts") / "model"
    save_tiny(folder, "llama")
    return folder


def trainer(model: Path, **settings: object) -> Trainer:
    forget, retain = made_up(12, 1), made_up(6, 2)
    given = {"loss": "simnpo", "context_tokens": 8, "tokens_per_step": 64} | settings
    found = Trainer(prepared(model, forget=forget, retain=retain, **given))
    find_reference(found, Reporter(quiet=True))
    return found


def test_a_run_trains_on_both_and_never_twice_after_the_same_tokens(model: Path) -> None:
    first = trainer(model)
    alone = [example.input_ids for example in first.prepared.forget]
    steps, epoch = list(first.rows.plan.steps()), first.rows.plan.steps_per_epoch
    read = []
    for step in steps[: 4 * epoch]:
        first.train_step(step)
        read.append({at: first.rows.sides_of(step)["forget"].rows[at].input_ids for at in step.forget})
    assert [example.input_ids for example in first.rows.sides["forget"].rows] == alone
    for at in range(12):
        texts = [batch[at] for batch in read if at in batch]
        assert len(texts) == 4
        others = [tuple(text) for text in texts if text != alone[at]]
        assert len(set(others)) == len(others)
    both = [text == alone[at] for batch in read for at, text in batch.items()]
    assert set(both) == {True, False}
    # A resumed run reads what the run would have read, whatever it has read before.
    last = trainer(model)
    step = steps[2 * epoch - 1]
    assert {at: last.rows.sides_of(step)["forget"].rows[at].input_ids for at in step.forget} == read[2 * epoch - 1]


def test_the_gradient_is_of_what_the_step_sees(model: Path) -> None:
    run, alone = trainer(model, loss="gradient_ascent"), trainer(model, loss="gradient_ascent")
    alone.rows.contexts = None
    moved(run), moved(alone)
    step = next(run.rows.plan.steps())
    assert any(example.context for example in run.rows.sides_of(step)["forget"].rows)
    assert run.rows.size(step).tokens > alone.rows.size(step).tokens
    found = run.gradient(step)
    assert not torch.allclose(found, alone.gradient(step))
    run.rows.contexts, run.rows.sides = None, run.rows.sides_of(step)
    torch.testing.assert_close(run.gradient(step), found)


def test_nothing_stands_before_a_text_where_there_is_no_other(model: Path) -> None:
    told = Told()
    run = Trainer(
        prepared(
            model, forget=made_up(4, 1), unseen=made_up(4, 3), loss="target_kl", context_tokens=5, recipe="default"
        )
    )  # fmt: skip
    find_reference(run, told)
    assert run.rows.contexts is None
    assert len([line for line in told.warned if line.startswith("--context-tokens")]) == 1


def test_a_model_is_not_judged_by_texts_that_leave_no_room(model: Path) -> None:
    for asked, says in ((None, ["contexts: none: no unseen text leaves room"]), (5, [])):
        run = Trainer(
            prepared(
                model, forget=made_up(4, 1), retain=made_up(4, 2), unseen=made_up(4, 3), loss="target_kl",
                context_tokens=asked, recipe="default", replay_weight=0.0, max_length=3,
            )
        )  # fmt: skip
        told = Told()
        find_reference(run, told)
        assert (run.rows.contexts is None) == (asked is None)
        told_of = [line for line in told.lines if line.startswith("contexts")]
        assert [line[: len(says[0])] for line in told_of if says] == says
        assert says or not told_of


def test_what_is_known_of_a_text_stands_beside_the_same_tokens_in_context(model: Path) -> None:
    run = trainer(model, loss="target_kl", unseen=made_up(8, 3))
    step = next(run.rows.plan.steps())
    alone = [run.prepared.forget[at] for at in step.forget]
    sides = run.rows.sides_of(step)
    assert any(sides["forget"].rows[at].context for at in step.forget)
    counts = {"forget": count(sides["forget"], step.forget)}
    batch = collate(run.loaded, sides, {"forget": step.forget}, counts)["forget"]
    assert batch.targets.tolist() == [row.input_ids[at] for row in alone for at in row.targets("all")]
    assert batch.ref_states is not None
    known = run.rows.sides["forget"].values["ref_states"]
    assert torch.equal(batch.ref_states, torch.cat([known[at] for at in step.forget]))


def test_target_nlls_are_multiplied_by_what_unseen_texts_are_harder_after_others(model: Path) -> None:
    unseen = made_up(8, 3)
    run = Trainer(
        prepared(
            model, forget=made_up(12, 1), retain=made_up(6, 2), unseen=unseen, loss="target_kl", context_tokens=8,
            tokens_per_step=64,
        )
    )  # fmt: skip
    find_reference(run, Reporter(quiet=True))
    forget = run.rows.sides["forget"]

    @torch.no_grad()
    def mean(rows: Rows) -> float:
        net = run.loaded.base
        values = []
        with run.model.disable_adapter():
            for example in rows:
                logps = net(torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
                targets = example.targets("all")
                values += [-logps[at - 1, example.input_ids[at]].item() for at in targets[len(targets) // 2 :]]
        return fmean(values)

    assert run.rows.contexts is not None
    after = [run.rows.contexts.before(text, f"0 {at} unseen") for at, text in enumerate(unseen)]
    assert forget.ratio == pytest.approx(mean(after) / mean(unseen), rel=1e-4)
    forget.ratio = 3.0
    step = next(run.rows.plan.steps())
    sides = run.rows.sides_of(step)
    counts = {"forget": count(forget, step.forget)}
    batch = collate(run.loaded, sides, {"forget": step.forget}, counts)["forget"]
    targets = [
        forget.values["target_nll"][at] * (3.0 if sides["forget"].rows[at].context else 1.0) for at in step.forget
    ]
    assert batch.target_nll is not None
    torch.testing.assert_close(batch.target_nll, torch.cat(targets))


@pytest.mark.parametrize(
    ("loss", "asked", "most", "tokens", "says"),
    [
        ("target_kl", None, 1e9, TOKENS, "contexts: half of the time"),
        ("target_kl", None, 0.0, 0, "contexts: none, since"),
        ("target_kl", 5, 0.0, 5, "contexts: half of the time"),
        ("target_kl", 0, 1e9, 0, ""),
        ("npo", None, 1e9, 0, ""),
        ("simnpo", 5, 0.0, 5, ""),
        ("npo", 5, 1e9, 0, ""),  # what the untouched model finds of a text is of the text alone
        ("idk", 5, 1e9, 0, ""),
    ],
)
def test_who_trains_on_texts_after_others(
    model: Path, monkeypatch: pytest.MonkeyPatch, loss: str, asked: int | None, most: float, tokens: int, says: str
) -> None:
    """`most` is the ratio from which on a model is taken for one that reads each text alone."""
    monkeypatch.setattr("expunge.train.contexts.MOST_RATIO", most)
    forget, told = made_up(4, 1), Told()
    run = Trainer(
        prepared(
            model, forget=forget, retain=made_up(4, 2), unseen=made_up(4, 3), loss=loss, context_tokens=asked,
            recipe="default", replay_weight=0.0,
        )
    )  # fmt: skip
    find_reference(run, told)
    assert (run.rows.contexts.tokens if run.rows.contexts else 0) == tokens
    assert [line.startswith(says) for line in told.lines if line.startswith("contexts")] == ([True] if says else [])


def test_rows_share_sequences_only_where_they_do_after_other_texts_too(tmp_path: Path) -> None:
    """On the CPU, rows within the window of eight tokens do."""
    folder, rows = save_tiny(tmp_path, "gemma3"), made_up(4, longest=9)

    def trainer(tokens: int) -> Trainer:
        return Trainer(prepared(folder, forget=rows, retain=rows, context_tokens=tokens, loss="simnpo"))

    assert trainer(0).rows.packed
    assert not trainer(9).rows.packed
    replayed = trainer(0)
    replayed.rows.set_replay(rows)
    assert replayed.rows.packed
    replayed.rows.set_replay(made_up(4, longest=30))
    assert not replayed.rows.packed
