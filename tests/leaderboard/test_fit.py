import json

import pytest

from leaderboard import fit
from leaderboard.analysis import arrange
from leaderboard.quality import column_of_task
from leaderboard.store import Store, read_paper
from leaderboard.view import Fitted
from quant_engine.models.shapes import shapes
from quant_engine.spec import UserError


@pytest.fixture(scope="module")
def board():
    return arrange(read_paper())


def test_the_parts_are_what_the_formulas_say():
    one = fit.need(shapes()["LLaMA3-8B"], 4.15625, context=8192)
    assert one.weights == pytest.approx(6.979e9 * 4.15625 / 8, rel=1e-3)
    assert one.cache == 2 * 32 * 1024 * 8192 * 2  # 1 GiB: the figure that the field quotes for 8k tokens
    assert one.cache == 2**30
    assert one.total == pytest.approx(sum(one.parts.values()))


def test_pictures_and_batches_take_their_tokens():
    shape = shapes()["LLaVA-Next-8B"]
    plain, seen = (fit.need(shape, 4, context=1000, pictures=count) for count in (0, 2))
    assert seen.cache / plain.cache == pytest.approx((1000 + 2 * 2928) / 1000)
    assert fit.need(shape, 4, context=1000, batch=4).cache == 4 * plain.cache
    assert fit.need(shape, 4, context=1000, batch=4).weights == plain.weights


def test_an_8b_model_in_16_bit_fits_24_gib_and_not_16_and_4_bits_fit_12(board):
    def fits(card, label):
        found = fit.settings(board, Fitted(card=card, context=2048)).set_index("label")
        return bool(found.loc[label, "fits"])

    assert fits("RTX 4090", "FP16")
    assert not fits("RTX 4080", "FP16")
    assert fits("RTX 3060", "GPTQ W4A16 g128")


def test_error_correction_takes_a_sixteenth_of_the_memory_of_cards_that_keep_it_there():
    shown = {"T4": 15360, "L4": 23034, "A10": 23028, "L40S": 46068, "A100 80 GB": 81920, "A100 40 GB": 40960}
    for name, mebibytes in shown.items():  # as nvidia-smi shows
        assert fit.memory_of(Fitted(card=name)) == pytest.approx(mebibytes / 1024, rel=1e-3)


def test_settings_that_fit_come_first_best_first(board, monkeypatch):
    monkeypatch.setattr(fit, "best_quality", lambda board, model: column_of_task(board, "commonsense_avg"))
    found = fit.settings(board, Fitted(card="RTX 3060", context=8192))
    fitting = found[found.fits]
    assert len(fitting) < len(found)
    assert found.fits.tolist() == sorted(found.fits, reverse=True)
    assert fitting.value.is_monotonic_decreasing
    monkeypatch.setattr(fit, "best_quality", lambda board, model: column_of_task(board, "wikitext2"))
    by_perplexity = fit.settings(board, Fitted(card="RTX 3060"))
    assert by_perplexity[by_perplexity.fits].value.is_monotonic_increasing


def test_the_most_tokens_per_second_is_bandwidth_over_bytes_read(board):
    row = fit.settings(board, Fitted(card="A100 80 GB", context=128)).set_index("label").loc["FP16"]
    assert row["tokens_per_s"] == pytest.approx(2039e9 / 16.1e9, rel=0.01)


def test_the_figure_says_what_fits_and_draws_the_card(board):
    figure = fit.figure(board, Fitted(card=None, memory=10))
    assert "fit 10 GiB with 4,096 tokens" in figure.finding
    assert figure.layout["shapes"][0]["x0"] == 10
    json.dumps(figure.data, allow_nan=False)
    nothing = fit.figure(board, Fitted(model="LLaMA3-70B", card="RTX 3060"))
    assert "No setting of LLaMA3-70B fits RTX 3060" in nothing.finding


@pytest.mark.parametrize(
    "fitted", [Fitted(card=None), Fitted(card="Abacus"), Fitted(model="Nobody's model")]
)  # fmt: skip
def test_what_cannot_be_estimated_is_a_sentence(board, fitted):
    with pytest.raises(UserError, match=r"\.$"):
        fit.figure(board, fitted)


def test_measured_peaks_stand_beside_the_estimate(make_run):
    make_run(perplexity=25.5)
    (row,) = fit.checked(Store().snapshot().frame).to_dict("records")
    assert row["Setting"] == "SmolLM2-135M RTN W4A16 g64"
    assert row["Measured GB"] == 2
    assert row["Error %"] == pytest.approx(100 * (row["Estimated GB"] / 2 - 1), abs=1)
    assert fit.checked(read_paper()).empty


def test_a_run_that_trained_is_not_compared_for_its_peak_is_its_trainings(make_run):
    make_run(method="qlora", group=None, perplexity=25.5)
    make_run(method="db_llm", bits=2, perplexity=25.5)
    assert fit.checked(Store().snapshot().frame).empty


def test_the_peak_of_a_gpu_is_that_of_tensors_alone(make_run):
    make_run(perplexity=25.5)
    frame = Store().snapshot().frame
    on_host, on_gpu = (
        fit.checked(frame.assign(device=device, command=None, conditions=""))["Estimated GB"].item()
        for device in ("cpu", "cuda")
    )
    assert on_host - on_gpu == pytest.approx(fit.HOST_OVERHEAD / 1e9, abs=0.01)
