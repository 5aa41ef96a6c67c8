"""The texts of a run as its settings name them, and the pairs that some losses need."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expunge.config import EvaluateConfig, UnlearnConfig
from expunge.data.examples import Example
from expunge.data.kinds import ALONE, ASKED, with_kinds
from expunge.data.sets import REFUSALS, Sets, membership_texts, pairs_for, read_sets, unasked
from expunge.errors import DataError
from expunge.evaluation.benchmarks.custom import read as read_custom
from expunge.evaluation.benchmarks.muse import read as read_muse_suite
from expunge.evaluation.benchmarks.tofu import UTILITY, aggregate_entries
from expunge.evaluation.benchmarks.tofu import read as read_tofu_suite
from expunge.evaluation.measurement import Measurement, Values
from expunge.evaluation.suite import Suite, data_fingerprint, with_facts, write_key_words

Row = dict[str, Any]


def write(path: Path, rows: Sequence[Row] | Sequence[str], *, whole: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows) if whole else "".join(json.dumps(row) + "\n" for row in rows))


def words(seed: int) -> str:
    """Twelve words of which no two texts share many."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(12))


def questions(name: str, count: int, **more: Any) -> list[Row]:
    return [{"question": f"Who is {name} {i}?", "answer": words(hash_of(name) + i), **more} for i in range(count)]


def hash_of(name: str) -> int:
    return sum(map(ord, name)) * 1000


def tofu(folder: Path, *, plain: bool) -> str:
    for name in ("forget05", "retain", "real_authors", "world_facts"):
        write(folder / f"{name}_perturbed.json", questions(name, 3, perturbed_answer=["No one."]))
    if plain:
        write(folder / "forget05.json", questions("forgotten", 20))
        write(folder / "retain95.json", questions("kept", 30))
    return str(folder)


def muse(folder: Path) -> str:
    root = folder / "books"
    write(root / "verbmem/forget.json", [{"prompt": "In the mill", "gt": "they slept."}], whole=True)
    for side in ("forget", "retain"):
        for stem in ("qa", "qa_icl"):
            write(root / f"knowmem/{side}_{stem}.json", questions(side, 2), whole=True)
    for stem, count in (
        ("privleak/forget", 5), ("privleak/retain", 6), ("privleak/holdout", 7), ("raw/forget", 8), ("raw/retain1", 9)
    ):  # fmt: skip
        write(root / f"{stem}.json", [words(hash_of(stem) + i) for i in range(count)], whole=True)
    return str(folder)


def lume(folder: Path) -> str:
    for name, count in (("forget", 4), ("retain", 5)):
        write(
            folder / f"{name}.jsonl",
            [{"input": f"{name} {i}", "output": words(hash_of(name) + i)} for i in range(count)],
        )
    for name, count in (("member", 6), ("nonmember", 7)):
        rows = [{"id": f"{name}{i}", "document": words(hash_of(name) + i)} for i in range(count)]
        write(folder / f"mia_data/{name}.jsonl", rows)
    return str(folder)


def sizes(sets: Sets) -> tuple[int, ...]:
    return tuple(len(getattr(sets, name)) for name in ("forget", "retain", "members", "nonmembers"))


def settings(**given: Any) -> UnlearnConfig:
    return UnlearnConfig(model="m", output="o", recipe="npo", **given)


def test_tofu_trains_on_its_plain_files_where_they_are_there(tmp_path: Path) -> None:
    found = read_sets(settings(benchmark="tofu", data=tofu(tmp_path / "all", plain=True), split="forget05"))
    assert sizes(found) == (20, 30, 20, 0)
    assert found.forget[0].prompt == "Who is forgotten 0?"
    alone = read_sets(settings(benchmark="tofu", data=tofu(tmp_path / "perturbed", plain=False), split="forget05"))
    assert sizes(alone) == (3, 3, 3, 0)
    write(tmp_path / "all/holdout05.json", questions("strange", 21))
    assert sizes(read_sets(settings(benchmark="tofu", data=str(tmp_path / "all"), split="forget05"))) == (
        20,
        30,
        20,
        21,
    )
    with pytest.raises(DataError, match=r"no forget10_perturbed\.json"):
        read_sets(settings(benchmark="tofu", data=str(tmp_path / "all")))


def test_tofu_measures_as_published_and_membership_where_it_has_unseen_authors(tmp_path: Path) -> None:
    """Answers of 200 tokens at most; forget quality of all rows and of the first 300."""
    folder = Path(tofu(tmp_path / "tofu", plain=False))
    plain = EvaluateConfig(model="m", output="o", benchmark="tofu", data=str(folder), split="forget05")
    suite = read_tofu_suite(plain)
    assert {row_set.max_new_tokens for row_set in suite.sets} == {200}
    assert {row_set.max_new_tokens for row_set in read_tofu_suite(replace(plain, max_new_tokens=50)).sets} == {None}
    assert suite.documents is None
    assert suite.not_measured[0].startswith("The folder has no holdout05.json")
    write(folder / "holdout05.json", questions("strange", 21))
    suite = read_tofu_suite(plain)
    assert suite.documents is not None
    assert suite.not_measured == ()
    assert [{*labels} for labels in suite.documents.labels] == [
        {"forget05-author-1"}, {"holdout05-author-1", "holdout05-author-2"},
    ]  # fmt: skip
    rng = random.Random(0)
    ours, theirs = (rated([rng.random() + more * (at >= 300) for at in range(400)]) for more in (1, 0))
    found = aggregate_entries(ours, theirs, suite)
    assert [found[f"all/forget_quality{name}"].n for name in ("", "_300")] == [400, 300]
    assert found["all/forget_quality"].value < 0.01 < found["all/forget_quality_300"].value
    few = [rated([0.5, 0.6]) for _ in range(2)]
    assert "all/forget_quality_300" not in aggregate_entries(*few, suite)


def rated(ratios: Sequence[float]) -> Measurement:
    """A measurement whose forget rows have these truth ratios."""
    rows = [Example(str(at), "", "text") for at in range(len(ratios))]
    found = Measurement()
    for name, metric in (("forget", "truth_ratio_raw"), *UTILITY):
        found.rows[name, metric] = Values.of(f"{name}/{metric}", rows, [row.id for row in rows], ratios)
    return found


def test_muse_and_lume_bring_unseen_texts(tmp_path: Path) -> None:
    found = read_sets(settings(benchmark="muse", data=muse(tmp_path / "muse"), split="books"))
    assert sizes(found) == (8, 9, 5, 7)
    with pytest.raises(DataError, match="news"):
        read_sets(settings(benchmark="muse", data=str(tmp_path / "muse")))
    folder = lume(tmp_path / "lume")
    for name in ("lume", "semeval"):
        assert sizes(read_sets(settings(benchmark=name, data=folder))) == (4, 5, 6, 7)


def test_muse_unlearns_on_its_raw_texts_and_trains_on_none_that_it_measures_on(tmp_path: Path) -> None:
    """As baselines/scripts/unlearn_news.sh: raw/forget and raw/retain1, long texts in pieces; never privleak/retain."""
    root = Path(muse(tmp_path / "muse")) / "books"
    long = "\n\n".join(" ".join(words(100 * at + n) for n in range(10)) for at in range(3))
    write(root / "raw/forget.json", [long, "A short one."], whole=True)
    books = settings(benchmark="muse", data=str(root))
    found = read_sets(books)
    assert [row.completion for row in found.forget] == [*long.split("\n\n"), "A short one."]
    assert [row.id for row in found.forget] == [f"raw-forget-{number}" for number in range(1, 5)]
    assert not {row.completion for row in found.trained} & set(json.loads((root / "privleak/retain.json").read_text()))
    (root / "raw/forget.json").unlink()
    (root / "raw/forget.txt").write_text(long)
    assert len(read_sets(books).forget) == 3
    for name, split in (("books", "books"), ("here", None)):
        root = root.rename(root.parent / name)
        suite = read_muse_suite(EvaluateConfig(model="m", output="o", benchmark="muse", data=str(root)))
        assert suite.split == split, "the folder says which corpus it is, or nothing does"
    (root / "raw/retain1.json").unlink()
    with pytest.raises(DataError, match=r"no raw/retain1\.txt: .*load_data\.py"):
        read_sets(settings(benchmark="muse", data=str(root)))


def test_the_users_unseen_texts_go_before_those_of_the_benchmark(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", questions("own", 9))
    found = read_sets(settings(benchmark="lume", data=lume(tmp_path / "lume"), holdout=str(tmp_path / "own.jsonl")))
    assert sizes(found) == (4, 5, 4, 9)


def test_near_duplicates_of_trained_texts_are_not_unseen(tmp_path: Path) -> None:
    rows = {name: questions(name, 4) for name in ("forget", "retain", "holdout")}
    rows["holdout"][1] = rows["forget"][2] | {"answer": rows["forget"][2]["answer"].upper() + " indeed"}
    rows["holdout"][3] = rows["retain"][0] | {"answer": rows["retain"][0]["answer"] + "!"}
    for name, records in rows.items():
        write(tmp_path / f"{name}.jsonl", records)
    found = read_sets(settings(**{name: str(tmp_path / f"{name}.jsonl") for name in rows}))
    assert sizes(found) == (4, 4, 4, 2)
    assert [example.prompt for example in found.nonmembers] == ["Who is holdout 0?", "Who is holdout 2?"]
    (told,) = [line for line in found.warnings if "left out" in line]
    assert told.startswith("2 of 4 unseen texts")
    assert not any(row["answer"] in line for line in found.warnings for side in rows.values() for row in side)


def test_retain_texts_are_read_where_a_term_uses_them_and_are_never_unseen(tmp_path: Path) -> None:
    folder = lume(tmp_path / "lume")
    off = read_sets(settings(benchmark="lume", data=folder, retain_weight=0.0, kl_weight=0.0))
    assert sizes(off) == (4, 0, 6, 7)
    rows = {name: questions(name, 4) for name in ("forget", "retain", "holdout")}
    rows["holdout"][3] = rows["retain"][0] | {"answer": rows["retain"][0]["answer"] + "!"}
    for name, records in rows.items():
        write(tmp_path / f"{name}.jsonl", records)
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    found = read_sets(settings(**files, retain_weight=0.0, kl_weight=0.0, test=files["retain"]))
    assert sizes(found) == (4, 0, 4, 3)
    assert len(found.test) == 4, "nothing of them is trained on"


def test_refusals_of_prompts_that_are_not_to_be_forgotten_are_told(tmp_path: Path) -> None:
    forget, kept = questions("forgotten", 3), questions("kept", 4)
    files = {"forget": forget, "retain": kept, "instead": [{**row, "answer": "No."} for row in (*forget, kept[0])]}
    for name, rows in files.items():
        write(tmp_path / f"{name}.jsonl", rows)
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in files}
    assert unasked(read_sets(UnlearnConfig(model="m", output="o", **paths))) == 1


def test_files_of_which_nothing_is_left_are_refused_by_a_run_and_told_by_an_evaluation(tmp_path: Path) -> None:
    """So that a run that was made can be scored."""
    rows = {"forget": questions("forgotten", 4), "retain": questions("kept", 12)}
    rows["holdout"] = [{key: value.upper() for key, value in row.items()} for row in rows["forget"]]
    rows["test"] = rows["retain"][:3]
    for name, records in rows.items():
        write(tmp_path / f"{name}.jsonl", records)
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    for name, told in (
        ("holdout", r"^--holdout .*: all of its texts are to be forgotten, kept or said instead, or nearly are: give"),
        ("test", r"^--test .*: all of its texts, or nearly the same ones, are trained on$"),
    ):
        with pytest.raises(DataError, match=told):
            read_sets(settings(forget=files["forget"], retain=files["retain"], **{name: files[name]}))
    suite = read_custom(EvaluateConfig(model="m", output="o", benchmark="custom", **files))
    assert ([row_set.name for row_set in suite.sets], suite.documents) == (["forget", "retain"], None)
    notes = " ".join(suite.not_measured)
    assert "3 of 3 test texts are, or nearly are, trained on: they are left out." in notes
    assert "4 of 4 unseen texts are, or nearly are, among those to forget, to keep or to say instead" in notes
    assert "Without unseen texts (--holdout) no membership attack was run." in notes


def test_what_is_said_instead_is_unseen_to_neither_a_run_nor_an_evaluation(tmp_path: Path) -> None:
    rows = {"forget": questions("forgotten", 4), "holdout": questions("own", 3)}
    rows["instead"] = [{**row, "answer": words(at)} for at, row in enumerate(rows["forget"])]
    rows["holdout"] += rows["instead"]
    for name, records in rows.items():
        write(tmp_path / f"{name}.jsonl", records)
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    assert len(read_sets(settings(**files)).nonmembers) == 3
    suite = read_custom(EvaluateConfig(model="m", output="o", benchmark="custom", **files))
    assert suite.documents
    assert len(suite.documents.nonmembers) == 3


def test_membership_without_unseen_texts_says_what_to_give() -> None:
    with pytest.raises(DataError, match="give --holdout"):
        membership_texts(Sets([Example("a", "", "text")]))


def forget(count: int) -> list[Example]:
    return [Example(f"f{i}", f"Who is {i}?", words(i), source=f"forget.jsonl:{i + 1}") for i in range(count)]


def test_a_pair_is_the_same_prompt_with_what_to_say_instead_or_a_refusal() -> None:
    texts = forget(40)
    instead = [Example("i", "Who is  3?", "A keeper."), Example("j", "Who is 99?", "Nobody.")]
    pairs = pairs_for(Sets(texts, instead=instead), seed=1)
    assert [(pair.id, pair.prompt) for pair in pairs] == [(row.id, row.prompt) for row in texts]
    assert {pair.completion for pair in pairs} <= {*REFUSALS, "A keeper."}
    assert [place for place, pair in enumerate(pairs) if pair.completion == "A keeper."] == [3], (
        "whatever the white space"
    )
    assert len({pair.completion for pair in pairs}) > len(REFUSALS) / 2
    assert pairs_for(Sets(texts, instead=instead), seed=1) == pairs
    assert pairs_for(Sets(texts, instead=instead), seed=2) != pairs


def test_a_pair_has_nothing_of_the_answer_to_forget() -> None:
    told = {"reasoning_content": "He keeps the mill."}
    texts = [replace(row, answer={"reasoning_content": "A secret."}, keywords=("secret",)) for row in forget(2)]
    known, refused = pairs_for(Sets(texts, instead=[Example("i", texts[0].prompt, "A keeper.", answer=told)]), seed=1)
    assert (known.completion, known.answer) == ("A keeper.", told)
    assert refused.answer == {}
    assert known.keywords == refused.keywords == ()


def test_a_text_without_prompt_has_no_pair() -> None:
    bare = Example("b", "", "A whole text.", source="forget.jsonl:9")
    with pytest.raises(DataError, match=r"^forget\.jsonl:9: has no prompt.* --loss$"):
        pairs_for(Sets([*forget(2), bare]), seed=0)


def test_stories_and_answers_in_one_file_are_of_two_kinds(tmp_path: Path) -> None:
    """Also where they have tasks; a set that holds one shape, or few rows of the other, is left as it is."""
    asked, alone = Example("q", "Who?", "He."), Example("t", "", words(1))
    mixed = with_kinds({"forget": 8 * [asked, alone], "holdout": [alone], "retain": []})
    assert {name: [row.group for row in rows] for name, rows in mixed.items()} == {
        "forget": 8 * [ASKED, ALONE], "holdout": [ALONE], "retain": [],
    }  # fmt: skip
    tasks = 8 * [replace(asked, task="a"), replace(alone, task="a"), replace(alone, task="b")]
    assert [row.group for row in with_kinds({"forget": tasks})["forget"]] == 8 * [f"a, {ASKED}", f"a, {ALONE}", "b"]
    for few in ({"forget": [asked], "holdout": [alone]}, {"forget": [*7 * [alone], *90 * [asked]], "holdout": [alone]}):
        assert with_kinds(few) == few
    write(tmp_path / "f.jsonl", [*questions("forgotten", 8), *({"question": "", "answer": words(i)} for i in range(8))])
    write(tmp_path / "r.jsonl", questions("kept", 12))
    files = {"forget": str(tmp_path / "f.jsonl"), "retain": str(tmp_path / "r.jsonl")}
    sets = read_sets(UnlearnConfig(model="m", output="o", **files))
    assert [row.group for row in sets.forget] == [ASKED] * 8 + [ALONE] * 8
    assert {row.group for row in sets.retain} == {ASKED}
    suite = read_custom(EvaluateConfig(model="m", output="o", benchmark="custom", **files))
    assert [[row.label for row in row_set.examples] for row_set in suite.sets] == [
        [ASKED] * 8 + [ALONE] * 8,
        [ASKED] * 12,
    ]
    _check_given_again(suite, tmp_path)


def test_a_kind_that_the_rows_name_is_reported_by_itself(tmp_path: Path) -> None:
    rows = [
        {"id": f"{i}{kind}1", "input": f"{i}?", "output": words(i), "task": "Task1"}
        for i in (1, 2)
        for kind in ("sc", "qa")
    ]
    write(tmp_path / "f.jsonl", rows)
    suite = read_custom(EvaluateConfig(model="m", output="o", benchmark="custom", forget=str(tmp_path / "f.jsonl")))
    assert [row.label for row in suite.sets[0].examples] == ["Task1 sc", "Task1 qa"] * 2
    _check_given_again(suite, tmp_path)


def _check_given_again(suite: Suite, folder: Path) -> None:
    """Rows that are written with their key words and given again are the same data, of the same kinds."""
    suite = with_facts(suite)
    write_key_words(folder / "again.jsonl", suite.sets[0].examples)
    config = EvaluateConfig(model="m", output="o", benchmark="custom", forget=str(folder / "again.jsonl"))
    again = with_facts(read_custom(config))
    assert [row.label for row in again.sets[0].examples] == [row.label for row in suite.sets[0].examples]
    known = [version.fingerprints()["forget"] for version in (suite, again)]
    assert known[0] == known[1] == data_fingerprint([replace(row, label="") for row in suite.sets[0].examples])
