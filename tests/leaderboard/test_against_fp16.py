import numpy as np
import pytest

from leaderboard.against_fp16 import percent_of_fp16, shade

NAN = float("nan")


def test_the_percent_is_the_share_of_the_score_or_of_the_perplexity_turned_over():
    values, reference = np.array([[8.0, 60.0], [NAN, 80.0]]), np.array([[6.0, 80.0], [6.0, NAN]])
    lower, collapsed = np.array([True, False]), np.array([[False, False], [True, False]])
    np.testing.assert_allclose(percent_of_fp16(values, reference, lower), [[75, 75], [NAN, NAN]])
    np.testing.assert_allclose(percent_of_fp16(values, reference, lower, collapsed), [[75, 75], [0, NAN]])


@pytest.mark.parametrize(
    ("value", "reference", "lower", "expected"),
    [
        (6.0, 6.0, True, 0),
        (60.0, 6.0, True, -1),
        (6e5, 6.0, True, -1),
        (6.0 * 10**0.25, 6.0, True, -0.5),
        (6.0 / 10**0.25, 6.0, True, 0.5),
        (40.0, 80.0, False, -1),
        (70.0, 80.0, False, -0.5),
        (90.0, 80.0, False, 0.5),
    ],
)
def test_the_shade_is_the_root_of_the_loss(value, reference, lower, expected):
    assert shade(np.array([value]), np.array([reference]), lower) == pytest.approx(expected)


def test_a_collapse_without_a_number_has_the_full_shade_and_nothing_to_compare_has_none():
    shades = shade(np.full(3, NAN), np.array([5.0, NAN, 5.0]), False, np.array([True, True, False]))
    np.testing.assert_array_equal(shades, [-1, -1, NAN])
