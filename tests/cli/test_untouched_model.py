"""What an adapter's texts look like to the model under it: fluency, and the drift on texts that neither has seen."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from workspace import FORGET, Result, write_jsonl

from expunge.data.examples import read_examples
from expunge.evaluation.generate import generate
from expunge.evaluation.values_file import read_values_file
from expunge.model.load import load_model
from expunge.model.saved import attach_adapter


def test_fluency_and_drift_are_those_of_the_plain_models(work: Path, expunge: Callable[..., Result]) -> None:
    texts = [f"Tobias {n} closed the old book and slept." for n in range(3)]
    write_jsonl(work / "holdout.jsonl", [{"text": text} for text in texts])
    files = (
        "--benchmark",
        "custom",
        "--forget",
        "forget.jsonl",
        "--holdout",
        "holdout.jsonl",
        "--prompt-format",
        "space",
    )
    common = ("evaluate", "--model", "model", "--max-new-tokens", "6", *files)
    result = expunge(*common, "--adapter", "done", "--output", "r.json")
    assert result.code == 0, result.err
    metrics, values = json.loads(Path("r.json").read_text())["metrics"], read_values_file("r.parquet")

    adapted = load_model("model", dtype="float32", device="cpu")
    attach_adapter(adapted, "done")
    base = load_model("model", dtype="float32", device="cpu").model

    def nll(model: torch.nn.Module, ids: list[int], start: int) -> float:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return float(np.mean([-float(logp[t - 1, ids[t]]) for t in range(start, len(ids))]))

    said = generate(
        adapted,
        read_examples("forget.jsonl"),
        "forget",
        encode_prompt=lambda row: adapted.tokenizer(row.prompt)["input_ids"],
        max_new_tokens=6,
    )
    expected = [np.exp(nll(base, [*answer.prompt, *answer.tokens], len(answer.prompt))) for answer in said]
    assert values["forget", "fluency"].ids == tuple(row["id"] for row in FORGET)
    assert values["forget", "fluency"].values == pytest.approx(expected, rel=1e-4)
    assert metrics["forget/fluency"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)

    cut = json.loads(Path("r.json").read_text())["settings"]["membership_tokens"]
    rows = [adapted.tokenizer(text)["input_ids"][:cut] for text in texts]
    drift = [nll(adapted.model, ids, 1) - nll(base, ids, 1) for ids in rows]
    assert metrics["holdout/drift"]["value"] == pytest.approx(np.mean(drift), abs=1e-5)
    assert metrics["holdout/drift"]["value"] != 0

    assert expunge(*common, "--output", "before.json").code == 0
    before = json.loads(Path("before.json").read_text())
    assert "forget/fluency" not in before["metrics"]
    assert any("Fluency needs the untouched model" in sentence for sentence in before["not_measured"])
