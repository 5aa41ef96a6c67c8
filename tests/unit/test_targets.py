"""Target NLLs on tiny models: an origin's values are those of transformers, unseen texts give the mean of each kind."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.errors import ConfigError, DataError, ModelError
from expunge.model.load import LoadedModel, load_model
from expunge.train import targets
from expunge.train.before import find_reference, write_replay
from expunge.train.loop import run_facts
from expunge.train.setup import prepare
from expunge.train.targets import target_nlls
from expunge.train.trainer import Trainer
from expunge.utils.distributed import ALONE
from expunge.utils.progress import Reporter
from tiny import save_tiny
from training import Told, made_up, prepared


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    for seed, name in enumerate(("model", "origin")):
        save_tiny(folder / name, "llama", seed=seed)
    save_tiny(folder / "stranger", "llama", "metaspace")
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model knew the texts to forget by heart: to a random one all texts are alike."""
    monkeypatch.setattr(targets, "_keep_unknown", lambda row, values, before: False)


def origin(models: Path) -> LoadedModel:
    """A model that target NLLs come from."""
    return load_model(str(models / "origin"), dtype="float32", device="cpu")


@torch.no_grad()
def plain_nlls(model: Path, rows: Sequence[TokenizedExample]) -> list[torch.Tensor]:
    """`(tokens - 1,)` for each row, by transformers alone."""
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        found.append(-net(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0])
    return found


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("span", ["all", "completion"])
def test_an_origins_targets_are_its_own_nlls(models: Path, span: str) -> None:
    rows = made_up(7)
    run = prepared(models / "model", forget=rows, retain=made_up(3, 1), loss="target_kl", forget_span=span)
    found = target_nlls(run, [], ALONE, Reporter(quiet=True), origin(models))
    for place, (row, nlls) in enumerate(zip(rows, plain_nlls(models / "origin", rows), strict=True)):
        start = row.targets(span).start - 1
        torch.testing.assert_close(found[place], nlls[start:], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("known")
def test_an_origins_nlls_are_scaled_by_unseen_texts(models: Path) -> None:
    """A smaller or older model finds every text harder; a model that was retrained would not."""
    rows, unseen = made_up(7), made_up(9, 4)
    run = prepared(models / "model", forget=rows, retain=made_up(3, 1), loss="target_kl", unseen=unseen)
    found = target_nlls(run, [], ALONE, told := Told(), origin(models))
    ours, theirs = (torch.cat(plain_nlls(models / name, unseen)).mean() for name in ("model", "origin"))
    assert abs(ours / theirs - 1) > 1e-3
    for place, nlls in enumerate(plain_nlls(models / "origin", rows)):
        torch.testing.assert_close(found[place], nlls * ours / theirs, rtol=1e-4, atol=1e-5)
    (line,) = told.lines
    assert f"times {ours / theirs:.3f}" in line


def test_unseen_texts_guess_which_token_is_how_unlikely_and_an_origin_knows(models: Path) -> None:
    for name in (None, str(models / "origin")):
        run = prepared(models / "model", forget=made_up(3), retain=made_up(3, 1), loss="target_kl", origin=name)
        trainer = Trainer(run)
        trainer.rows.set_replay(made_up(3, 2))
        find_reference(trainer, Reporter(quiet=True))
        assert trainer.rows.sides["forget"].guessed == (name is None)


def test_an_origin_with_another_tokenizer_or_none_is_refused_before_weights_load(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("forget", "retain"):
        rows = [{"prompt": f"Where is {name} {i}?", "completion": f"At mile {i}."} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ready(origin: Path) -> None:
        prepare(
            UnlearnConfig(
                model=str(models / "model"), output=str(tmp_path / "run"), forget=str(tmp_path / "forget.jsonl"),
                retain=str(tmp_path / "retain.jsonl"), origin=str(origin), device="cpu", dtype="float32",
                prompt_format="space", end_of_text="yes",
            ),
            Reporter(quiet=True),
        )  # fmt: skip

    ready(models / "origin")
    monkeypatch.setattr("expunge.train.setup.load_model", None)
    with pytest.raises(ConfigError, match=r"--origin .*stranger: has another tokenizer"):
        ready(models / "stranger")
    with pytest.raises(ModelError, match=r"^--origin"):
        ready(tmp_path / "nowhere")


def means(rows: Sequence[TokenizedExample], values: Sequence[torch.Tensor]) -> dict[tuple[str, bool], float]:
    """Kind and whether it is the completion -> mean over its tokens."""
    found: dict[tuple[str, bool], list[float]] = {}
    for row, nlls in zip(rows, values, strict=True):
        for at, value in enumerate(nlls.tolist(), start=1):
            found.setdefault((row.group, at >= row.completion_start), []).append(value)
    return {kind: sum(numbers) / len(numbers) for kind, numbers in found.items()}


@pytest.mark.usefixtures("known")
def test_every_kind_ends_where_its_unseen_texts_are(models: Path) -> None:
    rows = [*made_up(8, 1, group="qa"), *made_up(8, 2, group="sc"), *made_up(8, 3, group="poem")]
    unseen = [*made_up(9, 4, group="qa"), *made_up(9, 5, group="sc")]
    run = prepared(models / "model", forget=rows, retain=made_up(3, 6), loss="target_kl", unseen=unseen)
    told = Told()
    values = target_nlls(run, [], ALONE, told)
    found = means(rows, [values[place] for place in range(len(rows))])
    nlls = plain_nlls(models / "model", unseen)
    wanted = means(unseen, nlls)
    for kind, mean in wanted.items():
        assert found[kind] == pytest.approx(mean, rel=0.05)
    everything = torch.cat(nlls).mean().item()
    assert [found["poem", side] for side in (False, True)] == pytest.approx([everything] * 2, rel=0.05)
    assert len({round(mean, 2) for mean in wanted.values()}) > 1, "kinds differ"
    (line,) = told.lines
    assert "unseen texts have no poem;" in line


@pytest.mark.usefixtures("known")
def test_unseen_texts_without_kinds_stand_for_every_kind(models: Path) -> None:
    """Prompts end as their prompts do, and completions as their completions."""
    rows, unseen = [*made_up(8, 1, group="qa"), *made_up(8, 2, group="sc")], made_up(9, 4)
    settings = {"retain": made_up(3, 6), "loss": "target_kl", "unseen": unseen}
    plain = [replace(row, group="") for row in rows]
    both = [
        target_nlls(prepared(models / "model", forget=texts, **settings), [], ALONE, Told()) for texts in (rows, plain)
    ]
    torch.testing.assert_close(both[0], both[1])


@pytest.mark.usefixtures("known")
def test_a_benchmarks_documents_are_of_the_kinds_of_forgotten_documents(models: Path) -> None:
    """Membership is read off whole documents: prompts and completions of theirs end together where unseen ones are."""
    rows = [*made_up(8, 1, group="sc"), *made_up(8, 2, group="qa")]
    unseen = [replace(row, completion_start=0) for row in made_up(9, 3)]
    run = prepared(models / "model", forget=rows, retain=made_up(3, 6), loss="target_kl", unseen=unseen)
    run = replace(run, selection=replace(run.selection, kinds=frozenset(["sc"])))
    values = target_nlls(run, [], ALONE, Told())
    flat = torch.cat([values[place] for place, row in enumerate(rows) if row.group == "sc"])
    ordered = torch.cat(plain_nlls(models / "model", unseen)).sort().values
    places = (2 * torch.arange(len(flat)) + 1) * len(ordered) // (2 * len(flat))
    torch.testing.assert_close(flat.sort().values, ordered[places], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("known")
def test_prompts_have_targets_where_unseen_texts_have_none(models: Path) -> None:
    rows, unseen = made_up(8, 1), [replace(row, completion_start=0) for row in made_up(9, 2)]
    run = prepared(models / "model", forget=rows, retain=made_up(3, 6), loss="target_kl", unseen=unseen)
    values = target_nlls(run, [], ALONE, Told())
    mean = torch.cat(plain_nlls(models / "model", unseen)).mean().item()
    found = means(rows, [values[place] for place in range(len(rows))])
    assert found["", True] == pytest.approx(mean, rel=0.05)
    assert found["", False] == pytest.approx(mean, rel=0.3), "of which as much is expected"
    told = Told()
    target_nlls(run, [], ALONE, told)
    assert "unseen texts have no prompts;" in told.lines[0]


@pytest.mark.usefixtures("known")
def test_without_unseen_texts_those_that_the_model_writes_stand_for_them(models: Path) -> None:
    rows, written = ([replace(row, completion_start=1) for row in made_up(8 + seed, seed)] for seed in (1, 2))
    run = prepared(models / "model", forget=rows, retain=made_up(3, 6), loss="target_kl")
    values = target_nlls(run, written, ALONE, Told())
    found = torch.cat([values[place] for place in range(len(rows))]).mean().item()
    assert found == pytest.approx(torch.cat(plain_nlls(models / "model", written)).mean().item(), rel=0.05)


@pytest.mark.usefixtures("known")
def test_what_a_written_text_was_begun_with_counts_in_no_target(models: Path) -> None:
    """With a beginning-of-text token before it, the token that is drawn from the vocabulary has an NLL, too."""
    written = [replace(row, completion_start=2) for row in made_up(9, 2)]
    run = prepared(models / "model", forget=made_up(8, 1), retain=made_up(3, 6), loss="target_kl")
    flat = torch.cat(target_nlls(run, written, ALONE, Told()))
    said = torch.cat([nlls[1:] for nlls in plain_nlls(models / "model", written)])
    assert torch.isclose(flat[:, None], said, rtol=1e-4, atol=1e-5).any(-1).all()


def test_a_model_that_writes_nothing_but_what_it_should_forget_needs_unseen_texts(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(models / "model", forget=made_up(3), retain=made_up(3, 1), loss="target_kl", replay_weight=1.0)
    written: list[TokenizedExample] = []
    monkeypatch.setattr("expunge.train.before.write_texts", lambda *_, **__: written)
    told, trainer = Told(), Trainer(run)
    write_replay(trainer, told)
    (line,) = told.lines
    assert "0 tokens of replay texts" in line
    with pytest.raises(DataError, match=r"nothing but what it should forget.*--origin, or --holdout"):
        find_reference(trainer, told)
    written += made_up(200)
    write_replay(trainer, told := Told())
    assert told.lines == []


def test_a_runs_documents_are_those_of_the_forget_rows_by_text(models: Path, tmp_path: Path) -> None:
    """However prompt and completion are joined: a benchmark's documents are one text, whose tokens can be others."""

    def story(number: int) -> dict[str, str]:
        words = " ".join(f"w{number * 31 + place * place} x{number}y{place}" for place in range(12))
        return {"id": str(number), "input": f"Tale {number} begins:", "output": f" {words}", "task": "Task1"}

    told, unseen = [story(number) for number in range(20)], [story(number) for number in range(100, 120)]
    asked = [{"id": f"{i}qa1", "input": f"Where is {i}?", "output": f"At mile {i}.", "task": "Task2"} for i in range(4)]
    rows = {
        "forget": [row | {"id": f"{row['id']}sc1"} for row in told] + asked,
        "retain": [row | {"id": f"r{row['id']}", "input": f"Who is {row['id']}?"} for row in asked],
        "member": [{"id": row["id"], "document": f"{row['input']}\n{row['output']}"} for row in told],
        "nonmember": [{"id": row["id"], "document": f"{row['input']}{row['output']}"} for row in unseen],
    }  # fmt: skip
    for name, records in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    run = prepare(
        UnlearnConfig(
            model=str(models / "model"), output=str(tmp_path / "run"), benchmark="lume", data=str(tmp_path),
            device="cpu", dtype="float32", prompt_format="space", end_of_text="yes",
        ),
        Reporter(quiet=True),
    )  # fmt: skip
    assert run.selection is not None
    assert run.selection.kinds == {"Task1 sc"}
    assert {tuple(row.input_ids) for row in run.selection.members}.isdisjoint(
        tuple(row.input_ids) for row in run.forget
    ), "other tokens"


@pytest.mark.parametrize("by_origin", [False, True])
def test_no_text_is_taught(models: Path, by_origin: bool) -> None:
    """A prompt or completion that the model finds as unlikely as it should become, or more, keeps the NLLs it has."""
    rows, unseen = made_up(12, 1), made_up(9, 2)
    run = prepared(models / "model", forget=rows, retain=made_up(3, 3), loss="target_kl", unseen=unseen)
    values = target_nlls(run, [], ALONE, told := Told(), origin(models) if by_origin else None)
    before = plain_nlls(models / "model", rows)
    unknown = dict.fromkeys((False, True), 0)
    for row, wanted, nlls in zip(rows, (values[place] for place in range(len(rows))), before, strict=True):
        start = row.targets("completion").start - 1
        for completion, part in ((False, slice(0, start)), (True, slice(start, None))):
            if not len(nlls[part]):
                continue
            assert wanted[part].mean() >= nlls[part].mean() - 1e-5
            if torch.allclose(wanted[part], nlls[part], rtol=1e-4, atol=1e-5):
                unknown[completion] += 1
    assert 0 < unknown[True] < len(rows)
    assert 0 < unknown[False] < len(rows)
    (line,) = [line for line in told.lines if "nothing to forget" in line]
    assert line.startswith(f"{unknown[True]} of 12 texts")
    assert line in told.warned


def test_all_texts_that_give_targets_are_a_part_of_what_a_run_is(models: Path) -> None:
    """Those of a benchmark are in no other set, and those too short for membership in neither half of it."""
    unseen, short = made_up(4, 2), made_up(2, 3)
    run = prepared(models / "model", forget=made_up(4), retain=made_up(3, 1), unseen=unseen, loss="target_kl")
    assert run.selection is not None
    run.selection = replace(run.selection, unseen=[*unseen, *short])
    assert run_facts(run, Trainer(run)).rows["selection"] == [*run.selection.members, *unseen, *short]
