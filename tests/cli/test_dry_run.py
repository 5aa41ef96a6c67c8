"""`expunge unlearn --dry-run`: says what the run would take and leaves no trace."""

import yaml
from workspace import MARKER, QUICK, UNLEARN, snapshot

TRAIN = (*UNLEARN, *QUICK)


def test_it_prints_every_quantity_and_writes_nothing(work, expunge):
    before = snapshot(work)
    result = expunge(*TRAIN, "--dry-run")
    assert result.code == 0
    printed = {line[:22].strip(): line[22:] for line in result.out.splitlines()}
    assert list(printed) == [
        "rows", "tokens", "real share", "steps", "trainable parameters", "reference", "peak memory", "training time",
        "whole run",
    ]  # fmt: skip
    assert printed["rows"] == "forget 4, retain 6"
    assert printed["steps"].startswith("3 (")
    assert printed["peak memory"].endswith("(cpu, float32)")
    assert MARKER not in result.out + result.err
    assert snapshot(work) == before
    alone = expunge(*TRAIN, "--dry-run", "--max-steps", "1")
    assert "timing 1/1" in alone.err


def test_the_run_itself_does_not_remember_the_switch(work, expunge):
    assert expunge(*TRAIN, "--dry-run", "false").code == 0
    assert "dry_run" not in yaml.safe_load((work / "run" / "config.yaml").read_text())


def test_faults_of_the_input_are_found_as_in_a_real_run(work, expunge):
    for extra in (("--resume",), ("--output", "done"), ("--lora-rank", "4000"), ("--target-modules", "nowhere")):
        before = snapshot(work)
        result = expunge(*TRAIN, *extra, "--dry-run")
        assert result.code == 2
        assert result.err.splitlines()[-1].startswith("expunge: error: ")
        assert snapshot(work) == before
