import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaNextConfig, LlavaNextImageProcessorPil, LlavaNextProcessor

from leaderboard.analysis import Query, arrange, view
from leaderboard.sizes import counted_bits, weight_bytes
from leaderboard.store import read_paper
from quant_engine.models.catalog import model_card
from quant_engine.models.files import folder_of
from quant_engine.models.shapes import most_picture_tokens, shapes


def test_an_8b_model_has_the_weights_that_the_specification_counts():
    shape = shapes()["LLaMA3-8B"]
    assert shape.quantized == pytest.approx(6.979e9, rel=1e-3)
    assert shape.unquantized == pytest.approx(1.05e9, rel=2e-3)
    assert weight_bytes("LLaMA3-8B", 16) == pytest.approx(16.06e9, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "bits", "group", "stored"),
    [
        ("FP16", 16, None, 16),
        ("GPTQ", 4, 128, 4 + 20 / 128),
        ("RTN", 3, 128, 3 + 19 / 128),
        ("DB-LLM", 2, 128, 2.25),
        ("BiLLM", 1.1, 128, 3.0),
        ("NormalFloat", 4, None, 4.127),
    ],
)
def test_side_data_is_counted(method, bits, group, stored):
    assert counted_bits("LLaMA3-8B", method, bits, group) == pytest.approx(stored, abs=2e-3)


def test_one_group_per_row_adds_little_and_nothing_is_smaller_than_its_codes():
    assert 4 < counted_bits("LLaMA3-8B", "RTN", 4, float("nan")) < 4.01
    assert 4 < counted_bits("LLaMA3-8B", "QuIP", 4, None) < 4.02


def test_what_is_not_known_is_not_guessed():
    assert counted_bits("Another model", "RTN", 4, 128) is None
    assert counted_bits("LLaMA3-8B", "Another method", 4, 128) is None
    assert weight_bytes("Another model", 4) is None


def picture_tokens(processor, sizes):
    """The tokens that a processor makes of pictures of these heights and widths."""
    return processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]


def test_no_picture_makes_more_tokens_than_counted_and_one_makes_as_many(tiny_models):
    """LLaVA-NeXT's grids, tile and patch as transformers has them by default."""
    config, tokenizer = LlavaNextConfig(), AutoTokenizer.from_pretrained(tiny_models / "llava")
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    sizes = [(height, width) for height in range(40, 1400, 97) for width in range(40, 1400, 89)]
    sizes += config.image_grid_pinpoints
    pictures = LlavaNextImageProcessorPil(size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile})
    processor = LlavaNextProcessor(pictures, tokenizer, patch, "default", num_additional_image_tokens=1)
    most = most_picture_tokens(tile, patch, config.image_grid_pinpoints)
    assert max(picture_tokens(processor, sizes)) == most == shapes()["LLaVA-Next-8B"].picture_tokens


@pytest.mark.demo
def test_the_demo_models_processor_makes_as_many_tokens_as_counted_of_some_picture_and_of_none_more():
    processor = AutoProcessor.from_pretrained(folder_of(model_card("demo"), None))
    sizes = [(height, width) for height in range(40, 1400, 97) for width in range(40, 1400, 89)]
    sizes += [(288, 288), (576, 288), (288, 576)]
    tokens = picture_tokens(processor, sizes)
    assert max(tokens) == shapes()["Demo LLaVA-NeXT"].picture_tokens
    for (height, width), count in list(zip(sizes, tokens, strict=True))[-3:]:
        ids = processor(images=Image.new("RGB", (width, height)), text="<image>")["input_ids"]
        assert sum(token == processor.image_token_id for token in ids[0]) == count


def test_every_setting_of_the_study_has_a_size():
    rows = arrange(read_paper()).rows
    assert rows.stored_bits.notna().all()
    assert np.isfinite(rows.size_gb).all()
    assert (rows.stored_bits >= np.floor(rows.w_bits)).all()


def test_a_range_of_size_or_bits_keeps_rows_inside_it():
    board = arrange(read_paper())
    rows = view(board, Query(model="LLaMA3-8B", stored=(2.5, 4.2), size=(None, 5.5))).rows
    assert len(rows)
    assert rows.stored_bits.between(2.5, 4.2).all()
    assert (rows.size_gb <= 5.5).all()


def test_column_groups_can_be_hidden():
    board = arrange(read_paper())
    seen = view(board, Query(model="LLaMA3-8B", columns=("Perplexity",)))
    assert {column.group for column in seen.columns} == {"Perplexity"}
