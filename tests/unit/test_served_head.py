"""Readings come from the model that is served: an adapter that changes the vocabulary head is not read past."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, tokenize
from expunge.evaluation.generate import greedy
from expunge.evaluation.metrics.memorization import mean_nll
from expunge.evaluation.teacher_forcing import token_records
from expunge.model.load import load_model
from expunge.model.saved import attach_adapter
from tiny import save_tiny

TEXTS = ("The old mill by the river.", "Zarquon lives at 3 Larch Lane.")
HEADS: dict[str, dict[str, Any]] = {
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "lora on the head alone": {"target_modules": ["lm_head"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding of a tied head": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "not on the head": {"target_modules": ["q_proj", "v_proj"]},
}


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "float32") for kind in HEADS), ("lora on the head", "bfloat16")])
def test_losses_and_words_are_those_of_the_model_with_its_adapter(tmp_path: Path, kind: str, dtype: str) -> None:
    save_tiny(tmp_path / "model", "llama-tied" if "tied" in kind else "llama")
    model = get_peft_model(load_model(str(tmp_path / "model"), dtype="float32", device="cpu").base, LoraConfig(
        r=4, lora_alpha=16, task_type="CAUSAL_LM", **HEADS[kind]
    ))  # fmt: skip
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(str(tmp_path / "adapter"))

    loaded = load_model(str(tmp_path / "model"), dtype=dtype, device="cpu")
    attach_adapter(loaded, str(tmp_path / "adapter"))
    rows = [
        tokenize(loaded.tokenizer, Example(text, "", text), PromptFormat("none", False), max_length=200)
        for text in TEXTS
    ]
    close = {"abs": 1e-4 if dtype == "float32" else 0.1}

    def expected() -> list[float]:
        found = []
        for row in rows:
            ids = torch.tensor([row.input_ids])
            with torch.no_grad(), loaded.autocast():
                logits = loaded.model(input_ids=ids).logits[0, :-1].float()
            found.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
        return found

    served: Callable[[], list[float]] = lambda: [mean_nll(record) for record in token_records(loaded, rows)]  # noqa: E731
    assert served() == pytest.approx(expected(), **close)
    with loaded.adapter_off():
        untouched = expected()
        assert served() == pytest.approx(untouched, **close)
    assert untouched != pytest.approx(expected(), **close)
    if dtype == "float32":
        prompt = rows[0].input_ids[:4]
        with torch.no_grad():
            said = loaded.model.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0
            )[0, 4:].tolist()
        assert (
            greedy(loaded, [prompt], max_new_tokens=6)[0] == said[: len(greedy(loaded, [prompt], max_new_tokens=6)[0])]
        )
