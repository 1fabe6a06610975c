"""GGUF files, written from the format's description and read against the gguf package's values."""

import os
import re
import shutil
import struct

import pytest
import torch
from formats import plain_gguf
from models import tiny_chat
from typer.testing import CliRunner

from quant_engine.cli import app
from quant_engine.formats import published
from quant_engine.formats.gguf_header import read_header
from quant_engine.formats.load import load_published, model_ledger
from quant_engine.kernels.linear import QuantEmbedding, QuantLinear
from quant_engine.models.catalog import model_card
from quant_engine.runs import folder
from quant_engine.spec import PublishedCheckpoint, UserError


@pytest.fixture
def tiny(tiny_models):
    return tiny_models / "llama", tiny_chat.llama()


def load(path, base):
    found = published.find(PublishedCheckpoint(location=str(path)))
    return load_published(found, model_card(str(base)), "float32", "cpu")


@pytest.mark.parametrize(
    "kinds", [("Q4_0", "Q4_1"), ("Q5_0", "Q5_1"), ("Q8_0", "IQ4_NL"), ("F16", "BF16", "F32", "Q8_0")], ids="+".join
)
def test_a_file_answers_as_the_dense_model_that_it_stands_for(kinds, tiny, tmp_path, lab):
    base, made = tiny
    dense = plain_gguf.model(base, made, kinds, tmp_path / "m.gguf")
    loaded = load(tmp_path / "m.gguf", base)
    made.model.load_state_dict(dense)
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        expected = made.model(input_ids=ids).logits
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert loaded.tokenizer("Hi there")["input_ids"][-8:] == made.tokenizer("Hi there")["input_ids"][-8:]


def test_a_value_too_large_for_float16_is_said_of_the_file(tiny, tmp_path, lab):
    base, made = shutil.copytree(tiny[0], tmp_path / "base"), tiny[1]
    made.model.model.norm.weight.data[0] = 1e6
    made.model.save_pretrained(base)
    path = tmp_path / "m.gguf"
    plain_gguf.model(base, made, ("Q4_0",), path)
    found, card = published.find(PublishedCheckpoint(location=str(path))), model_card(str(base))
    words = f"The tensor output_norm.weight in {path} has values up to 1e+06, too large for float16: "
    with pytest.raises(UserError, match=re.escape(words)):
        load_published(found, card, "float16", "cpu")
    assert load_published(found, card, "float32", "cpu").model


def test_embedding_and_head_stay_packed_and_count(tiny, tmp_path, lab):
    base, made = tiny
    plain_gguf.model(base, made, ("Q4_0",), tmp_path / "m.gguf", embedding="Q8_0")
    loaded = load(tmp_path / "m.gguf", base)
    assert isinstance(loaded.model.get_input_embeddings(), QuantEmbedding)
    assert isinstance(loaded.model.get_output_embeddings(), QuantLinear)
    assert loaded.stored_bits == 4.5
    assert 4.5 < model_ledger(loaded.model).bits_per_weight < 8.5
    # Nothing dense but norms and rotary frequencies.
    assert sum(p.numel() for p in loaded.model.parameters()) < 1000


def test_a_revision_is_of_the_content(tiny, tmp_path, lab):
    base, made = tiny
    path, copy = tmp_path / "m.gguf", tmp_path / "copy" / "m.gguf"
    plain_gguf.model(base, made, ("Q4_0",), path)
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    sources = [PublishedCheckpoint(location=str(each)) for each in (path, copy)]
    first, second = (published.find(source).source.revision for source in sources)
    assert first == second
    times, content = copy.stat(), bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = published.find(sources[1]).source.revision
    assert changed != second
    with pytest.raises(UserError, match=f"is revision {changed}, not {second}: it has changed"):
        published.find(PublishedCheckpoint(location=str(copy), revision=second))


def test_a_file_is_measured_and_asked_from_the_command_line(tiny, tmp_path, lab):
    base, made = tiny
    plain_gguf.model(base, made, ("Q4_0",), tmp_path / "m.gguf")
    words = ["--model", str(base), "--checkpoint", str(tmp_path / "m.gguf")]
    done = CliRunner().invoke(app, ["run", *words, "-t", "perplexity", "--limit", "1", "--window", "64"])
    assert done.exit_code == 0, done.output
    (path,) = folder.run_folders()
    result = folder.read(path).results[0]
    assert (result.method, result.w_bits, result.stored_bits) == ("gguf:q4_0", 4, 4.5)
    asked = CliRunner().invoke(app, ["ask", "hello", *words, "--most-tokens", "3"])
    assert "GGUF Q4_0 W4A16" in asked.output


def changed(fields, **changes):
    return {**fields, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general__architecture": "bert"}, "bert"),
        ({"llama__rope__scaling__type": "yarn"}, "rotary"),
        ({"llama__expert_count": 8}, "experts"),
        ({"llama__embedding_length": 0}, "embedding_length"),
        ({"llama__block_count": "two"}, "block_count"),
        ({"llama__attention__layer_norm_rms_epsilon": "x"}, "epsilon"),
        ({"tokenizer__ggml__tokens": ["a"] * 1000}, "tokens"),
        ({"tokenizer__ggml__eos_token_id": 10**6}, "eos"),
        ({"tokenizer__ggml__token_type": [1]}, "token_type"),
        ({"llama__attention__head_count": 3}, ""),
        ({"llama__feed_forward_length": 96}, "should be"),
    ],
)
def test_a_configuration_that_makes_no_such_model_is_a_sentence(change, words, tiny, tmp_path, lab, monkeypatch):
    base, made = tiny
    fields = plain_gguf.fields
    monkeypatch.setattr(plain_gguf, "fields", lambda *args: changed(fields(*args), **change))
    plain_gguf.model(base, made, ("Q4_0",), tmp_path / "m.gguf")
    with pytest.raises(UserError, match=words):
        load(tmp_path / "m.gguf", base)


HUGE = struct.pack("<Q", 2**60)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "can't be read"),
        (b"GGML" + bytes(100), "does not begin"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + HUGE, "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + plain_gguf.text("a") + struct.pack("<II", 9, 0) + HUGE, "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + plain_gguf.text("a") + struct.pack("<II", 9, 8) + HUGE, "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + plain_gguf.text("a") + struct.pack("<II", 9, 9) + HUGE, "list"),
        (plain_gguf.file({}, [("a", (2**31, 2**31), 0, b"")]), "ends behind the file"),
        (plain_gguf.file({}, [("a", (4, 33), 2, bytes(900))]), "whole blocks"),
        (plain_gguf.file({}, [("a", (4, 32), 99, bytes(900))]), "type 99"),
        (plain_gguf.file({}, [("a", (4,), 0, bytes(16)), ("a", (4,), 0, bytes(16))]), "twice"),
        (plain_gguf.file({"general.alignment": 0}, []), "alignment"),
    ],
)
def test_a_header_that_the_file_contradicts_is_a_sentence(data, words, tmp_path):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_header(tmp_path / "m.gguf")
