"""No command destroys what it reads, what somebody else wrote, or a run that another process is at work in."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import datasets
import pytest
from breakage import run_setting
from workspace import FORGET, QUICK, UNLEARN, Result, snapshot, temporary, write_jsonl

from expunge.errors import ConfigError, ModelError
from expunge.runs.lock import Lock
from expunge.runs.reads import check_apart, model_folders

Run = Callable[..., Result]
TRAIN = (*UNLEARN, *QUICK, "--save-every", "1")
OWN_DATA = ("--forget", "forget.jsonl", "--retain", "retain.jsonl")
AGAIN = (*TRAIN, "--output", "done", "--overwrite")
loop = import_module("expunge.train.loop")


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("expunge.cli.commands"), "write_run_report", lambda run, out: None)


def in_child(expunge: Run, *words: str) -> None:
    """Run a command in a forked process, which never comes back."""
    try:
        expunge(*words)
    finally:
        os._exit(1)


def without_lock(folder: Path) -> dict[str, bytes | None]:
    return {name: content for name, content in snapshot(folder).items() if not name.endswith(".expunge/lock")}


# --- what a command reads ------------------------------------------------------------------------


def saved(rows: list[dict], folder: str) -> None:
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(folder)


def adapter_on(base: str, name: str) -> None:
    shutil.copytree("done/adapter", name)
    path = Path(name, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def base_within() -> list[str]:
    shutil.copytree("model", "done/base")
    adapter_on("done/base", "first")
    return ["--model", "first"]


def base_of_base_within() -> list[str]:
    base_within()
    adapter_on("first", "second")
    return ["--model", "second"]


def weights_linked_within() -> list[str]:
    shutil.copytree("model", "other")
    Path("other/model.safetensors").rename("done/weights")
    Path("other/model.safetensors").symlink_to("../done/weights")
    return ["--model", "other"]


def settings_within() -> list[str]:
    shutil.copy("done/config.yaml", "done/mine.yaml")
    return ["--config", "done/mine.yaml", "--output", "done"]


def data_within() -> list[str]:
    write_jsonl(Path("done/mine.jsonl"), FORGET)
    return ["--forget", "done/mine.jsonl"]


def data_linked_within() -> list[str]:
    data_within()
    Path("link.jsonl").symlink_to("done/mine.jsonl")
    return ["--forget", "link.jsonl"]


def data_set_within() -> list[str]:
    saved(FORGET, "done/mine")
    return ["--forget", "done/mine"]


def split_within() -> list[str]:
    saved(FORGET, "done/mine")
    return ["--forget", "done/mine:train"]


def benchmark_within() -> list[str]:
    Path("done/lume").mkdir()
    return ["--benchmark", "semeval", "--data", "done/lume"]


INPUTS = [
    base_within, base_of_base_within, weights_linked_within, settings_within, data_within, data_linked_within,
    data_set_within, split_within, benchmark_within,
]  # fmt: skip


@pytest.mark.parametrize("put", INPUTS)
def test_overwrite_refuses_a_run_that_holds_what_it_reads(
    put: Callable[[], list[str]], work: Path, expunge: Run
) -> None:
    """Known by the files behind the words of its flags; as if a run had written them, so that nothing else refuses."""
    flags = put()
    with Path("done/.expunge/files").open("a") as file:
        for name in snapshot(Path("done")):
            file.write(json.dumps(name) + "\n")
    before = without_lock(work)
    command = [word for word in AGAIN if "benchmark" not in str(flags) or word not in OWN_DATA]
    result = expunge(*command, *flags)
    assert result.code == 2, result.err
    assert "--output done holds what --" in result.err
    assert len(result.err.splitlines()) == 1
    assert without_lock(work) == before


def test_the_base_of_a_base_that_leads_in_a_circle_is_refused(work: Path) -> None:
    adapter_on("second", "first")
    adapter_on("first", "second")
    with pytest.raises(ModelError, match="circle"):
        model_folders("first")


def test_a_manifest_that_is_to_be_repeated_is_an_input(work: Path) -> None:
    with pytest.raises(ConfigError, match="holds what --from-manifest"):
        check_apart("done", {"from_manifest": "done/manifest.json"})


def base_of_an_adapter() -> str:
    adapter_on("model", "first")
    return "first"


def link_to_the_base() -> str:
    Path("link").symlink_to("model")
    return "link"


@pytest.mark.parametrize("name", [base_of_an_adapter, link_to_the_base])
def test_merge_does_not_write_over_the_base_whatever_its_run_calls_it(
    name: Callable[[], str], work: Path, expunge: Run
) -> None:
    run_setting(model=name())(work)
    before = without_lock(work)
    result = expunge("merge", "--run", "done", "--output", "model", "--overwrite")
    assert result.code == 2
    assert "--output model holds what --" in result.err
    assert without_lock(work) == before


def test_an_output_beside_an_input_is_none_of_its_business(work: Path) -> None:
    check_apart("done", {"model": "model", "forget": "forget.jsonl", "retain": None, "data": "nobody/has-this"})


# --- what no run has written ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", ".hidden-abcdefgh", "adapter/mine.bin", "mine/deep/file"])
def test_overwrite_refuses_a_run_with_a_file_that_no_run_has_written(name: str, work: Path, expunge: Run) -> None:
    Path("done", name).parent.mkdir(parents=True, exist_ok=True)
    Path("done", name).write_text("mine")
    before = without_lock(work)
    result = expunge(*AGAIN)
    assert result.code == 2
    assert "which no run has written" in result.err
    assert without_lock(work) == before


def test_overwrite_replaces_a_run_with_all_that_commands_wrote_into_it(
    work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.report.drawing.save", lambda figure, stem: [(stem.with_suffix(".svg"), b"<svg/>")])
    scored = expunge(
        "evaluate", "--model", "model", "--adapter", "done", "--benchmark", "custom", "--forget", "forget.jsonl",
        "--retain", "retain.jsonl", "--max-new-tokens", "2", "--device", "cpu", "--output", "done/results_after.json",
    )  # fmt: skip
    assert scored.code == 0, scored.err
    assert expunge("report", "done", "--overwrite", "--figures", "done/figures").code == 0
    assert expunge(*AGAIN, "--seed", "3").code == 0
    assert not list(Path("done").glob("results*"))
    assert json.loads(Path("done/manifest.json").read_text())["settings"]["seed"] == 3
    assert temporary(work) == []


# --- an old run, until the new one is whole ------------------------------------------------------


def stop(monkeypatch: pytest.MonkeyPatch, where: str, how: Callable[[], None]) -> None:
    def stopped(*_: object, **__: object) -> None:
        how()

    home = loop.Run if where in ("log", "save_checkpoint") else loop
    monkeypatch.setattr(home, where, stopped)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fill() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("how", [interrupt, fill])
@pytest.mark.parametrize("where", ["prepare", "mean_losses", "log", "save_checkpoint", "save_adapter"])
def test_an_overwrite_that_does_not_end_leaves_the_old_run(
    where: str, how: Callable[[], None], work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(work / "done")
    with monkeypatch.context() as patch:
        stop(patch, where, how)
        result = expunge(*AGAIN, "--seed", "3")
    assert result.code in (2, 130), result.err
    assert snapshot(work / "done") == before
    if where != "prepare":
        assert expunge(*AGAIN[:-1], "--seed", "3", "--resume").code == 0
        assert json.loads(Path("done/manifest.json").read_text())["settings"]["seed"] == 3
    assert temporary(work) == []


def test_what_follows_the_last_step_may_be_interrupted(
    work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no step before it was saved."""
    with monkeypatch.context() as patch:
        stop(patch, "settle", interrupt)
        result = expunge(*TRAIN, "--output", "late", "--save-every", "0")
    assert result.code == 130
    assert "from step" in result.err
    result = expunge(*TRAIN, "--output", "late", "--save-every", "0", "--resume", "--finish")
    assert result.code == 0, result.err


def test_a_killed_overwrite_is_begun_anew_by_the_next(work: Path, expunge: Run) -> None:
    before = snapshot(work / "done")
    child = os.fork()
    if child == 0:
        loop.Run.log = lambda self, line: os.kill(os.getpid(), signal.SIGKILL)
        in_child(expunge, *AGAIN, "--seed", "3")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert without_lock(work / "done") == before
    assert expunge(*AGAIN, "--seed", "4").code == 0
    assert json.loads(Path("done/manifest.json").read_text())["settings"]["seed"] == 4
    assert temporary(work) == []


def test_a_run_killed_between_its_end_and_the_exchange_is_completed(work: Path, expunge: Run) -> None:
    child = os.fork()
    if child == 0:
        import_module("expunge.runs.directory").replace = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        in_child(expunge, *AGAIN, "--seed", "3")
    os.waitpid(child, 0)
    result = expunge(*AGAIN[:-1], "--seed", "3", "--resume")
    assert (result.code, "is finished" in result.err) == (2, True)
    assert json.loads(Path("done/manifest.json").read_text())["settings"]["seed"] == 3
    assert temporary(work) == []


def test_a_run_that_has_lost_its_name_gets_it_back(work: Path, expunge: Run) -> None:
    Path("done").rename(".done.expunge-aside")
    result = expunge(*AGAIN[:-1], "--resume")
    assert (result.code, "the run in done is finished" in result.err) == (2, True), result.err
    assert temporary(work) == []


# --- owners --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--overwrite"], ["--resume"], []])
def test_a_run_in_use_is_left_alone(flags: list[str], work: Path, expunge: Run) -> None:
    lock = Lock(work / "busy")
    before = snapshot(work)
    result = expunge(*TRAIN, "--output", "busy", *flags)
    assert result.code == 2
    assert f"busy: in use by process {os.getpid()} on" in result.err
    assert snapshot(work) == before
    lock.release()
    assert not Path("busy").exists()


def test_a_dry_run_locks_nothing(work: Path, expunge: Run) -> None:
    lock = Lock(work / "busy")
    assert expunge(*TRAIN, "--output", "busy", "--dry-run").code == 0
    lock.release()


def killed_run(expunge: Run, *flags: str) -> None:
    """A run that is killed after its second checkpoint."""
    child = os.fork()
    if child == 0:
        save, saved = loop.Run.save_checkpoint, []

        def killed(self: object, *given: object) -> None:
            save(self, *given)
            saved.append(given)
            if len(saved) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        loop.Run.save_checkpoint = killed
        in_child(expunge, *TRAIN, *flags)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_resume_refuses_the_checkpoint_of_another_run(work: Path, expunge: Run) -> None:
    killed_run(expunge, "--output", "one")
    killed_run(expunge, "--output", "other", "--seed", "7")
    shutil.rmtree("one/checkpoints")
    shutil.copytree("other/checkpoints", "one/checkpoints")
    before = without_lock(work / "one")
    result = expunge(*TRAIN, "--output", "one", "--resume")
    assert result.code == 2
    assert "is a checkpoint of another run" in result.err
    assert without_lock(work / "one") == before


def test_resume_names_the_versions_that_were_changed_since(work: Path, expunge: Run) -> None:
    killed_run(expunge, "--output", "run")
    manifest = json.loads(Path("run/manifest.json").read_text())
    manifest["versions"]["accelerate"] = "0.0.1"
    Path("run/manifest.json").write_text(json.dumps(manifest))
    before = without_lock(work / "run")
    result = expunge(*TRAIN, "--output", "run", "--resume")
    assert result.code == 2
    assert "was started with other versions (accelerate 0.0.1 then, " in result.err
    assert without_lock(work / "run") == before


def renamed() -> None:
    Path("run/checkpoints/step-00000002").rename("run/checkpoints/step-00000003")


def other_step() -> None:
    note = Path("run/checkpoints/step-00000002/checkpoint.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"step": 1}))


@pytest.mark.parametrize("alter", [renamed, other_step])
def test_the_step_of_a_checkpoint_is_that_of_its_state(alter: Callable[[], None], work: Path, expunge: Run) -> None:
    assert expunge(*TRAIN, "--output", "whole").code == 0
    killed_run(expunge)
    alter()
    assert expunge(*TRAIN, "--resume").code == 0
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_run_whose_data_and_model_have_moved_is_gone_on_with(work: Path, expunge: Run) -> None:
    flags = ("--max-steps", "4")
    killed_run(expunge, *flags)
    Path("model").rename("elsewhere")
    Path("forget.jsonl").rename("moved.jsonl")
    gone = expunge("unlearn", "--resume", "--output", "run")
    assert gone.code == 2, "nothing says where it is"
    told = expunge("unlearn", "--resume", "--output", "run", "--model", "elsewhere", "--forget", "moved.jsonl")
    assert told.code == 0, told.err
    assert "resume: 2 of 4 steps are done" in told.err
    settings = json.loads(Path("run/manifest.json").read_text())["settings"]
    assert (settings["model"], settings["forget"]) == ("elsewhere", "moved.jsonl")
    assert "moved.jsonl" in Path("run/config.yaml").read_text()
    scored = expunge("evaluate", "--run", "run", "--max-new-tokens", "2", "--device", "cpu")
    assert scored.code == 0, scored.err


def test_resume_refuses_other_membership_documents(work: Path, expunge: Run) -> None:
    names = [
        "Wren",
        "Oduya",
        "Quill",
        "Marek",
        "Ellery",
        "Tobias",
        "Ines",
        "Marta",
        "Heron",
        "Larch",
        "Mill",
        "Port",
        "Once",
        "Keeper",
        "Fox",
        "River",
        "Lamp",
        "Ship",
    ]
    unseen = [{"input": f"Who is {name}?", "output": f"{name} {name[::-1]} is {name.upper()}."} for name in names]
    forget = [{"input": f"Where is {name}?", "output": f"{name} is at {name[::-1]} Lane."} for name in names]
    write_jsonl(Path("holdout.jsonl"), unseen)
    write_jsonl(Path("forget.jsonl"), forget)
    flags = ("--holdout", "holdout.jsonl", "--max-steps", "4")
    killed_run(expunge, *flags)
    write_jsonl(Path("holdout.jsonl"), [{"input": "Who is Zoe?", "output": "Nobody that we know."}, *unseen[1:]])
    result = expunge(*TRAIN, *flags, "--resume")
    assert result.code == 2
    assert "was started with other rows of the" in result.err


@pytest.mark.parametrize("name", ["/nowhere", "a/b c", "-/x", "x/" + "y" * 300])
def test_a_name_that_neither_a_disk_nor_the_hub_has_leads_nowhere(name: str) -> None:
    assert model_folders(name) == []
