"""Forget losses, retain terms and kernels against published numbers and fp64 formulas (golden set, section 2)."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import ConfigError
from expunge.kernels import Head, token_logps
from expunge.losses import FORGET_LOSSES, make_forget_loss
from expunge.losses.batch import TokenBatch
from expunge.losses.terms import loss_terms

HEAD = Head(None)  # the stored numbers start from logits
VALUE, GRADIENT, FP32 = 1e-10, 1e-11, 5e-6
"""Tolerances: of values in fp64, relative; of gradients in fp64, absolute; of values in fp32, relative."""


def token_batch(z, ref, targets, ids, **more):
    rows = int(ids.max()) + 1
    return TokenBatch(
        states=z, targets=targets, sequence=ids, completion=torch.ones_like(targets, dtype=torch.bool), head=HEAD,
        num_sequences_here=rows, num_tokens=len(targets), completion_lengths=tuple(ids.bincount().tolist()),
        ref_states=ref, ref_logps=None if ref is None else token_logps(ref, HEAD, targets), **more,
    )  # fmt: skip


def npo(level):
    return lambda batch, beta: make_forget_loss("npo", {"beta": beta, "level": level})(batch)


def retain(name):
    return lambda batch, beta: loss_terms({"retain": batch}, make_forget_loss("npo"))[name]


# name of the stored gradient -> (side, function, where its value is stored)
TERMS = {
    "npo": (1, npo("token"), "npo_loss"),
    "retain_nll": (0, retain("retain"), "retain_loss"),
    "intended.npo_per_sequence": (1, npo("sequence"), None),
    "intended.reverse_kl_full_vocabulary": (0, retain("kl"), None),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", ["paper_right_padded", "paper_sharp"])
def test_the_papers_terms(shared, name, term):
    folder = shared / "golden" / "losses"
    entries = json.loads((folder / f"{name}.json").read_text())["entries"]
    tensors = load_file(folder / f"{name}.safetensors")
    side, function, field = TERMS[term]
    task_lists, hypers, gradients = [], [], set()
    for entry in entries:
        task_lists += [entry["tasks"]] if entry["tasks"] not in task_lists else []
        hypers += [entry["hyper"]] if entry["hyper"] not in hypers else []
        rows = [row for row, task in enumerate(entry["tasks"]) if task == side]
        if not rows:
            continue

        def value_of(dtype, rows=rows, beta=entry["hyper"]["beta"]):
            logits = tensors["logits"].to(dtype, copy=True).requires_grad_()
            kept = tensors["answer_mask"][rows, 1:].bool()  # a position counts when its NEXT token is an answer token
            ids = torch.repeat_interleave(torch.arange(len(rows)), kept.sum(-1))
            ref = tensors["ref_logits"].to(dtype)[rows, :-1][kept]
            batch = token_batch(logits[rows, :-1][kept], ref, tensors["input_ids"][rows, 1:][kept], ids)
            return logits, function(batch, beta)

        logits, value = value_of(torch.float64)
        value.backward()
        if field:
            assert value.item() == pytest.approx(entry["fp64"][field], rel=VALUE)
            assert value_of(torch.float32)[1].item() == pytest.approx(entry["fp32"][field], rel=FP32)
        else:
            intended = entry.get("intended", {}).get(term.removeprefix("intended."))
            once = side == 0 and entry["hyper"] != hypers[0]  # what does not depend on beta is stored once
            assert once == (intended is None)
            assert intended is None or value.item() == pytest.approx(intended["fp64"], rel=VALUE)
        key = f"grad.tasks{task_lists.index(entry['tasks'])}.hyper{hypers.index(entry['hyper'])}.{term}"
        if key in tensors:
            torch.testing.assert_close(logits.grad, tensors[key], rtol=0, atol=GRADIENT)
            gradients.add(key)
    assert gradients == {key for key in tensors if key.startswith("grad.") and key.split(".", 3)[3] == term}
    assert gradients


def side_of(tensors, side, dtype=torch.float64, *, unpredicted=False):
    """Logits with a gradient, and the batch of a stored side; a label that nothing predicts counts where it is said."""
    labels = tensors[f"{side}.labels"]
    kept = labels != -100
    kept[:, 0] &= unpredicted
    logits, ref = (tensors[f"{side}.{name}"].to(dtype, copy=True) for name in ("logits", "ref_logits"))
    logits.requires_grad_()
    before, ref_before = (values.roll(1, 1)[kept] for values in (logits, ref))  # what predicts each position
    ids = torch.repeat_interleave(torch.arange(len(labels)), kept.sum(-1))
    return logits, token_batch(before, ref_before, labels[kept], ids)


CASES = ("right_padded", "left_padded", "empty_answer_row", "undial")
SAME = "forget_loss"
PUBLISHED = {
    "GradAscent": ("gradient_ascent", SAME, lambda theirs: {}),
    "NPO": ("npo", SAME, lambda theirs: {"beta": theirs["beta"], "level": "sequence"}),
    "NPO per token": ("npo", "intended.token_level", lambda theirs: {"beta": theirs["beta"]}),
    # Their margin is within the product with beta, and they count a label that no position predicts.
    "SimNPO": (
        "simnpo",
        "intended.shifted_count",
        lambda theirs: {"beta": theirs["beta"], "gamma": theirs["delta"] * theirs["beta"]},
    ),
    "DPO": ("dpo", SAME, lambda theirs: {"beta": theirs["beta"]}),
    "UNDIAL": ("undial", "intended.answer_positions", lambda theirs: {"beta": theirs["beta"]}),
    "WGA": ("wga", SAME, lambda theirs: {"beta": theirs["beta"]}),
    "SatImp": ("satimp", SAME, lambda theirs: {"beta1": theirs["beta1"], "beta2": theirs["beta2"]}),
    # The label that no position predicts is one of those that they leave out.
    "CEU": ("ceu", SAME, lambda theirs: {"ignore_first": theirs["ignore_first_n_answer_tokens"]}),
    "RMU": ("rmu", "intended.forget_per_sequence", lambda theirs: {}),
}
"""open-unlearning's method -> our loss, which of the stored numbers it has, its parameters by theirs."""
ELSEWHERE = {"GradDiff", "PDU", "UNDIAL_small_vocabulary"}
"""Its retain terms are compared below; a method that is not here; an error of theirs."""


def read_case(shared, case):
    folder = shared / "golden" / "losses"
    return json.loads((folder / f"{case}.json").read_text())["losses"], load_file(folder / f"{case}.safetensors")


def entropy(loss, batch):
    """What a cross-entropy is above the KL that the loss takes in its place; it has no gradient."""
    targets = batch.targets[:, None]
    if loss.name == "undial":
        wanted = batch.ref_states.scatter_add(1, targets, torch.full_like(batch.ref_states[:, :1], -loss.beta))
    elif loss.name == "ceu":
        wanted = batch.states.detach().scatter(1, targets, -torch.inf)
    else:
        return 0.0
    q = wanted.softmax(-1)
    kept = batch.completion_places >= getattr(loss, "ignore_first", 0)
    return -torch.xlogy(q, q).sum(-1)[kept].mean().item()


def published_loss(method, hyper, tensors, dtype):
    """The value, and what has its gradient by the name of the side."""
    ours, _, parameters = PUBLISHED[method]
    loss = make_forget_loss(ours, parameters(hyper))
    logits, batch = side_of(tensors, "forget", dtype, unpredicted=ours == "ceu")
    moved = {"forget": logits}
    if ours == "dpo":
        moved["alternate"], pairs = side_of(tensors, "alternate", dtype)
        batch = replace(batch, pairs=pairs)
    value = loss(batch)
    value.backward()
    return value.item() + entropy(loss, batch), {side: tensor.grad for side, tensor in moved.items()}


def check_published(case, method, key, entry, tensors, value_of):
    """A value in fp64, in fp32 where the published code computes the same, and the gradient."""
    variant = PUBLISHED[method][1]
    executed = float(entry["fp64"]["forget_loss"])
    wanted = executed if variant == SAME else float(entry["intended"][variant.partition(".")[2]]["fp64"])
    value, gradients = value_of(torch.float64)
    assert value == pytest.approx(wanted, rel=VALUE, nan_ok=True), key
    if wanted == pytest.approx(executed, rel=VALUE, nan_ok=True):
        in_fp32 = float(entry["fp32"]["forget_loss"])
        assert value_of(torch.float32)[0] == pytest.approx(in_fp32, rel=FP32, nan_ok=True), key
    if case == "empty_answer_row":  # of which no gradients are stored
        return
    for side, gradient in gradients.items():
        found = [f"grad.{key}.{name}.d_{side}" for name in (variant, SAME)]  # one that is the executed is left out
        stored = next(tensors[name] for name in found if name in tensors)
        torch.testing.assert_close(gradient, stored, rtol=0, atol=GRADIENT)


COMPARED = [(case, method) for case in CASES for method in PUBLISHED if (case == "undial") == (method == "UNDIAL")]


@pytest.mark.parametrize("case", CASES)
def test_no_stored_method_is_passed_over(shared, case):
    found = {key.partition(".")[0] for key in read_case(shared, case)[0]}
    assert found - ELSEWHERE == {method.partition(" ")[0] for name, method in COMPARED if name == case}


@pytest.mark.parametrize(("case", "method"), [pair for pair in COMPARED if "RMU" not in pair])
def test_open_unlearnings_losses(shared, case, method):
    stored, tensors = read_case(shared, case)
    for key in (key for key in stored if key.partition(".")[0] == method.partition(" ")[0]):
        hyper = stored[key]["hyper"]
        value_of = partial(published_loss, method, hyper, tensors)
        check_published(case, method, key, stored[key], tensors, value_of)


@pytest.mark.parametrize("case", CASES[:3])
def test_rmus_published_loss(shared, case, monkeypatch):
    """On stored states, with the stored direction in place of the seeded one."""
    stored, tensors = read_case(shared, case)
    key = "RMU.EMBED_DIFF"
    direction = tensors["rmu.control_vec"].double()
    monkeypatch.setattr(torch, "rand", lambda *_, **__: direction)

    def value_of(dtype):
        states = tensors["forget.activations"].to(dtype, copy=True).requires_grad_()
        hidden = states[tensors["forget.labels"] != -100]
        batch = replace(side_of(tensors, "forget", unpredicted=True)[1], hidden=hidden)
        value = make_forget_loss("rmu", {"steering_coefficient": direction.norm().item()})(batch)
        value.backward()
        return value.item(), {"forget": states.grad}

    check_published(case, "RMU", key, stored[key], tensors, value_of)


@pytest.mark.parametrize("case", CASES)
def test_retain_terms(shared, case):
    stored, tensors = read_case(shared, case)
    entry = stored["UNDIAL.beta10.0" if case == "undial" else "GradDiff.NLL"]
    for dtype, block, tolerance in ((torch.float64, "fp64", VALUE), (torch.float32, "fp32", FP32)):
        terms = loss_terms({"retain": side_of(tensors, "retain", dtype)[1]}, make_forget_loss("npo"))
        assert terms["retain"].item() == pytest.approx(entry[block]["retain_loss"], rel=tolerance)
    wanted = {"retain": "retain_NLL.d_retain"}
    if case != "undial":
        logits, batch = side_of(tensors, "retain")
        kl = loss_terms({"retain": batch}, make_forget_loss("npo"))["kl"]
        intended = stored["GradDiff.KL"]["intended"]["answer_reverse_kl"]["fp64"]
        assert kl.item() == pytest.approx(intended, rel=VALUE)
        wanted["kl"] = "GradDiff.KL.intended.answer_reverse_kl.d_retain"
    for name, gradient in wanted.items() if case != "empty_answer_row" else ():
        logits, batch = side_of(tensors, "retain")
        loss_terms({"retain": batch}, make_forget_loss("npo"))[name].backward()
        torch.testing.assert_close(logits.grad, tensors[f"grad.{gradient}"], rtol=0, atol=GRADIENT)


def random_batch(rows=(3, 1, 5), vocab=23, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    count = sum(rows)
    z = (3 * torch.randn(count, vocab, generator=generator, dtype=torch.float64)).requires_grad_()
    ref = 3 * torch.randn(count, vocab, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (count,), generator=generator)
    ids = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    return token_batch(z, ref, targets, ids, **more)


def test_undial_is_distillation_from_lowered_logits():
    """Dong et al. 2024: cross-entropy to softmax(reference logits - beta onehot), of which the entropy has no
    gradient.
    """
    for beta in (0.5, 3.0, 10.0):
        batch = random_batch()
        value = make_forget_loss("undial", {"beta": beta})(batch)
        lowered = batch.ref_states.scatter_add(
            1, batch.targets[:, None], torch.full((len(batch.targets), 1), -beta, dtype=torch.float64)
        )
        q = lowered.softmax(-1)
        entropy = -(q * q.log()).sum(-1)
        cross = -(q * batch.states.log_softmax(-1)).sum(-1)
        assert value.item() == pytest.approx((cross - entropy).mean().item(), rel=1e-9)
        (grad,) = torch.autograd.grad(value, batch.states)
        (wanted,) = torch.autograd.grad(cross.mean(), batch.states)
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-10)


def test_ceu_leaves_the_first_tokens_of_completions_alone():
    """By their place in the completion, however long the prompt is and however short the completion."""
    completion = torch.tensor([False, True, True, True, False, False, True, True, True])
    batch = TokenBatch(**{**vars(random_batch()), "completion": completion, "completion_lengths": (2, 1, 3)})
    losses = -torch.log1p(-batch.logps.exp())
    for ignored, kept in ((0, range(9)), (1, (0, 2, 4, 5, 7, 8)), (2, (0, 4, 5, 8)), (9, (0, 4, 5))):
        value = make_forget_loss("ceu", {"ignore_first": ignored})(batch)
        assert value.item() == pytest.approx(losses[list(kept)].mean().item(), rel=1e-9)
    with pytest.raises(ConfigError, match="0 or more"):
        make_forget_loss("ceu", {"ignore_first": -1})


def test_ceu_pushes_a_token_that_is_known_by_heart():
    """The gradient on the logits is p of the token, and what the others would have without it with a minus."""
    others = torch.tensor([1.0, -2.0, 0.5])
    logits = torch.cat([torch.tensor([60.0]), others])[None].requires_grad_()
    zeros = torch.zeros(1, dtype=torch.long)
    value = make_forget_loss("ceu", "ignore_first=0")(token_batch(logits, None, zeros, zeros))
    assert value.item() == pytest.approx((60 - others.logsumexp(0)).item(), rel=1e-6)
    (grad,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(grad[0], torch.cat([torch.ones(1), -others.softmax(0)]))


def aims_one_by_one(batch, free_nll):
    """The targets that `target_kl` aims at, part by part, in plain Python."""
    nll, target = -batch.logps.detach(), batch.target_nll
    aims = target.clone()
    for part in {(row.item(), flag.item()) for row, flag in zip(batch.sequence, batch.completion, strict=True)}:
        places = [at for at in range(len(target)) if (batch.sequence[at].item(), batch.completion[at].item()) == part]
        free = [at for at in places if target[at] > free_nll]
        for at, value in zip(sorted(free, key=lambda at: nll[at]), sorted(target[free].tolist()), strict=True):
            aims[at] = value
    return aims


@pytest.mark.parametrize("free_nll", [0.0, 1.5, 99.0])
@pytest.mark.parametrize("nll_weight", [0.0, 2.0])
def test_target_kl_moves_the_target_alone(nll_weight, free_nll):
    batch = random_batch((6, 1, 8))
    generator = torch.Generator().manual_seed(1)
    target = 6 * torch.rand(len(batch.targets), generator=generator, dtype=torch.float64)
    completion = torch.arange(len(target)) % 3 > 0
    batch = TokenBatch(**{**vars(batch), "target_nll": target, "completion": completion})
    value = make_forget_loss("target_kl", {"nll_weight": nll_weight, "free_nll": free_nll})(batch)
    target = aims_one_by_one(batch, free_nll)
    assert torch.equal(target, batch.target_nll) == (free_nll > 6)
    assert batch.noted["dealt_out"] == pytest.approx((target != batch.target_nll).float().mean())
    ref = batch.ref_states.softmax(-1)
    known = ref.gather(1, batch.targets[:, None])
    q = ref * (1 - (-target).exp()[:, None]) / (1 - known)
    q = q.scatter(1, batch.targets[:, None], (-target).exp()[:, None])
    logp = batch.states.log_softmax(-1)
    away = (logp.gather(1, batch.targets[:, None])[:, 0] + target).abs()
    huber = torch.where(away <= 1, away.square() / 2, away - 0.5)
    wanted = ((q * (q.log() - logp)).sum(-1) + nll_weight * huber).mean()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-9)
    (grad,) = torch.autograd.grad(value, batch.states)
    one = torch.nn.functional.one_hot(batch.targets, q.shape[-1])
    push = (logp.gather(1, batch.targets[:, None]) + target[:, None]).clamp(-1, 1)
    slope = logp.exp() - q + nll_weight * push * (one - logp.exp())
    torch.testing.assert_close(grad, slope.detach() / len(target), rtol=0, atol=1e-10)


def test_the_targets_of_an_origin_are_each_tokens_own():
    batch = random_batch((6, 1, 8))
    target = 6 * torch.rand(len(batch.targets), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    known, guessed = (TokenBatch(**{**vars(batch), "target_nll": target, "guessed": flag}) for flag in (False, True))
    loss, as_they_are = make_forget_loss("target_kl"), make_forget_loss("target_kl", "free_nll=99")
    assert loss(known) == as_they_are(guessed) != loss(guessed)


def test_to_deal_targets_out_takes_no_gradient(monkeypatch):
    asked = []

    def seen(states, *rest):
        asked.append(states.requires_grad)
        return token_logps(states, *rest)

    monkeypatch.setattr("expunge.losses.target_kl.token_logps", seen)
    batch = random_batch((6, 1, 8))
    batch = TokenBatch(**{**vars(batch), "target_nll": torch.full((len(batch.targets),), 2.0, dtype=torch.float64)})
    assert make_forget_loss("target_kl")(batch).requires_grad
    assert asked == [False]


def test_target_kl_is_zero_where_a_text_has_its_targets_in_another_order():
    """Untouched but for the order of its unlikely tokens: no push; a sure token that became unlikely is pushed back."""
    target = torch.tensor([0.3, 4.0, 2.0, 3.0], dtype=torch.float64)
    for nll, at_rest in (([0.3, 2.0, 3.0, 4.0], True), ([4.0, 0.3, 2.0, 3.0], False)):
        logps = -torch.tensor(nll, dtype=torch.float64)
        p = torch.stack([logps, (-logps.expm1()).log() - 0.5, (-logps.expm1()).log() - 1.5], -1)
        p[:, 1:] -= (p[:, 1:].logsumexp(-1) - (-logps.expm1()).log())[:, None]
        zeros = torch.zeros(4, dtype=torch.long)
        batch = token_batch(p.clone().requires_grad_(), p, zeros, zeros)
        batch = TokenBatch(**{**vars(batch), "target_nll": target})
        (grad,) = torch.autograd.grad(make_forget_loss("target_kl")(batch), batch.states)
        assert (grad.abs().max() < 1e-12) == at_rest


def test_target_nll_is_huber_over_prompt_and_completion():
    batch = random_batch((4, 2))
    target = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)
    completion = torch.tensor([False, False, True, True, False, True])
    batch = TokenBatch(**{**vars(batch), "target_nll": target, "completion": completion})
    value = make_forget_loss("target_nll", {"delta": 0.7})(batch)
    total = 0.0
    for group in ([0, 1], [2, 3], [4], [5]):
        gap = abs((target[group].mean() + batch.logps[group].mean()).item())
        total += len(group) * (gap**2 / 2 if gap <= 0.7 else 0.7 * (gap - 0.35))
    assert value.item() == pytest.approx(total / 6, rel=1e-9)


def test_rmu_sends_states_to_a_seeded_direction():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, 16, generator=generator, dtype=torch.float64)
    batch = random_batch(hidden=hidden)
    value = make_forget_loss("rmu", {"steering_coefficient": 5.0, "seed": 3})(batch)
    direction = torch.rand(16, generator=torch.Generator().manual_seed(3))
    target = (5.0 * direction / direction.norm()).double()
    rows = [(hidden[at] - target).square().mean().item() for at in range(9)]
    wanted = (sum(rows[:3]) / 3 + rows[3] + sum(rows[4:]) / 5) / 3
    assert value.item() == pytest.approx(wanted, rel=VALUE)


def test_idk_is_the_nll_of_the_other_completions():
    batch, pairs = random_batch(), random_batch((2, 4, 1), seed=5)
    value = make_forget_loss("idk")(TokenBatch(**{**vars(batch), "pairs": pairs}))
    logp = pairs.states.log_softmax(-1).gather(1, pairs.targets[:, None])
    assert value.item() == pytest.approx(-logp.mean().item(), rel=1e-9)


def test_dpo_weighs_completions_whatever_the_span_of_the_forget_texts():
    batch, pairs = random_batch((3, 1, 5)), random_batch((2, 4, 1), seed=5)
    completion = torch.tensor([False, True, True, True, False, False, True, True, True])
    batch = TokenBatch(**{**vars(batch), "completion": completion, "pairs": pairs})
    value = make_forget_loss("dpo", {"beta": 0.3})(batch)
    lost = batch.log_ratios * completion
    sides = ([lost[:3].sum(), lost[3], lost[4:].sum()], pairs.log_ratios.split([2, 4, 1]))
    margins = torch.stack([ratio - other.sum() for ratio, other in zip(*sides, strict=True)])
    assert value.item() == pytest.approx((-(2 / 0.3) * (0.3 * margins).sigmoid().log().mean()).item(), rel=1e-9)


@pytest.mark.parametrize("name", FORGET_LOSSES)
def test_micro_batches_add_up_to_the_step(name):
    """The same value and gradient, whether the rows of a step come together or one by one."""
    loss = make_forget_loss(name)
    hidden = torch.randn(9, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = torch.linspace(0.5, 4.0, 9, dtype=torch.float64)
    whole = random_batch(hidden=hidden, target_nll=target, pairs=random_batch((2, 4, 1), seed=5))

    def part(batch, row):
        mask = batch.sequence == row
        values = {
            key: value[mask] if isinstance(value, torch.Tensor) else value
            for key, value in vars(batch).items()
            if key not in ("logps", "log_ratios", "lengths", "parts", "completion_places")
        }
        pairs = part(batch.pairs, row) if batch.pairs else None
        zeros = torch.zeros(int(mask.sum()), dtype=torch.int64)
        return TokenBatch(**{**values, "sequence": zeros, "num_sequences_here": 1, "pairs": pairs})

    together = loss(whole)
    apart = sum(loss(part(whole, row)) for row in range(3))
    assert apart.item() == pytest.approx(together.item(), rel=1e-9)
