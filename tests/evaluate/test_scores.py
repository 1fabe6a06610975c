"""Scorers against tables of cases, every odd one of the reference included."""

import pytest

from quant_engine.evaluate.chartqa import relaxed_match
from quant_engine.evaluate.docvqa import anls, levenshtein
from quant_engine.evaluate.task import mean_and_error


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        ("10", "10.5", True),
        ("10", "10.6", False),
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("50%", "0.5", True),
        ("5%", "5", False),
        ("0", "0", True),
        ("0.0", "0", False),
        ("-3", "-3.1", True),
        ("3", "-3", False),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        (" 10", "10", True),
        ("1,000", "1000", False),
        ("2001", "1995", True),
        ("ten", "10", False),
        ("", "10", False),
        ("Blue", "blue", True),
    ],
)
def test_relaxed_accuracy(prediction, target, right):
    assert relaxed_match(prediction, target) is right


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("abcd", ["abcd"], 1),
        ("abcd", ["abcf"], 0.75),
        ("axyz", ["abcd"], 0),
        ("ab", ["abcd"], 0.5),
        ("ABCD", ["abcd"], 1),
        ("  a   b ", ["a b"], 1),
        ("wrong", ["nothing", "wrong"], 1),
        ("", [""], 1),
        ("", ["abc"], 0),
        ("12.50", ["12.80"], 0.8),
        # The distance is of the cleaned strings, the length of the raw ones.
        ("abx      ", ["abc"], 1 - 1 / 9),
    ],
)
def test_anls(prediction, references, score):
    assert anls(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("kitten", "sitting", 3), ("abc", "", 3), ("flaw", "lawn", 2)]
)
def test_levenshtein(a, b, distance):
    assert levenshtein(a, b) == levenshtein(b, a) == distance


def test_mean_and_standard_error():
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    assert mean_and_error([5.0]) == (5.0, None)
