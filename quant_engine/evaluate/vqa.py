"""Questions about pictures: ask one by one, greedily, and score each answer. The benchmarks differ in prompt and score.

Definitions are those of lmms-eval, which the study's scores come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quant_engine.deferred import deferred
from quant_engine.evaluate.task import Outcome, Task, Watch, mean_and_error
from quant_engine.spec import ItemOutput, RunSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from quant_engine.models.load import Loaded

decode = deferred("quant_engine.generate.decode")


@dataclass(frozen=True)
class Question:
    """One item: its picture is made when asked for, so a thousand items cost no memory."""

    id: str
    picture: Callable[[], Image]
    prompt: str
    gold: list[str]


class VisualQuestions(Task):
    """A benchmark of picture questions scored one by one; the number is 100 times the mean score."""

    unit = "%"
    higher_is_better = True
    pictures = True
    most_tokens: ClassVar[int]
    suffix: ClassVar[str] = ""

    @abstractmethod
    def questions(self, limit: int | None) -> list[Question]:
        """The first `limit` items (all, if None)."""

    @abstractmethod
    def revision(self) -> str:
        """What identifies the items, to be kept beside every number."""

    @abstractmethod
    def score(self, prediction: str, gold: list[str]) -> float:
        """From 0 to 1."""

    def measure(self, loaded: Loaded, spec: RunSpec, watch: Watch) -> Outcome:
        questions = self.questions(spec.limit)
        outputs: list[ItemOutput] = []
        for question in questions:
            answer = decode.answer_text(loaded, question.picture(), question.prompt, max_new_tokens=self.most_tokens)
            outputs.append(
                ItemOutput(
                    item=question.id,
                    prompt=question.prompt,
                    gold=question.gold,
                    prediction=answer,
                    score=self.score(answer, question.gold),
                )
            )
            watch.step(len(outputs), len(questions))
        mean, error = mean_and_error([100 * output.score for output in outputs])
        return Outcome(mean, error, "ok", self.revision(), outputs)


class DemoItems(VisualQuestions):
    """The questions of a benchmark's counterpart in the demo suite, drawn when they are asked."""

    def questions(self, limit: int | None) -> list[Question]:
        from quant_engine.demo import suite

        return [Question(i.id, i.image, i.question + self.suffix, i.answers) for i in suite.items(self.name, limit)]

    def revision(self) -> str:
        from quant_engine.demo import suite

        return suite.revision(self.name)
