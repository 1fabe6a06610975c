"""The command line as somebody uses it: what each command does, and that every bad input is one sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.main import get_command
from typer.testing import CliRunner

from quant_engine import folders
from quant_engine.checkpoints import Checkpoint, load_quantized
from quant_engine.cli import app
from quant_engine.evaluate import TASKS
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS
from quant_engine.models.decode import answer_text
from quant_engine.models.device import prompt_dtype
from quant_engine.runs import folder

GPTQ = ("--method", "gptq", "-b", 3, "-g", 16, "--samples", 4, "--length", 32, "--device", "cpu")
MEASURED = ("-t", "perplexity", "--window", 64, "--limit", 4, "--device", "cpu", "--json")


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words):
    """What a command that ends well prints to standard output."""
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def llama(lab, tiny_models):
    return tiny_models / "llama"


@pytest.fixture
def quantized(llama):
    """The output of the command quantize, and the folder that it names."""
    output = done("quantize", "-m", llama, *GPTQ)
    return output, Path(output.splitlines()[-1])


@pytest.mark.parametrize(
    ("what", "column", "names"), [("methods", "method", METHODS), ("models", "model", MODELS), ("tasks", "task", TASKS)]
)
def test_lists_name_all_that_there_is_as_json_and_as_a_table(lab, what, column, names):
    rows = json.loads(done("list", what, "--json"))
    assert set(names) <= {row[column] for row in rows}
    assert all(list(row) == list(rows[0]) for row in rows)
    table = CliRunner().invoke(app, ["list", what], env={"COLUMNS": "400"}).stdout
    assert len({line.split()[0] for line in table.splitlines()[1:] if line.strip()} & set(names)) == len(names)


def test_the_list_of_runs_is_empty_until_one_is_made_and_then_says_its_number(llama):
    assert json.loads(done("list", "runs", "--json")) == []
    (result,) = json.loads(done("run", "-m", llama, *MEASURED))
    (row,) = json.loads(done("list", "runs", "--json"))
    assert (row["run"], row["setting"]) == (result["run_id"], "FP16")
    assert row["results"] == f"perplexity {result['value']:.4g}"


def test_quantize_keeps_whole_weights_and_prints_the_bits_of_their_ledger(quantized):
    output, path = quantized
    assert Checkpoint(path).is_complete()
    assert path.parent == folders.checkpoints()
    loaded = load_quantized(path, "float32", "cpu")
    weights = 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64)  # blocks of the tiny model: attention, and the MLP
    assert f"GPTQ W3A16 g16: {weights:,} weights, {loaded.stored_bits:.4f} stored bits per weight" in output
    assert 3.5 < loaded.stored_bits < 5


def test_evaluate_measures_what_run_would_and_keeps_the_run(quantized, llama, tmp_path, monkeypatch):
    _, path = quantized
    (result,) = json.loads(done("evaluate", path, *MEASURED))
    kept = folder.read(folders.results() / result["run_id"])
    assert [row.model_dump(mode="json") for row in kept.results] == [result]
    assert result["stored_bits"] == load_quantized(path, "float32", "cpu").stored_bits
    (unquantized,) = json.loads(done("run", "-m", llama, *MEASURED))
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "another"))  # where nothing can be found
    (alone,) = json.loads(done("run", "-m", llama, *GPTQ, *MEASURED))
    assert (alone["run_id"], alone["value"], alone["items"]) == (result["run_id"], result["value"], 4)
    assert alone["value"] != unquantized["value"]


def test_evaluate_measures_a_moved_checkpoint_as_it_is(quantized, tmp_path):
    _, path = quantized
    (result,) = json.loads(done("evaluate", path, *MEASURED))
    shutil.rmtree(folders.results())
    moved = shutil.move(path, tmp_path / "elsewhere")
    assert json.loads(done("evaluate", moved, *MEASURED))[0]["value"] == result["value"]
    log = (folder.run_path(result["run_id"]) / "log.txt").read_text()
    assert f"quantized weights: {path.name}" in log
    assert "block 0" not in log  # which quantizing would say


def test_merge_writes_a_model_that_transformers_loads_and_that_computes_the_same(quantized, tmp_path):
    _, path = quantized
    target = tmp_path / "merged"
    assert done("merge", path, target, "--dtype", "float32").strip() == str(target)
    tokens = AutoTokenizer.from_pretrained(target)("Why is the sky blue?", return_tensors="pt")["input_ids"]
    merged = AutoModelForCausalLM.from_pretrained(target, dtype="float32")
    with torch.inference_mode():
        expected = load_quantized(path, "float32", "cpu").model(tokens).logits
        assert torch.allclose(merged(tokens).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_ask_prints_the_answer_of_the_quantized_model_and_its_bits(llama):
    rounding = ("--method", "rtn", "-b", 4, "-g", 16, "--device", "cpu")
    path = done("quantize", "-m", llama, *rounding).splitlines()[-1]
    loaded = load_quantized(Path(path), "float32", "cpu")
    loaded.prompt_dtype = prompt_dtype("cpu")
    output = done("ask", "Why?", "-m", llama, *rounding, "--most-tokens", 12)
    text, _, figures = output.rpartition("RTN W4A16 g16: first token after ")
    expected = answer_text(loaded, None, "Why?", 12)
    assert len(expected) > 4
    assert "".join(text.split()) == "".join(expected.split())
    assert f"{loaded.stored_bits:.2f} bits stored per quantized weight" in " ".join(figures.split())


def test_several_settings_answer_together_and_are_held_against_fp16(llama):
    low = json.loads(done("ask", "Why?", "-m", llama, "--sweep", "rtn", "-g", 32, "--most-tokens", 8, "--json"))
    assert [answer["setting"]["w_bits"] for answer in low] == [16, 8, 6, 4, 3, 2]
    assert not any(answer["problem"] for answer in low)
    assert [len(answer["shifts"]) for answer in low] == [0] + [len(low[0]["tokens"])] * 5
    assert low[1]["divergence"] < low[5]["divergence"]
    text = done("ask", "Why?", "-m", llama, "--settings", "fp16,rtn-2-g32", "--divergence", "--most-tokens", 8)
    assert low[5]["parted"] in text
    assert "RTN W2A16 g32" in text


def test_a_path_with_commas_is_one_task_and_a_task_named_twice_is_measured_once(llama, tmp_path):
    text = tmp_path / "a, b,c.txt"
    text.write_text("Some words to be read. " * 40)
    tasks = f"perplexity:{text},perplexity, perplexity:{tmp_path}/./{text.name} ,perplexity"
    results = json.loads(done("run", "-m", llama, "-t", tasks, *MEASURED[2:]))
    assert [result["task"].partition("@")[0] for result in results] == ["perplexity", f"perplexity:{text}"]


@pytest.mark.demo
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "-m", "demo-llm", "--method", "rtn", "-b", 9, "-t", "perplexity"], "Weight bits must be from 1 to 8"),
        (["run", "-m", "demo-llm", "--method", "rtn", "-b", 4, "-g", 0, "-t", "perplexity"], "Group size must be 1"),
        (["run", "-m", "demo-llm", "--method", "rtn", "-t", "perplexity"], "choose 1 to 8 bits"),
        (["run", "-m", "gpt5", "-t", "perplexity"], "There is no model 'gpt5'"),
        (["run", "-m", "demo-llm", "-t", "nothing"], "There is no task 'nothing'"),
        (["run", "-m", "demo-llm", "-t", " , "], "--tasks names no task"),
        (["run", "-m", "demo-llm", "-t", ""], "--tasks names no task"),
        (["run", "-m", "demo-llm", "-t", "perplexity,piqqa"], "There is no task 'piqqa'"),
        (["run", "-m", "demo-llm", "-t", "perplexity", "--window", 0], "window"),
        (["run", "-m", "demo-llm", "-t", "perplexity", "--limit", 0], "limit"),
        (["run", "-m", "demo-llm", "-t", "perplexity", "--dtype", "int3"], "dtype"),
        (["run", "-m", "demo-llm", "--method", "rtn", "-b", 4, "-o", "symmetric", "-t", "perplexity"], "NAME=VALUE"),
        (
            ["run", "-m", "demo-llm", "--method", "rtn", "-b", 4, "-o", "speed=9", "-t", "perplexity"],
            "no option 'speed'",
        ),
        (["quantize", "-m", "demo-llm", "--method", "fp16", "-b", 16], "fp16 is the unquantized model"),
        (["evaluate", "/no/such/folder", "-t", "perplexity"], "holds no finished quantized weights"),
        (["merge", "/no/such/folder", "/no/such/target"], "holds no finished quantized weights"),
        (["merge", "/no/such/folder", "/no/such/target", "--dtype", "int3"], "dtype is float32"),
        (["ask", "  "], "The question is empty"),
        (["ask", "a.png", "What", "is", "it?"], "in quotation marks"),
        (["ask", "What?", "--settings", "gptq"], "written such as gptq-4"),
        (["ask", "What?", "--settings", "gptq-9"], "from 1 to 8"),
        (["ask", "What?", "--sweep", "gtq"], "no method 'gtq'"),
        (["ask", "What?", "--settings", "rtn-4,fp16", "--divergence"], "name fp16 first"),
        (["ask", "What?", "--divergence"], "name them with --settings"),
        (["ask", "What?", "--settings", "fp16", "--method", "rtn"], "leave out --method"),
        (["ask", "What is this?", "-p", "/no/such.png"], "There is no picture"),
        (["ask", "What is this?", "-p", __file__], "picture"),
        (["get", "llama"], "There is only demo to get"),
        (["list", "cats"], "There is no list of 'cats'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(lab, words, sentence):
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert len([line for line in result.stderr.splitlines() if line.strip()]) == 1


@pytest.mark.demo
def test_results_that_can_not_be_written_fail_the_run_in_one_sentence(lab, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "file"))
    result = call("run", "-m", "demo-llm", "-t", "perplexity", "--limit", 1)
    assert result.exit_code == 1
    assert "can't be written" in result.stderr
    assert "LOWBIT_RESULTS" in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "list", "get", "run", "sweep", "quantize", "evaluate", "compare", "merge", "export", "push", "ask",
        "answer-examples",
    ],
)  # fmt: skip
def test_help_of_every_command_explains_it_and_each_of_its_parameters(name):
    command = get_command(app).commands[name]
    text = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "400"}).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert command.help.partition(".")[0] in " ".join(lines)
    for parameter in command.params:
        label = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
        explanation = re.sub(r"\[/?bold\]", "", parameter.help)
        assert explanation
        assert any(label in line and explanation in line for line in lines), label
