"""Batched generation, with and without drafts, says what one-at-a-time greedy decoding says."""

import random
from pathlib import Path

import pandas
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from expunge.data.examples import Example
from expunge.errors import DataError
from expunge.evaluation import generate
from expunge.evaluation.generate import greedy, stop_ids
from expunge.kernels import Head
from expunge.model.decoding import Flight, batching_obstacle, rounded_rows
from expunge.model.head import find_head
from expunge.model.limits import context_length
from expunge.model.load import LoadedModel, load_model
from expunge.model.source import Source

VOCAB = 61
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "eos_token_id": 7,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
WINDOW = GROUPED | {"head_dim": 8, "sliding_window": 8}
CONFIGS = {
    "llama": GROUPED,
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 96,
        "eos_token_id": 7,
        "bos_token_id": 1,
    },
    "gpt_neox": SMALL,
    "olmo2": GROUPED,
    "mistral": GROUPED | {"sliding_window": 8},
    "gemma2": WINDOW | {"final_logit_softcapping": 5.0},
    "gemma3_text": WINDOW,
    "cohere": GROUPED | {"logit_scale": 0.3},
    "phi3": GROUPED
    | {
        "original_max_position_embeddings": 48,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0, 7.0, 11.0, 16.0],
        },
    },
}


class NoTokenizer:
    """Stands for a tokenizer where only its end-of-text token matters."""

    eos_token_id, chat_template = 7, None
    bos_token_id = unk_token_id = None
    all_special_ids = (7,)

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [8] * len(text)}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(str(token) for token in ids if not (skip_special_tokens and token == self.eos_token_id))


def build(name: str) -> LoadedModel:
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **CONFIGS[name])).eval()
    for parameter in model.parameters():
        parameter.data.mul_(6 if parameter.dim() > 1 else 1)  # spread logits, so that continuations differ
    return wrap(model)


def wrap(model: PreTrainedModel) -> LoadedModel:
    return LoadedModel(model, NoTokenizer(), find_head(model)[0], torch.float32, Source("tiny", "tiny"))


def one_at_a_time(loaded: LoadedModel, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    outputs = []
    for prompt in prompts:
        limit = min(max_new_tokens, (context_length(loaded.base) or 0) - len(prompt))
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "eos_token_id": sorted(stop_ids(loaded)), "pad_token_id": 0}
        mask = torch.ones_like(ids)
        outputs.append(
            loaded.base.generate(ids, attention_mask=mask, max_new_tokens=limit, **options)[0, len(prompt) :].tolist()
        )
    return outputs


def random_prompts(seed: int, count: int = 14, longest: int = 80) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(8, VOCAB) for _ in range(draw.choice([1, 2, 5, 9, 17, 30, longest]))] for _ in range(count)]


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_drafts_and_looks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = build(name)
    assert batching_obstacle(loaded.base) is None
    prompts = random_prompts(1, longest=40 if name == "phi3" else 80)  # of which rotary factors must not depend
    want = one_at_a_time(loaded, prompts, 24)
    assert max(len(prompt + tokens) for prompt, tokens in zip(prompts, want, strict=True)) <= context_length(
        loaded.base
    )
    assert len({tuple(tokens) for tokens in want}) > len(prompts) // 2
    done = []
    assert greedy(loaded, prompts, max_new_tokens=24, progress=done.append) == want
    assert sum(done) == len(prompts)
    with monkeypatch.context() as small:  # small caches make rows wait for one another and join in the middle
        small.setattr(generate, "cached_tokens", lambda loaded: 150)
        assert greedy(loaded, prompts, max_new_tokens=24) == want

    draw = random.Random(2)
    drafts = []
    for tokens in want:
        kind = draw.choice(["right", "longer", "wrong from the start", "wrong later", "none"])
        wrong = [draw.randrange(8, VOCAB) for _ in range(12)]
        keep = draw.randrange(len(tokens))
        drafts.append(
            {
                "right": tokens,
                "longer": tokens + wrong + wrong,
                "wrong from the start": wrong,
                "wrong later": tokens[:keep] + wrong,
                "none": [],
            }[kind]
        )
    assert greedy(loaded, prompts, max_new_tokens=24, drafts=drafts) == want
    monkeypatch.setattr(generate, "cached_tokens", lambda loaded: 150)
    assert greedy(loaded, prompts, max_new_tokens=24, drafts=drafts) == want
    monkeypatch.setitem(generate.TOKENS_PER_READ, "cpu", 5)  # as a GPU goes on without being looked at
    assert greedy(loaded, prompts, max_new_tokens=24, drafts=drafts) == want


def test_any_end_token_ends_a_generation_and_is_part_of_it() -> None:
    loaded = build("llama")
    prompts = random_prompts(3)
    unbounded = greedy(loaded, prompts, max_new_tokens=12)
    end = next(tokens[4] for tokens in unbounded if len(tokens) > 4 and tokens[4] not in tokens[:4])
    loaded.base.generation_config.eos_token_id = [9, end]
    assert stop_ids(loaded) == {7, 9, end}
    ended = greedy(loaded, prompts, max_new_tokens=12)
    assert ended == one_at_a_time(loaded, prompts, 12)
    assert any(len(tokens) == 5 and tokens[-1] == end for tokens in ended)


def test_a_right_draft_leaves_nothing_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = build("olmo2")
    prompts = random_prompts(4)
    want = greedy(loaded, prompts, max_new_tokens=10)
    monkeypatch.setattr(Flight, "steps", None)
    assert greedy(loaded, prompts, max_new_tokens=10, drafts=want) == want


def test_the_plain_path_of_an_unknown_head() -> None:
    loaded = build("llama")
    prompts = random_prompts(5)
    want = greedy(loaded, prompts, max_new_tokens=10)
    loaded.head = Head(None)
    assert greedy(loaded, prompts, max_new_tokens=10) == want


@torch.no_grad()
def test_positions_that_begin_behind_that_of_padding() -> None:
    """RoBERTa, whose position table has two rows more than there is room for tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("roberta", **SMALL | {"is_decoder": True, "pad_token_id": 1, "bos_token_id": 0})
    loaded = wrap(AutoModelForCausalLM.from_config(config).eval())
    for parameter in loaded.base.parameters():
        parameter.data.mul_(6 if parameter.dim() > 1 else 1)
    assert loaded.context == SMALL["max_position_embeddings"] - 2
    prompts = [*random_prompts(4, count=3, longest=40), [8] * (loaded.context - 2)]
    for prompt, said in zip(prompts, greedy(loaded, prompts, max_new_tokens=8), strict=True):
        assert said
        for at, token in enumerate(said):
            assert loaded.base(torch.tensor([prompt + said[:at]]), use_cache=False).logits[0, -1].argmax() == token


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "it has chunked_attention layers"),
        ({"layer_types": ["conv", "full_attention"]}, "it has conv layers"),
        ({"alibi": True}, "its positions cannot be given row by row"),
    ],
)
def test_what_cannot_share_a_batch_is_recognised(settings: dict, reason: str) -> None:
    loaded = build("llama")
    for name, value in settings.items():
        setattr(loaded.base.config, name, value)
    assert reason in batching_obstacle(loaded.base)


def test_a_state_space_model_is_generated_row_by_row_and_says_so() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": 7}
    loaded = wrap(MambaForCausalLM(MambaConfig(**sizes, bos_token_id=1, pad_token_id=0)).eval())
    lines: list[str] = []
    rows = [Example(f"r{i}", "x", "y") for i in range(3)]
    said = generate.generate(
        loaded, rows, "forget", encode_prompt=lambda row: [11, 12, 13], max_new_tokens=5, say=lines.append
    )
    assert len(said) == 3
    assert said[0].text
    assert lines == [
        "generating one row at a time: MambaForCausalLM cannot be batched, its state is not a key-value cache"
    ]


def test_a_prompt_that_does_not_fit_loses_its_head_and_is_counted() -> None:
    loaded = build("gpt2")
    lengths = {"short": 10, "full": 95, "long": 150}
    rows = [Example(name, "x", "y") for name in lengths]
    ids = {name: random.Random(name).choices(range(8, VOCAB), k=length) for name, length in lengths.items()}
    lines: list[str] = []
    said = generate.generate(
        loaded, rows, "retain", encode_prompt=lambda row: ids[row.id], max_new_tokens=6, say=lines.append
    )
    assert lines == ["1 of 3 retain prompts do not fit into 96 tokens and lose their head"]
    want = greedy(loaded, [ids["short"], ids["full"], ids["long"][-90:]], max_new_tokens=6)
    assert [answer.text for answer in said] == [NoTokenizer().decode(tokens, True) for tokens in want]
    assert len(want[1]) == 1


def test_an_empty_prompt_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"data\.csv:3: the prompt is empty"):
        generate.generate(
            build("llama"),
            [Example("a", "", "text", source="data.csv:3")],
            "forget",
            encode_prompt=lambda row: [],
        )


def test_real_rows_on_a_real_subject(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(str(shared / "subjects/olmo-5m-validation"), dtype="float32", device="cpu")
    table = pandas.read_parquet(shared / "data/semeval/data/retain_validation-00000-of-00001.parquet")
    rows = table.iloc[:: len(table) // 8]
    prompts = [loaded.tokenizer(text)["input_ids"] for text in rows["input"]]
    drafts = [loaded.tokenizer(text)["input_ids"] for text in rows["output"]]
    want = one_at_a_time(loaded, prompts, 32)
    assert greedy(loaded, prompts, max_new_tokens=32, drafts=drafts) == want
    monkeypatch.setattr(generate, "cached_tokens", lambda loaded: 2000)
    assert greedy(loaded, prompts, max_new_tokens=32) == want


@pytest.mark.parametrize(("rows", "room"), [(1, 1), (2, 2), (3, 3), (5, 8), (17, 20), (32, 32), (33, 64), (65, 96)])
def test_a_cache_has_no_room_for_many_rows_where_there_are_few(rows: int, room: int) -> None:
    assert rounded_rows(rows) == room
