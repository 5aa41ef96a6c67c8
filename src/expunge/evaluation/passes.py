"""One teacher-forced pass and one generation pass over a suite, and every metric that comes out of them.

Every text is read once and every prompt is answered once; what else a metric or an attack `needs` (answers drawn at a
temperature, what the untouched model thinks of the answers, lower-cased texts, gradients) is computed only when one of
those that are asked for names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peft import PeftModel

from expunge.data.chat import asks_past_thoughts
from expunge.data.examples import Example
from expunge.data.passages import Passage
from expunge.data.tokenize import PromptFormat, TokenizedExample, completion_ids, expected_text, prompt_ids, tokenize
from expunge.evaluation.documents import Document, after_another, encode_documents, even_lengths, lower_rows
from expunge.evaluation.generate import AT_ONCE, Generation, cut_short, generate
from expunge.evaluation.gradients import gradient_norms
from expunge.evaluation.measurement import Measurement, Values
from expunge.evaluation.metrics import ATTACKS, METRICS, TokenRecord
from expunge.evaluation.metrics.generations import contains, cut_at
from expunge.evaluation.metrics.memorization import mean_nll
from expunge.evaluation.metrics.registry import Row, WholeText, default_attacks
from expunge.evaluation.mismatched import SUFFIX, floored, partners, under
from expunge.evaluation.predictions import SIDES
from expunge.evaluation.rivals import rivals
from expunge.evaluation.suite import Documents, RowSet, Suite
from expunge.evaluation.teacher_forcing import token_records
from expunge.model.load import LoadedModel
from expunge.utils.distributed import current
from expunge.utils.files import fingerprint
from expunge.utils.progress import Reporter

PARAPHRASED = "/paraphrased"
Key = tuple[str | int, ...]
"""Which text a record is of: (part or side, role, row[, wrong answer])."""


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        max_new_tokens: Longest generation where the benchmark sets none.
        attacks: Membership attacks; all that cost no backward pass when empty.
        samples: Draws per row to forget, and unseen one, for leak@k; 0 for none.
        temperature: Of the draws.
        seed: Of the draws.
    """

    max_new_tokens: int = 256
    attacks: Sequence[str] = ()
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0


def measure(
    loaded: LoadedModel,
    suite: Suite,
    prompt_format: PromptFormat,
    options: Options,
    *,
    reference: Measurement | None = None,
    reporter: Reporter | None = None,
) -> Measurement:
    """Measure one model; an adapter on it is switched off to see what the untouched model thinks of what it says.

    `reference` is what was measured on a model that never saw the forget set, for the attack that compares with it.

    Raises:
        DataError: A row cannot be used.
        ModelError: The model's outputs are not finite.
    """
    reporter = reporter or Reporter(quiet=True)
    return _Passes(loaded, suite, prompt_format, options, reference, reporter).run()


class _Passes:
    def __init__(
        self,
        loaded: LoadedModel,
        suite: Suite,
        prompt_format: PromptFormat,
        options: Options,
        reference: Measurement | None,
        reporter: Reporter,
    ) -> None:
        self._loaded, self._suite, self._prompt_format, self._options = loaded, suite, prompt_format, options
        self._reference, self._reporter = reference, reporter
        self._parts = [part for rows in suite.sets for part in _parts(rows)]
        self._partners = [partners(rows) if rows.name == "forget" and not rows.suffix else () for rows in self._parts]
        self._rivals = [rivals(rows) if rows.wants("rivals") and not rows.suffix else () for rows in self._parts]
        names = options.attacks or default_attacks()
        self._attacks = [ATTACKS[name] for name in names if reference or "reference" not in ATTACKS[name].needs]
        self._documents: dict[str, list[Document]] = {}
        self._processes = current()
        self._result = Measurement()

    def run(self) -> Measurement:
        if self._suite.documents:
            self._encode_documents(self._suite.documents)
        records = self._teacher_forced()
        generations = [self._generate(rows) for rows in self._parts]
        untouched = self._untouched(generations) if isinstance(self._loaded.model, PeftModel) else {}
        drawn = [self._samples(rows) for rows in self._parts]
        with self._reporter.working("metrics"):
            for number, (rows, said, samples) in enumerate(zip(self._parts, generations, drawn, strict=True)):
                self._rows(rows, number, records, said, samples, untouched)
        if self._suite.documents:
            self._membership(self._suite.documents, records, untouched)
        return self._result

    # --- the teacher-forced pass -----------------------------------------------------------------

    def _teacher_forced(self) -> dict[Key, TokenRecord]:
        jobs: dict[Key, TokenizedExample] = {}
        for number, rows in enumerate(self._parts):
            compared = rows.wants("correct", "wrong")
            encoded: dict[Key, TokenizedExample] = {
                (number, "own", i): self._encode(example) for i, example in enumerate(rows.examples)
            }
            self._say_cut(rows.name, list(encoded.values()))
            jobs |= encoded
            for i, j in enumerate(self._partners[number]):
                if j is not None:
                    jobs[number, "mismatched", i] = self._encode(under(rows.examples[j], rows.examples[i]))
            for i, answers in enumerate(self._rivals[number]):
                jobs |= {(number, "rival", i, at): self._encode(answer) for at, answer in enumerate(answers)}
            for i, wrong in enumerate(rows.wrong if compared else ()):
                if rows.correct[i] != rows.examples[i]:
                    jobs[number, "correct", i] = self._encode(rows.correct[i])
                jobs |= {(number, "wrong", i, j): self._encode(other) for j, other in enumerate(wrong)}
        lower, after = (any(need in attack.needs for attack in self._attacks) for need in ("lower", "after_unseen"))
        unseen = sorted(self._documents.get("nonmember", []), key=lambda doc: fingerprint(doc.text)) if after else []
        lowered = lower_rows(self._loaded.tokenizer, self._documents, self._loaded.context) if lower else {}
        jobs |= {(side, "lower", i): row for (side, i), row in lowered.items()}
        if lower and self._documents and not lowered:
            self._note("Few texts of a side differ from their lower case, so the lowercase attack was not run.")
        for side, documents in self._documents.items():
            for i, document in enumerate(documents):
                jobs[side, "own", i] = document.row
                if other := after_another(document, unseen[:2], self._loaded.tokenizer, self._loaded.context):
                    jobs[side, "after_unseen", i] = other
        return dict(zip(jobs, self._records(list(jobs.values()), "reading texts"), strict=True))

    def _records(self, rows: Sequence[TokenizedExample], title: str) -> list[TokenRecord]:
        with self._reporter.track(title, len(rows)) as advance:
            return self._processes.share(rows, lambda part: token_records(self._loaded, part, progress=advance))

    def _encode(self, example: Example) -> TokenizedExample:
        bound = self._loaded.context or 2**31
        return tokenize(
            self._loaded.tokenizer, example, self._prompt_format, max_length=bound, truncate_completions=True
        )

    def _say_cut(self, name: str, rows: Sequence[TokenizedExample]) -> None:
        cut = [row for row in rows if row.truncated]
        if cut:
            tokens = sum(row.truncated for row in cut)
            self._note(
                f"{len(cut)} of {len(rows)} {name} texts were cut by {tokens:,} of their "
                f"{tokens + sum(map(len, cut)):,} tokens: the model's context is {self._loaded.context:,} tokens."
            )

    def _note(self, sentence: str) -> None:
        if sentence not in self._result.not_measured:
            self._result.not_measured.append(sentence)

    def _encode_documents(self, documents: Documents) -> None:
        bound, tokenizer = self._loaded.context, self._loaded.tokenizer
        sides = (documents.members, documents.nonmembers)
        members, nonmembers = (
            encode_documents(tokenizer, side, self._prompt_format, max_length=bound, say=self._reporter.say)
            for side in sides
        )
        if documents.even:
            members, nonmembers, self._result.cut_to = even_lengths(tokenizer, members, nonmembers)
            self._reporter.say(f"membership: texts of both sides count up to {self._result.cut_to} tokens")
        self._documents = dict(zip(SIDES, (members, nonmembers), strict=True))

    # --- the generation pass ---------------------------------------------------------------------

    def _generate(self, rows: RowSet) -> list[Generation | None]:
        if not rows.wants("text", "tokens", "untouched"):
            return [None] * len(rows.examples)
        asked = [example for example in rows.examples if example.prompt]
        if len(asked) < len(rows.examples):
            self._note(
                f"{len(rows.examples) - len(asked)} of {len(rows.examples)} {rows.name} texts have no prompt, so "
                "nothing was generated for them."
            )
        chats = [example for example in asked if not isinstance(example, Passage)]
        if self._prompt_format.style == "chat" and chats and asks_past_thoughts(self._loaded.tokenizer, chats[0]):
            self._note(AT_ONCE)
        said = self._answers(rows)
        limit = rows.max_new_tokens or self._options.max_new_tokens
        if stopped := sum(answers[0].stopped for answers in said if answers):
            flag = "the benchmark's limit" if rows.max_new_tokens else "--max-new-tokens"
            self._note(
                f"{stopped} of {len(asked)} answers to {rows.name} prompts were stopped by {flag} {limit} (or the "
                "model's context) before they were as long as what is looked for, or within a thought: their scores "
                "say little."
            )
        return [answers[0] if answers else None for answers in said]

    def _samples(self, rows: RowSet) -> list[list[Generation] | None]:
        """Answers drawn to each prompt to forget, and unseen one, for the metrics of samples."""
        if not self._options.samples or rows.suffix or not rows.wants("samples"):
            return [None] * len(rows.examples)
        return self._answers(rows, self._options.samples)

    def _answers(self, rows: RowSet, samples: int = 0) -> list[list[Generation] | None]:
        """Of each row with a prompt the greedy answer, or `samples` drawn ones; None of one without."""
        tokenizer, options, each = self._loaded.tokenizer, self._options, max(1, samples)
        title = f"{'drawing answers to' if samples else 'answering'} {rows.name}{rows.suffix.replace('/', ' ')} prompts"
        asked = [example for example in rows.examples if example.prompt]

        def say_all(part: Sequence[Example]) -> list[Generation]:
            return generate(
                self._loaded,
                part,
                rows.name,
                encode_prompt=lambda example: prompt_ids(
                    tokenizer, example, self._prompt_format, alone=self._suite.alone
                ),
                encode_draft=self._completion_ids,
                max_new_tokens=rows.max_new_tokens or options.max_new_tokens,
                samples=samples,
                temperature=options.temperature,
                seed=options.seed,
                say=self._reporter.say,
                progress=advance,
            )

        with self._reporter.track(title, each * len(asked)) as advance:
            # Draws come from one stream of random numbers, which cannot be divided.
            said = (self._processes.once if samples else self._processes.share)(asked, say_all)
        if not rows.cut_reference:
            examples = [example for example in asked for _ in range(each)]
            stopped = cut_short(self._loaded, examples, said, self._completion_ids)
            said = [replace(answer, stopped=short) for answer, short in zip(said, stopped, strict=True)]
        said = [replace(answer, text=cut_at(answer.text, rows.stops)) for answer in said]
        groups = (said[at : at + each] for at in range(0, len(said), each))
        return [next(groups) if example.prompt else None for example in rows.examples]

    def _completion_ids(self, example: Example) -> list[int]:
        return completion_ids(self._loaded.tokenizer, example, self._prompt_format)

    def _expected(self, example: Example, rows: RowSet) -> str:
        """What a generation is compared with."""
        if not rows.cut_reference:
            if self._suite.alone:
                return example.completion
            most = rows.max_new_tokens or self._options.max_new_tokens
            return expected_text(self._loaded.tokenizer, example, self._prompt_format, most=most)
        ids = self._loaded.tokenizer(example.completion)["input_ids"][: rows.max_new_tokens]
        return str(self._loaded.tokenizer.decode(ids, skip_special_tokens=True))

    # --- metrics ---------------------------------------------------------------------------------

    def _rows(
        self,
        rows: RowSet,
        number: int,
        records: dict[Key, TokenRecord],
        said: Sequence[Generation | None],
        samples: Sequence[list[Generation] | None],
        untouched: dict[Key, TokenRecord],
    ) -> None:
        facts = []
        for i, example in enumerate(rows.examples):
            record, answer, drawn = records[number, "own", i], said[i], samples[i]
            row = Row(record, example.kind, self._expected(example, rows))
            row.samples = None if drawn is None else [draw.text for draw in drawn]
            row.keywords = example.keywords or None
            if isinstance(example, Passage):  # of a long one the limit on tokens may leave some out
                row.keywords = [word for word in example.keywords if contains(row.expected, word)] or None
            if (number, "wrong", i, 0) in records:
                row.correct = records.get((number, "correct", i), record)
                row.wrong = [records[number, "wrong", i, j] for j in range(len(rows.wrong[i]))]
            answers = self._rivals[number][i] if self._rivals[number] else []
            row.rivals = [records[number, "rival", i, at] for at in range(len(answers))] or None
            if answer is not None:
                row.text, row.tokens, row.untouched = answer.text, answer.tokens, untouched.get((number, i))
            facts.append(row)
        stopped = {
            "text": [answer is not None and answer.stopped for answer in said],
            "samples": [any(draw.stopped for draw in drawn or ()) for drawn in samples],
        }
        plan = {"k": [*dict.fromkeys((1, self._options.samples))]}
        for metric in (METRICS[name] for name in rows.metrics):
            for name, options in metric.instances(plan):
                label = name + rows.suffix
                values = [metric.of(row, **options) for row in facts]
                needs = () if rows.max_new_tokens else metric.needs
                short = next((stopped[need] for need in needs if need in stopped), ())
                found = Values.of(f"{rows.name}/{label}", rows.examples, rows.documents, values, short)
                self._result.add(rows.name, label, metric, found)
        self._floor(rows, number, records, facts)
        if not rows.suffix:
            self._result.said.setdefault(rows.name, []).extend(row.text for row in facts)

    def _floor(self, rows: RowSet, number: int, records: dict[Key, TokenRecord], facts: Sequence[Row]) -> None:
        """Metrics of the answers under the prompts of other rows."""
        pairs = self._partners[number]
        others = [
            replace(facts[i], record=records[number, "mismatched", i], text=facts[j].text) if j is not None else Row()
            for i, j in enumerate(pairs)
        ]
        for metric in (METRICS[name] for name in (floored(rows.metrics) if pairs else ())):
            label, values = metric.name + SUFFIX, [metric.of(row) for row in others]
            found = Values.of(f"{rows.name}/{label}", rows.examples, rows.documents, values)
            self._result.add(rows.name, label, metric, found)

    def _untouched(self, generations: Sequence[Sequence[Generation | None]]) -> dict[Key, TokenRecord]:
        """What the model without its adapter thinks of what was said, and of texts that neither has seen."""
        jobs: dict[Key, TokenizedExample] = {}
        for number, (rows, said) in enumerate(zip(self._parts, generations, strict=True)):
            for i, answer in enumerate(said if rows.wants("untouched") and not rows.suffix else ()):
                if answer is not None and answer.tokens:
                    ids = [*answer.prompt, *answer.tokens]
                    jobs[number, i] = TokenizedExample(rows.examples[i].id, ids, len(answer.prompt))
        jobs |= {("nonmember", i): document.row for i, document in enumerate(self._documents.get("nonmember", []))}
        with self._loaded.adapter_off():
            return dict(zip(jobs, self._records(list(jobs.values()), "untouched model"), strict=True))

    # --- membership ------------------------------------------------------------------------------

    def _membership(
        self, documents: Documents, records: dict[Key, TokenRecord], untouched: dict[Key, TokenRecord]
    ) -> None:
        sides: list[dict[str, Values]] = []
        forced: list[list[TokenRecord]] = []
        for side, examples, labels, set_name in zip(
            SIDES, (documents.members, documents.nonmembers), documents.labels, documents.names, strict=True
        ):
            ours = [records[side, "own", i] for i in range(len(examples))]
            facts = [
                WholeText(
                    record, document.text, records.get((side, "lower", i)), records.get((side, "after_unseen", i))
                )
                for i, (record, document) in enumerate(zip(ours, self._documents[side], strict=True))
            ]
            if self._reference:
                theirs = self._reference.documents[SIDES.index(side)]
                facts = [replace(text, reference=other) for text, other in zip(facts, theirs, strict=True)]
            if any("gradient" in attack.needs for attack in self._attacks):
                facts = [replace(text, gradient=norm) for text, norm in zip(facts, self._norms(side), strict=True)]
            scores = {}
            for attack in self._attacks:
                for name, options in attack.instances({"share": documents.shares}):
                    values = [attack.of(text, **options) for text in facts]
                    scores[name] = Values.of(name, examples, labels, values)
                    self._result.metrics["membership", name] = attack
            sides.append(scores)
            forced.append(ours)
            # Texts to forget have a completion's loss under `nll` already.
            losses = Values.of(f"{set_name}/document_nll", examples, labels, [*map(mean_nll, ours)])
            self._result.rows[set_name, "document_nll"] = losses
        # Without values on a side (lower case in scripts without it, say) there was no attack.
        pairs = {name: (sides[0][name], sides[1][name]) for name in sides[0]}
        self._result.attacks = {name: pair for name, pair in pairs.items() if all(len(part.values) for part in pair)}
        self._result.names, self._result.documents = documents.names, (forced[0], forced[1])
        if untouched:
            unseen = documents.nonmembers
            rises = [mean_nll(record) - mean_nll(untouched["nonmember", i]) for i, record in enumerate(forced[1])]
            self._result.drift = Values.of("drift", unseen, documents.labels[1], rises)

    def _norms(self, side: str) -> list[float]:
        rows = [document.row for document in self._documents[side]]
        with self._reporter.track(f"gradients of {side} texts", len(rows)) as advance:
            return self._processes.share(rows, lambda part: gradient_norms(self._loaded, part, progress=advance))


def _parts(rows: RowSet) -> list[RowSet]:
    """The rows and, as a set of their own, their paraphrased questions."""
    asked = [(i, example) for i, example in enumerate(rows.paraphrased) if example is not None]
    if not asked:
        return [rows]
    again = replace(
        rows,
        examples=[example for _, example in asked],
        documents=[rows.documents[i] for i, _ in asked],
        paraphrased=(),
        correct=(),
        wrong=(),
        suffix=PARAPHRASED,
    )
    return [rows, again]
