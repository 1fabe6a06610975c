"""What comes out of the engine: numbers, item outputs, what each linear cost, and what an answer cost.

Imports neither torch nor any model code, so the page and the leaderboard can use it.
"""

from __future__ import annotations

import string
from typing import Literal

from pydantic import BaseModel, ConfigDict

from quant_engine.spec import QuantSetting

LETTERS = string.ascii_uppercase


class Result(BaseModel):
    """One number with where it comes from: a tidy row of the leaderboard.

    `stored_bits` is per quantized weight, with all side data counted. For source "paper" only the fields that the
    paper states are set. `status` collapsed: the model ran but its output is of no use (infinite or NaN perplexity, a
    score the paper prints as N). `value` is None unless status is ok, or collapsed with a number worth showing.
    """

    model_config = ConfigDict(extra="forbid")

    run_id: str | None = None
    source: Literal["paper", "measured"]
    model: str
    model_revision: str | None = None
    track: str
    method: str
    w_bits: float
    a_bits: int = 16
    group_size: int | None = None
    options: str = "{}"
    stored_bits: float | None = None
    task: str
    metric: str
    value: float | None = None
    standard_error: float | None = None
    items: int | None = None
    status: Literal["ok", "collapsed"] = "ok"
    table: str | None = None
    calibration: str | None = None
    engine_version: str | None = None
    engine_commit: str | None = None
    libraries: str | None = None
    hardware: str | None = None
    seed: int | None = None
    data_revision: str | None = None
    duration_s: float | None = None
    peak_memory_bytes: int | None = None
    command: str | None = None
    created: str | None = None


class ItemOutput(BaseModel):
    """What the model did with one question (or one window of text). All statistics come from these.

    `log_probabilities` belong to the `choices`, in their order. `group` joins items that are scored together (the
    rotations of a circular question, the two questions about a picture); `category` is the part that an item counts in;
    `measures` are further numbers, in the order of the task.
    """

    model_config = ConfigDict(extra="forbid")

    item: str
    prompt: str
    gold: list[str]
    prediction: str
    score: float
    log_probabilities: list[float] | None = None
    choices: list[str] | None = None
    group: str | None = None
    category: str | None = None
    measures: list[float] | None = None

    def without_text(self) -> ItemOutput:
        """The item without the words of its question, which are its data set's. A choice is then a letter, filled up to
        the length that it had: scores are divided by that."""
        names = {
            text: (LETTERS[index] if index < len(LETTERS) else str(index)).ljust(len(text), "·")
            for index, text in enumerate(self.choices or ())
        }
        return self.model_copy(
            update={
                "prompt": "",
                "choices": [names[text] for text in self.choices] if self.choices else self.choices,
                "gold": [names.get(text, text) for text in self.gold],
                "prediction": names.get(self.prediction, self.prediction),
            }
        )


class LayerRecord(BaseModel):
    """What quantizing one linear cost. Errors are relative: squared norm of the change over that of the original.

    `output_error` is over the calibration inputs. Where the method looks at no data it is over the tokens of one window
    of the built-in text: each linear gets what its dense block makes of the outputs of the quantized blocks before it.
    A run measures it, and all else that compares the weights before and after; until then the record of a checkpoint
    has None. Runs of earlier versions took the Hessian of four such windows, or have None. `stored_bits` counts all
    that is stored; `headline_bits` counts as the papers do, codes and signs only. `weights_before` and `weights_after`
    count the weights in equal parts of [-weights_reach, weights_reach], before and after quantization; what lies beyond
    counts in the outermost parts. Runs of earlier versions have none.
    """

    model_config = ConfigDict(extra="forbid")

    block: int
    linear: str
    out_features: int
    in_features: int
    stored_bits: float
    headline_bits: float | None = None
    weight_error: float | None = None
    output_error: float | None = None
    seconds: float
    weights_reach: float | None = None
    weights_before: list[int] | None = None
    weights_after: list[int] | None = None


class TokenShift(BaseModel):
    """What a quantized model finds of one token of the unquantized model's answer, both having read the same before it.

    `p` is the token's probability to the unquantized model and `q` to the quantized one, `divergence` the KL(P || Q) of
    their distributions in nats. `choice` is the quantized model's own first choice, with its probability there; it
    `agrees` if that is the token. Texts are None for the end of the answer.
    """

    model_config = ConfigDict(extra="forbid")

    text: str | None
    p: float
    q: float
    divergence: float
    choice: str | None
    choice_q: float
    agrees: bool


class AnswerStats(BaseModel):
    """What an answer cost so far.

    Times count only what this side computed itself (see `quant_engine.models.decode`). `ttft_s` is the time to the
    first token: picture, prompt and all. `tokens_per_s` is the rate after the first token, None before the second.
    `weight_bytes` is the memory of all the model's weights, `stored_bits` the bits stored per quantized weight, `dtype`
    the type that the model computes in, such as float32, and `prompt_dtype` that of the prompt's products.
    """

    model_config = ConfigDict(extra="forbid")

    ttft_s: float
    tokens_per_s: float | None
    tokens: int
    prompt_tokens: int
    weight_bytes: int
    stored_bits: float
    dtype: str
    prompt_dtype: str = ""

    @property
    def computed(self) -> str:
        """What the answer was computed in, in words."""
        other = self.prompt_dtype not in ("", self.dtype)
        return f"computed in {self.dtype}" + (f", the prompt in {self.prompt_dtype}" if other else "")

    def describe_weights(self, setting: QuantSetting) -> str:
        """How the weights of a model in this setting are held, in words."""
        if setting.method == "fp16":
            return self.computed
        return f"{self.stored_bits:.2f} bits stored per quantized weight, {self.computed}"
