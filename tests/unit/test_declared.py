"""What a model folder or an adapter declares is compared with its weights before anything is made."""

import json
import time
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from expunge.errors import ModelError
from expunge.model.adapter import add_adapter
from expunge.model.load import load_model
from expunge.model.saved import save_adapter
from expunge.model.source import base_name, check_model
from tiny import save_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("declared")
    save_tiny(folder / "model", "llama")
    loaded = load_model(str(folder / "model"), dtype="float32", device="cpu")
    add_adapter(loaded, rank=2, alpha=2, modules="all-linear", seed=0)
    (folder / "adapter").mkdir()
    save_adapter(loaded, folder / "adapter")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy whose large files are links."""
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
        for path in (made / name).iterdir():
            target = tmp_path / name / path.name
            target.write_bytes(path.read_bytes())
    return tmp_path


def declare(path: Path, **settings) -> None:
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


HUGE = [
    {"num_hidden_layers": 10**9}, {"num_hidden_layers": 3000}, {"intermediate_size": 4 * 10**6},
    {"intermediate_size": 4 * 10**8}, {"vocab_size": 10**12}, {"hidden_size": 10**7}, {"num_attention_heads": 10**8},
    {"head_dim": 10**7},
]  # fmt: skip


@pytest.mark.parametrize("settings", HUGE, ids=str)
@pytest.mark.parametrize("without_weights", [False, True])
def test_a_model_that_declares_more_than_it_holds_is_refused_at_once(folder, settings, without_weights):
    declare(folder / "model" / "config.json", **settings)
    if without_weights:
        file = folder / "model" / "model.safetensors"
        kept = {name: value for name, value in load_file(file).items() if "mlp" not in name}
        save_file(kept, file, {"format": "pt"})
    begun = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load_model(str(folder / "model"), dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 20


def test_sizes_that_no_layer_uses_are_no_counts(folder):
    """Nemotron-H declares a size of its shared experts, which its dense models do not have."""
    declare(folder / "model" / "config.json", moe_shared_expert_intermediate_size=7688, expert_dim=5000, n_experts=4)
    load_model(str(folder / "model"), dtype="float32", device="cpu")


def outside(folder: Path) -> str:
    (folder / "secret.json").write_text("{}")
    return "../secret.json"


CHOICES = {
    "weights of its own choice": ("config.json", lambda folder: {"transformers_weights": "other.bin"}),
    "weights outside": ("config.json", lambda folder: {"transformers_weights": outside(folder)}),
    "code from the Hub": ("config.json", lambda folder: {"_attn_implementation": "somebody/kernel"}),
    "code from the Hub for experts": ("config.json", lambda folder: {"experts_implementation": "somebody/kernel:f"}),
    "a tokenizer file outside": ("tokenizer_config.json", lambda folder: {"fast_tokenizer_files": [outside(folder)]}),
    "a vocabulary outside": ("tokenizer_config.json", lambda folder: {"vocab_file": outside(folder)}),
    "a vocabulary that has no end": ("tokenizer_config.json", lambda folder: {"vocab_file": "/dev/zero"}),
    "an absolute path": (
        "config.json",
        lambda folder: {"anything": {"deep": [str(folder / "model" / outside(folder))]}},
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_read_and_run_is_not_for_a_model_folder_to_choose(folder, name):
    file, settings = CHOICES[name]
    declare(folder / "model" / file, **settings(folder))
    with pytest.raises(ModelError, match="names"):
        check_model(str(folder / "model"))


def test_tokens_that_are_folders_and_where_a_tokenizer_came_from_are_no_files(folder):
    """Transformers 4 wrote the place of the special tokens that it had read."""
    settings = {"additional_special_tokens": ["/", "../"], "special_tokens_map_file": str(folder / "x.json")}
    (folder / "x.json").write_text("no JSON")
    declare(folder / "model" / "tokenizer_config.json", **settings)
    loaded = load_model(str(folder / "model"), dtype="float32", device="cpu")
    assert "/" in loaded.tokenizer.all_special_tokens


def test_files_from_the_hub_are_links_to_others_of_their_repository(folder):
    place, other = folder / "models--a--b", folder / "models--a--c" / "blobs"
    (place / "blobs").mkdir(parents=True)
    other.mkdir(parents=True)
    (place / "snapshots").mkdir()
    (folder / "model").rename(place / "snapshots" / "abc")
    for blobs, name in ((place / "blobs", "own"), (other, "strange")):
        (blobs / name).write_text("{}")
        (place / "snapshots" / "abc" / f"{name}.json").symlink_to(blobs / name)
    declare(place / "snapshots" / "abc" / "tokenizer_config.json", vocab_file="./own.json")
    check_model(str(place / "snapshots" / "abc"))
    declare(place / "snapshots" / "abc" / "tokenizer_config.json", vocab_file="./strange.json")
    with pytest.raises(ModelError, match=r"vocab_file: ./strange\.json.*: take that out"):
        check_model(str(place / "snapshots" / "abc"))


def test_the_attention_that_a_configuration_names_is_not_the_one_that_is_used(folder):
    declare(folder / "model" / "config.json", _attn_implementation="eager", attn_implementation="eager")
    loaded = load_model(str(folder / "model"), dtype="float32", device="cpu")
    assert loaded.base.config._attn_implementation != "eager"


ODD = [
    {"r": 2_000_000}, {"r": 10**9}, {"r": 0}, {"r": -1}, {"r": "2"}, {"r": True}, {"r": None}, {"r": [2]},
    {"lora_alpha": ...}, {"lora_alpha": None}, {"lora_alpha": "2"}, {"lora_alpha": {}}, {"lora_alpha": [1]},
    {"rank_pattern": [1]}, {"rank_pattern": {"q_proj": "x"}}, {"rank_pattern": {"q_proj": 10**9}},
    {"rank_pattern": 3}, {"alpha_pattern": {"q_proj": None}}, {"base_model_name_or_path": 3},
    {"base_model_name_or_path": ["a"]},
]  # fmt: skip


@pytest.mark.parametrize("settings", ODD, ids=str)
def test_an_odd_adapter_config_is_one_line(folder, settings):
    declare(folder / "adapter" / "adapter_config.json", **settings)
    with pytest.raises(ModelError) as caught:
        base_name(str(folder / "adapter"))
    assert "adapter_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig, OFTConfig])
def test_an_adapter_with_a_rank_and_no_alpha_of_lora_is_folded(kind, folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    sizes = {"oft_block_size": 4} if kind is OFTConfig else {"r": 2}  # and a rank of 0
    peft = get_peft_model(model, kind(task_type="CAUSAL_LM", target_modules=["q_proj"], init_weights=False, **sizes))
    peft.save_pretrained(folder / "other")
    settings = json.loads((folder / "other" / "adapter_config.json").read_text())
    assert "r" in settings
    assert "lora_alpha" not in settings
    declare(folder / "other" / "adapter_config.json", base_model_name_or_path=str(folder / "model"))
    right = peft.eval()(input_ids=torch.tensor([[3, 5, 9]])).logits
    folded = load_model(str(folder / "other"), dtype="float32", device="cpu").model
    torch.testing.assert_close(folded(input_ids=torch.tensor([[3, 5, 9]])).logits, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["", "[]", "not json", "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\ud800"])
def test_an_adapter_config_that_is_no_json_is_one_line(folder, text):
    (folder / "adapter" / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        base_name(str(folder / "adapter"))


def test_a_good_folder_and_a_good_adapter_are_let_through(folder):
    assert base_name(str(folder / "adapter")).endswith("model")
    assert isinstance(load_model(str(folder / "adapter"), dtype="float32", device="cpu").base, torch.nn.Module)
