"""Whatever is raised in a command ends in one sentence and an exit code; --debug shows where it came from."""

import errno
import functools
import os
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from quant_engine import folders
from quant_engine.cli import app
from quant_engine.demo_training import __main__ as demo_training
from quant_engine.failures import exits_plainly, failure
from quant_engine.runs import execute
from quant_engine.spec import UserError


def commands_of(group, before=""):
    """Every command by what is typed for it, those of groups included."""
    found = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands_of(command, f"{name} ") if inner else {f"{before}{name}": command}
    return found


def registered(typer_app, before=""):
    """What typer knows of each of them."""
    found = {f"{before}{found.name or found.callback.__name__}": found for found in typer_app.registered_commands}
    for group in typer_app.registered_groups:
        found |= registered(group.typer_instance, f"{group.name} ")
    return found


COMMANDS = commands_of(get_command(app))
ERRORS = {
    "a bug": (KeyError("blocks"), 1, "The command failed inside the engine (KeyError): add --debug to see where."),
    "torch": (RuntimeError("mat1 and mat2\nmismatch"), 1, "failed inside the engine (RuntimeError)"),
    "memory": (MemoryError(), 1, "Memory ran out: choose a smaller model."),
    "GPU memory": (RuntimeError("CUDA out of memory. Tried …"), 1, "Memory ran out"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/a"), 1, "The disk is full"),
    "read-only": (
        OSError(errno.EROFS, "Read-only file system", "/a"),
        1,
        "/a can't be written (read-only file system)",
    ),
    "no file": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"),
        1,
        "/a can't be used (no such file",
    ),
    "no library": (ModuleNotFoundError("No module named 'peft'"), 1, "install what requirements.txt lists"),
    "asked wrongly": (UserError("There is no model 'x'."), 2, "There is no model 'x'."),
    "Ctrl-C": (KeyboardInterrupt(), 130, "Stopped; what was finished is kept."),
}


def words_for(name):
    """The command with something for each argument that it needs."""
    words = name.split()
    for parameter in COMMANDS[name].params:
        if parameter.required:
            words += parameter.opts[:1] if parameter.param_type_name == "option" else []
            words.append("4")
    return words


@pytest.fixture
def failing(monkeypatch):
    """Makes a command raise an error: failing(name, error)."""

    def fail(name, error):
        found = registered(app)[name]

        @functools.wraps(found.callback)
        def raising(*_, **__):
            raise error

        monkeypatch.setattr(found, "callback", raising)

    return fail


@pytest.mark.parametrize(("error", "code", "sentence"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_a_command_raises_is_one_sentence_on_standard_error(lab, failing, name, error, code, sentence):
    failing(name, error)
    result = CliRunner().invoke(app, words_for(name))
    assert (result.exit_code, result.stdout) == (code, "")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_debug_before_a_command_or_behind_it_shows_the_traceback_too(lab, failing, name):
    failing(name, KeyError("blocks"))
    for words in (["--debug", *words_for(name)], [*words_for(name), "--debug"]):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "Traceback" in result.stderr
        assert "raise error" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: The command failed inside the engine (KeyError)")


def test_behind_two_dashes_debug_is_a_word_like_others(lab, failing, monkeypatch):
    seen = []
    (found,) = [found for found in app.registered_commands if found.callback.__name__ == "ask"]
    monkeypatch.setattr(found, "callback", functools.wraps(found.callback)(lambda words, **_: seen.extend(words)))
    assert CliRunner().invoke(app, ["ask", "--", "--debug"]).exit_code == 0
    assert seen == ["--debug"]


def test_a_run_that_fails_in_the_engine_names_its_log_and_debug_shows_it(lab, tiny_models, monkeypatch):
    def broken(*_):
        raise KeyError("blocks")

    monkeypatch.setattr(execute, "execute", broken)
    words = ["run", "-m", str(tiny_models / "llama"), "-t", "perplexity", "--window", "64", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "The run failed: The run failed inside the engine (KeyError): the log has the details." in result.stderr
    assert "Its log: " in result.stderr
    assert "Traceback" not in result.stderr
    assert "KeyError: 'blocks'" in CliRunner().invoke(app, [*words, "--debug"]).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lists"], "No such command 'lists'"),
        (["list", "--colour"], "No such option: --colour"),
        (["run", "-m", "x"], "Missing option '--tasks'"),
        (
            ["run", "-m", "x", "-t", "perplexity", "--limit", "many"],
            "Invalid value for '--limit': Input should be a valid integer",
        ),
        (
            ["ask", "Why?", "--most-tokens", "0"],
            "Invalid value for '--most-tokens': Input should be greater than or equal to 1",
        ),
        (["--debug"], "Missing command"),
    ],
)
def test_a_command_line_that_can_not_be_read_says_why_and_ends_with_2(words, said):
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_words_that_are_no_text_are_printed_all_the_same(lab):
    words = [os.fsencode(sys.executable), b"-m", b"quant_engine", b"list", b"caf\xe9\x1b[31m"]
    done = subprocess.run(
        words, cwd=folders.PROJECT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: There is no list of 'caf")
    assert b"\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_result_that_standard_output_can_not_hold_is_printed_all_the_same(lab):
    script = (
        "import sys; from quant_engine import cli, terminal; sys.argv = ['', 'list', 'runs']\n"
        "terminal.LISTS['runs'] = lambda: (['run'], [['caf\\udce9 \\u2192']]); cli.main()"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], cwd=folders.PROJECT, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\udce9 \\u2192" in done.stdout


def test_training_that_fails_is_one_sentence_and_goes_on_after_a_stop(tmp_path, monkeypatch, capsys):
    for error, code, sentence in ERRORS.values():

        def stage(*_, error=error):
            raise error

        monkeypatch.setattr(demo_training, "STAGES", {"tower": stage})
        monkeypatch.setattr("torch.set_flush_denormal", lambda on: None)  # it would stay on for the tests behind this
        monkeypatch.setattr(sys, "argv", ["demo_training", "--folder", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            demo_training.main()
        assert ended.value.code == code
        words = capsys.readouterr().err
        assert sentence.replace("command", "training") in words
        assert len(words.splitlines()) == 1


def test_without_a_word_about_debug_the_arguments_of_the_process_say_it(monkeypatch, capsys):
    for arguments, traceback in ((["app.py"], False), (["app.py", "--debug"], True)):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit), exits_plainly("page", "start the page again"):
            raise KeyError("tabs")
        assert ("Traceback" in capsys.readouterr().err) == traceback


def test_a_worker_refers_to_its_log():
    assert failure(KeyError(), "run", "less", "again") == (
        "The run failed inside the engine (KeyError): the log has the details."
    )
