"""The forecast: what is counted is exact, what is predicted follows the stated formulas."""

import json

import pytest

from expunge.config import UnlearnConfig
from expunge.data.sampler import Size
from expunge.errors import ConfigError
from expunge.train import dry_run as plan
from expunge.train.dry_run import chosen_steps, forecast, training_seconds
from expunge.train.loop import unlearn
from expunge.train.setup import prepare
from expunge.utils.progress import Reporter
from tiny import save_tiny


def test_the_largest_step_comes_first_and_the_others_are_spread():
    sizes = [Size(9, 9, 9)] * 7 + [Size(8, 8, 50)] + [Size(9, 9, 9)] * 12
    chosen = chosen_steps(sizes, 5)
    assert chosen[0] == 7
    assert len(set(chosen)) == 6
    assert chosen[1] < 5
    assert chosen[-1] > 14
    assert sorted(chosen_steps(sizes, 100)) == list(range(20))
    assert chosen_steps(sizes[:1], 5) == [0]


def test_time_goes_with_the_padded_area():
    sizes = [Size(90, 100, 100)] * 6 + [Size(40, 50, 50)] * 4
    assert training_seconds(sizes, [sizes[0], sizes[-1]], 3.0) == pytest.approx(16.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan")
    save_tiny(path / "model", "olmo")
    for name, count in (("forget", 12), ("retain", 17)):
        rows = [
            {"prompt": f"Where is {name} {i}?", "completion": f"At mile {i}, " + "by the old mill " * (i % 4)}
            for i in range(count)
        ]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder, **settings) -> UnlearnConfig:
    files = {name: str(folder / f"{name}.jsonl") for name in ("forget", "retain")}
    options = {"epochs": 3, "tokens_per_step": 256, "dtype": "float32", "device": "cpu", **settings}
    return UnlearnConfig(model=str(folder / "model"), **{"output": str(folder / "run"), **files, **options})


def test_what_is_counted_is_what_the_run_counts(folder):
    exact = {"replay_weight": 0.0, "recipe": "npo", "retain_test": 0.0}
    predicted = forecast(config(folder, **exact))
    outcome = unlearn(config(folder, **exact))
    manifest = json.loads((outcome.output / "manifest.json").read_text())
    assert predicted.steps == manifest["steps"]
    assert predicted.rows == {"forget": 12, "retain": 17}
    assert predicted.tokens == {name: manifest["tokens"][name] for name in predicted.tokens}
    lines = [json.loads(line) for line in (outcome.output / "metrics.jsonl").read_text().splitlines()]
    assert predicted.step_tokens == sum(line["tokens"] for line in lines)
    assert 0.5 < predicted.real_share <= 1
    assert predicted.timed_steps == min(plan.TIMED_STEPS, predicted.steps - 1)
    assert predicted.training_seconds > 0
    assert predicted.total_seconds > predicted.training_seconds


def test_replay_texts_are_counted(folder):
    settings = {"output": str(folder / "replayed"), "recipe": "npo"}
    predicted, without = (
        forecast(config(folder, replay_weight=2.0, **settings)),
        forecast(config(folder, replay_weight=0.0, **settings)),
    )
    outcome = unlearn(config(folder, replay_weight=2.0, **settings))
    lines = [json.loads(line) for line in (outcome.output / "metrics.jsonl").read_text().splitlines()]
    assert predicted.step_tokens == pytest.approx(sum(line["tokens"] for line in lines), rel=0.1)
    assert predicted.step_tokens > 1.2 * without.step_tokens


@pytest.mark.parametrize("settings", [{"max_steps": 1}, {"kl_weight": 0.0, "retain_weight": 0.0}])
def test_short_runs_and_runs_without_retain_terms(folder, settings):
    predicted = forecast(config(folder, output=str(folder / "other"), **settings))
    assert predicted.steps >= 1
    assert predicted.timed_steps >= 1


def test_epochs_that_are_left_to_the_run_in_so_many_words_are_not_given(folder):
    settings = {"output": str(folder / "other"), "recipe": "npo"}
    assert 100 <= forecast(config(folder, epochs=None, **settings)).steps < 110
    assert forecast(config(folder, **settings)).steps < 20


def test_the_reference_is_that_of_the_rows_that_the_run_visits(folder):
    settings = {"output": str(folder / "other"), "recipe": "npo", "replay_weight": 0.0}
    few, more, every = (
        forecast(config(folder, **settings, **steps)).reference_bytes
        for steps in ({"max_steps": 1}, {"max_steps": 2}, {})
    )
    assert 0 < few < more < every
    whole = prepare(config(folder, **settings), Reporter(quiet=True))
    logps, states = (sum(len(row.targets("all")) for row in rows) for rows in (whole.forget, whole.retain))
    assert every == 4 * (logps + states * whole.loaded.base.config.hidden_size)


def test_unlearn_itself_refuses_a_dry_run(folder):
    with pytest.raises(ConfigError, match="dry_run"):
        unlearn(config(folder, dry_run=True))
