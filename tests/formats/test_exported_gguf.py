"""Our weights in GGUF files: read back here and by the gguf package as what was written, or nothing is written."""

import io
import json
import shutil

import gguf
import pytest
import sentencepiece
import torch
from formats.test_exported_checkpoints import quantized
from transformers import AutoTokenizer
from typer.testing import CliRunner

from quant_engine.checkpoints.folder import load_quantized
from quant_engine.cli import app
from quant_engine.formats import published
from quant_engine.formats.contract import LayoutError
from quant_engine.formats.export import export
from quant_engine.formats.gguf import their_order
from quant_engine.formats.gguf_export import _add_pieces
from quant_engine.formats.gguf_header import read_header
from quant_engine.formats.load import load_published
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.spec import PublishedCheckpoint, UserError


@pytest.fixture(scope="module")
def base(tiny_models, tmp_path_factory):
    """The tiny model with a tokenizer that merges: a file without merges is none that llama.cpp reads."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    shutil.copytree(tiny_models / "llama", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {{"ÿ": "th", "þ": "the"}.get(t, t): n for t, n in content["model"]["vocab"].items()}
    content["model"]["merges"] = [["t", "h"], ["th", "e"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("method", "bits", "group", "options", "kind"),
    [
        ("rtn", 4, 32, {"symmetric": True}, "Q4_0"),
        ("rtn", 4, 32, {}, "Q5_0"),
        ("rtn", 3, 64, {}, "Q4_0"),
        ("rtn", 2, None, {}, "Q4_0"),
        ("awq", 4, 32, {}, "Q5_0"),
        ("rtn", 6, 32, {}, "Q8_0"),
        ("rtn", 8, 32, {"symmetric": True}, "Q8_0"),
    ],
)
def test_an_exported_file_holds_the_same_values(method, bits, group, options, kind, base, tmp_path, lab):
    target = tmp_path / "exported"
    checkpoint = quantized(base, method, bits, group, **options)
    export(checkpoint, target, "gguf", "card")
    written = load_quantized(checkpoint, "float32", "cpu")
    found = published.find(PublishedCheckpoint(location=str(target / "model.gguf")))
    read = load_published(found, model_card(str(base)), "float32", "cpu")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(target / "model.gguf").tensors}
    config = written.model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for index, blocks in enumerate(zip(read.model.model.layers, written.model.model.layers, strict=True)):
        for path, name in zip(LINEARS, names, strict=True):
            ours, expected = (block.get_submodule(path).weight.dequantize() for block in blocks)
            assert torch.equal(ours, expected), path
            tensor = theirs[f"blk.{index}.{name}.weight"]
            assert tensor.tensor_type.name == kind
            of_package = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
            leaf = path.rpartition(".")[2]
            assert torch.equal(of_package, their_order(expected, heads[leaf]) if leaf in heads else expected), path
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(read.model(input_ids=ids).logits, written.model(input_ids=ids).logits)
    assert (target / "README.md").read_text() == "card"


def test_the_tokenizer_and_its_chat_template_are_the_base_models(base, tmp_path, lab):
    checkpoint = quantized(base, "rtn", 4, 32)
    export(checkpoint, tmp_path / "exported", "gguf", "card")
    found = published.find(PublishedCheckpoint(location=str(tmp_path / "exported" / "model.gguf")))
    read = load_published(found, model_card(str(base)), "float32", "cpu").tokenizer
    written = load_quantized(checkpoint, "float32", "cpu").tokenizer
    for text in ("Hi there, the 2024!\n\n  ünïcode 漢字", "<s>system: a</s>", ""):
        assert read(text)["input_ids"] == written(text)["input_ids"]
    assert len(written("the")["input_ids"]) == 1
    assert read.chat_template == written.chat_template


def test_a_tokenizer_is_taken_over_from_another_file_of_the_same_model(base, tmp_path, lab):
    checkpoint, like = quantized(base, "rtn", 4, 32), tmp_path / "exported" / "model.gguf"
    export(checkpoint, like.parent, "gguf", "card")
    words = ["export", str(checkpoint), str(tmp_path / "again"), "--to", "gguf", "--like", str(like)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    of_files = [gguf.GGUFReader(file).fields for file in (like, tmp_path / "again" / "model.gguf")]
    assert {name: (field.types, field.contents()) for name, field in of_files[1].items()} == {
        name: (field.types, field.contents()) for name, field in of_files[0].items()
    }
    assert (tmp_path / "again" / "model.gguf").stat().st_size == like.stat().st_size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tokens: tokens[:-1], "tokens, where the model has"),
        (lambda tokens: tokens[::-1], "token 0 of .*, where the model's is"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused_and_nothing_is_written(change, words, base, tmp_path, lab):
    checkpoint, tokens = quantized(base, "rtn", 4, 32), AutoTokenizer.from_pretrained(base).get_vocab()
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.add_token_list(change(sorted(tokens, key=tokens.get)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=words):
        export(checkpoint, tmp_path / "exported", "gguf", "card", tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"GGUF file .* can't be read"):
        export(checkpoint, tmp_path / "exported", "gguf", "card", tmp_path / "missing.gguf")
    with pytest.raises(UserError, match="Leave out --like"):
        export(checkpoint, tmp_path / "exported", "gptq", "card", tmp_path / "other.gguf")
    assert not list(tmp_path.glob("*exported*"))


def test_pieces_of_a_sentencepiece_model_are_written_with_their_scores(tmp_path):
    trained = io.BytesIO()
    words = (word for text in ("the sea and the ship", "a shell on the shore") for word in text.split())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_writer=trained, vocab_size=280, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(LayoutError, match=r"tokenizer\.model"):
        _add_pieces(None, tmp_path, 300)
    (tmp_path / "tokenizer.model").write_bytes(trained.getvalue())
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    _add_pieces(writer, tmp_path, 300)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields = read_header(tmp_path / "m.gguf").fields
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    count = pieces.vocab_size()
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    assert tokens == [pieces.id_to_piece(i) for i in range(count)] + [f"[PAD{i}]" for i in range(count, 300)]
    assert scores[:count] == [pieces.get_score(i) for i in range(count)]
    assert fields["tokenizer.ggml.token_type"].count(gguf.TokenType.BYTE) == 256


@pytest.mark.parametrize(
    ("model", "method", "bits", "group", "options", "words"),
    [
        ("llama", "rtn", 4, 16, {}, "16 of 32 columns"),
        ("llama", "rtn", 8, 32, {}, "zero points"),
        ("llama", "normal_float", 4, None, {}, "codebook"),
        ("llama", "gptq", 4, 32, {"act_order": True, "groups": "dynamic"}, "order"),
        ("llava", "rtn", 4, 32, {}, "pictures"),
    ],
)
def test_what_a_file_cannot_say_is_refused_and_nothing_is_written(
    model, method, bits, group, options, words, tiny_models, tmp_path, lab
):
    checkpoint = quantized(tiny_models / model, method, bits, group, **options)
    with pytest.raises(UserError, match=words):
        export(checkpoint, tmp_path / "exported", "gguf", "card")
    assert not list(tmp_path.glob("*exported*"))


def test_the_command_writes_a_file_that_the_next_command_measures(base, tmp_path, lab):
    checkpoint, target = quantized(base, "rtn", 4, 32), tmp_path / "exported"
    done = CliRunner().invoke(app, ["export", str(checkpoint), str(target), "--to", "gguf"])
    assert done.exit_code == 0, done.output
    words = ["run", "--model", str(base), "--checkpoint", str(target / "model.gguf")]
    done = CliRunner().invoke(app, [*words, "-t", "perplexity", "--limit", "1", "--window", "64"])
    assert done.exit_code == 0, done.output
    assert "GGUF Q5_0" in done.output
