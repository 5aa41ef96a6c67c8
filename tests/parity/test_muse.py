"""MUSE from end to end: generations, scores and AUCs of two small models equal what its own code computed."""

import json
from pathlib import Path

import pytest

from expunge.data.examples import Example
from expunge.data.muse import MuseData, few_shot
from expunge.evaluation.benchmarks import muse
from expunge.evaluation.passes import Options, measure
from expunge.model.load import LoadedModel, load_model
from expunge.utils.roc import auc

ATTACKS = {"loss": "PPL", "zlib": "PPL/zlib", "lowercase": "PPL/lower", "min_k_40": "Min-40%"}


@pytest.fixture(scope="module", params=["fitted", "random"])
def subject(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A stored model beside its tokenizer, as the loader wants them."""
    folder = tmp_path_factory.mktemp(request.param)
    for source in (shared / "golden/models" / request.param, shared / "golden/models/tokenizer"):
        for file in source.iterdir():
            (folder / file.name).symlink_to(file)
    return request.param, load_model(str(folder), dtype="float32", device="cpu")


def test_scores_and_areas(subject: tuple[str, LoadedModel], shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, loaded = subject
    golden = json.loads((shared / "golden/metrics/muse.json").read_text("utf-8"))
    texts = json.loads((shared / "golden/metrics/data.json").read_text("utf-8"))
    want, settings = golden[name], golden["settings"]
    shots = [Example("shot", row["question"], row["answer"]) for row in texts["icl"]]

    def questions(side: str) -> list[Example]:
        rows = [Example(f"{side}-{i}", row["question"], row["answer"]) for i, row in enumerate(texts["qa"][side])]
        return few_shot(rows, shots)

    def documents(side: str) -> list[Example]:
        return [Example(f"{side}-{i}", "", row["text"]) for i, row in enumerate(texts["documents"][side])]

    asked = want["verbmem_forget"]["per_sample"]
    passages = {row["prompt"]: row["text"] for row in texts["completion"]["forget"]}
    data = MuseData(
        verbmem=[Example(f"v{i}", row["prompt"], passages[row["prompt"]]) for i, row in enumerate(asked)],
        forget_qa=questions("forget"),
        retain_qa=questions("retain"),
        **{side: documents(side) for side in ("forget", "holdout")},
        corpus="news",
    )
    assert data.forget_qa[0].prompt == want["knowmem_forget"]["first_prompt"]
    for group in ("verbmem", "knowmem"):
        monkeypatch.setitem(muse.MAX_NEW_TOKENS, group, settings[f"{group}_max_new_tokens"])
    suite = muse.suite_of(data)
    found = measure(loaded, suite, suite.prompt_format, Options())

    said = found.said["forget"]
    responses = [row["response"] for part in ("verbmem_forget", "knowmem_forget") for row in want[part]["per_sample"]]
    assert said == responses
    for key, part in (
        (("forget", "verbatim_memorization"), "verbmem_forget"),
        (("forget", "knowledge_memorization"), "knowmem_forget"),
        (("retain", "knowledge_memorization"), "knowmem_retain"),
    ):
        scores = [row["rougeL"] for row in want[part]["per_sample"]]
        assert found.rows[key].values.tolist() == pytest.approx(scores, abs=1e-6), key
    for attack, published in ATTACKS.items():
        area = auc(*(side.values for side in found.attacks[attack]))
        # Their area is that of non-members above members.
        assert 1 - area == pytest.approx(want["privleak"]["auc"][f"forget_holdout_{published}"], abs=1e-9), attack
