"""The benchmark measures the same work on both sides, and its scripts run."""

import re

import pytest
import torch

from bench import __main__ as bench_main
from bench import gpu, report, sizes
from bench.machine import matrix_sizes
from bench.measure import Spec, measure, prepared_for
from bench.plain import Plain, load_plain
from bench.workload import official_lengths, random_model, random_rows
from experiments import contexts
from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.train.before import find_reference
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter
from tiny import save_tiny


@pytest.fixture(scope="module")
def folder():
    with random_model("olmo-tiny") as path:
        yield path


def rows(count: int) -> list[TokenizedExample]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(4, 20, (count,), generator=generator).tolist()
    return [
        TokenizedExample(str(length), torch.randint(512, (length,), generator=generator).tolist(), length // 3)
        for length in lengths
    ]


@pytest.mark.parametrize("recipe", ["paper", "npo"])
def test_plain_computes_what_the_trainer_computes(folder, recipe):
    settings = {"model": folder, "lora_alpha": 8.0, "learning_rate": 1e-3}
    config = UnlearnConfig(recipe=recipe, **settings, max_grad_norm=0.0)
    forget, retain = rows(5), rows(6)
    loaded = load_model(folder, dtype="float32", device="cpu")
    ours = Trainer(prepared_for(config, loaded, {"forget": forget, "retain": retain}))
    find_reference(ours, Reporter(quiet=True))
    plain = Plain(load_plain(folder, dtype="float32", device="cpu"), forget, retain, config)
    names = [name for name, parameter in ours.model.named_parameters() if parameter.requires_grad]
    assert names == [name for name, parameter in plain.model.named_parameters() if parameter.requires_grad]
    with torch.no_grad():
        for weight, other in zip(ours.parameters, plain.parameters, strict=True):
            weight.copy_(torch.randn_like(weight).mul_(0.1))
            other.copy_(weight)

    step = next(ours.rows.plan.steps())
    batch = [(forget[i], True) for i in step.forget] + [(retain[i], False) for i in step.retain]
    got, want = ours.train_step(step), plain.train_step(batch)
    assert want["forget"] > 0.1
    assert want["kl"] > 1e-3
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-5, abs=1e-6)
    for name, weight, other in zip(names, ours.parameters, plain.parameters, strict=True):
        assert other.grad.abs().max() > 0, name
        torch.testing.assert_close(
            weight.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_batch_without_a_side_counts_zero(folder):
    config = UnlearnConfig(recipe="paper", model=folder)
    plain = Plain(load_plain(folder, dtype="float32", device="cpu"), rows(3), [], config)
    terms = plain.train_step(next(plain.batches(1)))
    assert terms["retain"] == terms["kl"] == 0
    assert terms["forget"] == pytest.approx(2 / 0.5 * torch.tensor(2.0).log().item())


def test_lengths_without_the_data_folder_are_like_those_with_it(shared, monkeypatch):
    stored = official_lengths("validation")
    official_lengths.cache_clear()
    monkeypatch.setattr("bench.workload.SUBJECT", shared / "absent")
    drawn = official_lengths("validation")
    official_lengths.cache_clear()
    for side, pairs in stored.items():
        assert len(drawn[side]) == len(pairs)
        for place in (0, 1):
            assert sum(pair[place] for pair in drawn[side]) == pytest.approx(sum(p[place] for p in pairs), rel=0.03)
        assert all(0 < start < total for total, start in drawn[side])


def test_floor_counts_the_matrices_of_the_model(folder):
    linear, head = matrix_sizes(load_model(folder, dtype="float32", device="cpu"))
    assert sum(a * b for a, b in linear) == 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert head == [(512, 64)]
    sides = random_rows("validation", 512)
    assert max(token for row in sides["forget"] for token in row.input_ids) < 512


@pytest.mark.parametrize("implementation", ["expunge", "plain"])
def test_training_is_measured(folder, implementation, monkeypatch):
    monkeypatch.setattr("bench.machine.RATE_SECONDS", 0.01)
    result = measure(Spec("train", implementation, folder, seconds=0.1))
    assert result["tokens_per_second"] == pytest.approx(result["tokens"] / result["seconds"])
    assert result["seconds_per_epoch"] > result["seconds"] / 100
    assert result["floor_share"] > 0


def test_scoring_is_measured_and_gives_the_same_tokens(folder):
    ours = measure(Spec("score", "expunge", folder, rows=3, max_new_tokens=5))
    plain = measure(Spec("score", "plain", folder, rows=3, max_new_tokens=5))
    assert ours["digests"] == plain["digests"]
    assert ours["new_tokens"] > 0


def test_gpu_script_runs_on_the_cpu_and_says_what_fails(capsys, monkeypatch):
    monkeypatch.setattr("bench.machine.RATE_SECONDS", 0.01)
    monkeypatch.setattr(gpu.Bench, "part_nf4", lambda self: 1 / 0)
    gpu.main(["--tiny", "--seconds", "0.01", "--parts", "135m", "run", "nf4"])
    lines = capsys.readouterr().out
    for expected in (
        "135m step .*tokens/s.*goal: >= 60 k tokens/s",
        "135m plain",
        "times plain",
        "135m run .*goal: <= 90 s",
    ):
        assert re.search(expected, lines), lines
    assert re.search("nf4 .*failed: ZeroDivisionError", lines)


def test_the_texts_of_a_form_are_read_together(tmp_path, monkeypatch):
    loaded, calls = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu"), []
    monkeypatch.setattr(contexts, "sequence_logps", lambda *given: calls.append(given) or sequence_logps(*given))
    texts = ["a lamp by the mill", "an old boat", "the keeper of rivers and of boats"]
    for form in contexts.forms_of("a text to keep", "an unseen text").values():
        calls.clear()
        found = contexts.nlls(loaded, texts, form)
        assert len(calls) == 1
        assert found == pytest.approx([contexts.nlls(loaded, [text], form)[0] for text in texts], rel=1e-4)


def test_sizes_of_captured_passes_are_counted(capsys, monkeypatch):
    monkeypatch.setattr(sizes, "SPLITS", ("validation",))
    monkeypatch.setattr(sizes, "CASES", (("paper", 0),))
    sizes.main()
    (line,) = capsys.readouterr().out.splitlines()[2:]
    assert re.fullmatch(r"\| validation \| paper \| \d+(, [\d,]+){4} \| [\d,]+ \| \d\d% \|", line)


def test_tables_show_medians_and_factors(tmp_path, capsys):
    common = {"name": "m", "recipe": "default", "copies": 1, "dtype": "float32"}
    common |= {"machine": "x", "threads": 2, "torch": "2", "max_new_tokens": 9, "rows": 2, "draft_right": 1}
    numbers = {"seconds_per_epoch": 10.0, "set_up_seconds": 2.0, "peak": 2**31, "matrix_rate": 1e11, "floor_share": 0.5}

    def run(part, implementation, speed=1.0, memory=4, copies=1, seconds=1.0):
        row = {"part": part, "implementation": implementation, "tokens_per_second": speed, "seconds": seconds}
        row |= {"peak_above_weights": memory * 2**20, "digests": ["a", implementation], "new_tokens": 7}
        return {**common, **numbers, **row, "copies": copies}

    runs = [run("train", "plain", 10, 8), *(run("train", "expunge", speed, 2) for speed in (30, 50, 90))]
    runs += [run("score", "plain", seconds=20.0), run("score", "expunge", seconds=4.0)]
    runs += [run("growth", "expunge", 100, 10), run("growth", "expunge", 95, 11, copies=16)]
    report.save(str(tmp_path / "runs.json"), runs)
    bench_main.main(["--input", str(tmp_path / "runs.json")])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    train = "m default Expunge float32 50 30-90 5.0 10.0 2.0 142 2 25% 2.00 100 50%"
    assert train.split() in lines
    assert ["m", "2", "9", "7", "1 of 2", "20.0", "4.0", "5.0", "1 of 2"] in lines
    assert ["m", "default", "float32", "16x", "95", "-5.0%", "10.0", "2.0", "11", "+10.0%"] in lines


def test_tables_go_between_their_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cpu -->\nold\n<!-- /cpu -->\nafter\n")
    report.write_between(page, "cpu", "| new |")
    assert page.read_text() == "before\n<!-- cpu -->\n| new |\n<!-- /cpu -->\nafter\n"
    with pytest.raises(SystemExit, match="gpu"):
        report.write_between(page, "gpu", "| new |")
