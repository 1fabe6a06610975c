"""The published texts of perplexity, in each of their forms."""

import gzip
import random

import pytest
import torch
from evaluate import local_sets, tiny

from quant_engine.data import sources
from quant_engine.data.corpora import CORPORA, draw_windows
from quant_engine.evaluate import TASKS, Watch, parse_task
from quant_engine.evaluate.perplexity import Perplexity
from quant_engine.spec import RunSpec, UserError, WeightSpec

WORDS = tiny.llama().tokenizer


def ids(text):
    return WORDS(text)["input_ids"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sources._load.cache_clear()
    return tmp_path


def corpus(name):
    return next(corpus for corpus in CORPORA if corpus.name == name)


def test_wikitext_rows_are_joined_with_two_newlines_empty_ones_included(data):
    rows = [{"text": text} for text in ("", " = Title = \n", "", " Some text . \n")]
    local_sets.parquet(data / "Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet", rows)
    found, _ = corpus("wikitext2").token_ids(WORDS, 8, None)
    assert found == ids("\n\n = Title = \n\n\n\n\n Some text . \n")
    (data / "wikitext2_raw_test.txt").write_text("joined\n\nalready")
    assert corpus("wikitext2").token_ids(WORDS, 8, None)[0] == ids("joined\n\nalready")


def test_the_two_forms_of_ptb_are_other_splits_and_joined_otherwise(data):
    (data / "ptb.valid.txt").write_text(" the <unk> of N \n next line \n")
    (data / "ptb.test.txt").write_text(" a b \n c \n")
    assert corpus("ptb-old").token_ids(WORDS, 4, None)[0] == ids("the <unk> of N\n\nnext line")
    assert corpus("ptb-new").token_ids(WORDS, 4, None)[0] == ids("a b c")


def test_a_document_ends_at_a_newline_and_nowhere_else(data):
    text = "a\u2028b\x85c\x0cd\nsecond\n"
    for content in (text.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()):
        (data / "ptb.valid.txt").write_bytes(content)
        assert corpus("ptb-old").read()[0] == ["a\u2028b\x85c\x0cd", "second"]
    (data / "ptb.valid.txt").unlink()
    (data / "ptb.valid.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    documents, revision = corpus("ptb-old").read()
    assert documents == ["a\u2028b\x85c\x0cd", "second"]
    assert revision == corpus("ptb-old").revision()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"url": "x"}, "text is missing"),
        ({"text": ["a"]}, "text is a list, where text or a number belongs"),
        ({"text": "\ud800"}, "text holds half of a surrogate pair"),
    ],
)
def test_a_document_that_is_no_text_is_one_sentence_before_any_work(data, row, sentence):
    local_sets.jsonl(data / "c4_some.jsonl", [{"text": ""}, {"text": 7}, row])
    with pytest.raises(UserError, match=f"^C4, old form, line 3 of c4_some.jsonl: {sentence}"):
        TASKS["c4-old"].prepare()


def test_new_c4_is_the_start_of_the_first_documents(data):
    documents = [f"document {k}" for k in range(1200)]
    local_sets.jsonl(data / "c4_validation.jsonl", [{"text": text} for text in documents])
    found, revision = corpus("c4-new").token_ids(WORDS, 16, None)
    assert found == ids(" ".join(documents[:1100]))[: 256 * 16]
    assert revision.startswith("c4_validation.jsonl sha256:")


def reference_windows(documents, window, count):
    """As the GPTQ reference draws them."""
    random.seed(0)
    made = []
    for _ in range(count):
        while True:
            read = ids(documents[random.randint(0, len(documents) - 1)])
            if len(read) >= window:
                break
        start = random.randint(0, len(read) - window - 1)
        made += read[start : start + window]
    return made


def test_old_c4_is_drawn_as_the_reference_draws_it():
    rng = random.Random(5)
    documents = ["".join(rng.choices("abcdef ", k=rng.choice((5, 20, 40, 90)))) for _ in range(50)]
    found = draw_windows(documents, WORDS, 32, 256)
    assert len(found) == 256 * 32
    assert found == reference_windows(documents, 32, 256)
    assert draw_windows(documents, WORDS, 32, 3) == found[: 3 * 32]


def test_old_c4_takes_a_document_of_one_window_and_refuses_when_all_are_shorter():
    assert draw_windows(["a" * 8, "b"], WORDS, 8, 2) == ids("a" * 8) * 2
    with pytest.raises(UserError, match="no document of 9 tokens"):
        draw_windows(["a" * 8, "b"], WORDS, 9, 2)


def test_a_published_text_goes_the_way_of_any_text(data):
    text = "The quick brown fox jumps over the lazy dog. " * 20
    (data / "wikitext2_raw_test.txt").write_text(text)
    (data / "own.txt").write_text(text)
    spec = RunSpec(weights=WeightSpec(model="tiny"), tasks=("wikitext2",), window=64)
    published = TASKS["wikitext2"].measure(tiny.llama(), spec, Watch())
    own = Perplexity.of_file(str(data / "own.txt")).measure(tiny.llama(), spec, Watch())
    assert published.value == pytest.approx(own.value)
    assert published.items == len(ids(text)) // 64
    assert published.data_revision.startswith("wikitext2_raw_test.txt sha256:")


def test_an_evaluation_goes_on_at_the_next_window(data, monkeypatch):
    from evaluate.test_multiple_choice import InMemory

    from quant_engine.evaluate import perplexity
    from quant_engine.progress import Stopped

    monkeypatch.setattr(perplexity, "TOKENS_AT_ONCE", 64)
    (data / "wikitext2_raw_test.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    spec, loaded, finished, seen = (
        RunSpec(weights=WeightSpec(model="tiny"), tasks=("wikitext2",), window=64),
        tiny.llama(),
        InMemory(),
        [],
    )
    watch = Watch(should_stop=lambda: len(finished.items) == 4, finished_items=finished)
    with pytest.raises(Stopped):
        parse_task("wikitext2").measure(loaded, spec, watch)
    outcome = parse_task("wikitext2").measure(loaded, spec, Watch(lambda *at: seen.append(at), finished_items=finished))
    assert seen[0][0] == 5
    assert outcome.value == parse_task("wikitext2").measure(loaded, spec, Watch()).value
    assert torch.isfinite(torch.tensor(outcome.value))
