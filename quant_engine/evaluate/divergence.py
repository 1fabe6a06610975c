"""How far a quantized model's next-token distributions are from the unquantized model's: no labels, no guessing.

On a text: for each window, the mean over its positions of KL(P || Q), in nats, P being the unquantized model's
distribution and Q the quantized one's; and how often both find the same token most probable. On picture questions: both
along the unquantized model's greedy answer, and how many of its tokens the quantized model says before they part.

Both models are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quant_engine.deferred import deferred
from quant_engine.evaluate.perplexity import Perplexity, windows_of
from quant_engine.evaluate.task import HEADLINE, Outcome, Part, Task, Units, Watch
from quant_engine.evaluate.vqa import VisualQuestions, by_picture
from quant_engine.results import ItemOutput, TokenShift
from quant_engine.spec import RunSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from quant_engine.models.batch import Answered
    from quant_engine.models.load import Loaded

torch = deferred("torch")
batch = deferred("quant_engine.models.batch")
decode = deferred("quant_engine.models.decode")
load = deferred("quant_engine.models.load")

POSITIONS_AT_ONCE = 256
MOST_TOKENS = 32
TOP1 = Part("same next token", "top-1 agreement", unit="%", higher_is_better=True)


@dataclass(frozen=True)
class Distance:
    """Two models along the same tokens: mean KL in nats, the share of positions with the same most probable token, and
    the number of positions before the first one without."""

    divergence: float
    agreement: float
    shared: int


class Divergence(Perplexity):
    """Divergence on the built-in text, or on a text file."""

    metric = "KL divergence"
    unit = "nats"
    higher_is_better = False
    parts: ClassVar = {"top1": TOP1}

    def __init__(self, pinned: str | None = None) -> None:
        super().__init__(pinned)
        self.name = f"divergence:{pinned}" if pinned else "divergence"
        self.title = f"Divergence, {self.title}"
        text = self._path if pinned else "the built-in text"
        self.help = f"How far next-token distributions on {text} are from the unquantized model's; no labels."

    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        ids, revision = self.token_ids(loaded.tokenizer, spec.window, spec.text_windows)
        windows = windows_of(ids, spec, self.title)
        reference = unquantized(loaded, spec)
        finished = watch.finished_items.open(revision)
        for index, window in enumerate(windows):
            if str(index) in finished:
                continue
            reference_states = hidden_states(reference, window)
            states = reference_states if loaded is reference else hidden_states(loaded, window)
            window_distance = distance(reference, loaded, reference_states, states)
            output = _output(str(index), loaded.tokenizer.decode(window), [], "", window_distance)
            watch.record([output], finished, len(windows))
        return self.conclude([finished[str(index)] for index in range(len(windows))], revision)

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        return _units(outputs)

    def value(self, mean: float) -> float:
        return mean

    def error(self, units: Units) -> float | None:
        return Task.error(self, units)

    def interval(self, units: Units, suffix: str = HEADLINE) -> tuple[float, float] | None:
        return Task.interval(self, units, suffix)


class AnswerDivergence(Task):
    """Divergence along the answers to the questions of a picture task."""

    metric = "KL divergence"
    unit = "nats"
    higher_is_better = False
    pictures = True
    parts: ClassVar = {
        "top1": TOP1,
        "shared": Part("shared answer", "tokens before answers part", unit="tokens", higher_is_better=True),
    }

    def __init__(self, picture_task: VisualQuestions) -> None:
        self._picture_task = picture_task
        self.name, self.title = f"divergence:{picture_task.name}", f"Divergence, {picture_task.title}"
        self.help = f"How far answers to {picture_task.title} are from the unquantized model's; no labels."

    def revision(self) -> str:
        return self._picture_task.revision()

    def prepare(self) -> None:
        self._picture_task.prepare()

    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        questions, revision = self._picture_task.questions(spec.limit), self._picture_task.revision()
        reference = unquantized(loaded, spec)
        finished = watch.finished_items.open(revision)
        remaining = [question for question in questions if question.id not in finished]
        asked = by_picture(remaining, [MOST_TOKENS] * len(remaining))
        for answered in batch.answers(reference, asked, watch.check_stop):
            question, answer = remaining[answered.index], answered.tokens
            answer_distance = compare_along(reference, loaded, question.picture(), question.prompt, answered)
            shared = loaded.tokenizer.decode(answer[: answer_distance.shared], skip_special_tokens=True)
            full = loaded.tokenizer.decode(answer, skip_special_tokens=True)
            output = _output(question.id, question.prompt, [full], shared, answer_distance)
            watch.record([output], finished, len(questions))
        return self.conclude([finished[question.id] for question in questions], revision)

    def units(self, outputs: Sequence[ItemOutput]) -> dict[str, Units]:
        return _units(outputs) | {"shared": {output.item: output.measures[1] for output in outputs}}


def compare_along(
    reference: Loaded, loaded: Loaded, picture: Image | None, question: str, answered: Answered
) -> Distance:
    """The distance of both models along the reference's greedy answer.

    What `shared` counts is where greedy answers part: up to there both have read the same.
    """
    reference_states = answered.states
    if reference_states is None:
        reference_states = decode.answer_states(reference, picture, question, answered.tokens)
    same = loaded is reference
    states = reference_states if same else decode.answer_states(loaded, picture, question, answered.tokens)
    return distance(reference, loaded, reference_states, states)


def token_shifts(
    reference_head: Any, loaded: Loaded, reference_states: Any, states: Any, answer: Sequence[int]
) -> list[TokenShift]:
    """What a quantized model finds of each token of the unquantized model's answer.

    Args:
        reference_head: The unquantized model's output head.
        loaded: The quantized model.
        reference_states: What the unquantized model's head gets at each token of the answer [tokens, hidden].
        states: What the quantized model's head gets there.
        answer: The answer's token ids.
    """
    shifts: list[TokenShift] = []
    with torch.inference_mode():
        for p, q in _log_probabilities(reference_head, loaded.model.get_output_embeddings(), reference_states, states):
            start = len(shifts)
            tokens = torch.tensor(answer[start : start + len(q)], device=q.device)[:, None]
            best = q.max(-1)
            columns = (
                tokens[:, 0],
                p.gather(-1, tokens)[:, 0].exp(),
                q.gather(-1, tokens)[:, 0].exp(),
                (p.exp() * (p - q)).sum(-1).clamp(min=0),  # rounding: it is never negative
                best.indices,
                best.values.exp(),
            )
            for index, values in enumerate(zip(*(column.tolist() for column in columns), strict=True), start):
                token, own_p, own_q, divergence, choice, choice_q = values
                before = answer[:index]
                shifts.append(
                    TokenShift(
                        text=decode.next_text(loaded, before, token),
                        p=own_p,
                        q=own_q,
                        divergence=divergence,
                        choice=decode.next_text(loaded, before, choice),
                        choice_q=choice_q,
                        agrees=choice == token,
                    )
                )
    return shifts


def unquantized(loaded: Loaded, spec: RunSpec) -> Loaded:
    """The unquantized model of a run; `loaded` itself, if it is that."""
    if spec.weights.setting.method == "fp16":
        return loaded
    return load.load_dense(loaded.card, spec.weights.revision, spec.dtype, spec.device, in_halves=True)


def hidden_states(loaded: Loaded, window: Any) -> Any:
    """What the head gets at each position of a window: [tokens, hidden]."""
    with torch.inference_mode():
        ids = window[None].to(loaded.model.device)
        return loaded.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]


def distance(reference: Loaded, loaded: Loaded, reference_states: Any, states: Any) -> Distance:
    """The distance of the distributions that both heads make of their models' hidden states [positions, hidden]."""
    total, same = 0.0, []
    heads = reference.model.get_output_embeddings(), loaded.model.get_output_embeddings()
    with torch.inference_mode():
        for p, q in _log_probabilities(*heads, reference_states, states):
            total += (p.exp() * (p - q)).sum().item()
            same += (p.argmax(-1) == q.argmax(-1)).tolist()
    shared = same.index(False) if False in same else len(same)
    return Distance(total / len(same), sum(same) / len(same), shared)


def _log_probabilities(reference_head: Any, head: Any, reference_states: Any, states: Any) -> Iterator[tuple[Any, Any]]:
    """The distributions of both heads, [positions, vocabulary], some positions at a time."""
    for start in range(0, len(states), POSITIONS_AT_ONCE):
        chunk = slice(start, start + POSITIONS_AT_ONCE)
        p = reference_head(reference_states[chunk]).float().log_softmax(-1)
        yield p, head(states[chunk]).float().log_softmax(-1)


def _output(item: str, prompt: str, gold: list[str], prediction: str, distance: Distance) -> ItemOutput:
    return ItemOutput(
        item=item,
        prompt=prompt,
        gold=gold,
        prediction=prediction,
        score=distance.divergence,
        measures=[distance.agreement, float(distance.shared)],
    )


def _units(outputs: Sequence[ItemOutput]) -> dict[str, Units]:
    return {
        HEADLINE: {output.item: output.score for output in outputs},
        "top1": {output.item: 100 * output.measures[0] for output in outputs},
    }
