"""A metric or an attack is one decorated function: results, tables, help and docs find it by themselves."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor

from dev import metrics as docs
from expunge.cli.main import main
from expunge.cli.registries import attacks_help
from expunge.errors import ConfigError
from expunge.evaluation.metrics import ATTACKS, METRICS, TokenRecord, attack, metric
from expunge.evaluation.metrics.registry import Row, WholeText, default_attacks, default_metrics
from expunge.losses import FORGET_LOSSES, forget_loss, make_forget_loss
from expunge.losses.batch import TokenBatch
from tiny import save_tiny


@pytest.fixture
def registered() -> Iterator[None]:
    """A new metric of generations, one of wrong answers and a new attack, as anybody would add them."""

    @metric(
        "brevity",
        direction="higher",
        keep="lower",
        needs=("text", "expected"),
        family="text",
        source="this test",
        definition="1/(1 + characters of the answer)",
    )
    def brevity(text: str, expected: str) -> float:
        return 1 / (1 + len(text))

    @metric("second_best", direction="lower", needs=("wrong",), family="memorization", source="t", definition="d")
    def second_best(wrong: Sequence[TokenRecord]) -> float:
        return len(wrong) / (1 + len(wrong))

    @attack("surprise_peak", needs=("record",), source="this test", definition="log p of the least likely token")
    def surprise_peak(record: TokenRecord) -> float:
        return float(record.logps.min())

    yield
    for name in ("brevity", "second_best"):
        del METRICS[name]
    del ATTACKS["surprise_peak"]


def test_a_new_metric_and_a_new_attack_stand_in_results_table_help_and_docs(
    registered: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "llama")
    told = {
        "forget": "amber birch cedar dune ember fern grove heath islet",
        "holdout": "kite lamp mast nail oar pipe quill rope sail",
    }
    for name, words in told.items():
        rows = [
            {"input": " ".join(triple[:2]), "output": triple[2]}
            for triple in zip(*[iter(words.split())] * 3, strict=True)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "evaluate",
        "--model",
        "model",
        "--benchmark",
        "custom",
        "--forget",
        "forget.jsonl",
        "--output",
        "r.json",
    ]
    assert main([*command, "--holdout", "holdout.jsonl", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    found = json.loads(Path("r.json").read_text())["metrics"]
    assert 0 < found["forget/brevity"]["value"] <= 1
    assert (found["forget/brevity"]["direction"], found["forget/brevity"]["source"]) == ("higher", "this test")
    assert "forget/second_best" not in found  # the rows have no wrong answers
    assert {"membership/surprise_peak_auc", "membership/surprise_peak_tpr_at_1_fpr"} < set(found)
    shown = capsys.readouterr().out
    assert "forget brevity ↑" in shown
    assert "membership surprise peak auc" in shown
    assert main(["evaluate", "--help"]) == 0
    assert "surprise_peak" in capsys.readouterr().out
    assert "brevity" in attacks_help(everything=True)
    assert "| brevity | 1/(1 + characters of the answer) | higher; on texts to keep lower | [0, 1] |" in docs.table()
    assert "| surprise_peak | log p of the least likely token | lower | (-inf, 0] |" in docs.table()
    only = [*command, "--overwrite", "--holdout", "holdout.jsonl", "--attacks", "surprise_peak", "--device", "cpu"]
    assert main(only) == 0
    found = json.loads(Path("r.json").read_text())["metrics"]
    assert {name for name in found if name.endswith("_auc")} == {"membership/surprise_peak_auc"}


def test_what_is_registered_is_where_it_applies(registered: None) -> None:
    assert "brevity" in default_metrics("forget")
    assert "fluency" not in default_metrics("retain")
    assert "surprise_peak" in default_attacks()
    assert "gradient_norm" not in default_attacks()
    assert METRICS["brevity"].of(Row(expected="a")) is None  # nothing was said
    assert METRICS["brevity"].of(Row(expected="a", text="abc")) == 0.25
    assert ATTACKS["lowercase"].of(WholeText(TokenRecord("a", *[[]] * 4), "a")) is None


@pytest.mark.parametrize(
    ("register", "name", "needs", "message"),
    [
        (metric, "fresh", ("soul",), "fresh: needs soul; there are record, kind, expected"),
        (metric, "probability", ("record",), "probability: is taken"),
        (metric, "loss", ("record",), "loss: is taken"),
        (attack, "fresh", ("samples",), "fresh: needs samples; there are record, text, lower"),
    ],
)
def test_a_name_that_is_taken_and_a_need_that_nothing_gives_are_refused(
    register: Callable[..., object], name: str, needs: tuple[str, ...], message: str
) -> None:
    options = {"source": "t", "definition": "d"} | (
        {"direction": "lower", "family": "text"} if register is metric else {}
    )
    with pytest.raises(ValueError, match=message):
        register(name, needs=needs, **options)(lambda record: 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "fresh: direction 'up' is unknown; there are higher, lower, target, None"),
        ({"family": "said"}, "fresh: family 'said' is unknown; there are memorization, text, membership, utility"),
        ({"definition": ""}, "fresh: has no definition: give the function a line of docs"),
    ],
)
def test_a_metric_that_results_could_not_read_is_refused(options: dict[str, str], message: str) -> None:
    given: dict[str, Any] = {"direction": "lower", "family": "text", "source": "t", "definition": "d"} | options
    with pytest.raises(ValueError, match=message):
        metric("fresh", **given)(lambda record: 0.0)
    assert "fresh" not in METRICS


def test_a_cell_of_a_notebook_may_run_again() -> None:
    def cell(value: float) -> None:
        @metric("fresh", direction="lower", family="text", source="t")
        def fresh(text: str) -> float:
            """A number"""
            return value

        @attack("fresh_attack", source="t")
        def fresh_attack(record: TokenRecord) -> float:
            """Another"""
            return -value

        @forget_loss("fresh", formula="0", source="t")
        @dataclass(frozen=True)
        class Fresh:
            by: float = value
            needs: ClassVar[tuple[str, ...]] = ()

    try:
        cell(0.25)
        cell(0.75)
        assert METRICS["fresh"].of(Row(text="a")) == 0.75
        assert make_forget_loss("fresh").by == 0.75  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="fresh: is taken"):
            forget_loss("fresh", formula="0", source="t")(FORGET_LOSSES["npo"])
    finally:
        del METRICS["fresh"], ATTACKS["fresh_attack"], FORGET_LOSSES["fresh"]


def test_a_metric_that_becomes_an_attack_is_no_metric_any_more() -> None:
    def fresh(record: TokenRecord) -> float:
        """A number"""
        return 0.0

    try:
        metric("fresh", direction="lower", family="text", source="t")(fresh)
        attack("fresh", source="t")(fresh)
        assert "fresh" in ATTACKS
        assert "fresh" not in METRICS
    finally:
        ATTACKS.pop("fresh", None), METRICS.pop("fresh", None)


def test_every_metric_says_how_to_read_it() -> None:
    for name, measure in {**METRICS, **ATTACKS}.items():
        assert measure.name == name
        assert measure.source
        assert measure.definition
        assert measure.low < measure.high
        assert (measure.direction == "target") == (measure.target is not None), name


def test_a_loss_takes_truth_values() -> None:
    @forget_loss("toy", formula="0", source="this test")
    @dataclass(frozen=True)
    class Toy:
        hard: bool = True
        needs: ClassVar[tuple[str, ...]] = ()

        def __call__(self, batch: TokenBatch) -> Tensor:
            return batch.token_mean(batch.logps)

    try:
        said = [make_forget_loss("toy", f"hard={value}").hard for value in ("false", "True")]  # type: ignore[attr-defined]
        assert said == [False, True]
        with pytest.raises(ConfigError, match="--loss-args hard=no: must be true or false"):
            make_forget_loss("toy", "hard=no")
    finally:
        FORGET_LOSSES.pop("toy")


def test_a_value_outside_of_its_metrics_range_is_named() -> None:
    try:
        metric("letters", direction="lower", family="text", source="here", definition="d")(
            lambda text: float(len(text))
        )
        row = Row(text="1234567", expected="", kind="", record=None)
        with pytest.raises(
            ConfigError, match="metric letters: gave 7, and is registered for 0 to 1: give it the low= and"
        ):
            METRICS["letters"].of(row)
    finally:
        METRICS.pop("letters", None)
