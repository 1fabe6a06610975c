"""The command line as somebody uses it: every bad input is one sentence with exit code 2."""

import json

import pytest
from typer.testing import CliRunner

from quant_engine.cli import app

pytestmark = pytest.mark.demo


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("what", ["methods", "models", "tasks", "runs"])
def test_lists(lab, what):
    assert call("list", what).exit_code == 0
    assert isinstance(json.loads(call("list", what, "--json").stdout), list)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "-m", "demo-llm", "--method", "rtn", "-b", 9, "-t", "perplexity"], "Weight bits must be from 1 to 8"),
        (["run", "-m", "demo-llm", "--method", "rtn", "-b", 4, "-g", 0, "-t", "perplexity"], "Group size must be 1"),
        (["run", "-m", "demo-llm", "--method", "rtn", "-t", "perplexity"], "choose 1 to 8 bits"),
        (["run", "-m", "gpt5", "-t", "perplexity"], "There is no model 'gpt5'"),
        (["run", "-m", "demo-llm", "-t", "nothing"], "There is no task 'nothing'"),
        (["run", "-m", "demo-llm", "-t", " , "], "tasks"),
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


def test_results_that_can_not_be_written_fail_the_run_in_one_sentence(lab, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "file"))
    result = call("run", "-m", "demo-llm", "-t", "perplexity", "--limit", 1)
    assert result.exit_code == 1
    assert "can't be written" in result.stderr
    assert "LOWBIT_RESULTS" in result.stderr


def test_help_of_every_command_explains_itself():
    for command in ("list", "get", "run", "quantize", "evaluate", "compare", "merge", "ask"):
        result = call(command, "--help")
        assert result.exit_code == 0
        assert len(result.stdout) > 300
