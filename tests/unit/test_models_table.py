"""A sample of the architectures of docs/models.md holds what the page says; all of them where there is time."""

from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dev.models import CHECKS, PAGE, REFUSED, SAMPLE, examine

ENCODERS = {"bert"}


@pytest.mark.parametrize("name", SAMPLE)
def test_an_architecture_holds_what_the_page_says(name: str, tmp_path: Path) -> None:
    row = examine(name, tmp_path)
    assert row.whole == (name not in ENCODERS), row.why
    if name in ENCODERS:
        assert REFUSED in row.why


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_architecture_that_holds_on_the_page_holds(name: str, tmp_path: Path) -> None:
    if f"| {name} |{' yes |' * len(CHECKS)}" not in PAGE.read_text():
        pytest.skip("does not hold today")
    assert examine(name, tmp_path).whole
