"""What makes a LLaVA-NeXT model's inputs of pictures and questions, held against the model before any use."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from quant_engine.models.check import read_json, reason
from quant_engine.spec import UserError, quoted

_TRIED = ((40, 40), (120, 40), (40, 120))
"""Widths and heights of the pictures that a processor is tried on."""
_SIZES = ("size", "crop_size", "image_grid_pinpoints")
_LARGEST_SIDE = 4096
_CLASS_TOKENS = {"clip_vision_model": True, "siglip_vision_model": False}
"""Whether a vision tower puts a class token before its patches."""
_CONFIG, _OLDER_CONFIG = "processor_config.json", "preprocessor_config.json"


def load_processor(folder: Path, config: Any, tokenizer: Any) -> LlavaNextProcessor:
    """The processor of a LLaVA-NeXT folder.

    What older folders don't say of themselves (patch size, feature selection, class token) is taken from the model's
    `config`. Raises UserError, one sentence, if there is no usable processor or chat template, or if it would make
    other image tokens than the model has features for.
    """
    _check_layer(folder, config)
    try:
        processor = _read(folder, config, tokenizer)
        _check_image_token(folder, processor, config)
        for width, height in _TRIED:
            _check_features(folder, processor, config, Image.new("RGB", (width, height)))
    except UserError:
        raise
    except Exception as error:  # whatever transformers raises at a field that makes no sense
        why = reason(error).removesuffix(".")
        raise UserError(f"The picture processor in {folder} can't be used ({why}): fetch its files again.") from None
    _check_chat(folder, processor)
    return processor


def _read(folder: Path, config: Any, tokenizer: Any) -> LlavaNextProcessor:
    files = [folder / name for name in (_CONFIG, _OLDER_CONFIG)]
    stated = {path.name: read_json(path) for path in files if path.exists()}
    if "image_processor" not in stated.get(_CONFIG, {}) and _OLDER_CONFIG not in stated:
        raise UserError(
            f"{folder} does not say how pictures are prepared: put the model's {_OLDER_CONFIG} (or {_CONFIG}) there; "
            "questions without a picture need none."
        )
    for name, content in stated.items():
        _check_sizes(folder / name, content)
    processor = LlavaNextProcessor.from_pretrained(
        folder,
        image_processor=LlavaNextImageProcessorPil.from_pretrained(folder, local_files_only=True),
        tokenizer=tokenizer,
        local_files_only=True,
    )
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if not any("num_additional_image_tokens" in content for content in stated.values()):
        processor.num_additional_image_tokens = int(config.vision_feature_select_strategy == "default")
    return processor


def _check_sizes(path: Path, content: Any, picture: bool = False) -> None:
    """Raises UserError for a side of a picture that would take gigabytes to try. `picture` says whether `content` is
    part of a size."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, part in parts:
        _check_sizes(path, part, picture or name in _SIZES)
    if picture and isinstance(content, int | float) and content > _LARGEST_SIDE:
        raise UserError(
            f"{path} has pictures of {quoted(content)} pixels a side, where {_LARGEST_SIDE} are the most: correct that "
            "file, or fetch it again."
        )


def _check_layer(folder: Path, config: Any) -> None:
    """The layer of the vision tower that features are taken from must be one of its layers."""
    layers, count = config.vision_feature_layer, config.vision_config.num_hidden_layers
    for layer in layers if isinstance(layers, list) else [layers]:
        if not 1 <= abs(layer) <= count:
            raise UserError(
                f"{folder / 'config.json'} has vision_feature_layer {quoted(layer)}, and its vision tower has {count} "
                "layers: correct that file, or fetch it again."
            )


def _check_image_token(folder: Path, processor: LlavaNextProcessor, config: Any) -> None:
    """One token must stand for the picture, the one that the model looks for, and have an embedding."""
    token, wanted, rows = processor.image_token, config.image_token_id, config.text_config.vocab_size
    ids = processor.tokenizer.encode(token, add_special_tokens=False)
    if ids != [wanted] or not 0 <= wanted < rows:
        raise UserError(
            f"The image token {token!r} in {folder} is {_tokens(ids)} to the tokenizer, and the model looks for number "
            f"{wanted} among the {rows} rows of its embedding: give the tokenizer and the config.json of one model."
        )


def _tokens(ids: list[int]) -> str:
    return f"number {ids[0]}" if len(ids) == 1 else f"{len(ids)} tokens"


def _check_features(folder: Path, processor: LlavaNextProcessor, config: Any, picture: Image.Image) -> None:
    """For this picture, processor and model must agree on tiles, their size, and the number of image tokens."""
    vision, default = config.vision_config, config.vision_feature_select_strategy == "default"
    if _CLASS_TOKENS.get(vision.model_type, default) != default:
        raise UserError(
            f"{folder / 'config.json'} has vision_feature_select_strategy {config.vision_feature_select_strategy!r}, "
            f"which does not go with a {vision.model_type}: it is 'default' where there is a class token, else 'full'."
        )
    inputs = processor(images=picture, text=processor.image_token, return_tensors="pt")
    size = picture.size[::-1]
    pixels = tuple(inputs["pixel_values"].shape[1:])
    tiles = image_size_to_num_patches(list(size), config.image_grid_pinpoints, vision.image_size)
    side = vision.image_size
    if pixels != (tiles, 3, side, side):
        raise UserError(
            f"The picture processor in {folder} makes {pixels[0]} tiles of {pixels[-2]} by {pixels[-1]} pixels of a "
            f"picture, and the model reads {tiles} of {side} by {side}: correct its sizes and grid by config.json."
        )
    by_config = copy.copy(processor)
    by_config.patch_size, by_config.num_additional_image_tokens = vision.patch_size, 0
    features = by_config._get_number_of_features(*size, side, side)
    tokens = int((inputs["input_ids"] == config.image_token_id).sum())
    if tokens != features:
        raise UserError(
            f"The picture processor in {folder} makes {tokens} image tokens of a picture, and the model {features} "
            "features: correct its patch_size, vision_feature_select_strategy and num_additional_image_tokens."
        )


def _check_chat(folder: Path, processor: LlavaNextProcessor) -> None:
    """The chat template must put the picture and the question into the text, whatever else it says."""
    question = "What is it?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    if processor.chat_template is None:
        raise UserError(f"{folder} has no chat template: put the model's chat_template.jinja there.")
    text = format_chat(folder, processor, [{"role": "user", "content": content}], tokenize=False)
    if text.count(processor.image_token) != 1 or question not in text:
        raise UserError(
            f"The chat template {folder / 'chat_template.jinja'} does not put one picture and the question into the "
            "text: put the model's own chat_template.jinja there."
        )


def format_chat(folder: Path, processor: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    """A conversation in a model's chat format, by its processor or its tokenizer. Raises UserError if the template
    can't be used for it."""
    try:
        return processor.apply_chat_template(messages, add_generation_prompt=True, **options)
    except Exception as error:  # whatever a template raises, on purpose or not
        raise UserError(
            f"The chat template {folder / 'chat_template.jinja'} can't be used for a question "
            f"({reason(error).removesuffix('.')}): put the model's own chat_template.jinja there."
        ) from None
