"""Two and three processes: the losses and the adapter of one, and an end of one is the end of all."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from expunge.evaluation.metrics.registry import default_attacks
from launch import COMMAND, MARKER, End, largest_differences, launch
from tiny import save_tiny


@pytest.mark.parametrize(
    ("count", "prepare"),
    [(2, "nothing"), (3, "nothing"), (2, "two_machines"), (2, "last_has_little_memory")],
)
def test_the_same_losses_and_the_same_adapter(
    count: int, prepare: str, folder: Path, assert_same_as_one: Callable[[list[End]], None]
) -> None:
    ends = launch(count, folder, *COMMAND, "--output", "many", prepare=prepare)

    assert len(ends) == count
    assert_same_as_one(ends)
    assert sorted(path.name for path in (folder / "many").iterdir()) == sorted(
        path.name for path in (folder / "one").iterdir()
    )


def test_the_first_says_what_goes_wrong_and_all_go_on(
    folder: Path, assert_same_as_one: Callable[[list[End]], None]
) -> None:
    ends = launch(2, folder, *COMMAND, "--output", "many", prepare="all_decline")

    assert_same_as_one(ends)
    said = [line for line in ends[0].err.splitlines() if "prompts to keep are declined now" in line]
    assert len(said) == 1, ends
    assert said[0].startswith("warning: step 1: 8 of 8 prompts")


def test_a_run_that_follows_unseen_texts(folder: Path) -> None:
    """Its evaluation steps, where it ends, its best state and the scale of it."""
    for name in ("forget", "holdout"):
        rows = [{"input": f"Who is {name} {i}?", "output": f"A keeper of {i * 7} lamps."} for i in range(16)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--recipe", "default", "--eval-every", "2", "--target-auc", "0", "--max-steps", "5")
    for name, count in (("one", 1), ("many", 2)):
        ends = launch(count, folder, *COMMAND, *flags, "--overwrite", "--output", name)
        assert [end.code for end in ends] == [0] * count, ends

    losses, weights = largest_differences(folder / "one", folder / "many")
    assert losses < 1e-4
    assert weights < 1e-4
    one, many = (json.loads((folder / run / "calibration.json").read_text()) for run in ("one", "many"))
    assert {name: many[name] for name in ("best_step", "stopped", "scale", "selection_hmac")} == {
        name: one[name] for name in ("best_step", "stopped", "scale", "selection_hmac")
    }


def test_evaluation_is_divided_and_every_row_is_scored_once(folder: Path) -> None:
    command = (
        "evaluate", "--model", "model", "--adapter", "one", "--benchmark", "custom", "--forget", "forget.jsonl",
        "--retain", "retain.jsonl", "--holdout", "holdout.jsonl", "--max-new-tokens", "6", "--device", "cpu",
        "--samples", "2", "--attacks", ",".join((*default_attacks(), "gradient_norm")), "--reference", "twin",
    )  # fmt: skip
    save_tiny(folder / "twin", "llama", seed=1)
    (single,) = launch(1, folder, *command, "--output", "one.json")
    assert single.code == 0, single.err

    ends = launch(3, folder, *command, "--output", "many.json")

    assert [end.code for end in ends] == [0, 0, 0], ends
    assert all(end.out == end.err == "" for end in ends[1:])
    one, many = (json.loads((folder / f"{name}.json").read_text())["metrics"] for name in ("one", "many"))
    assert one.keys() == many.keys()
    for name, entry in one.items():
        assert many[name]["n"] == entry["n"], name
        if entry["value"] is None:  # the two unseen texts are one once they are cut
            assert many[name]["value"] is None, name
            continue
        assert many[name]["value"] == pytest.approx(entry["value"], rel=1e-4, abs=1e-5), name
    tables = [pandas.read_parquet(folder / f"{name}.parquet") for name in ("one", "many")]
    assert list(tables[0]["id"]) == list(tables[1]["id"])
    assert list(tables[0]["metric"]) == list(tables[1]["metric"])


FAILURES = {
    "first_fails": "No space left on device",
    "last_has_a_bug": "KeyError (a bug in Expunge)",
    "last_is_killed": "is gone",
    "first_is_killed": "is gone",
    "first_waits_for_ever": "nothing to be found here",
}


@pytest.mark.parametrize("prepare", FAILURES)
def test_one_that_fails_takes_the_others_down_with_its_message(prepare: str, folder: Path) -> None:
    """The last checkpoint is good, and a single process goes on from it."""
    ends = launch(2, folder, *COMMAND, "--output", "many", prepare=prepare)

    assert all(end.code not in (0, None) for end in ends), ends
    alive = [end for end in ends if end.code > 0]
    assert all(FAILURES[prepare] in end.err for end in alive if "this is a bug" not in end.err), ends
    assert any(FAILURES[prepare] in end.err for end in ends), ends
    assert not any(MARKER in end.err and "Traceback" not in end.err for end in ends)
    (end,) = launch(1, folder, *COMMAND, "--output", "many", "--resume")
    assert end.code == 0, end.err
    losses, weights = largest_differences(folder / "one", folder / "many")
    assert losses < 1e-5
    assert weights < 1e-5


def test_what_all_refuse_is_said_once(folder: Path) -> None:
    ends = launch(2, folder, *COMMAND, "--output", "many", "--max-length", "12")

    assert [end.code for end in ends] == [2, 2]
    assert sum(end.err.count("expunge: error: ") for end in ends) == 1
    assert not (folder / "many").exists()


def test_what_the_first_refuses_ends_the_others(folder: Path) -> None:
    """The first process alone looks at the output."""
    ends = launch(2, folder, *COMMAND, "--output", "one")

    assert [end.code for end in ends] == [2, 2]
    assert "not empty" in ends[0].err
    assert "process 0 failed" in ends[1].err


def test_one_that_fails_before_it_joins_is_not_waited_for(folder: Path) -> None:
    ends = launch(2, folder, *COMMAND, "--output", "many", prepare="last_has_no_device")

    assert [end.code for end in ends] == [2, 2]
    assert all("invalid device ordinal" in end.err for end in ends)


def test_a_callback_of_one_ends_all_after_the_same_step(folder: Path) -> None:
    ends = launch(2, folder, *COMMAND, "--output", "many", prepare="first_has_a_callback")

    assert [end.code for end in ends] == [0, 0], ends
    assert len((folder / "many/metrics.jsonl").read_text().splitlines()) == 3


def test_a_signal_to_one_stops_all_after_the_same_step_and_they_go_on(folder: Path) -> None:
    ends = launch(2, folder, *COMMAND, "--output", "many", prepare="one_gets_a_signal")

    assert [end.code for end in ends] == [130, 130], ends
    assert ends[0].err.splitlines()[-1].startswith("expunge: interrupted: step 3 of 7 is saved")
    assert ends[1].err == ""
    again = launch(2, folder, *COMMAND, "--output", "many", "--resume")
    assert [end.code for end in again] == [0, 0], again
    assert largest_differences(folder / "one", folder / "many")[1] < 1e-5


def test_a_signal_between_two_reads_of_the_log_stops_all_after_the_same_step(folder: Path) -> None:
    ends = launch(2, folder, *COMMAND, "--output", "many", prepare="one_gets_a_signal_between_reads")

    assert [end.code for end in ends] == [130, 130], ends
    assert re.search(r"interrupted: step [34] of 7 is saved", ends[0].err.splitlines()[-1]), "4 is saved anyway"
    (again,) = launch(1, folder, *COMMAND, "--output", "many", "--resume")
    assert again.code == 0, again.err
    assert largest_differences(folder / "one", folder / "many")[1] < 1e-5


def test_the_launcher_files_in_the_docs_are_what_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    folder = Path(__file__).resolve().parents[2] / "docs/accelerate"
    found = {path.stem: load_config_from_file(str(path)) for path in folder.glob("*.yaml")}

    assert {name: config.num_processes for name, config in found.items()} == {
        "one_node_8_gpus": 8,
        "two_nodes_16_gpus": 16,
    }
    assert all(config.mixed_precision == "no" for config in found.values()), "the precision is Expunge's own choice"
