"""Micro-batches follow the free memory."""

import pytest

from bench.measure import prepared_for
from bench.workload import random_model
from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.errors import ModelError
from expunge.model import memory
from expunge.model.load import load_model
from expunge.model.logps import final_states, lay_out
from expunge.model.memory import saved_bytes
from expunge.train.before import check_memory, find_reference
from expunge.train.step_rows import MICRO_BATCH_TOKENS
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter


def test_what_a_pass_keeps_whatever_its_tokens_is_no_cost_of_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the matrices of experts with an adapter on them, of which every pass makes a sum."""
    rows = [TokenizedExample(str(at), list(range(at, at + 40)), 5) for at in range(12)]
    kept, free = (lambda tokens: 10_000 + 10 * tokens), 30_000
    monkeypatch.setattr("expunge.train.before._kept_bytes", lambda trainer, ids: (kept(len(ids)), len(ids)))
    with random_model("olmo-tiny") as folder:
        loaded = load_model(folder, dtype="float32", device="cpu")
        config = UnlearnConfig(model=folder, recipe="npo", learning_rate=1e-3, kl_weight=0.0, rows_per_step=12)
        trainer = Trainer(prepared_for(config, loaded, {"forget": rows[:6], "retain": rows[6:]}))
        monkeypatch.setattr(memory, "free_memory", lambda device: 10_300)
        with pytest.raises(ModelError, match="tokens at once needs"):
            check_memory(trainer)
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        trainer.rows.most_tokens = MICRO_BATCH_TOKENS["cpu"]
        check_memory(trainer)
    assert kept(trainer.rows.most_tokens) <= free
    assert kept(2 * trainer.rows.most_tokens) > 0.7 * free


def test_little_free_memory_makes_small_micro_batches_of_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TokenizedExample(str(at), list(range(at, at + 20 + at)), 5) for at in range(12)]
    with random_model("olmo-tiny") as folder:
        found = {}
        for name in ("enough", "little"):
            loaded = load_model(folder, dtype="float32", device="cpu")
            config = UnlearnConfig(model=folder, recipe="npo", learning_rate=1e-3, kl_weight=0.0, rows_per_step=12)
            trainer = Trainer(prepared_for(config, loaded, {"forget": rows[:6], "retain": rows[6:]}))
            batch = lay_out(loaded, [rows[-1].input_ids])
            per_token = saved_bytes(trainer.model, lambda: final_states(loaded, batch)) / len(rows[-1])  # noqa: B023
            if name == "little":
                monkeypatch.setattr(memory, "free_memory", lambda device, size=per_token: int(100 * size))
            check_memory(trainer)
            find_reference(trainer, Reporter(quiet=True))
            step_rows = trainer.rows
            step = next(step_rows.plan.steps())
            trainer.train_step(step)
            found[name] = (step_rows.most_tokens, step_rows.size(step).largest, trainer.adapter.gradients.norm().item())
    assert found["enough"][0] == MICRO_BATCH_TOKENS["cpu"]
    assert found["little"][0] < 70
    assert found["little"][1] <= found["little"][0] < found["enough"][1]
    assert found["little"][2] == pytest.approx(found["enough"][2], rel=1e-5)
    monkeypatch.setattr(memory, "free_memory", lambda device: int(10 * per_token))
    with pytest.raises(ModelError, match=r"tokens at once needs about .*give --gradient-checkpointing"):
        check_memory(trainer)
