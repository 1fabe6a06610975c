"""Greedy decoding: one prefill of picture and prompt, then one token per step with the key-value cache.

Times are honest on shared cores. Several settings are decoded in turns by one thread, so while one of them computes the
others stand still; each counts the time only while it computes itself. Its tokens per second are then what it would
reach alone on this machine, and not a share of it that depends on what else is being compared. Answers that are decoded
together (see open_answers.py) each count the whole of a step that they share.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from quant_engine.models.forward import Piece, embed, is_supported, last_states, picture_features
from quant_engine.models.key_values import KeyValues
from quant_engine.models.processor import format_chat
from quant_engine.results import AnswerStats
from quant_engine.spec import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from quant_engine.models.load import Loaded


Exchange = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Step:
    """One more token, and all `tokens` so far. `text` is the whole answer so far, in complete characters; `finished`
    marks the last step."""

    token: int
    tokens: tuple[int, ...]
    text: str
    stats: AnswerStats
    finished: bool


@dataclass(frozen=True)
class Beginning:
    """A prompt that was read: the first token that was found, the keys and values, how many tokens the prompt has and
    may follow, and the seconds to the first token. `prefix` are the prompt's last tokens that count as answer."""

    token: int
    cache: KeyValues | DynamicCache
    prompt_tokens: int
    limit: int
    seconds: float
    prefix: tuple[int, ...] = ()


@dataclass
class PromptCache:
    """The prompt that a model read last, as token ids [1, tokens], and its keys and values, the answer's included."""

    ids: torch.Tensor | None = None
    cache: KeyValues | DynamicCache | None = None

    def start(self, model: Any, ids: torch.Tensor) -> tuple[KeyValues | DynamicCache, int]:
        """The keys and values to read the prompt `ids` with, and how many of its tokens they cover already.

        Those are the tokens that it shares with the last prompt, if they cover the whole picture, and else none.
        """
        shared = 0 if self.ids is None else self._shared_tokens(model.config, ids)
        if shared:
            self.cache.crop(shared - self.cache.get_seq_length())  # negative: so many are dropped
        else:
            decoder = model.get_decoder()
            self.cache = KeyValues(decoder) if is_supported(decoder) else DynamicCache(config=decoder.config)
        self.ids = ids
        return self.cache, shared

    def _shared_tokens(self, config: Any, ids: torch.Tensor) -> int:
        length = min(self.ids.shape[1], ids.shape[1] - 1)  # something must be left to predict from
        different = (self.ids[0, :length] != ids[0, :length]).nonzero()
        shared = int(different[0]) if len(different) else length
        picture = (ids[0] == getattr(config, "image_token_id", -1)).nonzero()
        return 0 if len(picture) and shared <= int(picture[-1]) else shared


@dataclass(frozen=True)
class EncodedPicture:
    """What vision tower and projector make of a picture: the features of its tokens [tokens, hidden_size], and the
    seconds that it took to make them."""

    features: torch.Tensor
    seconds: float


class PictureCache:
    """The pictures encoded last, at most so many. Tower and projector are not quantized: they make the same features of
    a picture in every setting of a model."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._pictures: OrderedDict[tuple[str, ...], EncodedPicture] = OrderedDict()

    def encode(
        self, loaded: Loaded, pixel_values: torch.Tensor, image_sizes: torch.Tensor
    ) -> tuple[EncodedPicture, bool]:
        """The encoded picture, and whether it was at hand."""
        pixels = hashlib.sha256(pixel_values.cpu().view(torch.uint8).numpy()).hexdigest()
        types = f"{loaded.dtype} {loaded.prompt_dtype}"
        key = (loaded.card.id, loaded.revision, types, str(loaded.device), pixels, str(image_sizes.tolist()))
        at_hand = key in self._pictures
        if not at_hand:
            started = time.perf_counter()
            features = picture_features(loaded.model, {"pixel_values": pixel_values, "image_sizes": image_sizes})
            if features.is_cuda:
                torch.cuda.synchronize()  # the seconds are those of the work
            self._pictures[key] = EncodedPicture(features, time.perf_counter() - started)
        self._pictures.move_to_end(key)
        while len(self._pictures) > self._most:
            self._pictures.popitem(last=False)
        return self._pictures[key], at_hand


def answer(
    loaded: Loaded,
    image: Image | None,
    question: str,
    max_new_tokens: int,
    prompt_cache: PromptCache | None = None,
    pictures: PictureCache | None = None,
    earlier: Sequence[Exchange] = (),
    prefix: Sequence[int] = (),
) -> Iterator[Step]:
    """Answer a question, token by token, by always taking the most probable one.

    Ends after `max_new_tokens`, at the model's end-of-answer token, or where its context is full. `prompt_cache`
    carries over what the model has read from one question to the next about the same picture; `pictures` are shared by
    all settings of a model. The time to the first token counts a picture as if it had been encoded anew. `earlier` are
    the questions before this one, with their answers; `prefix` are the tokens that the answer begins with.

    Raises UserError for a picture given to a model that can't read it, a chat template that can't be used, and a prompt
    longer than the context.
    """
    beginning = read_prompt(loaded, image, question, max_new_tokens, prompt_cache, pictures, earlier, prefix)
    ends, weight_bytes, decoding = end_tokens(loaded), loaded.weight_bytes, 0.0
    tokens = [beginning.token]
    while True:
        finished = tokens[-1] in ends or len(tokens) >= beginning.limit
        yield step(loaded, beginning, tokens, decoding, weight_bytes, finished)
        if finished:
            return
        started = time.perf_counter()  # after the yield: what others did meanwhile is not this answer's time
        inputs = {"input_ids": torch.tensor([[tokens[-1]]], device=loaded.model.device)}
        tokens.append(_next_token(loaded.model, beginning.cache, inputs))
        decoding += time.perf_counter() - started


def _in_prompt_type(read: Callable[..., Beginning]) -> Callable[..., Beginning]:
    """Computes the large products of a function of a model in its type for prompts."""

    @wraps(read)
    def wrapped(loaded: Loaded, *args: Any, **options: Any) -> Beginning:
        with torch.autocast(loaded.device.type, torch.bfloat16, enabled=reads_prompts_in_bfloat16(loaded)):
            return read(loaded, *args, **options)

    return wrapped


def reads_prompts_in_bfloat16(loaded: Loaded) -> bool:
    """Whether a model that computes in float32 reads prompts in bfloat16."""
    supported = loaded.dtype == "float32" and is_supported(loaded.model.get_decoder())
    return supported and loaded.prompt_dtype == "bfloat16"


@_in_prompt_type
def read_prompt(
    loaded: Loaded,
    image: Image | None,
    question: str,
    max_new_tokens: int,
    prompt_cache: PromptCache | None = None,
    pictures: PictureCache | None = None,
    earlier: Sequence[Exchange] = (),
    prefix: Sequence[int] = (),
) -> Beginning:
    """Read picture and question, in one pass, as `answer` does. Raises UserError as `answer` does."""
    started = time.perf_counter()
    model = loaded.model
    inputs = prompt_inputs(loaded, image, question, earlier, prefix)
    ids = inputs["input_ids"]
    limit = answer_limit(model, ids.shape[1], max_new_tokens)
    cache, cached_tokens = (prompt_cache or PromptCache()).start(model, ids)
    spared = 0.0
    if cached_tokens:
        inputs = {"input_ids": ids[:, cached_tokens:]}
    elif pictures and "pixel_values" in inputs:
        encoded, at_hand = pictures.encode(loaded, inputs["pixel_values"], inputs["image_sizes"])
        spared = encoded.seconds if at_hand else 0.0
        inputs = {"input_ids": ids, "image_features": encoded.features}
    token = _next_token(model, cache, inputs)
    return Beginning(token, cache, ids.shape[1], limit, time.perf_counter() - started + spared, tuple(prefix))


def step(
    loaded: Loaded, beginning: Beginning, tokens: list[int], decoding: float, weight_bytes: int, finished: bool
) -> Step:
    """The last of the tokens found for an answer as a step; `decoding` is the seconds of those after the first."""
    stats = AnswerStats(
        ttft_s=beginning.seconds,
        tokens_per_s=(len(tokens) - 1) / decoding if decoding else None,
        tokens=len(tokens),
        prompt_tokens=beginning.prompt_tokens,
        weight_bytes=weight_bytes,
        stored_bits=loaded.stored_bits,
        dtype=loaded.dtype,
        prompt_dtype="bfloat16" if reads_prompts_in_bfloat16(loaded) else loaded.dtype,
    )
    answer = [*beginning.prefix, *tokens]
    return Step(tokens[-1], tuple(answer), answer_so_far(loaded.tokenizer, answer), stats, finished)


def answer_text(
    loaded: Loaded, image: Image | None, question: str, max_new_tokens: int, prompt_cache: PromptCache | None = None
) -> str:
    """The whole answer at once, without the space around it."""
    *_, last = answer(loaded, image, question, max_new_tokens, prompt_cache)
    return last.text.strip()


@torch.inference_mode()
def _next_token(model: Any, cache: KeyValues | DynamicCache, inputs: dict[str, Any]) -> int:
    """The most probable next token. Inference mode ends with each step: it must not leak out of a waiting generator."""
    if isinstance(cache, KeyValues):
        states = last_states(model.get_decoder(), [Piece(embed(model, inputs), cache)])
        with torch.autocast(states.device.type, enabled=False):  # a word hangs on their last digits
            logits = model.get_output_embeddings()(states)
    else:
        features = inputs.pop("image_features", None)
        if features is not None:
            inputs["mm_encoder_outputs"] = _as_encoded(features)
        logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]
    return int(logits[-1].float().argmax())


def prompt_inputs(
    loaded: Loaded,
    image: Image | None,
    question: str,
    earlier: Sequence[Exchange] = (),
    prefix: Sequence[int] = (),
) -> dict[str, torch.Tensor]:
    """The tensors that a model reads: its own chat format around picture, earlier questions with their answers, and the
    question; then the tokens `prefix` of its answer.

    A base model without a chat format continues the question. Control tokens that a visitor types, such as `<image>`,
    are read as plain text.
    """
    model, tokenizer, processor = loaded.model, loaded.tokenizer, loaded.processor
    if image is not None and processor is None:
        raise UserError(loaded.picture_problem)
    format_with = processor or tokenizer
    if format_with.chat_template is None:
        text = "".join(f"{asked}\n{answered}\n\n" for asked, answered in earlier) + question
        inputs = tokenizer(text, return_tensors="pt", split_special_tokens=True)
    else:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "sanitize_control_tokens": True}
        inputs = format_chat(loaded.folder, format_with, _messages(loaded, image, question, earlier), **options)
    # One prompt without padding needs no mask, and without one the fast causal attention is used.
    tensors = {name: inputs[name].to(model.device) for name in ("input_ids", "image_sizes") if name in inputs}
    if prefix:
        ids = torch.tensor([list(prefix)], dtype=torch.long, device=model.device)
        tensors["input_ids"] = torch.cat([tensors["input_ids"], ids], dim=1)
    if "pixel_values" in inputs:
        tensors["pixel_values"] = inputs["pixel_values"].to(model.device, model.dtype)
    return tensors


@torch.inference_mode()
def answer_states(
    loaded: Loaded,
    image: Image | None,
    question: str,
    answer: Sequence[int],
    earlier: Sequence[Exchange] = (),
    pictures: PictureCache | None = None,
) -> torch.Tensor:
    """What the output head gets at each position that a token of an answer is predicted from [tokens, hidden], in one
    pass over prompt and answer. Raises UserError as `answer` does."""
    inputs = prompt_inputs(loaded, image, question, earlier, answer[:-1])
    answer_limit(loaded.model, inputs["input_ids"].shape[1], 1)
    if pictures and "pixel_values" in inputs:
        encoded, _ = pictures.encode(loaded, inputs.pop("pixel_values"), inputs.pop("image_sizes"))
        inputs["mm_encoder_outputs"] = _as_encoded(encoded.features)
    return loaded.model.model(**inputs, use_cache=False).last_hidden_state[0][-len(answer) :]


def _as_encoded(features: torch.Tensor) -> dict[str, BaseModelOutputWithPooling]:
    """The features of a picture as transformers takes those that were made before."""
    return {"image": BaseModelOutputWithPooling(pooler_output=[features])}


def _messages(loaded: Loaded, image: Image | None, question: str, earlier: Sequence[Exchange]) -> list[dict[str, Any]]:
    """A conversation as chat templates take it. The picture stands in its first question."""
    texts = [*(text for exchange in earlier for text in exchange), question]
    turns = [("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]
    if not loaded.card.pictures:
        return [{"role": role, "content": text} for role, text in turns]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    if image is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": image})
    return messages


def answer_limit(model: Any, prompt_tokens: int, max_new_tokens: int) -> int:
    """How many tokens an answer has at most. Raises UserError for a prompt that fills the model's context."""
    context = model.config.get_text_config().max_position_embeddings
    if prompt_tokens >= context:
        raise UserError(
            f"Picture and question take {prompt_tokens:,} tokens, and the model reads {context:,}: shorten the"
            " question."
        )
    return min(max_new_tokens, context - prompt_tokens)


def end_tokens(loaded: Loaded) -> set[int]:
    """Every token that ends an answer: chat models often have one for the turn beside the one for the text."""
    ends = {loaded.tokenizer.eos_token_id}
    for config in (loaded.model.generation_config, loaded.model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        ends.update(ids if isinstance(ids, list) else [ids])
    return ends - {None}


def answer_so_far(tokenizer: Any, tokens: list[int]) -> str:
    """The answer in complete characters.

    A token may end in the middle of a character, which decodes to replacement marks at the end; they are held back
    until the rest has come. Whatever stands before them is final, so the text only ever grows.
    """
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).rstrip("\ufffd")


def next_text(loaded: Loaded, tokens: Sequence[int], token: int) -> str | None:
    """What a token adds to the text of those before it; None if it ends the answer."""
    if token in end_tokens(loaded):
        return None
    before = answer_so_far(loaded.tokenizer, list(tokens))
    return answer_so_far(loaded.tokenizer, [*tokens, token])[len(before) :]
