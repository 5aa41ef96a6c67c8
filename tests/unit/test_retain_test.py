"""Retain texts that are never trained on, and runs without any."""

import json
import random
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pytest

from expunge.config import EvaluateConfig, UnlearnConfig
from expunge.data.examples import Example
from expunge.data.retain_test import FEWEST, set_apart
from expunge.data.sets import read_sets
from expunge.errors import ConfigError, DataError
from expunge.evaluation.benchmarks.custom import read as read_custom
from expunge.train.setup import prepare
from expunge.utils.progress import Reporter
from tiny import save_tiny

NAMES = ("Marta", "Ines", "Tobias", "Port", "Ellery", "Once", "Quill", "Wren", "Oduya", "Marek", "Sol", "Ada")
TWIN = " of the old mill by the river, as everybody in the whole valley knows"
ROWS = [Example(name, f"Who is {name}?", f"{name} has {at}{chr(97 + at) * 9}.") for at, name in enumerate(NAMES)]


def test_a_fifth_of_the_families_is_set_apart_whatever_their_order_and_no_family_is_divided():
    twins = [Example(f"t{n}", "Who?", f"The keeper{TWIN}{end}") for n, end in enumerate((".", "!", " today.", "..."))]
    rows = [*ROWS, *twins]
    trained, apart = set_apart(rows, 0.2)
    assert len(apart) == 3  # of 16 texts, 4 of which are one family
    assert sorted([*trained, *apart], key=rows.index) == rows
    assert {row.id for row in apart} & {row.id for row in twins} in (set(), {row.id for row in twins})
    for seed in range(3):
        mixed = random.Random(seed).sample(rows, len(rows))
        assert {row.id for row in set_apart(mixed, 0.2)[1]} == {row.id for row in apart}
    assert set_apart(rows, 0) == (rows, [])
    assert set_apart(rows[: FEWEST - 1], 0.2)[1] == []
    assert len(set_apart(ROWS, 0.5)[1]) == 6


@pytest.mark.parametrize(("twins", "others"), [(300, 100), (50, 50), (20, 180)])
def test_a_large_family_is_not_set_apart_before_the_others(twins: int, others: int) -> None:
    large = [Example("", "", f"The keeper{TWIN} but for number {number}") for number in range(twins)]
    rest = [Example("", f"Who is {number}?", f"{number} has {number**3}.") for number in range(others)]
    apart = set_apart([*large, *rest], 0.2)[1]
    most = int(0.2 * (twins + others))
    assert min(most, others) <= len(apart) + 1 <= most + 1
    if twins > most:
        assert not {*apart} & {*large}


def write(path: Path, rows: list[Example]) -> str:
    path.write_text("".join(json.dumps({"prompt": row.prompt, "completion": row.completion}) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    forget = [Example(f"f{n}", f"Where is {n}?", f"In street {n}.") for n in range(3)]
    return {"forget": write(tmp_path / "forget.jsonl", forget), "retain": write(tmp_path / "retain.jsonl", ROWS),
            "model": "m", "output": "o"}  # fmt: skip


def test_rows_of_the_users_own_are_documents_of_their_own(tmp_path: Path) -> None:
    for prefix in ("qa", "forget-qa", "a{}qa", "r"):
        lines = [
            {"id": f"{prefix.format(at)}{at}", "input": f"Who is {name}?", "output": f"{name}, {at}{at}.", "kind": "qa"}
            for at, name in enumerate(NAMES[:4])
        ]
        (tmp_path / "forget.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = read_custom(EvaluateConfig(benchmark="custom", forget=str(tmp_path / "forget.jsonl")))["forget"]
        assert len({*rows.documents}) == 4, prefix


def test_what_is_tested_on_is_not_trained_on_unless_the_recipe_the_data_or_the_user_says_so(files):
    sets = read_sets(UnlearnConfig(**files))
    assert (len(sets.retain), len(sets.test)) == (10, 2)
    assert not {*sets.test} & {*sets.trained}
    for none in ({"recipe": "paper"}, {"retain_test": 0.0}):
        assert len(read_sets(UnlearnConfig(**files, **none)).retain) == 12
    assert UnlearnConfig(model="m", output="o", benchmark="lume", data="d").test_share == 0
    assert len(read_sets(UnlearnConfig(**files, retain_test=0.5)).test) == 6


def test_rows_of_the_users_own_are_tested_on_and_none_that_is_trained_on(files, tmp_path):
    strange = Example("s", "Who is Uma?", "Nobody that anyone here would know.")
    test = write(tmp_path / "test.jsonl", [strange, ROWS[0]])
    sets = read_sets(UnlearnConfig(**files, test=test))
    assert ([row.prompt for row in sets.test], len(sets.retain)) == (["Who is Uma?"], 12)
    assert any(line.startswith("1 of 2 test texts are, or nearly are, trained on") for line in sets.warnings)
    with pytest.raises(DataError, match="all of its texts, or nearly the same ones, are trained on"):
        read_sets(UnlearnConfig(**files, test=write(tmp_path / "seen.jsonl", ROWS[:2])))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_to_be_forgotten_is_neither_kept_nor_tested_on(files, tmp_path, share):
    forget = write(tmp_path / "both.jsonl", [replace(ROWS[at], completion=f"{ROWS[at].completion}\n") for at in (1, 4)])
    files |= {"forget": forget, "retain_test": share}
    sets = read_sets(UnlearnConfig(**files))
    left = [row.prompt for row in ROWS if row.id not in ("Ines", "Ellery")]
    assert sorted(row.prompt for row in (*sets.retain, *sets.test)) == sorted(left)
    assert sets.warnings == ["retain: texts that are also in forget are not to keep, and left out: 2 (rows 2, 5)"]
    asked = EvaluateConfig(**files, benchmark="custom", test=files["retain"] if not share else None)
    suite = read_custom(asked)
    assert sets.warnings[0] + "." in suite.not_measured
    assert [row.prompt for row in suite["retain"].examples] == [row.prompt for row in sets.retain]
    tested = [row.prompt for row_set in suite.sets if row_set.name == "test" for row in row_set.examples]
    assert tested == [row.prompt for row in sets.test], "what is trained on tests nothing, whatever file it stands in"
    files["retain"] = write(tmp_path / "none.jsonl", [ROWS[4], ROWS[1]])
    for read in (lambda: read_sets(UnlearnConfig(**files)), lambda: read_custom(EvaluateConfig(**files))):
        with pytest.raises(
            DataError, match=r"^--retain .*none\.jsonl: all of its texts are to be forgotten: give texts to keep$"
        ):
            read()


def test_a_text_in_another_composition_is_the_same_text(files, tmp_path):
    text = Example("a", "Где живёт Андрей?", "Андрей живёт в доме у реки.")
    apart = replace(text, prompt=normalize("NFD", text.prompt), completion=normalize("NFD", text.completion))
    assert apart.completion != text.completion
    files |= {"forget": write(tmp_path / "f.jsonl", [text]), "retain": write(tmp_path / "r.jsonl", [apart, *ROWS])}
    assert len(read_sets(UnlearnConfig(**files, retain_test=0.0)).retain) == len(ROWS)


def test_texts_to_keep_that_nearly_are_texts_to_forget_are_told(files, tmp_path):
    place = "lives in the house behind the old mill by the river in"
    forget = [Example(f"f{n}", "", f"{name} {place} Larch Lane {n}.") for n, name in enumerate(NAMES)]
    like = [Example(f"k{n}", "", f"The keeper {n} of {name} sleeps in Port Moor.") for n, name in enumerate(NAMES)]
    twins = [
        replace(forget[0], completion=forget[0].completion.upper()),
        replace(forget[1], completion=f"{forget[1].completion[:-1]} today"),
    ]
    files |= {"forget": write(tmp_path / "f.jsonl", forget[:2]), "retain": write(tmp_path / "r.jsonl", [*like, *twins])}
    sets = read_sets(UnlearnConfig(**files, retain_test=0.0))
    assert len(sets.retain) == len(NAMES) + 2
    (told,) = sets.warnings
    assert told.startswith("2 of the retain texts are nearly the same as texts to forget")
    assert told.endswith(": r-13, r-14")
    files["retain"] = write(tmp_path / "r.jsonl", like)
    assert read_sets(UnlearnConfig(**files)).warnings == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "paper"}, "--recipe paper holds the model by texts to keep alone: --retain is missing"),
        ({"retain_weight": 1.0}, "--retain-weight 1.0: there is no --retain that it could weigh"),
        ({"kl_weight": 1.0}, "--kl-weight 1.0: there is no --retain"),
        ({"retain_test": 0.2}, "--retain-test 0.2: there is no --retain to take it from"),
        ({"retain": "r", "test": "t", "retain_test": 0.2}, "--test and --retain-test 0.2: both say"),
        ({"retain": "r", "retain_test": 1.0}, "--retain-test 1.0: is a share"),
    ],
)
def test_what_needs_texts_to_keep_says_so(settings, message):
    with pytest.raises(ConfigError, match=message):
        UnlearnConfig(model="m", output="o", forget="f", **settings).validate()


@pytest.mark.parametrize("recipe", ["default", "npo"])
def test_without_texts_to_keep_the_models_own_texts_hold_it(files, tmp_path, capsys, recipe):
    save_tiny(tmp_path / "model", "llama")
    files |= {"model": str(tmp_path / "model")}
    del files["retain"]
    run = prepare(UnlearnConfig(**files, recipe=recipe, device="cpu"), Reporter())
    assert (run.config.retain_weight, run.config.kl_weight, run.config.replay_weight) == (0, 0, 3)
    assert (run.retain, run.test, run.config.recipe) == ([], [], recipe)
    assert "texts that the model writes itself hold the rest in place" in " ".join(capsys.readouterr().err.split())
    given = prepare(UnlearnConfig(**files, recipe=recipe, replay_weight=0.5, device="cpu"), Reporter(quiet=True))
    assert given.config.replay_weight == 0.5
