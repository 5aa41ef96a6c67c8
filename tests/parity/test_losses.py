"""Objectives and kernels against the published losses' stored numbers and the fp64 formulas (golden set, section 2)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from expunge import losses
from expunge.kernels import Head, token_logps, token_logps_and_kl

HEAD = Head(None)  # the stored numbers start from logits
VALUE, GRADIENT = 1e-10, 1e-11


def npo_token(z, ref, labels, ids, beta):
    return losses.npo_token(token_logps(z, HEAD, labels), token_logps(ref, HEAD, labels), beta=beta)


def npo_sequence(z, ref, labels, ids, beta):
    return losses.npo_sequence(token_logps(z, HEAD, labels), token_logps(ref, HEAD, labels), ids, beta=beta)


def retain_nll(z, ref, labels, ids, beta):
    return losses.retain_nll(token_logps(z, HEAD, labels))


def gathered_kl(z, ref, labels, ids, beta):
    logps, ref_logps = token_logps(z, HEAD, labels), token_logps(ref, HEAD, labels)
    return losses.retain_kl(losses.target_token_kl(logps, ref_logps))


def exact_kl(direction):
    def mean(z, ref, labels, ids, beta):
        return losses.retain_kl(token_logps_and_kl(z, ref, HEAD, labels, direction)[1])

    return mean


# name of the stored gradient -> (side, function, where its value is stored)
TERMS = {
    "npo": (1, npo_token, ("fp64", "npo_loss")),
    "retain_nll": (0, retain_nll, ("fp64", "retain_loss")),
    "gathered_kl": (0, gathered_kl, ("fp64", "kl_retain_loss")),
    "intended.npo_per_sequence": (1, npo_sequence, ("intended", "npo_per_sequence", "fp64")),
    "intended.forward_kl_full_vocabulary": (0, exact_kl("forward"), ("intended", "forward_kl_full_vocabulary", "fp64")),
    "intended.reverse_kl_full_vocabulary": (0, exact_kl("reverse"), ("intended", "reverse_kl_full_vocabulary", "fp64")),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", ["paper_right_padded", "paper_sharp"])
def test_values_and_gradients(shared, name, term):
    folder = shared / "golden" / "losses"
    entries = json.loads((folder / f"{name}.json").read_text())["entries"]
    tensors = load_file(folder / f"{name}.safetensors")
    side, function, path = TERMS[term]
    task_lists, hypers, values, gradients = [], [], 0, 0
    for entry in entries:
        task_lists += [entry["tasks"]] if entry["tasks"] not in task_lists else []
        hypers += [entry["hyper"]] if entry["hyper"] not in hypers else []
        rows = [row for row, task in enumerate(entry["tasks"]) if task == side]
        if not rows:
            continue
        logits = tensors["logits"].double().requires_grad_()
        kept = tensors["answer_mask"][rows, 1:].bool()  # a position counts when its NEXT token is an answer token
        ids = torch.repeat_interleave(torch.arange(len(rows)), kept.sum(-1))
        value = function(
            logits[rows, :-1][kept],
            tensors["ref_logits"].double()[rows, :-1][kept],
            tensors["input_ids"][rows, 1:][kept],
            ids,
            entry["hyper"]["beta"],
        )
        stored = entry
        for key in path:
            stored = stored.get(key, {})
        if stored != {}:  # a value that does not depend on beta is stored once
            assert value.item() == pytest.approx(stored, rel=VALUE, abs=1e-14)
            values += 1
        value.backward()
        key = f"grad.tasks{task_lists.index(entry['tasks'])}.hyper{hypers.index(entry['hyper'])}.{term}"
        if key in tensors:
            torch.testing.assert_close(logits.grad, tensors[key], rtol=0, atol=GRADIENT)
            gradients += 1
    assert values > 0
    assert gradients > 0


def test_sequence_npo_matches_the_npo_papers_published_loss(shared):
    folder = shared / "golden" / "losses"
    case = json.loads((folder / "right_padded.json").read_text())["losses"]
    tensors = load_file(folder / "right_padded.safetensors")
    names = [name for name in case if name.startswith("NPO.beta")]
    assert names
    labels = tensors["forget.labels"][:, 1:]
    kept = labels != -100
    ids = torch.repeat_interleave(torch.arange(len(labels)), kept.sum(-1))
    for name in names:
        z = tensors["forget.logits"].double()[:, :-1][kept]
        ref = tensors["forget.ref_logits"].double()[:, :-1][kept]
        value = npo_sequence(z, ref, labels[kept], ids, case[name]["hyper"]["beta"])
        assert value.item() == pytest.approx(case[name]["fp64"]["forget_loss"], rel=VALUE)
