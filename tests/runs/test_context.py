"""No text is longer than what a model reads: windows are cut to its context, and the run is that of the cut window."""

import json
import shutil

import pytest
import transformers
from evaluate import hub_stand_in
from models import tiny_chat
from test_execute import do
from typer.testing import CliRunner

from quant_engine import folders, hub
from quant_engine.checkpoints import Checkpoint
from quant_engine.cli import app
from quant_engine.models.catalog import ModelCard, model_card
from quant_engine.models.context import context_length
from quant_engine.progress import Hooks, Stopped
from quant_engine.quantize import losses
from quant_engine.runs import folder, weights
from quant_engine.runs.resolve import resolve, resolve_weights
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError, WeightSpec

CONTEXT = 48
GPTQ = QuantSetting(method="gptq", w_bits=4, group_size=16)


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """A tiny Llama that reads 48 tokens."""
    folder = tmp_path_factory.mktemp("models") / "short"
    tiny = tiny_chat.llama()
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    edit(folder / "config.json", max_position_embeddings=CONTEXT)
    return folder


def asked(model, window=2048, tasks=("perplexity",), **fields):
    return RunSpec(weights=WeightSpec(model=str(model), **fields), tasks=tasks, window=window, limit=2)


def test_a_longer_window_is_the_run_of_the_context(lab, short):
    cut, exact = resolve(asked(short)).spec, resolve(asked(short, CONTEXT)).spec
    assert (cut, cut.window) == (exact, CONTEXT)
    assert resolve(asked(short, 16)).spec.window == 16
    run = folder.read(do(asked(short)))
    assert run.path == folder.run_path(exact.run_id)
    assert run.spec.window == CONTEXT
    assert "windows of 48 tokens, which is all that the model reads" in (run.path / "log.txt").read_text()
    assert f"--window {CONTEXT}" in run.results[0].command


@pytest.mark.parametrize("task", ["perplexity", "divergence"])
def test_the_command_line_says_that_the_window_is_cut(lab, short, task):
    words = ["run", "--model", str(short), "--tasks", task, "--limit", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    sentence = "The window is cut from 2,048 to 48 tokens, which is all that the model reads."
    assert sentence in done.stderr.splitlines()
    assert "windows of 48 tokens" in done.stdout
    exact = CliRunner().invoke(app, [*words, "--window", "48"])
    assert "made before" in exact.stderr
    assert "is cut" not in exact.stderr
    assert exact.stdout.replace("--window 48", "") == done.stdout.replace("--window 48", "")


def test_calibration_windows_are_cut_too_and_the_weights_are_those_of_the_cut_length(lab, short):
    long, exact = (
        resolve_weights(WeightSpec(model=str(short), setting=GPTQ, calibration=calibration))
        for calibration in (None, Calibration(length=CONTEXT))
    )
    assert long.spec == exact.spec
    assert long.spec.calibration.length == CONTEXT
    done = CliRunner().invoke(
        app, ["quantize", "-m", str(short), "--method", "gptq", "-b", "4", "-g", "16", "--samples", "2"]
    )
    assert "The calibration windows are cut from 512 to 48 tokens, which is all that the model reads." in done.stderr
    assert done.exit_code == 0, done.output


def test_what_looks_at_no_data_is_measured_within_the_context(lab, short, monkeypatch):
    seen = []

    def look(skeleton, calibration):
        seen.append(calibration)
        raise Stopped

    monkeypatch.setattr(losses, "calibration_inputs", look)
    plan = resolve_weights(WeightSpec(model=str(short), setting=QuantSetting(method="rtn", w_bits=4)))
    checkpoint = Checkpoint(weights.quantize(plan, "cpu", Hooks()))
    with pytest.raises(Stopped):
        losses.measure_losses(plan, checkpoint, "cpu", lambda block, blocks: None)
    assert seen == [Calibration(samples=1, length=CONTEXT)]


def test_examples_to_train_on_are_no_longer_than_the_context(lab, short):
    def plan(**options):
        return resolve_weights(
            WeightSpec(model=str(short), setting=QuantSetting(method="qlora", w_bits=4, options=options))
        )

    with pytest.raises(UserError, match=r"source_length=384 and target_length=128 .* 512 tokens, and short reads 48"):
        plan()
    assert plan(source_length=32, target_length=16).options.source_length == 32


def test_a_drawn_picture_that_is_longer_than_the_context_is_no_example(lab, tiny_models, tmp_path):
    shutil.copytree(tiny_models / "llava", tmp_path / "llava")
    config = tmp_path / "llava" / "config.json"
    edit(config, text_config=json.loads(config.read_text())["text_config"] | {"max_position_embeddings": 24})
    options = {"data": "demo", "steps": 1, "batch": 1, "target_length": 8}
    plan = resolve_weights(
        WeightSpec(model=str(tmp_path / "llava"), setting=QuantSetting(method="qlora", w_bits=4, options=options))
    )
    with pytest.raises(UserError, match=r"A drawn picture takes \d+ tokens .* reads 24: choose other data"):
        weights.quantize(plan, "cpu", Hooks())


CONFIGS = [
    ("llama", {"max_position_embeddings": 77}),
    ("llama", {}),
    ("llava_next", {}),
    ("llava_next", {"text_config": None}),
    ("llava_next", {"text_config": {}}),
    ("llava_next", {"text_config": {"max_position_embeddings": 77}, "max_position_embeddings": 99}),
    ("llava_next", {"text_config": {"model_type": "mistral"}}),
    ("llava_next", {"text_config": {"model_type": "qwen2"}}),
]


def card(path, family):
    return ModelCard(id=str(path), title="M", family=family, origin="folder", location=str(path))


@pytest.mark.parametrize(("family", "fields"), CONFIGS)
def test_the_context_is_what_transformers_takes(tmp_path, family, fields):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **fields}))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert context_length(card(tmp_path, family), None) == config.get_text_config().max_position_embeddings


@pytest.mark.parametrize("value", [None, "256", 256.5, 0, -1, True, [256]])
def test_a_context_that_is_no_number_of_tokens_is_one_sentence(tmp_path, value):
    for family, fields in (("llama", {}), ("llava_next", {"text_config": {"max_position_embeddings": value}})):
        fields = {"model_type": family, "max_position_embeddings": value, **fields}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        with pytest.raises(UserError, match=r"config.json says max_position_embeddings .* belongs\."):
            context_length(card(tmp_path, family), None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "can't be read"), ('{"text_config": "llama"}', "says text_config 'llama'"), ("[]", "holds no JSON object")],
)
def test_a_config_without_a_language_model_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        context_length(card(tmp_path, "llava_next"), None)


def test_a_text_model_of_another_type_that_says_nothing_is_not_cut(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"model_type": "gemma"}}))
    assert context_length(card(tmp_path, "llava_next"), None) is None


def test_of_a_hub_model_only_the_config_of_its_commit_is_fetched(tmp_path, monkeypatch, lab):
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))
    (files / "model.safetensors").write_text("not asked for")
    llama3 = model_card("llama3-8b")
    with hub_stand_in.hub({llama3.location: {"main": ("a" * 40, files)}}) as (address, listed):
        hub_stand_in.ask(monkeypatch, address, tmp_path / "cache")
        spec = resolve(asked("llama3-8b")).spec
        assert (spec.weights.revision, spec.window) == ("a" * 40, 64)
        fetched = {path.rpartition("/")[2] for path in listed if "/resolve/" in path}
        assert fetched == {"config.json"}
    hub._answers.cache_clear()
    hub_stand_in.ask(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert resolve(asked("llama3-8b")).spec == spec
    with pytest.raises(UserError, match="is not on this machine and the Hugging Face Hub can't be reached"):
        resolve(asked("llama3-8b", revision="b" * 40))


def test_the_demo_models_windows_stay(lab):
    for model in ("demo", "demo-llm"):
        if (folders.models() / model / "config.json").exists():
            assert context_length(model_card(model), None) == 8192


def test_a_hub_model_that_is_quantized_already_is_refused_before_its_weights_are_fetched(tmp_path, monkeypatch, lab):
    (tmp_path / "repository").mkdir()
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "repository" / "config.json").write_text(json.dumps(config))
    with hub_stand_in.hub({"meta-llama/Meta-Llama-3-8B": {"main": ("c" * 40, tmp_path / "repository")}}) as (hub_at, _):
        hub_stand_in.ask(monkeypatch, hub_at, tmp_path / "cache")
        with pytest.raises(UserError, match=r"^LLaMA3-8B is quantized already \(gptq, 4 bits\)"):
            resolve_weights(WeightSpec(model="llama3-8b"))
