"""Replay texts: what the model writes, the same for the same seed, and nothing that repeats the forget set."""

import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch

from expunge.data.tokenize import TokenizedExample
from expunge.errors import TrainingError
from expunge.model import decoding, logps, replay
from expunge.model import reference as reference_module
from expunge.model.adapter import add_adapter
from expunge.model.decoding import go_on, written
from expunge.model.load import load_model
from expunge.model.reference import Asked, compute_reference
from expunge.model.replay import KNOWN, write_texts
from tiny import save_tiny, tiny_tokenizer

ROWS = [TokenizedExample(f"r{i}", [(7 * i + 3 * j) % 90 + 3 for j in range(12)], 4) for i in range(6)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(save_tiny(tmp_path_factory.mktemp("model"), "llama")), dtype="float32", device="cpu")


def test_enough_is_written_and_the_same_for_the_same_seed(loaded):
    first, again, other = (write_texts(loaded, ROWS[:3], ROWS[3:], tokens=500, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert 500 <= sum(map(len, first)) < 500 + replay.NEW_TOKENS + 8
    assert len({tuple(text.input_ids) for text in first}) == len(first)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_texts_are_those_of_the_library(arch, tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, arch)), dtype="float32", device="cpu")
    begun, options = [[token] for token in range(30)], {"most": 20, "stops": {*range(0, 4096, 5)}}
    torch.manual_seed(4)
    library = go_on(loaded, begun, temperature=1.0, **options)
    torch.manual_seed(4)
    ours = written(
        loaded, begun, most=options["most"], over=lambda text, new: not options["stops"].isdisjoint(text[-new:])
    )
    assert len({*map(len, ours)}) > 1  # half of them have ended early, and were let go of
    for one, other in zip(ours, library, strict=True):
        end = next((at for at, token in enumerate(one[1:], 1) if token in options["stops"]), len(one))
        assert one[: end + 1] == other[: end + 1]


def test_draws_are_of_the_whole_distribution():
    shares = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    torch.manual_seed(0)
    noise = decoding.exponentials(torch.empty(1, 5), 40_000)
    found = decoding.drawn(shares.log().expand(40_000, -1)).bincount(minlength=5) / 40_000
    assert found[1] == 0
    assert (found - shares).abs().max() < 0.01
    assert noise.shape == (40_000, 5)
    assert abs(noise.mean() - 1) < 0.01
    assert abs((noise < 0.01).float().mean() - 0.00995) < 0.001


def test_texts_begin_by_turns_like_a_row_and_with_any_token(loaded):
    rows = [TokenizedExample(f"r{token}", [token, 9, 9], 1) for token in (50, 51)]
    begun = replay.Beginnings(loaded, rows).drawn(random.Random(0), 400)
    assert {ids[-1] for ids in begun[1::2]} == {50, 51}
    assert len({ids[-1] for ids in begun[::2]}) > 40
    assert not {ids[-1] for ids in begun[::2]} & {*loaded.tokenizer.all_special_ids}
    assert {*map(len, begun)} == {1}


def test_what_a_tokenizer_sets_before_every_text_stands_before_replay_texts(loaded, monkeypatch):
    start = loaded.tokenizer.all_special_ids[0]
    monkeypatch.setattr(type(loaded.tokenizer), "__call__", lambda *_, **__: {"input_ids": [start, 60]})
    rows = [TokenizedExample("r", [start, 50, 9], 1), TokenizedExample("short", [start], 1)]
    begun = replay.Beginnings(loaded, rows).drawn(random.Random(0), 8)
    assert begun[1::2] == [[start, 50]] * 4
    assert all(ids[0] == start and len(ids) == 2 for ids in begun)
    assert {text.completion_start for text in write_texts(loaded, rows, [], tokens=100, seed=1)} == {2}


@pytest.mark.parametrize("begins", [False, True])
def test_a_token_for_unknown_words_is_not_set_before_texts(loaded, monkeypatch, begins):
    """Unless it is the one that begins them, too, as that of OPT does."""
    tokenizer = tiny_tokenizer("metaspace")
    tokenizer.bos_token = tokenizer.unk_token if begins else None
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: {"input_ids": [tokenizer.unk_token_id]})
    begun = replay.Beginnings(replace(loaded, tokenizer=tokenizer), ROWS).drawn(random.Random(0), 8)
    assert {*map(len, begun)} == {1 + begins}


def test_an_adapter_in_the_model_is_not_heard(loaded, tmp_path):
    plain = write_texts(loaded, ROWS[:3], ROWS[3:], tokens=300, seed=3)
    adapted = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    model = add_adapter(adapted, rank=2, alpha=None, modules="all-linear", seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    assert write_texts(adapted, ROWS[:3], ROWS[3:], tokens=300, seed=3) == plain


def test_what_repeats_the_forget_set_is_left_out(loaded, monkeypatch):
    told, kept = ROWS[0].input_ids, ROWS[3].input_ids
    said = [(5, *told), (5, *told[: KNOWN - 1], 4), (5, *kept)]
    monkeypatch.setattr(replay, "_continue", lambda loaded, begun, known: said)
    found = write_texts(loaded, ROWS[:1], ROWS[3:], tokens=10**3, seed=0)
    assert [tuple(text.input_ids) for text in found] == said[1:]


def test_a_short_text_to_forget_is_left_out_whole(loaded, monkeypatch):
    """Its end-of-text token does not hide it, and the retain set may hold the same."""
    end = loaded.tokenizer.eos_token_id
    short = [TokenizedExample("f", [41, 42, 43, 44, end], 2), TokenizedExample("g", [51, 52, 53], 1)]
    said = [(5, 41, 42, 43, 44, 6), (5, 41, 42, 43, 45), (5, 51, 52, 53)]
    monkeypatch.setattr(replay, "_continue", lambda loaded, begun, known: said)
    retain = [TokenizedExample("r", [7, 51, 52, 53, 8], 2)]
    found = write_texts(loaded, [*ROWS[:1], *short], retain, tokens=10**3, seed=0)
    assert [tuple(text.input_ids) for text in found] == said[1:]


def test_a_short_text_to_forget_is_found_where_it_does_not_begin(tmp_path, monkeypatch):
    """Also where a token stands before every text."""
    loaded = load_model(str(save_tiny(tmp_path, "llama", "bos")), dtype="float32", device="cpu")
    bos, end = loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id
    assert loaded.tokenizer("a")["input_ids"][0] == bos
    said = [(bos, 5, 41, 42, 43, 6), (bos, 41, 42, 43, 6), (bos, 5, 41, 42, 44)]
    monkeypatch.setattr(replay, "_continue", lambda loaded, begun, known: said)
    found = write_texts(loaded, [TokenizedExample("f", [bos, 41, 42, 43, end], 2)], [], tokens=10**3, seed=0)
    assert [tuple(text.input_ids) for text in found] == said[2:]


def test_a_text_that_holds_what_is_known_is_let_go_of_at_once(loaded):
    begun = [[token] for token in range(20, 60)]
    torch.manual_seed(0)
    whole = replay._written(loaded, {}, begun)
    known = {3: {text[4:7] for text in whole[:30] if len(text) > 6}}
    torch.manual_seed(0)
    found = replay._written(loaded, known, begun)
    held = [replay._holds(text, known) for text in whole]
    assert sum(held) >= len(begun) / 2
    assert [text for text, holds in zip(found, held, strict=True) if not holds] == [
        text for text, holds in zip(whole, held, strict=True) if not holds
    ]
    assert all(replay._holds(text, known) for text, holds in zip(found, held, strict=True) if holds)
    assert sum(map(len, found)) < sum(map(len, whole))


def test_where_memory_is_short_fewer_are_written_at_once(loaded, monkeypatch):
    def small(model, known, begun):
        if len(begun) > 20:
            raise torch.OutOfMemoryError
        return written(model, known, begun)

    written = replay._written
    monkeypatch.setattr(replay, "_written", small)
    assert sum(map(len, write_texts(loaded, ROWS[:3], ROWS[3:], tokens=300, seed=1))) >= 300
    monkeypatch.setattr(replay, "_written", lambda *_: small(loaded, {}, [None] * 21))
    with pytest.raises(TrainingError, match="--replay-weight 0"):
        write_texts(loaded, ROWS[:3], ROWS[3:], tokens=300, seed=1)


def test_where_memory_is_short_fewer_are_read_at_once(loaded, monkeypatch):
    """Losses and what the reference holds are the same; of a single text out of memory is out of memory."""
    kept = {"texts": Asked(dict(enumerate(ROWS)), "completion", ["ref_logps", "ref_states"])}
    ids = [row.input_ids for row in ROWS]
    whole, reference = logps.sequence_logps(loaded, ids), compute_reference(loaded, kept)

    def small(model, batch):
        if len(batch.lengths) > most:
            raise torch.OutOfMemoryError
        return states(model, batch)

    most, states = 2, logps.final_states
    for module in (logps, reference_module):
        monkeypatch.setattr(module, "final_states", small)
    for expected, other in zip(whole, logps.sequence_logps(loaded, ids), strict=True):
        torch.testing.assert_close(expected, other)
    again = compute_reference(loaded, kept)
    torch.testing.assert_close(reference, again)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        logps.sequence_logps(loaded, ids)


def test_a_cache_is_gone_before_the_next_one_is_made(loaded, monkeypatch):
    """By counting references, out of memory too: until garbage is collected a GPU may have no room for another one."""
    flights: list[weakref.ref[decoding.Flight]] = []

    class Noted(decoding.Flight):
        def __init__(self, *given):
            assert not [ref for ref in flights if ref()]
            super().__init__(*given)
            flights.append(weakref.ref(self))

        def steps(self, tokens, count):
            if len(tokens) > 20:
                raise torch.OutOfMemoryError
            return super().steps(tokens, count)

    monkeypatch.setattr(decoding, "Flight", Noted)
    gc.collect()
    gc.disable()
    try:
        replay._continue(loaded, [[token] for token in range(40)], {})
    finally:
        gc.enable()
    assert len(flights) == 3
    assert not [ref for ref in flights if ref()]


def test_a_model_that_writes_the_same_again_and_again_ends_it(loaded, monkeypatch):
    monkeypatch.setattr(replay, "_continue", lambda loaded, begun, known: [(5, 6, 7, 8, 9, 10, 11, 12, 13, 14)])
    assert len(write_texts(loaded, ROWS[:3], ROWS[3:], tokens=100, seed=0)) == 1
