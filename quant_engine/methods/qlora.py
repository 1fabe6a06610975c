"""QLoRA: NormalFloat weights stay frozen, and low-rank adapters beside them are trained on texts.

    y = x W_hat^T + (alpha / r) * dropout(x) A^T B^T        A [r, in_features], B [out_features, r]

Dettmers et al., QLoRA: efficient finetuning of quantized LLMs, arXiv 2305.14314, equation 5. Gradients go through
W_hat and only A and B are trained, on all seven linears of every block; A starts Kaiming-uniform, B at zero. Defaults
are those of the reference's qlora.py with the lengths of IR-QLoRA's Alpaca script, which the study's numbers come from:
AdamW, a constant learning rate (the warm-up that the reference's command line names has no effect on it), no weight
decay, gradients clipped at 0.3; sequences of similar length together; the loss is on the answers alone.
The paper trains in bfloat16, the script in float32; here the type that quantizing computes in decides, and adapters
train in float32. They are kept in float16 beside the frozen weights.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from quant_engine.data import instructions
from quant_engine.methods import normal_float
from quant_engine.methods.contract import Method, MethodCard
from quant_engine.spec import QuantSetting

ALPHA = 16
"""The adapters' product counts ALPHA / rank times."""


class QloraOptions(normal_float.NormalFloatOptions):
    data: str = Field(
        "builtin",
        description="What to train on: builtin (text), demo (pictures with questions), a json, jsonl, csv or parquet "
        "file or a folder of such with the columns instruction and output or text, or hub:NAME for a hub data set.",
    )
    rank: int = Field(64, ge=1, le=1024, description="Rank of the adapters.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's inputs left out while training.")
    steps: int = Field(10000, ge=1, description="Optimizer steps.")
    batch: int = Field(16, ge=1, description="Examples of a step.")
    learning_rate: float = Field(2e-4, gt=0, description="Constant learning rate of AdamW.")
    source_length: int = Field(384, ge=1, description="Longest prompt in tokens; longer ones are cut.")
    target_length: int = Field(128, ge=2, description="Longest answer, or text, in tokens; longer ones are cut.")
    held_out: int = Field(1024, ge=0, description="Examples not trained on, at most a tenth; their loss is measured.")
    gradient_checkpointing: bool = Field(True, description="Save memory by computing each block twice.")

    @field_validator("data")
    @classmethod
    def _pinned(cls, data: str) -> str:
        return instructions.pin(data)


def stored_bits(out_features: int, in_features: int, setting: QuantSetting, options: QloraOptions) -> float:
    """Bits per weight: the frozen weights, and two 16-bit factors of the rank."""
    frozen = normal_float.stored_bits(out_features, in_features, setting, options)
    return frozen + 16 * options.rank * (out_features + in_features) / (out_features * in_features)


METHOD = Method(
    card=MethodCard(
        name="qlora",
        title="QLoRA",
        idea="Freeze the weights in NormalFloat and train small low-rank adapters beside them, with gradients that "
        "pass through the frozen weights. Adapts a model to data in little memory.",
        formula=r"y = x\hat W^\top + \tfrac{\alpha}{r}\,(xA^\top)B^\top,\quad \hat W = \mathrm{NF}_b(W)",
        stored="b-bit codes and 8-bit scales as NormalFloat; per linear two 16-bit factors of the chosen rank",
        bits=(2, 3, 4),
        grouped=False,
        calibrated=False,
        reference="Dettmers et al., QLoRA: efficient finetuning of quantized LLMs",
        url="https://arxiv.org/abs/2305.14314",
    ),
    Options=QloraOptions,
    quantize=normal_float.quantize,
    stored_bits=stored_bits,
    fine_tunes=True,
)
