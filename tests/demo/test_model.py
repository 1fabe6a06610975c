"""The composed demo model: loads with plain transformers, takes pictures of any size, answers, and is fast enough."""

import pytest

from quant_engine import folders
from quant_engine.data.drawn import suite

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def loaded():
    folder = folders.models() / "demo"
    if not (folder / "complete.json").exists():
        pytest.skip("run: python -m quant_engine get demo")
    import torch

    from quant_engine.demo_training.score import load

    return load(folder, torch.device("cpu"))


def test_it_is_a_plain_llava_next_with_its_own_processor(loaded):
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

    assert type(loaded.model) is LlavaNextForConditionalGeneration
    assert type(loaded.processor) is LlavaNextProcessor
    assert loaded.model.lm_head.weight is loaded.model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((288, 288), 16, 16),
        ((576, 288), 16, 32),
        ((288, 576), 32, 16),
        ((640, 480), 16, 22),  # as high as the tiles, and not as wide
        ((90, 60), 10, 16),
        ((300, 1200), 32, 8),
        ((1, 1), 16, 16),
    ],
)
def test_a_picture_of_any_size_becomes_as_many_features_as_tokens(loaded, size, rows, columns):
    from PIL import Image

    inputs = loaded.processor(images=Image.new("RGB", size, "white"), text="<image>", return_tensors="pt")
    (features,) = loaded.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    tokens = (inputs["input_ids"] == loaded.model.config.image_token_id).sum().item()
    assert tokens == len(features) == 256 + rows * (columns + 1)


def test_its_answers_depend_on_the_picture(loaded):
    from PIL import Image

    from quant_engine.models.decode import answer_text

    items = suite.items("demo-chartqa", 6)
    blank = Image.new("RGB", (288, 288), "white")
    drawn = [answer_text(loaded, item.image(), item.question, 8) for item in items]
    assert drawn != [answer_text(loaded, blank, item.question, 8) for item in items]


def test_training_sees_the_picture_exactly_as_the_processor_makes_it(loaded):
    import torch

    from quant_engine.data.drawn.pictures import picture
    from quant_engine.demo_training.labels import cut_views
    from quant_engine.demo_training.lessons import picture_length
    from quant_engine.demo_training.tower import normalised

    drawing = picture("form", "test", 0).drawing
    views = cut_views(drawing)
    inputs = loaded.processor(images=drawing.image, text="<image>", return_tensors="pt")
    tiles = normalised(torch.from_numpy(views.tiles)).float()
    assert torch.allclose(inputs["pixel_values"][0], tiles, atol=0.01)
    assert inputs["input_ids"].shape[1] == picture_length(views)
