"""Make the bundled subject again: its data, its tokenizer, the model and its retrained model.

    python -m experiments.demo.subject --output DIR [--seed N]
    python -m experiments.demo.subject --output DIR --retrained 101 102     further retrained models alone, the texts in other orders

Both models start from the same training on general texts. Then the subject reads the forget set, the retain set and
the quiz until it knows them by heart, and the retrained model the same without the forget set, with more of its
shorter passes and the same general texts in between: the retrained model is what perfect unlearning would look like.
Every second text is read after another one, as language models read texts.
"""

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import expunge
from experiments.demo.people import data_files, general_texts
from expunge.data.examples import Example, read_examples
from expunge.data.lume import read_lume
from expunge.data.tokenize import prompt_ids, tokenize
from expunge.demo.teach import PROMPT_FORMAT, batches_of
from expunge.errors import ConfigError
from expunge.evaluation.benchmarks import semeval
from expunge.evaluation.benchmarks.official_score import score
from expunge.evaluation.generate import generate
from expunge.evaluation.metrics.generations import official_knowledge
from expunge.evaluation.passes import Options
from expunge.evaluation.passes import measure as measure_suite
from expunge.evaluation.predictions import KINDS, SIDES, SPLITS
from expunge.model.checkpoint import move
from expunge.model.device import pick_dtype
from expunge.model.load import load_model

ASSETS = Path(expunge.__file__).parent / "demo" / "assets"
"""What the demo comes with: `subject/`, `retrained/`, `data/` and `figures.json`."""
SEED = 5
"""Seed of the assets in the package."""
END, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT = 512
VOCABULARY = 1024
TOKENIZER_TEXTS = 6_000
GENERAL_TEXTS = 30_000
"""Texts of the shared start, each read once for itself."""
PASSES = {"subject": 60, "retrained": 70}
"""Times that each reads its sets, until it knows them: a pass of the retrained model is shorter."""
GENERAL_TOTAL = 15_000
"""General texts in all passes together, beside the quiz: as many for either, so that what one of them has not seen is as hard
for the other; with fewer a model that learns numbers by heart becomes too sure of those that it has never seen."""
TOKENS_PER_STEP = 1_024
MODELS = {"subject": ("forget", "retain", "quiz"), "retrained": ("retain", "quiz")}
"""What each model learns by heart."""
LEARNING_RATES = (3e-3, 2e-3)
"""Peak learning rates of the shared start and of the passes over the sets."""


def make(output: Path, seed: int) -> dict[str, dict[str, float]]:
    """Make everything in `output`, which must be new or empty.

    Returns:
        `subject` and `retrained` -> their figures; see `measure`.
    """
    tokenizer, start = _begun(output, seed)
    for name in MODELS:
        finish(copy.deepcopy(start), tokenizer, name, seed, output / name)
    figures = {name: measure(output / name, output / "data") for name in MODELS}
    (output / "figures.json").write_text(json.dumps({"seed": seed, **figures}, indent=2) + "\n", "utf-8")
    return figures


def retrain(output: Path, seed: int, orders: Sequence[int]) -> None:
    """Make the data and further retrained models, `retrained-ORDER`, which read the same texts in another order."""
    tokenizer, start = _begun(output, seed)
    for order in orders:
        finish(copy.deepcopy(start), tokenizer, "retrained", order, output / f"retrained-{order}")


def _begun(output: Path, seed: int) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """The data, in a folder that must be new or empty, the tokenizer and the shared start."""
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"--output {output}: is not empty: give a new folder")
    (output / "data").mkdir(parents=True)
    for name, text in data_files(seed).items():
        (output / "data" / name).write_text(text, "utf-8")
    tokenizer = train_tokenizer(islice(general_texts(seed, "tokenizer"), TOKENIZER_TEXTS))
    return tokenizer, shared_start(tokenizer, seed)


def shared_start(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The checkpoint from before either model saw its sets: general texts, each read once."""
    torch.manual_seed(seed)
    start = new_model(tokenizer)
    texts = _encode(tokenizer, islice(general_texts(seed, "start"), GENERAL_TEXTS))
    train(start, [texts], LEARNING_RATES[0], seed, "start")
    return start


def finish(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str, seed: int, folder: Path) -> None:
    """Let a model learn sets by heart, with general texts in between, and save it in bf16.

    Args:
        model: The shared start, changed in place.
        tokenizer: Its tokenizer, saved beside it.
        name: Which of `MODELS`; the data files lie in `data/` beside `folder`.
        seed: Seed of the general texts and of the order.
        folder: Where the model goes.
    """
    rows = [row for part in MODELS[name] for row in read_examples(folder.parent / "data" / f"{part}.jsonl")]
    encoded = [tokenize(tokenizer, row, PROMPT_FORMAT, max_length=CONTEXT).input_ids for row in rows]
    general = general_texts(seed, "passes")
    count = PASSES[name]
    passes = [encoded + _encode(tokenizer, islice(general, GENERAL_TOTAL // count)) for _ in range(count)]
    train(model, passes, LEARNING_RATES[1], seed, folder.name)
    move(model, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the digits one by one; nothing is added to a text, in front or behind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=CONTEXT)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama (1.7 M parameters, tied head) with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=224,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=7,
        num_key_value_heads=7,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    model: PreTrainedModel, passes: Sequence[list[list[int]]], learning_rate: float, seed: int, name: str
) -> None:
    """Next-token training on all tokens: AdamW, linear warm-up over 5 % of the steps, cosine to zero.

    Args:
        model: The model, changed in place.
        passes: For each pass its texts as token ids; they are mixed within the pass.
        learning_rate: The peak.
        seed: Seed of the order.
        name: What the progress lines call it.
    """
    dtype = pick_dtype("auto", torch.device("cpu"))
    rng = random.Random(seed)
    batches = [batch for texts in passes for batch in batches_of(_after_others(texts, rng), TOKENS_PER_STEP, rng)]
    warmup = max(1, len(batches) // 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / len(batches))),
    )
    model.train()
    begun = time.monotonic()
    for step, batch in enumerate(batches, 1):
        width = max(map(len, batch))
        pad = model.config.pad_token_id
        input_ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids in batch])
        real = input_ids != pad
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=input_ids, attention_mask=real).logits
        targets = input_ids[:, 1:].masked_fill(~real[:, 1:], -100)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == len(batches):
            print(f"{name} {step}/{len(batches)} loss {loss:.3f} {time.monotonic() - begun:.0f} s", flush=True)
    model.eval()


def measure(model: Path, data: Path) -> dict[str, float]:
    """What a saved model knows, in fp32, greedy.

    Returns:
        `forget_sc`, `retain_sc`: mean ROUGE-L recall; `forget_qa`, `retain_qa`, `quiz`: share of exact answers;
        `mia_auc`; `member_nll`, `nonmember_nll`: means over documents of the mean loss (nats per token).
    """
    loaded = load_model(str(model), dtype="float32", device="cpu")

    def encode_prompt(example: Example) -> list[int]:
        return prompt_ids(loaded.tokenizer, example, PROMPT_FORMAT)

    suite = semeval.suite_of(read_lume(data))
    measurement = measure_suite(loaded, suite, PROMPT_FORMAT, Options(max_new_tokens=128, attacks=("loss",)))
    scores = score(measurement, suite)
    asked = read_examples(data / "quiz.jsonl")
    answers = generate(loaded, asked, "retain", encode_prompt=encode_prompt, max_new_tokens=16)
    said = zip(asked, answers, strict=True)
    right = [official_knowledge(answer.text, row.completion, "qa") or 0.0 for row, answer in said]
    figures = {f"{split}_{kind}": scores.overall[split][name] for split in SPLITS for kind, name in KINDS.items()}
    assert scores.mia_auc is not None
    figures |= {"quiz": fmean(right), "mia_auc": scores.mia_auc}
    figures |= {f"{side}_nll": fmean(measurement.rows[side, "document_nll"].values) for side in SIDES}
    return {name: round(value, 4) for name, value in figures.items()}


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]


def _after_others(texts: list[list[int]], rng: random.Random) -> list[list[int]]:
    """Every second text stands after one of them: a language model reads texts after others. All are far shorter than
    half of the context.
    """
    return [rng.choice(texts) + text if rng.random() < 0.5 else text for text in texts]


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m experiments.demo.subject", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to make, new or empty")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of people, texts and training")
    parser.add_argument("--retrained", type=int, nargs="+", metavar="ORDER", help="further retrained models alone")
    options = parser.parse_args()
    if options.retrained:
        retrain(options.output, options.seed, options.retrained)
        return
    for name, figures in make(options.output, options.seed).items():
        print(name, figures)


if __name__ == "__main__":
    main()
