"""Tokenizers in our GGUF files, for benchmarks/interop.py: llama.cpp makes the same tokens of texts.

One of each kind that is written: pieces of SentencePiece as LLaMA 1 and 2 have them, and merges of bytes with each way
of splitting a text. They are trained here on the project's own texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import llama_cpp
import sentencepiece
import tokenizers
import transformers
from interop_cases import PROJECT, Case, Unavailable, quantized

from quant_engine.formats.export import export
from quant_engine.formats.gguf_export import SPLITS
from quant_engine.models.load import load_tokenizer

WORDS = 800
HARD = (
    "", "a", "\n\n\ttabs\r\n", "don't WE'LL I'd", "1234567 3.14 2024-11-30", "naïve café 漢字 текст",
    "🙂 family: 👩‍👩‍👧",
    "x=y+z;//(){}[]", "e\u0301 \u00a0\u200b", "THE the The   the",
)  # fmt: skip
SPACED = (" ", "  two spaces", "a<s>b</s>")
"""Texts that begin with a space, or go on behind a special token."""


def texts() -> list[str]:
    return [(PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "LICENSE")]


def pieces(folder: Path) -> None:
    """A SentencePiece model with bytes for what it has no pieces of, in the files of a LLaMA 2."""
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts() for line in text.splitlines() if line.strip()),
            model_writer=file, vocab_size=WORDS, model_type="bpe", byte_fallback=True, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special))
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def merges(split: str, folder: Path) -> None:
    """Merges of bytes within the parts of a text that a way of splitting makes."""
    steps = [{"trim_offsets": True, **step} for step in SPLITS[split]]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=split == "llama-bpe"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    content = json.loads(trained.to_str()) | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    trained = tokenizers.Tokenizer.from_str(json.dumps(content))
    trained.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(texts(), trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def tokens_apart(root: Path, make: Callable[[Path], None]) -> float:
    """The share of texts that llama.cpp makes other tokens of than the tokenizer of the base model."""
    base = root / "base"
    base.mkdir(parents=True)
    make(base)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    export(quantized(base, "rtn", 4, 32), root / "gguf", "gguf", "")
    there = llama_cpp.Llama(str(root / "gguf" / "model.gguf"), vocab_only=True, verbose=False)
    here = load_tokenizer(base)
    asked = [*texts(), *HARD, *(() if make is pieces else SPACED)]
    different = [text for text in asked if there.tokenize(text.encode(), special=True) != here(text)["input_ids"]]
    return len(different) / len(asked)


def _spaces() -> float:
    raise Unavailable(
        "llama.cpp puts a space before every text and behind special tokens, and GGUF can't say transformers' rule"
    )


def tokenizer_cases(root: Path, base: Path) -> Iterator[Case]:
    for name, make in {"pieces": pieces, **{split: partial(merges, split) for split in SPLITS}}.items():
        measure = partial(tokens_apart, root / f"tokenizer-{name}", make)
        yield Case(f"exported to gguf, a tokenizer of the kind {name}, in llama.cpp: texts of other tokens", measure, 0)
    title = "exported to gguf, a tokenizer of the kind pieces: texts that begin with a space, or behind special tokens"
    yield Case(title, _spaces, 0)
