"""One teacher-forced pass and one generation pass over a suite, and every metric that comes out of them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftModel

from expunge.data.examples import Example
from expunge.data.tokenize import Join, TokenizedExample, completion_ids, expected_text, prompt_ids, tokenize
from expunge.evaluation.benchmarks.measurement import Measurement
from expunge.evaluation.benchmarks.row_metrics import FORCED, OF_TEXT, leaks, text_metrics, truth_metrics
from expunge.evaluation.benchmarks.suite import Documents, RowSet, Suite
from expunge.evaluation.generate import Generation, generate
from expunge.evaluation.gradient_norm import gradient_norms
from expunge.evaluation.membership import Document, attack_scores, encode_documents, even_lengths, lowercased
from expunge.evaluation.metrics import TokenRecord, memorization, text
from expunge.evaluation.metrics import membership as attacks
from expunge.evaluation.record import token_records
from expunge.evaluation.values import Values
from expunge.model.load import LoadedModel
from expunge.utils.distributed import current
from expunge.utils.progress import Reporter

CHEAP_ATTACKS = ("loss", "zlib", "lowercase", "min_k", "min_k_plus_plus", "reference")
SIDES = ("member", "nonmember")
PARAPHRASED = "/paraphrased"


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        max_new_tokens: Longest generation where the benchmark sets none.
        attacks: Membership attacks; all that cost no backward pass when empty.
        samples: Draws per forget row for leak@k; 0 for none.
        temperature: Of the draws.
        seed: Of the draws.
    """

    max_new_tokens: int = 256
    attacks: Sequence[str] = ()
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class _Part:
    """Rows that are asked in one way; paraphrased questions are a part of their own."""

    rows: RowSet
    suffix: str = ""


def measure(
    loaded: LoadedModel,
    suite: Suite,
    join: Join,
    options: Options,
    *,
    reference: Measurement | None = None,
    reporter: Reporter | None = None,
) -> Measurement:
    """Measure one model.

    Args:
        loaded: The model, with or without an adapter; one is switched off to see what the untouched model thinks of
            what it says.
        suite: The benchmark's data.
        join: How prompt and completion are joined.
        options: How to measure.
        reference: What was measured on a model that never saw the forget set, for the attack that compares with it.
        reporter: Where progress goes; silent when None.

    Raises:
        DataError: A row cannot be used.
        ModelError: The model's outputs are not finite.
    """
    reporter = reporter or Reporter(quiet=True)
    return _Pass(loaded, suite, join, options, reference, reporter).run()


class _Pass:
    def __init__(
        self,
        loaded: LoadedModel,
        suite: Suite,
        join: Join,
        options: Options,
        reference: Measurement | None,
        reporter: Reporter,
    ) -> None:
        self._loaded, self._suite, self._join, self._options = loaded, suite, join, options
        self._reference, self._reporter = reference, reporter
        self._parts = [part for rows in suite.sets for part in _parts(rows)]
        self._documents: dict[str, list[Document]] = {}
        self._processes = current()
        self._result = Measurement()

    def run(self) -> Measurement:
        if self._suite.documents:
            self._encode_documents(self._suite.documents)
        records = self._teacher_forced()
        generations = [self._generate(part) for part in self._parts]
        for number, (part, said) in enumerate(zip(self._parts, generations, strict=True)):
            self._rows(part, number, records, said)
        if self._options.samples:
            self._leaks()
        if self._suite.documents:
            self._attacks(self._suite.documents, records)
        if isinstance(self._loaded.model, PeftModel):
            self._untouched(generations, records)
        return self._result

    # --- the teacher-forced pass -----------------------------------------------------------------

    def _teacher_forced(self) -> dict[tuple, TokenRecord]:
        """Records of every text that any metric needs, by (part or side, role, row[, wrong answer])."""
        jobs: dict[tuple, TokenizedExample] = {}
        for number, part in enumerate(self._parts):
            rows = part.rows
            for i, example in enumerate(rows.examples):
                jobs[number, "own", i] = self._encode(example)
                if rows.correct and rows.correct[i] != example:
                    jobs[number, "correct", i] = self._encode(rows.correct[i])
                for j, other in enumerate(rows.wrong[i] if rows.wrong else ()):
                    jobs[number, "wrong", i, j] = self._encode(other)
        bound, lower = self._loaded.context, "lowercase" in self._attack_names()
        for side, documents in self._documents.items():
            for i, document in enumerate(documents):
                jobs[side, "own", i] = document.row
                other = lowercased(self._loaded.tokenizer, document, bound) if lower else None
                if other is not None:
                    jobs[side, "lower", i] = other
        return dict(zip(jobs, self._records(list(jobs.values()), "reading texts"), strict=True))

    def _records(self, rows: Sequence[TokenizedExample], title: str) -> list[TokenRecord]:
        with self._reporter.track(title, len(rows)) as advance:
            return self._processes.share(rows, lambda own: token_records(self._loaded, own, progress=advance))

    def _encode(self, example: Example) -> TokenizedExample:
        bound = self._loaded.context or 2**31
        return tokenize(self._loaded.tokenizer, example, self._join, max_length=bound, truncate_completions=True)

    def _encode_documents(self, documents: Documents) -> None:
        bound, tokenizer = self._loaded.context, self._loaded.tokenizer
        sides = (documents.members, documents.nonmembers)
        members, nonmembers = (
            encode_documents(tokenizer, side, self._join, max_length=bound, say=self._reporter.say) for side in sides
        )
        if documents.even:
            members, nonmembers, self._result.cut_to = even_lengths(tokenizer, members, nonmembers)
            self._reporter.say(f"membership: texts of both sides count up to {self._result.cut_to} tokens")
        self._documents = dict(zip(SIDES, (members, nonmembers), strict=True))

    # --- the generation pass ---------------------------------------------------------------------

    def _generate(self, part: _Part) -> list[Generation | None]:
        rows = part.rows
        if not {*rows.metrics} & {*OF_TEXT, "fluency"}:
            return [None] * len(rows.examples)
        asked = [i for i, example in enumerate(rows.examples) if example.prompt]
        if len(asked) < len(rows.examples):
            self._result.not_measured.append(
                f"{len(rows.examples) - len(asked)} of {len(rows.examples)} {rows.name} texts have no prompt, so "
                "nothing was generated for them."
            )
        said = self._answers([rows.examples[i] for i in asked], rows, part.suffix, samples=0)
        answers = dict(zip(asked, said, strict=True))
        return [answers.get(i) for i in range(len(rows.examples))]

    def _answers(self, examples: Sequence[Example], rows: RowSet, suffix: str, *, samples: int) -> list[Generation]:
        tokenizer, options = self._loaded.tokenizer, self._options
        title = f"{'drawing answers to' if samples else 'answering'} {rows.name}{suffix.replace('/', ' ')} prompts"

        def say_all(own: Sequence[Example]) -> list[Generation]:
            return generate(
                self._loaded,
                own,
                rows.name,
                encode_prompt=lambda example: prompt_ids(tokenizer, example, self._join, alone=self._suite.alone),
                encode_draft=lambda example: completion_ids(tokenizer, example, self._join),
                max_new_tokens=rows.max_new_tokens or options.max_new_tokens,
                samples=samples,
                temperature=options.temperature,
                seed=options.seed,
                say=self._reporter.say,
                progress=advance,
            )

        with self._reporter.track(title, len(examples) * max(1, samples)) as advance:
            # Draws come from one stream of random numbers, which cannot be divided.
            said = (self._processes.once if samples else self._processes.share)(examples, say_all)
        return [replace(own, text=text.cut_at(own.text, rows.stops)) for own in said] if rows.stops else said

    # --- metrics ---------------------------------------------------------------------------------

    def _rows(
        self, part: _Part, number: int, records: dict[tuple, TokenRecord], said: Sequence[Generation | None]
    ) -> None:
        rows = part.rows
        own = [records[number, "own", i] for i in range(len(rows.examples))]
        wanted = [name for name in FORCED if name in ("nll", *rows.metrics)]
        found: dict[str, Sequence[float | None]] = {name: [FORCED[name](record) for record in own] for name in wanted}
        if rows.wrong:
            correct = [records.get((number, "correct", i), own[i]) for i in range(len(own))]
            wrong = [[records[number, "wrong", i, j] for j in range(len(rows.wrong[i]))] for i in range(len(own))]
            found |= truth_metrics(correct, own, wrong, forget=rows.name == "forget")
        references = [self._expected(example, rows) for example in rows.examples]
        found |= text_metrics(rows.metrics, rows.examples, references, said)
        for name, values in found.items():
            self._add(rows, name + part.suffix, values)
        if not part.suffix:
            texts = [None if one is None else one.text for one in said]
            self._result.said[rows.name] = [*self._result.said.get(rows.name, []), *texts]

    def _add(self, rows: RowSet, metric: str, values: Sequence[float | None]) -> None:
        own = Values.of(f"{rows.name}/{metric}", rows.examples, rows.documents, values)
        earlier = self._result.rows.get((rows.name, metric))
        if len(own.ids):
            self._result.rows[rows.name, metric] = own if earlier is None else earlier + own

    def _expected(self, example: Example, rows: RowSet) -> str:
        """What a generation is compared with."""
        if not rows.cut_reference:
            if self._suite.alone:
                return example.completion
            return expected_text(self._loaded.tokenizer, example, self._join)
        ids = self._loaded.tokenizer(example.completion)["input_ids"][: rows.max_new_tokens]
        return str(self._loaded.tokenizer.decode(ids, skip_special_tokens=True))

    def _leaks(self) -> None:
        for part in self._parts:
            rows, k = part.rows, self._options.samples
            if rows.name != "forget" or part.suffix or not {*rows.metrics} & {*OF_TEXT}:
                continue
            asked = [i for i, example in enumerate(rows.examples) if example.prompt]
            said = self._answers([rows.examples[i] for i in asked], rows, "", samples=k)
            draws = [[own.text for own in said[start : start + k]] for start in range(0, len(said), k)]
            for name, values in leaks([self._expected(rows.examples[i], rows) for i in asked], draws).items():
                own = dict(zip(asked, values, strict=True))
                self._add(rows, name, [own.get(i) for i in range(len(rows.examples))])

    # --- membership ------------------------------------------------------------------------------

    def _attack_names(self) -> Sequence[str]:
        return self._options.attacks or CHEAP_ATTACKS

    def _attacks(self, documents: Documents, records: dict[tuple, TokenRecord]) -> None:
        wanted, sides = self._attack_names(), {}
        for side, examples in zip(SIDES, (documents.members, documents.nonmembers), strict=True):
            own = self._documents[side]
            forced = [records[side, "own", i] for i in range(len(own))]
            lower = [records.get((side, "lower", i)) for i in range(len(own))]
            scores = attack_scores(wanted, own, forced, lower, documents.shares)
            if "gradient_norm" in wanted:
                with self._reporter.track(f"gradients of {side} texts", len(own)) as advance:
                    norms = self._processes.share(
                        [document.row for document in own],
                        lambda rows, advance=advance: gradient_norms(self._loaded, rows, progress=advance),
                    )
                scores["gradient_norm"] = [attacks.gradient_norm(norm) for norm in norms]
            labels = [example.id for example in examples]
            sides[side] = {name: Values.of(name, examples, labels, values) for name, values in scores.items()}
            nll = [memorization.mean_nll(record) for record in forced]
            name = documents.names[SIDES.index(side)]
            # Texts to forget have a completion's loss under `nll` already.
            self._result.rows[name, "document_nll"] = Values.of(f"{name}/document_nll", examples, labels, nll)
            if self._reference and "reference" in wanted:
                base = self._reference.rows[name, "document_nll"].values
                sides[side]["reference"] = Values.of("reference", examples, labels, [*(base - nll)])
        self._result.attacks = {name: (sides["member"][name], sides["nonmember"][name]) for name in sides["member"]}

    # --- the untouched model ---------------------------------------------------------------------

    def _untouched(self, generations: Sequence[Sequence[Generation | None]], records: dict[tuple, TokenRecord]) -> None:
        """What the model without its adapter thinks of what was said, and of texts that neither has seen."""
        jobs: dict[tuple, TokenizedExample] = {}
        for number, (part, said) in enumerate(zip(self._parts, generations, strict=True)):
            for i, own in enumerate(said if "fluency" in part.rows.metrics and not part.suffix else ()):
                if own is not None and own.tokens:
                    example = part.rows.examples[i]
                    jobs[number, i] = TokenizedExample(example.id, [*own.prompt, *own.tokens], len(own.prompt))
        unseen = self._documents.get("nonmember", [])
        for i, document in enumerate(unseen):
            jobs["nonmember", i] = document.row
        with _adapter_off(self._loaded):
            found = dict(zip(jobs, self._records(list(jobs.values()), "untouched model"), strict=True))
        for number, part in enumerate(self._parts):
            if "fluency" in part.rows.metrics and not part.suffix:
                own = [found.get((number, i)) for i in range(len(part.rows.examples))]
                self._add(part.rows, "fluency", [None if one is None else memorization.perplexity(one) for one in own])
        if unseen and self._suite.documents:
            examples = self._suite.documents.nonmembers
            rises = [
                memorization.mean_nll(records["nonmember", "own", i]) - memorization.mean_nll(found["nonmember", i])
                for i in range(len(unseen))
            ]
            self._result.drift = Values.of("drift", examples, [example.id for example in examples], rises)


def _parts(rows: RowSet) -> list[_Part]:
    parts = [_Part(rows)]
    asked = [(i, example) for i, example in enumerate(rows.paraphrased) if example is not None]
    if asked:
        again = replace(
            rows,
            examples=[example for _, example in asked],
            documents=[rows.documents[i] for i, _ in asked],
            paraphrased=(),
            correct=(),
            wrong=(),
        )
        parts.append(_Part(again, PARAPHRASED))
    return parts


def _adapter_off(loaded: LoadedModel) -> AbstractContextManager[Any]:
    return loaded.model.disable_adapter() if isinstance(loaded.model, PeftModel) else nullcontext()
