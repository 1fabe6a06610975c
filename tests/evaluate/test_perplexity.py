import gzip
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evaluate.local_sets import LFS_POINTER
from models import tiny_chat

from quant_engine.data import texts
from quant_engine.evaluate import TASKS, Watch, parse_task
from quant_engine.evaluate import perplexity as module
from quant_engine.evaluate.perplexity import Perplexity
from quant_engine.models.load import Loaded
from quant_engine.progress import Stopped
from quant_engine.spec import RunSpec, UserError, WeightSpec

SPEC = RunSpec(weights=WeightSpec(model="tiny"), tasks=("perplexity",), window=32, limit=9)


def tiny(model=None):
    made = tiny_chat.llama()
    return Loaded(made.card, model or made.model, made.tokenizer, None, 16.0, Path())


class Uniform(torch.nn.Module):
    """Knows nothing: all tokens are equally likely."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.config = tiny_chat.llama().model.config
        self.device, self.offset = torch.device("cpu"), offset

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=torch.full((*input_ids.shape, self.config.vocab_size), self.offset))


def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary():
    outcome = Perplexity().measure(tiny(Uniform()), SPEC, Watch())
    assert outcome.value == pytest.approx(260, rel=1e-5)


def test_value_is_the_definition_and_does_not_depend_on_the_batch(monkeypatch):
    loaded = tiny()
    values = []
    for tokens in (32, 64, 4096):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", tokens)
        values.append(Perplexity().measure(loaded, SPEC, Watch()).value)
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)

    ids = torch.tensor(loaded.tokenizer(module.texts.read(module.texts.BUILTIN_EVALUATION))["input_ids"])
    losses = []
    for k in range(9):
        window = ids[k * 32 : k * 32 + 32]
        with torch.no_grad():
            logits = loaded.model(input_ids=window[None]).logits[0].double().log_softmax(-1)
        losses.append(-sum(logits[i, window[i + 1]].item() for i in range(31)) / 31)
    assert values[0] == pytest.approx(math.exp(sum(losses) / 9), rel=1e-4)


def test_the_tail_does_not_matter(tmp_path):
    file = tmp_path / "text.txt"
    values = []
    for tail in ("", "!" * 31):
        file.write_text(("The quick brown fox jumps over it. " * 5)[:160] + tail)
        outcome = Perplexity.of_file(str(file)).measure(tiny(), SPEC, Watch())
        values.append((outcome.value, len(outcome.outputs)))
    assert values[0][1] == 5
    assert values[0] == (pytest.approx(values[1][0]), values[1][1])


def test_every_window_is_kept_with_its_loss():
    outcome = Perplexity().measure(tiny(), SPEC, Watch())
    assert len(outcome.outputs) == 9
    assert outcome.value == pytest.approx(math.exp(sum(one.score for one in outcome.outputs) / 9))
    assert "Mauritania" in outcome.outputs[0].prompt


def test_not_a_number_is_collapsed_and_has_no_value():
    outcome = Perplexity().measure(tiny(Uniform(math.nan)), SPEC, Watch())
    assert (outcome.value, outcome.status) == (None, "collapsed")


def test_a_model_worse_than_guessing_is_collapsed_and_keeps_its_number(monkeypatch):
    monkeypatch.setattr(module, "window_losses", lambda loaded, windows: [math.log(261)] * len(windows))
    outcome = Perplexity().measure(tiny(), SPEC, Watch())
    assert (outcome.value, outcome.status) == (pytest.approx(261), "collapsed")


def test_it_stops_when_asked_and_reports_each_batch(monkeypatch):
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 64)
    seen = []
    with pytest.raises(Stopped):
        Perplexity().measure(tiny(), SPEC, Watch(lambda *at: seen.append(at), lambda: len(seen) == 3))
    assert seen == [(2, 9), (4, 9), (6, 9)]


def test_a_text_file_is_pinned_by_its_content(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one two three")
    name = parse_task(f"perplexity:{file}").name
    assert parse_task(name).name == name
    file.write_text("one two four")
    with pytest.raises(UserError, match="has changed"):
        parse_task(name)


def test_a_text_is_the_same_however_it_is_written(tmp_path):
    text = "one\u2028two\nthree\n"
    (tmp_path / "text.txt").write_text(text)
    expected = parse_task(f"perplexity:{tmp_path}/text.txt").name.rpartition("@")[2]
    marked = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    for content in (marked, gzip.compress(text.encode(), mtime=0), gzip.compress(marked)):
        (tmp_path / "other.txt").write_bytes(content)
        assert parse_task(f"perplexity:{tmp_path}/other.txt").name.rpartition("@")[2] == expected
        assert texts.read(tmp_path / "other.txt") == text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no text file"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf\n", "is empty"),
        (b"caf\xe9", "can't be read as UTF-8"),
        ("text".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("text".encode("utf-16-le"), "holds null characters, so it is no UTF-8 text"),
        (b"\x1f\x8bcut off", "can't be read as UTF-8"),
        (LFS_POINTER, "is a Git LFS pointer, not the file itself"),
    ],
)
def test_bad_text_files_are_one_sentence(tmp_path, content, sentence):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        parse_task(f"perplexity:{file}")


def test_a_text_shorter_than_a_window_is_one_sentence(tmp_path):
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(UserError, match="fewer than one window of 32"):
        Perplexity.of_file(str(tmp_path / "text.txt")).measure(tiny(), SPEC, Watch())


def test_an_unknown_task_is_one_sentence_that_lists_them():
    with pytest.raises(UserError, match=r"There is no task 'nothing'") as refusal:
        parse_task("nothing")
    assert all(name in str(refusal.value) for name in TASKS)


def test_every_task_says_its_name_and_what_it_measures():
    assert all(task.name == name and task.help for name, task in TASKS.items())
