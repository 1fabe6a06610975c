"""Paired statistics against plain computations, and on run folders."""

import itertools
import json
import math
from statistics import mean

import numpy as np
import pytest
from typer.testing import CliRunner

from quant_engine.cli import app
from quant_engine.evaluate import parse_task
from quant_engine.results import ItemOutput, Result
from quant_engine.runs import folder, paired
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec


def outputs(scores, predictions=None, gold=("x",), prompt="q"):
    return [
        ItemOutput(
            item=str(k),
            prompt=f"{prompt}{k}",
            gold=list(gold),
            prediction=predictions[k] if predictions else "xy"[int(not score)],
            score=score,
            log_probabilities=[-1.0, -2.0] if gold else None,
            choices=["x", "y"] if gold else None,
        )
        for k, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (8, 2, 2 * (1 + 10 + 45) / 1024), (2, 8, 0.109375)],
)
def test_mcnemar_is_the_exact_binomial(lost, gained, p):
    a = np.array([True] * lost + [False] * gained + [True] * 7)
    b = np.array([False] * lost + [True] * gained + [True] * 7)
    assert paired.mcnemar(a, b) == pytest.approx(p)


def test_mcnemar_of_many_items_is_a_number():
    assert 0 < paired.mcnemar(np.arange(20_000) % 2 == 0, np.arange(20_000) % 2 == 1) <= 1


def test_the_interval_is_that_of_the_paired_differences():
    rng = np.random.default_rng(3)
    a = rng.normal(50, 20, 400)
    b = a + rng.normal(1, 3, 400)
    low, high = paired.interval(a, b)
    d = b - a
    half = 1.96 * d.std(ddof=1) / 20
    assert (low, high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.06)
    assert paired.interval(a, b) == (low, high)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(paired, "RESAMPLES", 400)
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        a = rng.random(60) < 0.6
        b = np.where(rng.random(60) < 0.2, rng.random(60) < 0.5, a)
        low, high = paired.interval(a.astype(float), b.astype(float))
        covered += low <= 0.2 * (0.5 - 0.6) <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_values_that_are_no_numbers_have_no_interval():
    assert all(map(math.isnan, paired.interval(np.array([1.0, math.nan]), np.array([1.0, 2.0]))))


def test_flips_and_agreement():
    a = outputs([1, 1, 0, 0, 1], ["x", "x", "y", "z", "x"])
    b = outputs([1, 0, 1, 0, 1], ["x", "y", "x", "w", "x"])
    assert paired.flips(a, b) == paired.Flips(lost=1, gained=1, changed=1)
    assert paired.agreement(a, b) == pytest.approx(2 / 5)
    assert paired.flips(outputs([2.0], gold=()), outputs([2.5], gold=())) is None


def test_accuracy_is_compared_with_its_parts():
    made = paired.compare_items(parse_task("piqa"), outputs([1, 1, 1, 0]), outputs([1, 0, 0, 1]))
    head, norm = made
    assert (head.name, head.a, head.b, head.difference, head.units) == ("piqa", 75, 50, -25, 4)
    assert head.p == pytest.approx(1.0)
    assert head.flips == paired.Flips(2, 1, 0)
    assert norm.name == "piqa_norm"
    assert not head.separable


def test_perplexity_is_compared_as_perplexity():
    task = parse_task("perplexity")
    a, b = outputs([2.0, 2.2, 2.4], gold=()), outputs([2.1, 2.3, 2.5], gold=())
    (one,) = paired.compare_items(task, a, b)
    assert one.a == pytest.approx(math.exp(2.2))
    assert one.difference == pytest.approx(math.exp(2.3) - math.exp(2.2))
    assert one.low > 0
    assert (one.flips, one.agreement) == (None, None)
    assert one.p == pytest.approx(0.25, abs=0.02)


def test_only_items_that_both_were_asked_count():
    a, b = outputs([1, 1, 1, 0]), outputs([0, 1])
    assert paired.compare_items(parse_task("ai2d"), a, b)[0].units == 2
    with pytest.raises(UserError, match="no item in common"):
        paired.compare_items(parse_task("ai2d"), a, outputs([1], prompt="other"))


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(paired, "RESAMPLES", 500)


def test_methods_that_can_not_be_told_apart_are_not_better_than_each_other(few_resamples):
    rng = np.random.default_rng(0)
    base = rng.random(500)
    best, good = base + 0.1 + 0.01 * rng.random(500), base + 0.2 * (rng.random(500) - 0.5)
    as_good, bad, broken = base + 0.2 * (rng.random(500) - 0.5), base - 0.3, np.full(500, math.nan)
    found = paired.better(np.stack([best, good, as_good, bad, broken], axis=1))
    assert found.sum(axis=1).tolist() == [0, 1, 1, 3, 4]
    lower = paired.better(np.stack([best, good, bad], axis=1), higher_is_better=False)
    assert lower.sum(axis=1).tolist() == [2, 1, 0]


def test_better_is_as_the_interval_says_and_passes_on(few_resamples):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(200, 1)) + rng.normal(scale=0.5, size=(200, 6)) + np.linspace(0, 0.3, 6)
    found = paired.better(scores)
    for i in range(6):
        for j in range(6):
            assert found[i, j] >= (paired.interval(scores[:, i], scores[:, j])[0] > 0)
            assert (found[j] & found[i, j] <= found[i]).all()
    assert (np.diff(found.sum(axis=1)[np.argsort(-scores.mean(axis=0))]) >= 0).all()
    assert not found.diagonal().any()
    assert not (found & found.T).any()


def test_four_flips_to_one_side_are_no_difference_yet():
    """The percentile interval leaves out zero; the exact probability is one in eight."""
    a, b = outputs([1] * 20 + [0] * 4), outputs([1] * 16 + [0] * 8)
    head = paired.compare_items(parse_task("ai2d"), a, b)[0]
    assert head.high < 0
    assert head.p == pytest.approx(1 / 8)
    assert not head.separable
    scores = np.array([[one.score, other.score] for one, other in zip(a, b, strict=True)])
    assert not paired.better(100 * scores).any()
    assert paired.better(100 * scores[:, ::-1].repeat(2, axis=0)).tolist() == [[False, True], [False, False]]


def test_few_scores_that_differ_are_held_against_random_signs():
    """Four of nine pictures lost: one chance in eight, though the interval leaves out zero."""
    points = np.full((9, 2), 200.0)
    points[:4, 1] = (50, 50, 100, 50)
    low, high = paired.interval(points[:, 0], points[:, 1])
    assert low < high < 0
    assert paired.sign_flips(points[:, 1:] - points[:, :1])[0] == pytest.approx(1 / 8, abs=0.02)
    assert not paired.separated(points).any()
    points[:7, 1] = 50
    assert paired.separated(points).tolist() == [[False, False], [True, False]]


def test_the_probability_of_random_signs_is_that_of_all_of_them():
    rng = np.random.default_rng(3)
    differences = np.zeros((40, 5))
    differences[:9] = rng.normal(size=(9, 5))
    signs = np.array(list(itertools.product((-1, 1), repeat=9)))
    exact = (np.abs(signs @ differences[:9]) >= np.abs(differences.sum(axis=0)) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(paired.sign_flips(differences), exact, atol=0.02)


def test_who_has_the_lower_mean_has_not_the_better_rank():
    """The first beats the second on the very same items. The third is lower, but right where the first is wrong."""
    first, second, third = np.ones(60), np.ones(60), np.ones(60)
    first[:12], second[:20], third[:] = 0, 0, np.arange(60) < 39
    found = paired.better(np.stack([first, second, third], axis=1))
    assert paired.interval(third, first)[0] < 0
    assert found.sum(axis=1).tolist() == [0, 1, 1]


def test_the_same_scores_are_never_better_than_themselves(few_resamples):
    scores = np.random.default_rng(2).random((300, 1)).repeat(9, axis=1)
    assert not paired.better(scores).any()


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))

    def make(scores, task="arc_easy", data="rows 1", **setting):
        spec = RunSpec(
            weights=WeightSpec(model="demo-llm", setting=QuantSetting(**setting)), tasks=(task,), limit=len(scores)
        )
        row = Result(
            run_id=spec.run_id, source="measured", model="SmolLM2-135M", track="llm_ptq",
            method=spec.weights.setting.method, w_bits=spec.weights.setting.w_bits, task=task, metric="accuracy",
            value=100 * mean(scores), data_revision=data, stored_bits=4,
        )  # fmt: skip
        return folder.read(folder.write(spec, {}, [row], [], {task: outputs(scores)}, ""))

    return make


def test_runs_are_compared_from_their_folders(write):
    full, low = write([1, 1, 0, 1]), write([1, 0, 0, 1], method="rtn", w_bits=2)
    head, _ = paired.compare(full, low)
    assert (head.a, head.b, head.flips.lost) == (75, 50, 1)
    assert paired.find_run(low.path.name[:9]).path == low.path
    assert paired.find_run(str(low.path)).path == low.path


def test_runs_that_can_not_be_compared_say_why(write):
    full = write([1, 1, 0])
    with pytest.raises(UserError, match="no task in common"):
        paired.compare(full, write([1, 1], task="piqa"))
    with pytest.raises(UserError, match="measured on other data: rows 1 and rows 2"):
        paired.compare(full, write([1, 1, 0], data="rows 2", method="rtn", w_bits=4))
    with pytest.raises(UserError, match="There is no run 'abc'"):
        paired.find_run("abc")
    with pytest.raises(UserError, match="There is no run ''"):
        paired.find_run("")


def test_the_command_prints_the_comparison(write):
    full, low = write([1, 1, 0, 1] * 20), write([1, 0, 0, 1] * 20, method="rtn", w_bits=2)
    shown = CliRunner().invoke(app, ["compare", full.path.name, low.path.name], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    for text in ("arc_easy", "75", "50", "-25*", "SmolLM2-135M, FP16", "RTN W2A16", "75.0%"):
        assert text in shown.stdout
    asked = CliRunner().invoke(app, ["compare", full.path.name, low.path.name, "--json"])
    assert json.loads(asked.stdout)[0]["flips"] == {"lost": 20, "gained": 0, "changed": 0}
    refused = CliRunner().invoke(app, ["compare", full.path.name, "ffff"])
    assert refused.exit_code == 2
    assert "There is no run 'ffff'" in refused.stderr


def test_statistics_load_no_torch():
    import subprocess
    import sys

    code = "import sys; from quant_engine.runs import paired; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_without_the_words_of_its_questions_says_the_same_of_another():
    task = parse_task("piqa")
    answers = [("first way", "another, longer way", [-1.0, -2.5]), ("a", "b much longer", [-3.0, -2.0])]

    def outputs(flipped):
        return [
            ItemOutput(
                item=str(number),
                prompt=f"question {number}",
                gold=[first],
                prediction=second if flipped and number == 0 else first,
                score=float(not (flipped and number == 0)),
                choices=[first, second],
                log_probabilities=values,
            )
            for number, (first, second, values) in enumerate(answers)
        ]

    full = paired.compare_items(task, outputs(False), outputs(True))
    stripped = [output.without_text() for output in outputs(False)]
    assert (stripped[0].prompt, stripped[0].gold, stripped[1].choices) == ("", ["A········"], ["A", "B············"])
    assert paired.compare_items(task, stripped, outputs(True)) == full
    assert full[0].flips == paired.Flips(lost=1, gained=0, changed=0)
