"""95% intervals of numbers, against published tables and against how often they hold the truth."""

import math

import numpy as np
import pytest

from quant_engine.evaluate import TASKS
from quant_engine.evaluate.intervals import reach_of_error, share_interval


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # the first four: R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718),
        (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0000), (8, 10, 0.4902, 0.9433), (50, 100, 0.4038, 0.5962),
    ],
)  # fmt: skip
def test_intervals_of_shares_are_wilsons(right, count, low, high):
    assert share_interval(right / count, count) == pytest.approx((low, high), abs=5e-5)


def test_without_events_any_share_is_possible():
    assert share_interval(0.5, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("units", "quantile"),  # of Student's t, as every table prints it
    [(2, 12.706), (3, 4.303), (6, 2.571), (7, 2.447), (8, 2.365), (11, 2.228), (31, 2.042), (121, 1.980)],
)
def test_few_units_reach_as_far_as_students_t(units, quantile):
    assert reach_of_error(1.0, units) == pytest.approx(quantile, abs=2e-3)
    assert reach_of_error(0.5, units) == pytest.approx(quantile / 2, abs=2e-3)


def test_all_right_answers_are_no_certainty():
    low, high = TASKS["piqa"].interval({str(n): 100.0 for n in range(8)})
    assert (low, high) == pytest.approx((67.56, 100.0), abs=0.01)


def test_the_interval_of_a_perplexity_is_that_of_its_loss():
    losses = [2.9, 3.0, 3.1, 3.4]
    low, high = TASKS["perplexity"].interval(dict(enumerate(losses)))
    error = np.std(losses, ddof=1) / 2
    assert low == pytest.approx(math.exp(3.1 - 3.1824 * error), rel=1e-4)
    assert high == pytest.approx(math.exp(3.1 + 3.1824 * error), rel=1e-4)
    assert high - math.exp(3.1) > math.exp(3.1) - low


@pytest.mark.parametrize(
    ("task", "scores"),
    [("perplexity", [3.0]), ("perplexity", [3.0, math.nan]), ("perplexity", [3.0, 4000.0]), ("docvqa", [50.0])],
)
def test_where_nothing_can_be_known_there_is_no_interval(task, scores):
    assert TASKS[task].interval(dict(enumerate(scores))) is None


def test_an_interval_stays_where_scores_can_be():
    assert TASKS["docvqa"].interval({"a": 100.0, "b": 50.0, "c": 98.0})[1] == 100.0
    assert TASKS["divergence"].interval({"a": 0.001, "b": 0.9, "c": 0.001})[0] == 0.0


@pytest.mark.parametrize("task", ["divergence", "perplexity", "docvqa"])
def test_units_that_all_score_the_same_are_no_certainty(task):
    assert TASKS[task].interval({"a": 50.0, "b": 50.0, "c": 50.0}) is None
    assert TASKS["divergence"].interval({"a": 0.0, "b": 0.0}) is None, "nats are not right or wrong"


@pytest.mark.parametrize("task", ["perplexity", "piqa", "docvqa"])
def test_the_interval_holds_the_truth_about_95_times_of_100(task):
    generator = np.random.default_rng(0)
    draws = {
        "perplexity": lambda: generator.normal(3.0, 0.3, 8),
        "piqa": lambda: 100.0 * (generator.random(40) < 0.7),
        "docvqa": lambda: 100 * generator.beta(2, 2, 30),
    }[task]
    truth = {"perplexity": math.exp(3.0), "piqa": 70.0, "docvqa": 50.0}[task]
    intervals = [TASKS[task].interval(dict(enumerate(map(float, draws())))) for _ in range(2000)]
    assert np.mean([low <= truth <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)
