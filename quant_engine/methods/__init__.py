"""The quantization methods, one file each. To add one: write its file, and name it in METHODS."""

from quant_engine.methods import (
    awq,
    billm,
    db_llm,
    gptq,
    ir_qlora,
    normal_float,
    pb_llm,
    qlora,
    quip,
    rtn,
    slim_llm,
    smoothquant,
)
from quant_engine.methods.contract import Layer, Method, MethodCard, Options, Statistics, Training
from quant_engine.spec import QuantSetting, UserError

METHODS: dict[str, Method] = {
    module.METHOD.card.name: module.METHOD
    for module in (rtn, gptq, awq, smoothquant, db_llm, quip, normal_float, qlora, ir_qlora, billm, pb_llm, slim_llm)
}

__all__ = ["METHODS", "Layer", "Method", "MethodCard", "Options", "Statistics", "Training", "resolve_setting"]


def resolve_setting(setting: QuantSetting) -> QuantSetting:
    """The setting with every option spelled out. Raises UserError for an unknown method or an undefined setting."""
    if setting.method == "fp16":
        if setting.options or setting.group_size is not None or setting.a_bits != 16:
            raise UserError("FP16 is the unquantized model: it has no group size, activation bits or options.")
        return setting
    if setting.method not in METHODS:
        raise UserError(f"There is no method {setting.method!r}; the methods are: fp16, {', '.join(METHODS)}.")
    return METHODS[setting.method].resolve(setting)
