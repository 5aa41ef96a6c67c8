"""Every supported architecture: its head, the log-probabilities that training uses, and its adapter."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from expunge.data.tokenize import TokenizedExample
from expunge.errors import ConfigError, DataError
from expunge.kernels import token_logps, token_logps_and_kl
from expunge.model import packing
from expunge.model.adapter import add_adapter, trainable
from expunge.model.limits import context_length
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import PASS_TOKENS, lay_out, mean_losses, sequence_logps, target_states
from expunge.model.packing import PROBE, UNBOUNDED, packable_length, packed_states
from tiny import ARCHITECTURES, save_tiny, tiny_model

LENGTHS = (23, 2, 41, 9, 64, 3)
"""Beyond the sliding windows of the tiny models (8), and mixed, so that most of a batch is padding."""
WAYS = (packing.ROWS, packing.MASK, packing.VARLEN)
UNPACKABLE = {packing.ROWS: {"mistral", "gemma2", "gemma3"}, packing.MASK: {"gemma2"}, packing.VARLEN: {"gemma2"}}
"""Rows beyond the window, or attention scores of a form that only the plain attention has."""

Load = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture -> saved tiny model."""
    made: dict[str, Path] = {}

    def folder(arch: str) -> Path:
        if arch not in made:
            made[arch] = save_tiny(tmp_path_factory.mktemp(arch), arch)
        return made[arch]

    return folder


@pytest.fixture
def load(folders: Callable[[str], Path]) -> Load:
    """Architecture -> freshly loaded model."""
    return lambda arch: load_model(str(folders(arch)), dtype="float32", device="cpu")


@pytest.fixture
def attend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make packed rows attend in one of the ways, also in those that the CPU does not take."""

    def choose(way: str) -> None:
        monkeypatch.setattr(packing, "attention_way", lambda model: way)
        monkeypatch.setattr(packing, "varlen_attn", varlen_on_the_cpu)

    return choose


def varlen_on_the_cpu(
    query: Tensor, key: Tensor, value: Tensor, cuts: Tensor, cuts_k: Tensor, most: int, most_k: int,
    *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What PyTorch's flash attention for rows of any length computes, in its layout `(tokens, heads, head_dim)`."""
    assert cuts.dtype == torch.int32
    assert cuts is cuts_k
    assert most == most_k >= cuts.diff().max()
    assert window_size[1] == 0
    found = []
    for rows in zip(*(states.split(cuts.diff().tolist()) for states in (query, key, value)), strict=True):
        places = torch.arange(len(rows[0]))
        back = places[:, None] - places
        seen = (back >= 0) & ((back <= window_size[0]) | (window_size[0] < 0))
        transposed = (states.transpose(0, 1) for states in rows)
        attention = torch.nn.functional.scaled_dot_product_attention(
            *transposed, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        found.append(attention.transpose(0, 1))
    return torch.cat(found)


def texts(loaded: LoadedModel) -> list[TokenizedExample]:
    """Random texts, about half of each being the prompt."""
    chance = random.Random(7)
    vocab = loaded.base.config.vocab_size
    return [
        TokenizedExample(f"t{i}", [chance.randrange(vocab) for _ in range(length)], length // 2)
        for i, length in enumerate(LENGTHS)
    ]


def plain_logps(loaded: LoadedModel, ids: list[int]) -> Tensor:
    """Log-probabilities `(length - 1, vocab)` as the formula has them, one row alone."""
    return loaded.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def plain_token_logps(loaded: LoadedModel, ids: list[int]) -> Tensor:
    return plain_logps(loaded, ids).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def perturb(loaded: LoadedModel) -> None:
    """Move the adapter away from zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainable(loaded.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_head_is_taken_apart(arch: str, load: Load) -> None:
    loaded = load(arch)

    assert loaded.head.weight is not None
    assert loaded.head.softcap == (4.0 if arch == "gemma2" else None)
    assert loaded.head.scale == (2.0 if arch == "cohere" else 1.0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sequence_logps_equal_log_softmax_of_the_logits(arch: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(arch)
    rows = texts(loaded)
    monkeypatch.setitem(PASS_TOKENS, "cpu", 96)

    found = sequence_logps(loaded, [row.input_ids for row in rows])

    for row, logps in zip(rows, found, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logps, plain_token_logps(loaded, row.input_ids), rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("way", [*WAYS, None])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_training_path_equals_one_row_at_a_time(
    arch: str, way: str | None, load: Load, attend: Callable[[str], None]
) -> None:
    """Log-probabilities, exact KL and the adapter's gradient, packed in every way and padded, as each row alone."""
    if way:
        attend(way)
    loaded = load(arch)
    rows = texts(loaded)
    if way is None:
        loaded.packable_length = 0
    ids, places = [row.input_ids for row in rows], [row.targets("completion") for row in rows]
    assert lay_out(loaded, ids).packed == (way is not None and arch not in UNPACKABLE[way])
    with torch.no_grad():
        ref_states, targets = target_states(loaded, ids, places)
        reference = [plain_logps(loaded, row.input_ids)[row.completion_start - 1 :] for row in rows]
    add_adapter(loaded, rank=3, alpha=6.0, modules="all-linear", seed=0)
    perturb(loaded)

    states, _ = target_states(loaded, ids, places)
    logps, kl = token_logps_and_kl(states, ref_states, loaded.head, targets)
    (kl.sum() - 0.3 * logps.sum() + token_logps(states, loaded.head, targets).square().sum()).backward()
    grads = [parameter.grad.clone() for parameter in trainable(loaded.model) if parameter.grad is not None]

    loaded.model.zero_grad()
    plain, plain_kl = [], []
    for row, ref_logps in zip(rows, reference, strict=True):
        all_logps = plain_logps(loaded, row.input_ids)[row.completion_start - 1 :]
        row_kl = (all_logps.exp() * (all_logps - ref_logps)).sum(-1)
        row_logps = all_logps.gather(-1, torch.tensor(row.input_ids[row.completion_start :])[:, None])[:, 0]
        (row_kl.sum() - 0.3 * row_logps.sum() + row_logps.square().sum()).backward()
        plain.append(row_logps.detach())
        plain_kl.append(row_kl.detach())
    expected = [parameter.grad for parameter in trainable(loaded.model) if parameter.grad is not None]

    assert kl.mean() > 1e-3, "the adapter must move the distribution for this to show anything"
    torch.testing.assert_close(logps.detach(), torch.cat(plain), rtol=1e-5, atol=3e-5)
    torch.testing.assert_close(kl.detach(), torch.cat(plain_kl), rtol=1e-4, atol=3e-5)
    assert len(grads) == len(expected) > 0
    for grad, right in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-3, atol=1e-4 * right.abs().max().item())


@pytest.mark.parametrize("modules", ["auto", "all-linear"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_adapter_trains_a_step_and_can_be_switched_off(arch: str, modules: str, load: Load) -> None:
    loaded = load(arch)
    row = texts(loaded)[2]
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        untouched = loaded.model(input_ids=ids).logits
    model = add_adapter(loaded, rank=2, alpha=None, modules=modules, seed=0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, untouched), "a fresh adapter changes nothing"
    optimizer = torch.optim.Adam(trainable(model), lr=1e-2)

    for _ in range(2):  # the first step moves B alone, since A's gradient is zero as long as B is
        before = [parameter.detach().clone() for parameter in trainable(model)]
        states, targets = target_states(loaded, [row.input_ids], [row.targets("all")])
        loss = -token_logps(states, loaded.head, targets).mean()
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert all(not torch.equal(a, b) for a, b in zip(before, trainable(model), strict=True))
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, untouched)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, untouched)
    assert all(not parameter.requires_grad for parameter in [loaded.head.weight])
    names = {name.rpartition(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert names.isdisjoint({"lm_head", "embed_out"})


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_unknown_head_takes_the_plain_path(
    arch: str, load: Load, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose forward bends its logits is seen through, and its own logits are used."""
    kind = type(load(arch).model)
    forward = kind.forward

    def bent(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + 0.7 * torch.sin(output.logits)
        return output

    monkeypatch.setattr(kind, "forward", bent)
    loaded = load(arch)
    rows = texts(loaded)

    assert loaded.head.weight is None
    assert "differ from the known forms" in loaded.told()[0]
    ids, places = [row.input_ids for row in rows], [row.targets("all") for row in rows]
    with torch.no_grad():
        reference = torch.cat([plain_logps(loaded, row.input_ids) for row in rows])
        ref_states, token_ids = target_states(loaded, ids, places)
    add_adapter(loaded, rank=2, alpha=4.0, modules="auto", seed=0)
    perturb(loaded)
    with torch.no_grad():
        plain = torch.cat([plain_logps(loaded, row.input_ids) for row in rows])

    states, _ = target_states(loaded, ids, places)
    logps, kl = token_logps_and_kl(states, ref_states, loaded.head, token_ids)

    targets = torch.cat([torch.tensor(row.input_ids[1:]) for row in rows])[:, None]
    torch.testing.assert_close(logps, plain.gather(-1, targets)[:, 0], rtol=1e-5, atol=3e-5)
    torch.testing.assert_close(kl, (plain.exp() * (plain - reference)).sum(-1), rtol=1e-4, atol=3e-5)
    assert kl.max() > 1e-3
    logps.sum().backward()
    assert all(parameter.grad is not None for parameter in trainable(loaded.model))


def test_mean_losses_are_means_over_completion_tokens(load: Load) -> None:
    loaded = load("llama")
    rows = texts(loaded)

    found = mean_losses(loaded, {"forget": rows, "retain": []})

    with torch.no_grad():
        logps = [plain_token_logps(loaded, row.input_ids)[row.completion_start - 1 :] for row in rows]
    assert found == {"forget": pytest.approx(-torch.cat(logps).mean().item(), abs=1e-5)}


def test_base_weights_take_no_gradient_and_heads_stay_out(load: Load) -> None:
    loaded = load("llama-tied")
    model = add_adapter(loaded, rank=2, alpha=None, modules="q_proj,down_proj", seed=0)

    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names
    assert all(".lora_" in name and (".q_proj." in name or ".down_proj." in name) for name in names)


@pytest.mark.parametrize(("arch", "name"), [("llama", "lm_head"), ("gpt_neox", "embed_out")])
def test_the_head_is_refused_as_a_target(arch: str, name: str, load: Load) -> None:
    with pytest.raises(ConfigError, match=f"{name} is the vocabulary head|no linear module {name}"):
        add_adapter(load(arch), rank=2, alpha=None, modules=name, seed=0)


def test_rank_larger_than_the_layers_is_refused_and_the_model_stays_as_it_was(load: Load) -> None:
    loaded = load("llama")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        untouched = loaded.model(input_ids=ids).logits
    with pytest.raises(ConfigError, match="--lora-rank 500: larger than"):
        add_adapter(loaded, rank=500, alpha=None, modules="all-linear", seed=0)
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, untouched)


def test_rows_within_the_window_are_packed(load: Load) -> None:
    loaded = load("mistral")
    assert loaded.packable_length == loaded.base.config.sliding_window == 8
    rows = [list(range(3, 3 + length)) for length in (8, 2, 5, 5, 8)]
    assert lay_out(loaded, rows).packed

    found = sequence_logps(loaded, rows)

    for ids, logps in zip(rows, found, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logps, plain_token_logps(loaded, ids), rtol=1e-5, atol=3e-5)


def test_a_deep_model_is_packed_although_rounding_grows_with_the_depth() -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 24, "initializer_range": 0.1}
    model = tiny_model("llama", **wide).eval()
    model.set_attn_implementation("sdpa")
    rows = [torch.arange(1, length + 1) for length in PROBE]
    with torch.no_grad():
        alone = torch.cat([model.model(input_ids=row[None]).last_hidden_state for row in rows], 1)
        apart = (packed_states(model, torch.cat(rows)[None], PROBE) - alone).abs().max() / alone.abs().max()
    assert apart > 20 * torch.finfo(torch.float32).eps  # a bound of a few eps would refuse it
    assert packable_length(model)[0] == UNBOUNDED


@pytest.mark.parametrize(
    ("places", "share", "packed"), [((9,), 0.12, True), (range(7, 19), 0.04, True), (range(7, 19), 0.3, False)]
)
def test_rounding_in_bfloat16_is_not_taken_for_another_architecture(
    places: Sequence[int], share: float, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 on a GPU: 9 % at one position of a row, 3 % in the mean; a row that begins elsewhere moves as a whole."""
    model = tiny_model("llama").to(torch.bfloat16)
    model.set_attn_implementation("sdpa")

    def rounded(*args: Any, **more: Any) -> torch.Tensor:
        states = packed_states(*args, **more)
        states[:, list(places)] *= 1 + share
        return states

    monkeypatch.setattr(packing, "packed_states", rounded)
    assert packable_length(model)[0] == UNBOUNDED * packed


def test_an_architecture_that_leaks_between_rows_is_padded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ignores the row lengths is found out by the trial on load."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def leaky(*args: object, row_lengths: tuple[int, ...], **kwargs: object) -> object:
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setitem(packing.AttentionInterface._global_mapping, packing.ROWS, leaky)

    loaded = load("llama")
    assert loaded.packable_length == 0
    (note,) = loaded.told()
    assert note.startswith("rows: padded, which is slower, because a row in a packed sequence is ")


def convolving(initializer_range: float = 0.3) -> PreTrainedModel:
    """A random LFM2: one of its two kinds of layers convolves along the sequence, whatever the rows are."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "lfm2",
        **sizes,
        vocab_size=131,
        num_hidden_layers=4,
        layer_types=["full_attention"] * 3 + ["conv"],
        initializer_range=initializer_range,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "gemma2"])
def test_attention_alone_is_packed_in_either_precision(
    arch: str, dtype: torch.dtype, way: str, attend: Callable[[str], None]
) -> None:
    attend(way)
    model = tiny_model(arch).to(dtype)
    model.set_attn_implementation("sdpa")
    assert packable_length(model)[0] == (8 if arch in UNPACKABLE[way] else UNBOUNDED)


@pytest.mark.parametrize("way", WAYS)
def test_what_fills_a_packed_sequence_up_changes_nothing(way: str, load: Load, attend: Callable[[str], None]) -> None:
    """Also where it is longer than every row and than the positions of the model."""
    attend(way)
    loaded = load("gpt2")
    ids = [list(range(3, 3 + length)) for length in (20, 7)]
    filled = torch.tensor([[*ids[0], *ids[1], *[0] * 300]])
    with torch.no_grad():
        states = packed_states(loaded.base, filled, [20, 7])
        torch.testing.assert_close(states[:, :27], packed_states(loaded.base, filled[:, :27], [20, 7]))
    assert states.shape[1] == 327


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_do_not_attend_are_padded_by_what_the_configuration_says(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "backbone", lambda model: pytest.fail("was tried"))
    assert packable_length(convolving().to(dtype)) == (
        0,
        "it has layers that do more than attend along the sequence (conv)",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("initializer_range", [0.1, 0.3])
@pytest.mark.parametrize("outlier", [1.0, 100.0])
def test_layers_that_nobody_names_are_found_out_in_either_precision(
    dtype: torch.dtype, initializer_range: float, outlier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dimension that is far larger than the others hides nothing."""
    model = convolving(initializer_range)
    model.model.embedding_norm.weight.data[5] *= outlier
    monkeypatch.setattr(packing, "unusual_layers", lambda model, usual: [])
    assert packable_length(model.to(dtype))[0] == 0


@pytest.fixture
def longrope(tmp_path: Path) -> LoadedModel:
    """A Phi-3 whose rotary factors are others where a row of the batch has more than 32 tokens."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 7.0, 11.0, 16.0]}
    settings = {"original_max_position_embeddings": 32, "rope_parameters": {**rope, "rope_theta": 1e4}}
    return load_model(str(save_tiny(tmp_path, "phi3", **settings)), dtype="float32", device="cpu")


@pytest.mark.parametrize("packed", [True, False])
def test_no_row_changes_the_rotary_factors_of_another(longrope: LoadedModel, packed: bool) -> None:
    longrope.packable_length *= packed
    chance = random.Random(2)
    short, longest, longer = ([chance.randrange(3, 130) for _ in range(length)] for length in (28, 32, 60))
    assert lay_out(longrope, [short, longest]).packed == packed

    beside = sequence_logps(longrope, [short, longest])[0]

    torch.testing.assert_close(beside, sequence_logps(longrope, [short])[0], rtol=1e-5, atol=3e-5)
    assert context_length(longrope.base) == 32
    with pytest.raises(DataError, match=r"a text has 60 tokens .* context is 32 .*: give --max-length 32$"):
        sequence_logps(longrope, [short, longer])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_beyond_the_positions_of_a_model_are_refused(arch: str, load: Load) -> None:
    loaded = load(arch)
    lay_out(loaded, [[1] * 256])
    with pytest.raises(DataError, match="a text has 257 tokens and the model's context is 256 "):
        lay_out(loaded, [[1] * 257, [1]])


def test_a_model_in_float16_keeps_its_float32_frequencies(tmp_path: Path) -> None:
    """Rotary frequencies in bfloat16 would turn far positions by another angle."""
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, "llama"))
    model.half().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    dtypes = {parameter.dtype for parameter in loaded.base.parameters()}
    assert torch.float16 not in dtypes
    frequencies = [buffer for name, buffer in loaded.base.named_buffers() if name.endswith("inv_freq")]
    assert frequencies
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)


def test_a_layer_that_leaves_its_window_to_the_mask_gets_no_longer_rows(
    attend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi-MoE and Qwen2-MoE name no window where they call attention."""
    attend(packing.VARLEN)
    model = tiny_model("mistral", sliding_window=32)  # beyond the tokens that a model is tried on
    model.set_attn_implementation("sdpa")
    window = 32
    assert packable_length(model)[0] == UNBOUNDED
    forward = packing._attend_varlen
    monkeypatch.setitem(
        packing.AttentionInterface._global_mapping,
        packing.VARLEN,
        lambda *given, sliding_window=None, **more: forward(*given, **more),
    )
    assert packable_length(model)[0] == window
