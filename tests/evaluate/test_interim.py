"""Numbers of tasks in work: what they say, how often they are found, and when there is none yet."""

import itertools
import math

import pytest

from quant_engine import terminal
from quant_engine.evaluate import TASKS, interim
from quant_engine.evaluate.interim import InterimNumbers, count_text, number_text
from quant_engine.progress import Interim, Progress
from quant_engine.results import ItemOutput


def items(*scores: float, **more) -> dict[str, ItemOutput]:
    return {
        str(n): ItemOutput(item=str(n), prompt="", gold=["A"], prediction="A", score=score, **more)
        for n, score in enumerate(scores)
    }


def test_a_number_so_far_is_that_of_its_items_with_its_interval():
    number = interim.interim(TASKS["wikitext2"], items(2.0, 2.5, 3.0), 32)
    assert (number.value, number.done, number.total) == (pytest.approx(math.exp(2.5)), 3, 32)
    assert (number.low, number.high) == TASKS["wikitext2"].interval({"0": 2.0, "1": 2.5, "2": 3.0})
    assert number_text(number) == "12.18 PPL, 95% interval 3.52 to 42.2"
    assert count_text(number) == "after 3 of 32 windows"
    scored = interim.interim(TASKS["docvqa"], items(1.0, 0.0, 1.0, 1.0), 4)
    assert number_text(scored) == "75%, 95% interval 30.1 to 95.4"
    assert count_text(scored) == "all 4 items"


def test_one_window_has_no_interval():
    assert number_text(interim.interim(TASKS["perplexity"], items(2.5), 8)) == "12.18 PPL"


@pytest.mark.parametrize("score", [math.nan, math.inf, 5000.0])
def test_a_collapsed_model_has_no_number_so_far(score):
    number = interim.interim(TASKS["perplexity"], items(2.5, score), 8)
    assert number_text(number) == "no number: the model has collapsed"
    assert Interim.model_validate_json(number.model_dump_json()) == number


@pytest.mark.parametrize("name", ["demo-mmbench", "mmbench_en", "demo-mme", "mme"])
def test_what_needs_all_rotations_or_pairs_says_nothing_of_a_part(name):
    assert interim.interim(TASKS[name], items(1.0, group="1", category="color"), 8) is None


@pytest.mark.parametrize("name", [name for name in TASKS if "mm" not in name])
def test_every_other_task_says_a_number_of_its_first_items(name):
    outputs = items(
        1.0, 0.5, log_probabilities=[-1.0, -2.0], choices=["A", "B"], measures=[1.0, 2.0], category="anatomy"
    )
    assert interim.interim(TASKS[name], outputs, 8).done == 2


class Clock:
    """A clock that a test moves; with each look it moves on by `step`."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def found(numbers: InterimNumbers) -> list[int]:
    return [number.done for number in numbers.numbers()]


def test_a_number_is_found_again_after_two_seconds_and_at_the_end():
    clock = Clock()
    numbers = InterimNumbers(clock)
    task = TASKS["perplexity"]
    numbers.update(task, {}, 8)
    assert found(numbers) == []
    numbers.update(task, items(1.0), 8)
    clock.now = 1.9
    numbers.update(task, items(1.0, 2.0), 8)
    assert found(numbers) == [1]
    clock.now = 2.1
    numbers.update(task, items(1.0, 2.0, 3.0), 8)
    assert found(numbers) == [3]
    numbers.update(task, items(*range(8)), 8)
    assert found(numbers) == [8]
    numbers.update(TASKS["wikitext2"], items(1.0), 8)
    assert found(numbers) == [8, 1]


def test_finding_it_takes_no_more_than_a_hundredth_of_the_time():
    clock = Clock(step=0.5)  # each takes half a second, looked at before and after
    numbers = InterimNumbers(clock)
    times = []
    task = TASKS["perplexity"]
    for count in range(1, 1000):
        before = found(numbers)
        numbers.update(task, items(*[1.0] * (count % 7 + 1)), 1000)
        if found(numbers) != before:
            times.append(clock.now)
    assert len(times) > 5
    assert all(later - earlier >= 49 for earlier, later in itertools.pairwise(times))


def test_progress_of_an_earlier_version_has_none():
    row = '{"stage": "evaluating", "fraction": 0.5, "task": "Built-in text", "item": 3, "items": 8}'
    assert Progress.model_validate_json(row).interims == ()


def test_the_command_line_shows_the_number_of_the_task_in_work():
    numbers = (
        Interim(title="PIQA", unit="%", value=70.0, low=60.0, high=80.0, done=9, total=9),
        Interim(title="Built-in text", unit="PPL", value=12.3, low=11.9, high=12.8, done=8, total=32),
    )
    progress = Progress(stage="evaluating", task="Built-in text", item=8, items=32, items_per_s=2.0, interims=numbers)
    assert terminal._where(progress) == "Built-in text 8/32, 12.3 PPL, 95% interval 11.9 to 12.8, 2 items/s"
