"""The published algorithm written plainly from its description (arXiv 2503.13690), to measure against.

Batches of 4 rows, forget and retain shuffled together and padded to the longest; in every step one forward pass of the
policy and one of the reference (adapter off); logits of all positions; log-softmax over the whole vocabulary of both;
NPO, NLL and KL as means over the selected tokens; Adam. Model, rows, adapter (PEFT) and terms are those of the
`UnlearnConfig` that it is given, so that it computes the numbers that Expunge computes. The KL is over the whole
vocabulary, as the paper describes it, or over the target token alone, as its published code has it. Loading is
transformers' own, without what Expunge sets on the way.
"""

import random
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.kernels import Head
from expunge.losses import make_forget_loss
from expunge.model.checkpoint import move
from expunge.model.load import LoadedModel
from expunge.model.source import Source
from expunge.model.targets import choose_targets

ROWS_PER_BATCH = 4
Batch = list[tuple[TokenizedExample, bool]]
"""Rows, each with whether it is to be forgotten."""


def load_plain(name: str, *, dtype: str, device: str) -> LoadedModel:
    """The model by `from_pretrained`: in fp32 or fp64, or as stored with bf16 autocast around every forward pass."""
    compute: torch.dtype = getattr(torch, dtype)
    stored = "auto" if compute == torch.bfloat16 else compute
    model = AutoModelForCausalLM.from_pretrained(name, dtype=stored)
    move(model, torch.device(device))
    return LoadedModel(model.eval(), AutoTokenizer.from_pretrained(name), Head(None), compute, Source(name, name))


class Plain:
    """Model, adapter, optimizer and the order of the rows.

    Args:
        loaded: Model; its dtype says whether forward passes run under bf16 autocast; the adapter is put into it.
        forget: Rows to forget.
        retain: Rows to keep.
        config: Terms, spans, adapter, learning rate, seed.
        target_token_kl: Take p_ref(y) (log p_ref(y) - log p(y)) in place of the KL, as the published code does: it can
            be negative and is no divergence.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        forget: list[TokenizedExample],
        retain: list[TokenizedExample],
        config: UnlearnConfig,
        *,
        target_token_kl: bool = False,
    ) -> None:
        self.loaded, self.config, self.target_token_kl = loaded, config, target_token_kl
        self.rows: Batch = [(row, True) for row in forget] + [(row, False) for row in retain]
        targets = choose_targets(loaded.base, config.target_modules, loaded.autocast())
        alpha: Any = config.lora_alpha or config.lora_rank  # PEFT declares an int and divides by the rank
        adapter = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=alpha,
            target_modules=targets.modules,
            exclude_modules=targets.left_out or None,
        )
        torch.manual_seed(config.seed)
        self.model = loaded.model = get_peft_model(loaded.base, adapter)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.beta: float = getattr(make_forget_loss(config.loss, config.loss_args), "beta", 1.0)
        fused = loaded.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate or 1e-4, weight_decay=0.0, fused=fused
        )

    def batches(self, epochs: int) -> Iterator[Batch]:
        """All rows of every epoch, shuffled."""
        for epoch in range(epochs):
            rows = list(self.rows)
            random.Random(f"{self.config.seed} {epoch}").shuffle(rows)
            yield from (rows[start : start + ROWS_PER_BATCH] for start in range(0, len(rows), ROWS_PER_BATCH))

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """`forget` (NPO), `retain` (NLL) and `kl` of a batch, means over their tokens; 0 for a side without rows."""
        longest = max(len(row) for row, _ in batch)
        input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        npo_mask, nll_mask, kl_mask = (torch.zeros(input_ids.shape, dtype=torch.bool) for _ in range(3))
        for place, (row, is_forget) in enumerate(batch):
            input_ids[place, : len(row)] = torch.tensor(row.input_ids)
            attention_mask[place, : len(row)] = 1
            if is_forget:
                npo_mask[place, list(row.targets(self.config.forget_span))] = True
            else:
                nll_mask[place, list(row.targets("completion"))] = True
                kl_mask[place, list(row.targets(self.config.kl_span))] = True
        device = self.loaded.device
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        npo_mask, nll_mask, kl_mask = (mask[:, 1:].to(device) for mask in (npo_mask, nll_mask, kl_mask))

        with self.loaded.autocast():
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
            with torch.no_grad(), self.model.disable_adapter():
                ref_logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        logp, logq = (values[:, :-1].to(wide).log_softmax(-1) for values in (logits, ref_logits))
        targets = input_ids[:, 1:, None]
        policy, ref = logp.gather(-1, targets)[..., 0], logq.gather(-1, targets)[..., 0]
        npo = 2 / self.beta * softplus(-self.beta * (ref - policy))
        kl = ref.exp() * (ref - policy) if self.target_token_kl else (logp.exp() * (logp - logq)).sum(-1)
        per_token = {"forget": (npo, npo_mask), "retain": (-policy, nll_mask), "kl": (kl, kl_mask)}
        return {name: values[mask].sum() / mask.sum().clamp(min=1) for name, (values, mask) in per_token.items()}

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        config = self.config
        forget = config.forget_weight * terms["forget"]
        return forget + config.retain_weight * terms["retain"] + config.kl_weight * terms["kl"]

    def train_step(self, batch: Batch, rows_per_pass: int | None = None) -> dict[str, float]:
        """One optimizer step; returns the terms before it, of the last pass where there are several.

        Args:
            batch: Rows of the step.
            rows_per_pass: Pass so many rows of like length at once, each pass by its share of the rows.
        """
        self.optimizer.zero_grad()
        size = rows_per_pass or len(batch)
        rows = sorted(batch, key=lambda row: -len(row[0])) if rows_per_pass else batch
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            terms = self.terms(part)
            (self.loss(terms) * (len(part) / len(rows))).backward()
        self.optimizer.step()
        return {name: value.item() for name, value in terms.items()}
