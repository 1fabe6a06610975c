import pytest

from quant_engine.runs.resolve import resolve
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError, WeightSpec

pytestmark = pytest.mark.demo


def spec(model="demo-llm", tasks=("perplexity",), **fields):
    return RunSpec(weights=WeightSpec(model=model, **fields), tasks=tasks)


def test_equal_questions_have_equal_ids_however_they_are_put():
    short = resolve(spec(setting=QuantSetting(method="gptq", w_bits=4))).spec
    spelled = resolve(
        spec(
            tasks=("perplexity", "perplexity"),
            setting=QuantSetting(method="GPTQ", w_bits=4, options={"groups": "dynamic", "act_order": False}),
            calibration=Calibration(),
        )
    ).spec
    assert short == spelled
    assert short.run_id == spelled.run_id
    assert resolve(short).spec == short


def test_a_method_that_uses_no_data_has_no_calibration_in_its_id():
    setting = QuantSetting(method="rtn", w_bits=4)
    assert resolve(spec(setting=setting, calibration=Calibration(samples=7))) == resolve(spec(setting=setting))


def test_the_weights_are_part_of_the_question():
    plan = resolve(spec())
    assert plan.spec.weights.revision
    assert resolve(spec(model="demo")).spec.weights.revision != plan.spec.weights.revision
    assert resolve(plan.spec) == plan
    with pytest.raises(UserError, match=r"on this machine is revision .*, not 0123"):
        resolve(spec(revision="0123"))


def test_what_decides_no_weights_is_not_in_their_id():
    plain, cuda = spec(), spec(tasks=("piqa",)).model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    assert resolve(plain).weights == resolve(cuda).weights
    unquantized = spec(seed=3, dtype="bfloat16", calibration=Calibration())
    assert resolve(unquantized) == resolve(plain)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "demo-lm"}, "Did you mean demo-llm"),
        ({"tasks": ("demo-docvqa",)}, "SmolLM2-135M is a text model"),
        ({"tasks": ("mmlu-99",)}, "There is no task 'mmlu-99'"),
        (
            {"setting": QuantSetting(method="gptq", w_bits=4), "calibration": Calibration(source="/no/such.txt")},
            "There is no text file",
        ),
    ],
)
def test_what_can_not_be_run_is_refused_in_a_sentence(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve(spec(**fields))
