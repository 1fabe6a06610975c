"""What is asked of the engine: a setting, its calibration, quantized weights, a run.

Imports neither torch nor any model code, so the page and the leaderboard can use it.

A *setting* is a method with bits and options. A *run* is one setting measured on one model. The same question asked
twice has the same run id, so it is found and not computed again.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

MOST_QUOTED = 80
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Text from outside as any file, database or page can hold it: lines end in a newline, and what is no text (a
    control character, half of a surrogate pair) is a replacement mark."""
    return _NO_TEXT.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _check_name(name: str) -> str:
    wrong = _NO_NAME.search(name)
    if wrong:
        raise ValueError(f"The name {quoted(name)} has the character U+{ord(wrong[0]):04X}, which no name may have.")
    return name


def quoted(value: object) -> str:
    """A value as a sentence quotes it: in ASCII where it can't be printed, and cut if it is long."""
    text = repr(value)
    return text if len(text) <= MOST_QUOTED else f"{text[: MOST_QUOTED - 2]} …"


Text = Annotated[str, AfterValidator(clean_text)]
"""Words from outside: anything may be typed; see `clean_text`."""
Identifier = Annotated[
    str,
    BeforeValidator(lambda name: _check_name(name.strip()) if isinstance(name, str) else name),
    StringConstraints(min_length=1, max_length=400),
]
"""A name or a path: refused if it has control characters, or bytes that are no UTF-8."""
OptionValue = bool | int | float | str
Dtype = Literal["float32", "bfloat16", "float16"]


class UserError(Exception):
    """Something the user can change, said in one sentence that names what to change. Never shown as a traceback."""

    def __init__(self, words: str) -> None:
        super().__init__(clean_text(words).replace("\n", " "))


def sentence(error: ValidationError) -> str:
    """The first problem of a pydantic error as one sentence for people."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" or not first["loc"]:
        return message
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("missing", "missing_argument"):
        return f"{where} is missing."
    return f"{where}: {message} (got {quoted(first['input'])})."


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_FORMATS = {"gptq": "GPTQ", "awq": "AWQ", "gguf": "GGUF", "bitsandbytes": "bitsandbytes"} | {
    "compressed-tensors": "compressed-tensors"
}
_WRITERS = {"gptqmodel": "GPTQModel", "auto-gptq": "AutoGPTQ", "autoawq": "AutoAWQ", "low-bit-lab": "Low-Bit Lab"}
"""The programs that write checkpoints, as they call themselves in files and as they are written."""


def published_title(method: str) -> str | None:
    """The name of what made a published checkpoint: "gptq:gptqmodel 7.6.0" is GPTQ, by GPTQModel 7.6.0, and
    "gguf:q4_k_m" is GGUF Q4_K_M. None for a method of ours, whose name has no colon."""
    family, colon, detail = method.partition(":")
    if not colon:
        return None
    title = _FORMATS.get(family, family)
    if family in ("gguf", "bitsandbytes", "compressed-tensors"):
        return f"{title} {detail.upper()}"
    writer, _, version = detail.partition(" ")
    return f"{title}, by {_WRITERS.get(writer, writer)} {version}".rstrip() if writer else f"{title} checkpoint"


class QuantSetting(_Frozen):
    """A method with its bits and options, such as GPTQ W4A16 g128.

    `w_bits` is the nominal width: 1 to 8, or 16 for the unquantized model; papers also print fractions (1.1, 1.7).
    `group_size` is the number of consecutive weights of a row that share a scale; None means the whole row.
    `options` belong to the method, which validates them with its own options class.
    """

    method: Identifier = "fp16"
    w_bits: float = 16
    a_bits: int = 16
    group_size: int | None = None
    options: dict[str, OptionValue] = Field(default_factory=dict)

    @field_validator("method")
    @classmethod
    def _lower(cls, method: str) -> str:
        return method.lower()

    @field_validator("w_bits")
    @classmethod
    def _weight_bits(cls, bits: float) -> float:
        if bits != 16 and not 1 <= bits <= 8:
            raise ValueError(f"Weight bits must be from 1 to 8, or 16 for the unquantized model, not {bits:g}.")
        return bits

    @field_validator("a_bits")
    @classmethod
    def _activation_bits(cls, bits: int) -> int:
        if bits != 16 and not 4 <= bits <= 8:
            raise ValueError(f"Activation bits must be from 4 to 8, or 16 to leave activations alone, not {bits}.")
        return bits

    @field_validator("group_size")
    @classmethod
    def _group(cls, size: int | None) -> int | None:
        if size is not None and size < 1:
            raise ValueError(f"Group size must be 1 or more, or empty for one group per row, not {size}.")
        return size

    @field_validator("options")
    @classmethod
    def _writable(cls, options: dict[str, OptionValue]) -> dict[str, OptionValue]:
        for name, value in options.items():
            _check_name(name)
            if isinstance(value, str):
                _check_name(value)
            elif not -(2**63) <= value < 2**63:  # not a number, either
                raise ValueError(f"Option {name} must be a number of at most 64 bits, not {quoted(value)}.")
        return options

    @model_validator(mode="after")
    def _consistent(self) -> QuantSetting:
        if (self.method == "fp16") != (self.w_bits == 16):
            raise ValueError(
                "16 weight bits belong to method fp16 and to no other: choose 1 to 8 bits for a quantization method."
            )
        return self

    @property
    def label(self) -> str:
        """As the field writes it: GPTQ W4A16 g128."""
        if self.method == "fp16":
            return "FP16"
        group = f" g{self.group_size}" if self.group_size else ""
        method = published_title(self.method) or self.method.upper()
        return f"{method} W{self.w_bits:g}A{self.a_bits}{group}"

    @property
    def code(self) -> str:
        """As links and commands write it: gptq-4-g64, smoothquant-8-a8, fp16. Options are not in it."""
        if self.method == "fp16":
            return "fp16"
        a_bits = "" if self.a_bits == 16 else f"-a{self.a_bits}"
        return f"{self.method}-{self.w_bits:g}{a_bits}{f'-g{self.group_size}' if self.group_size else ''}"


_CODE = re.compile(r"(?P<method>[a-z_]+)-(?P<w_bits>\d+(\.\d+)?)(-a(?P<a_bits>\d+))?(-g(?P<group_size>\d+))?")


def read_code(code: str) -> QuantSetting:
    """The setting that `QuantSetting.code` wrote, in any case. Raises UserError for anything else."""
    text = code.strip().lower()
    match = _CODE.fullmatch(text)
    if text == "fp16":
        return QuantSetting()
    if match is None:
        raise UserError(f"A setting is written such as gptq-4, rtn-3-g64 or fp16, not {quoted(code)}.")
    try:
        return QuantSetting(**{name: value for name, value in match.groupdict().items() if value})
    except ValidationError as error:
        raise UserError(sentence(error)) from None


class Calibration(_Frozen):
    """What a method looks at: `samples` windows of `length` tokens drawn from `source` with `seed`.

    `source` is "builtin" (public-domain prose that ships with the project) or the path of a text file; for a model that
    takes pictures also "pictures" (drawn ones with questions) or "pictures:FOLDER" (quant_engine/data/pictures.py).
    `at_once` windows go through a block together (None: as many as make 4,096 tokens). That changes the order of sums
    and nothing else: what results differ by then is the noise of arithmetic.
    """

    source: Identifier = "builtin"
    samples: int = Field(default=32, ge=1, le=4096)
    length: int = Field(default=512, ge=8, le=32768)
    seed: int = 0
    at_once: int | None = Field(default=None, ge=1, le=4096, exclude_if=lambda at_once: at_once is None)


class PublishedCheckpoint(_Frozen):
    """Weights as another program wrote them: `location` is a folder, a GGUF file, or a repository on the Hugging Face
    Hub (OWNER/NAME, or OWNER/NAME/FILE.gguf), `revision` a commit of it, or what identifies the files of a folder."""

    location: Identifier
    revision: Identifier | None = None


class WeightSpec(_Frozen):
    """All that decides a model's weights, quantized or not, and nothing else: the same ones on every device.

    `dtype` is what quantizing computes in. What the model then answers in is for whoever loads it to say. With a
    `checkpoint` all weights are read from there: `model` is then the one that they were made from, and the setting what
    the checkpoint says of itself. `only` names the linears that are quantized (quant_engine/quantize/plan.py), all if
    it is empty; the others stay in 16 bits.
    """

    model: Identifier
    revision: Identifier | None = None
    setting: QuantSetting = QuantSetting()
    calibration: Calibration | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    dtype: Dtype = "float32"
    checkpoint: PublishedCheckpoint | None = Field(default=None, exclude_if=lambda checkpoint: checkpoint is None)
    only: tuple[Identifier, ...] = Field(default=(), exclude_if=lambda only: not only)

    @field_validator("only")
    @classmethod
    def _unique_sorted(cls, only: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(only)))


class RunSpec(_Frozen):
    """One question to the engine: these weights, measured on these tasks.

    `limit` is the most items a task may use, `windows` the most windows of a text where that is another number.
    `window` is the perplexity window in tokens.
    `data` names, for each task of a resolved run, what identifies the content of its items (`Task.revision`).
    `dtype` and `device` are what the model computes in and on while it is measured.
    """

    weights: WeightSpec
    tasks: tuple[Identifier, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    windows: int | None = Field(default=None, ge=1, exclude_if=lambda windows: windows is None)
    window: int = Field(default=2048, ge=8, le=131072)
    data: dict[str, str] = Field(default_factory=dict)
    dtype: Dtype = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    @field_validator("tasks")
    @classmethod
    def _unique_sorted(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(tasks)))

    @property
    def text_windows(self) -> int | None:
        """The most windows of a text that a task may use."""
        return self.windows or self.limit

    @property
    def run_id(self) -> str:
        """The same question always has the same id: 16 hex digits of the canonical JSON's SHA-256.

        A run of earlier versions names no data, and is still found under its id.
        """
        return digest(self.model_dump(mode="json", exclude=None if self.data else {"data"}))


def digest(value: object) -> str:
    """16 hex digits that identify a JSON value, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
