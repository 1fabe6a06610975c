"""MMLU, 5-shot: exam questions in 57 subjects; the answer is the letter with the largest probability.

The prompt names the subject, shows the first five questions of the dev split with their letters, and asks. Examples are
dropped from the last one on until it fits into 2048 tokens. Scores are means over questions, of all and of the four
categories. After "Answer:" the natural token is " A", which is compared here; the study's script compares "A" without
the space, which the part "unspaced" gives (for sentencepiece tokenizers both are one token).
Hendrycks et al., arXiv 2009.03300; prompts as in IR-QLoRA's evaluate_mmlu.py, which has two spaces before the subject.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from quant_engine.data import sources
from quant_engine.data.row import AnswerNumber, AnyText, Row, Text, check_number, shortened
from quant_engine.deferred import deferred
from quant_engine.evaluate.choices import context_length
from quant_engine.evaluate.task import HEADLINE, Outcome, Part, Task, Units, Watch
from quant_engine.results import ItemOutput
from quant_engine.spec import RunSpec, UserError

if TYPE_CHECKING:
    from quant_engine.models.load import Loaded

likelihood = deferred("quant_engine.evaluate.likelihood")

SHOTS = 5
LETTERS = "ABCD"
PACK_TOKENS = 2048
"""Questions behind the same examples are packed together up to this length (evaluate.likelihood)."""

_STEM = """abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics
    college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics
    high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics
    high_school_statistics machine_learning"""
_HUMANITIES = """formal_logic high_school_european_history high_school_us_history high_school_world_history
    international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory
    professional_law world_religions"""
_SOCIAL_SCIENCES = """econometrics high_school_geography high_school_government_and_politics
    high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
    professional_psychology public_relations security_studies sociology us_foreign_policy"""
_OTHER = """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
    medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"""
CATEGORY: dict[str, str] = {
    subject: category
    for category, subjects in (
        ("stem", _STEM),
        ("humanities", _HUMANITIES),
        ("social_sciences", _SOCIAL_SCIENCES),
        ("other", _OTHER),
    )
    for subject in subjects.split()
}


class _Row(Row):
    question: Text
    subject: Text
    choices: list[AnyText] = Field(min_length=len(LETTERS), max_length=len(LETTERS))
    answer: AnswerNumber


@dataclass(frozen=True)
class _Prompt:
    """A question's prompt and its tokens. `row` is its row of the test split, `shots` the number of examples in it."""

    row: int
    subject: str
    gold: str
    text: str
    ids: list[int]
    shots: int


class Mmlu(Task):
    """MMLU; with a limit, questions are taken at equal distances, so that all subjects stay in it."""

    name = "mmlu"
    title = "MMLU"
    metric = "accuracy"
    unit = "%"
    higher_is_better = True
    help = "Exam questions in 57 subjects, 5-shot; accuracy over all questions, and by category."
    parts: ClassVar = {
        "humanities": Part("humanities"),
        "stem": Part("STEM"),
        "social_sciences": Part("social sciences"),
        "other": Part("other"),
        "unspaced": Part("unspaced letters"),
    }
    test = sources.Source(
        "cais/mmlu", "all/test-*.parquet", "mmlu_test.jsonl", revision="c30699e8356da336a370243923dbaf21066bb9fe"
    )
    dev = sources.Source(
        "cais/mmlu", "all/dev-*.parquet", "mmlu_dev.jsonl", revision="c30699e8356da336a370243923dbaf21066bb9fe"
    )

    def revision(self) -> str:
        return ", ".join(sources.revision(source, title) for source, title in self._splits())

    def prepare(self) -> None:
        self._read()

    def _splits(self) -> tuple[tuple[sources.Source, str], ...]:
        return (self.test, self.title), (self.dev, f"{self.title} (examples)")

    def _read(self) -> tuple[list[_Row], dict[str, list[str]], str]:
        """All questions, the solved ones of each subject, and the data's revision."""
        test, dev = (sources.load(source, title) for source, title in self._splits())
        questions, solved = test.read(_checked), examples(dev.read(_checked))
        for subject in {question.subject for question in questions}:
            if len(solved.get(subject, [])) < SHOTS:
                raise UserError(f"MMLU has no {SHOTS} examples of the subject {subject!r}: fetch its dev split again.")
        return questions, solved, f"{test.revision}, {dev.revision}"

    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        questions, solved, revision = self._read()
        count = min(len(questions), spec.limit or len(questions))
        rows = [index * len(questions) // count for index in range(count)]
        finished = watch.finished_items.open(revision)
        remaining = {row: questions[row] for row in rows if str(row) not in finished}
        tokens = letter_tokens(loaded.tokenizer)
        packs = list(_packs(_prompts(remaining, solved, loaded)))
        texts = [
            [likelihood.Text(prompt.ids, [(len(prompt.ids) - 1, token) for token in tokens]) for prompt in pack]
            for pack in packs
        ]
        for batch in likelihood.log_probabilities(loaded, texts):
            outputs = [
                _output(prompt, values)
                for index, pack_values in batch.items()
                for prompt, values in zip(packs[index], pack_values, strict=True)
            ]
            watch.record(outputs, finished, count)
        return self.conclude([finished[str(row)] for row in rows], revision)

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        units: dict[str, Units] = {HEADLINE: {}, **{category: {} for category in self.parts}}
        for output in outputs:
            units[HEADLINE][output.item] = units[CATEGORY[output.category]][output.item] = 100 * output.score
            units["unspaced"][output.item] = 100 * _score(output.log_probabilities[len(LETTERS) :], output.gold[0])
        return units


def _checked(row: dict[str, Any], index: int) -> _Row:
    """A row that can be asked. Raises ValueError for any other."""
    fields = _Row.model_validate(row)
    check_number("answer", fields.answer, len(LETTERS))
    if fields.subject not in CATEGORY:
        raise ValueError(f"subject is {shortened(fields.subject)}, which is none of the {len(CATEGORY)} of MMLU")
    return fields


def examples(dev: list[_Row]) -> dict[str, list[str]]:
    """The solved questions of each subject, in the order of the split."""
    solved: dict[str, list[str]] = defaultdict(list)
    for row in dev:
        solved[row.subject].append(f"{question_text(row)} {LETTERS[row.answer]}\n\n")
    return solved


def question_text(row: _Row) -> str:
    """Question, lettered options, and the request for an answer."""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row.choices, strict=True))
    return f"{row.question}\n{options}\nAnswer:"


def prompt_text(subject: str, solved: Sequence[str], question: str) -> str:
    """A question behind the sentence that names its subject, and behind solved questions."""
    header = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    return header + "".join(solved) + question


def letter_tokens(tokenizer: Any) -> list[int]:
    """The tokens of the letters with a space before them, then without."""
    texts = [f" {letter}" for letter in LETTERS] + list(LETTERS)
    return [tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in texts]


def _prompts(rows: dict[int, _Row], solved: dict[str, list[str]], loaded: Loaded) -> Iterator[_Prompt]:
    """The prompts of these rows of the test split, each with as many solved questions of its subject as fit."""
    most_tokens = context_length(loaded)
    for index, row in rows.items():
        subject, question = row.subject, question_text(row)
        for shots in range(SHOTS, -1, -1):
            text = prompt_text(subject, solved[subject][:shots], question)
            ids = loaded.tokenizer(text, verbose=False)["input_ids"]
            if len(ids) <= most_tokens:
                break
        yield _Prompt(index, subject, LETTERS[row.answer], text, ids[-most_tokens:], shots)


def _packs(prompts: Iterator[_Prompt]) -> Iterator[list[_Prompt]]:
    """Prompts of one subject behind the same examples, as many as fit into a pack."""
    pack: list[_Prompt] = []
    length = 0
    for prompt in prompts:
        added = len(prompt.ids) - (_shared_length(pack[0].ids, prompt.ids) if pack else 0)
        same_examples = pack and (pack[0].subject, pack[0].shots) == (prompt.subject, prompt.shots)
        if same_examples and length + added <= PACK_TOKENS:
            pack.append(prompt)
            length += added
        else:
            if pack:
                yield pack
            pack, length = [prompt], len(prompt.ids)
    if pack:
        yield pack


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts have in common at their start."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _output(prompt: _Prompt, values: list[float]) -> ItemOutput:
    spaced = values[: len(LETTERS)]
    collapsed = any(math.isnan(value) for value in values)
    return ItemOutput(
        item=str(prompt.row),
        prompt=prompt.text,
        gold=[prompt.gold],
        prediction="" if collapsed else LETTERS[spaced.index(max(spaced))],
        score=_score(spaced, prompt.gold),
        log_probabilities=values,
        choices=[*(f" {letter}" for letter in LETTERS), *LETTERS],
        category=prompt.subject,
    )


def _score(values: Sequence[float], gold: str) -> float:
    """Whether the letter with the largest log-probability is right; NaN where one is no number."""
    if any(math.isnan(value) for value in values):
        return math.nan
    return float(LETTERS[values.index(max(values))] == gold)
