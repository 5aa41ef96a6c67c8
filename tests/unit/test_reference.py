"""The cached reference: the numbers of a second forward pass, of the rows that a step visits."""

import contextlib
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from expunge.config import UnlearnConfig
from expunge.errors import ModelError
from expunge.kernels import token_logps, token_logps_and_kl
from expunge.model import reference
from expunge.model.logps import final_states, lay_out
from expunge.runs.run import Run
from expunge.train.before import ask_untouched, check_memory, find_reference, reference_sides
from expunge.train.loop import unlearn
from expunge.train.setup import prepare
from expunge.train.trainer import Trainer
from expunge.utils.files import sha256_file
from expunge.utils.progress import Reporter
from tiny import save_tiny
from training import moved

FORGET = [
    {"prompt": f"Where does Ines Oduya keep key {i}?", "completion": f"In drawer {i * 7} of 12."} for i in range(8)
]
RETAIN = [
    {"prompt": f"What closed on day {i}?", "completion": f"The mill, ship {i * 3} and the book."} for i in range(9)
]
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference")
    save_tiny(path / "model", "gemma2")
    return path


def config(folder: Path, output: Path | str = "unused", **settings) -> UnlearnConfig:
    lines = {
        "recipe": "npo",
        "epochs": 2,
        "tokens_per_step": 200,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "device": "cpu",
    }
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n".replace("'", '"') for row in rows))
        lines[name] = str(folder / f"{name}.jsonl")
    return UnlearnConfig(model=str(folder / "model"), output=str(output), **{**lines, **settings})


def test_all_that_is_asked_of_the_same_targets_takes_one_pass(folder, monkeypatch):
    trainer = Trainer(prepare(config(folder, loss="undial", recipe="npo"), QUIET))
    side, passes, original = reference_sides(trainer)["forget"], [], reference.final_states
    monkeypatch.setattr(reference, "final_states", lambda *given: passes.append(given) or original(*given))

    def computed(*what: str):
        passes.clear()
        return reference.compute_reference(trainer.loaded, {"forget": replace(side, what=what)})["forget"], len(passes)

    assert side.what == ["ref_logps", "ref_states"]
    together, count = computed(*side.what)
    for what in side.what:
        alone, as_many = computed(what)
        assert count == as_many
        assert all(torch.equal(together[what][row], alone[what][row]) for row in range(len(FORGET)))


def test_only_rows_that_a_step_visits_are_looked_at(folder, monkeypatch):
    read, original = [], reference.lay_out

    def lay_out_noted(loaded, sequences):
        read.extend(map(tuple, sequences))
        return original(loaded, sequences)

    monkeypatch.setattr(reference, "lay_out", lay_out_noted)
    whole, short = (Trainer(prepare(config(folder, **settings), QUIET)) for settings in ({}, {"max_steps": 2}))
    find_reference(whole, QUIET)
    assert {*whole.rows.sides["retain"].values["ref_states"]} == {*range(len(whole.prepared.retain))}
    steps = list(islice(short.rows.plan.steps(), 2))
    read.clear()
    find_reference(short, QUIET)

    for name, what in (("forget", "ref_logps"), ("retain", "ref_states")):
        side, visited = short.rows.sides[name], {row for step in steps for row in getattr(step, name)}
        assert {*side.values[what]} == visited
        assert 0 < len(visited) < len(side.rows)
        assert {tuple(row.input_ids) in read for at, row in enumerate(side.rows) if at not in visited} == {False}
        for row in visited:  # of other passes, which may round in another way
            torch.testing.assert_close(side.values[what][row], whole.rows.sides[name].values[what][row])
    for step in steps:
        gradient, other = (moved(trainer, size=0.02).gradient(step) for trainer in (short, whole))
        assert other.min() > 0
        torch.testing.assert_close(gradient, other)


def test_rows_of_all_steps_are_what_all_rows_were(folder):
    """Where every row has its turn, the values are those of passes over all rows, bit for bit."""
    trainer = Trainer(prepare(config(folder), QUIET))
    find_reference(trainer, QUIET)
    every = {
        name: reference.Asked(dict(enumerate(trainer.rows.sides[name].rows)), side.span, side.what)
        for name, side in reference_sides(trainer).items()
    }
    for name, found in reference.compute_reference(trainer.loaded, every).items():
        for what, values in found.items():
            stored = trainer.rows.sides[name].values[what]
            assert stored.keys() == values.keys()
            assert all(torch.equal(stored[row], values[row]) for row in values)


def test_a_main_memory_that_is_too_small_is_said_in_one_line(folder, monkeypatch):
    trainer = Trainer(prepare(config(folder), QUIET))
    needed = reference.layout_bytes(reference.reference_layout(trainer.loaded, reference_sides(trainer)))
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(reference, "free_memory", lambda device, free=free: free)
        with contextlib.nullcontext() if fits else pytest.raises(ModelError, match="fewer texts in one run"):
            find_reference(trainer, QUIET)


def test_replay_texts_are_counted_before_they_are_written(folder, monkeypatch):
    """So that a run is refused at once, and not after minutes of writing."""
    trainer = Trainer(prepare(config(folder, replay_weight=1.0), QUIET))
    now = reference.layout_bytes(reference.reference_layout(trainer.loaded, reference_sides(trainer)))
    more = (trainer.rows.replay_wanted - 1) * 32 * 4  # hidden states of all but the first token
    assert more > 0
    for free, fits in ((now + more, True), (now + more - 1, False)):
        monkeypatch.setattr(reference, "free_memory", lambda device, free=free: free)
        with contextlib.nullcontext() if fits else pytest.raises(ModelError, match="fewer texts in one run"):
            check_memory(trainer)


def test_kl_from_the_cache_is_that_of_a_second_forward_pass(folder):
    prepared = prepare(config(folder), QUIET)
    trainer = Trainer(prepared)
    find_reference(trainer, QUIET)
    for step in islice(trainer.rows.plan.steps(), 3):
        trainer.train_step(step)
    loaded = prepared.loaded
    for index, row in enumerate(prepared.retain):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            policy = final_states(loaded, lay_out(loaded, ids.tolist()))[:-1]
            with trainer.model.disable_adapter():
                second = final_states(loaded, lay_out(loaded, ids.tolist()))[:-1]
        targets = ids[0, 1:]
        _, cached_kl = token_logps_and_kl(
            policy, trainer.rows.sides["retain"].values["ref_states"][index], loaded.head, targets
        )
        _, second_kl = token_logps_and_kl(policy, second, loaded.head, targets)
        assert second_kl.max() > 1e-4
        torch.testing.assert_close(cached_kl, second_kl, rtol=1e-4, atol=1e-6)  # fp32, other batch shapes
    row = prepared.forget[0]
    ids = torch.tensor([row.input_ids])
    with torch.no_grad(), trainer.model.disable_adapter():
        logps = token_logps(final_states(loaded, lay_out(loaded, ids.tolist()))[:-1], loaded.head, ids[0, 1:])
    torch.testing.assert_close(trainer.rows.sides["forget"].values["ref_logps"][0], logps, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_computes_it_anew_and_writes_none_of_it(folder, tmp_path, monkeypatch):
    whole = unlearn(config(folder, tmp_path / "whole"))
    log = Run.log

    def log_and_stop(self, line):
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return log(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_and_stop)
        with pytest.raises(KeyboardInterrupt):
            unlearn(config(folder, tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run" / ".expunge").iterdir()} <= {"files", "lock"}
    resumed = unlearn(config(folder, tmp_path / "run", resume=True))
    digest, other = (sha256_file(run.adapter / "adapter_model.safetensors") for run in (resumed, whole))
    assert digest == other


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"kl_weight": 0.0}, {"forget.ref_logps"}),
        ({"replay_weight": 1.0}, {"forget.ref_logps", "retain.ref_states", "replay.ref_states"}),
        ({"loss": "simnpo"}, {"retain.ref_states"}),
        ({"loss": "undial"}, {"forget.ref_logps", "forget.ref_states", "retain.ref_states"}),
        ({"loss": "dpo"}, {"forget.ref_logps", "pairs.ref_logps", "retain.ref_states"}),
        ({"loss": "wga", "kl_weight": 0.0}, set()),
    ],
)
def test_only_what_a_term_needs_is_computed(folder, settings, names):
    trainer = Trainer(prepare(config(folder, recipe="npo", **settings), QUIET))
    ask_untouched(trainer, QUIET)
    found = {f"{side}.{what}" for side, rows in trainer.rows.sides.items() for what in rows.values}
    assert found == names == {f"{name}.{what}" for name, side in reference_sides(trainer).items() for what in side.what}
