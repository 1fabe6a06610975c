"""Damaged checkpoints: each is read, or refused in one sentence; none is a traceback, a hang, or more memory than it
is large."""

import json
import os
import random
import re
import resource
import shutil
import time

import psutil
import pytest
import torch
from formats import damage, plain, plain_gguf
from models import tiny_chat
from typer.testing import CliRunner

from quant_engine import folders
from quant_engine.cli import app
from quant_engine.formats import published
from quant_engine.formats.load import load_published
from quant_engine.models.catalog import model_card
from quant_engine.runs import folder as runs
from quant_engine.spec import PublishedCheckpoint, UserError

DAMAGED = int(os.environ.get("DAMAGED", "24"))
"""Files of each format that the suite damages, in each way in turn; DAMAGED=500 takes a minute."""
SPARE_BYTES = 2**28
"""What reading a file of some 100 kB may take of address space once another was read: a few threads' worth."""
SLOWEST_S = 30
LONGEST_SENTENCE = 500
PACKED = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}, "input_activations": None}
CONFIGURATIONS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {"group_0": PACKED}},
    "bitsandbytes": {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"},
}
MAKE = {
    "gptq": lambda n, r, c: plain.gptq(r, c, 4, 16, act_order=True, seed=n),
    "awq": lambda n, r, c: plain.awq_gemm(r, c, 16, seed=n),
    "compressed-tensors": lambda n, r, c: (
        plain.compressed(r, c, 4, c // 16, symmetric=False, seed=n) if n % 2 else plain.float8(r, c, (r, 1), seed=n)
    ),
    "bitsandbytes": lambda n, r, c: (
        plain.four_bits(r, c, "nf4", block=32, seed=n) if n % 2 else plain.llm_int8(r, c, seed=n)
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tiny_models, tmp_path_factory):
    """A whole checkpoint of each format: the file with its weights."""
    root = tmp_path_factory.mktemp("whole")
    base = tiny_models / "llama"
    for name, quantization in CONFIGURATIONS.items():
        plain.checkpoint(base, root / name, quantization, MAKE[name])
    (root / "gguf").mkdir()
    plain_gguf.model(base, tiny_chat.llama(), ("Q4_0", "Q4_1"), root / "gguf" / "m.gguf")
    return {name: root / name / "model.safetensors" for name in CONFIGURATIONS} | {"gguf": root / "gguf" / "m.gguf"}


@pytest.fixture
def bounded_memory(checkpoints, tiny_models, lab):
    """Address space that is not much more than what whole files took: a size that a file invents is then not to be
    had."""
    for file in checkpoints.values():
        load(file.parent, file, model_card(str(tiny_models / "llama")))
    taken = psutil.Process().memory_info().vms
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def load(folder, file, card):
    """Reads a checkpoint and takes a step through its model."""
    source = PublishedCheckpoint(location=str(folder / file.name if file.suffix == ".gguf" else folder))
    loaded = load_published(published.find(source), card, "float32", "cpu")
    with torch.inference_mode():
        loaded.model(input_ids=torch.arange(4, 8)[None])


def refusal(folder, file, card):
    """Why a checkpoint is refused; None where it is read."""
    try:
        load(folder, file, card)
    except UserError as error:
        return str(error)
    return None


def check_sentence(words, folder):
    """A sentence names the file or its folder, is one, and is short enough to be read."""
    assert str(folder) in words, words
    words = words.replace(str(folder), "FOLDER")
    assert re.fullmatch(r"[^\n]+\.", words), words
    assert words.isprintable(), words
    assert len(words) < LONGEST_SENTENCE, words
    assert not re.search(r"[.!?]\s+[A-Z]", words), words
    assert ": " in words or "; " in words, words  # what to change


@pytest.mark.timeout(600 + DAMAGED)
@pytest.mark.parametrize("format", [*CONFIGURATIONS, "gguf"])
def test_a_damaged_file_is_read_or_refused_in_a_sentence(
    format, checkpoints, tiny_models, tmp_path, lab, bounded_memory
):
    card, file, refused = model_card(str(tiny_models / "llama")), checkpoints[format], 0
    kinds = damage.kinds(file)
    for seed in range(DAMAGED):
        kind, folder = list(kinds)[seed % len(kinds)], tmp_path / str(seed)
        shutil.copytree(file.parent, folder)
        kinds[kind](folder, random.Random(seed))
        begin = time.monotonic()
        try:
            words = refusal(folder, file, card)
            assert time.monotonic() - begin < SLOWEST_S
            if words:
                check_sentence(words, folder)
        except BaseException as error:
            error.add_note(f"{kind}, seed {seed}")
            raise
        refused += bool(words)
        shutil.rmtree(folder)
    assert refused > DAMAGED / 2


OLDER = (
    {"group_size": 0},
    {"group_size": "sixteen"},
    {"group_size": 10**12},
    {"bits": "4"},
    {"bits": None},
    {"checkpoint_format": {}},
    {"meta": [1]},
    {"meta": {"quantizer": [None]}},
)
GROUPS = (
    {},
    {"group_0": []},
    {"group_0": {"weights": [1]}},
    {"group_0": PACKED | {"input_activations": {"type": [], "num_bits": {}}}},
    {"group_0": PACKED, "group_1": {"weights": "x"}},
)


@pytest.mark.parametrize(
    ("format", "change"),
    [
        *((format, change) for format in ("gptq", "awq") for change in OLDER),
        *(("compressed-tensors", {"config_groups": groups}) for groups in GROUPS),
        ("bitsandbytes", {"bnb_4bit_quant_type": ["nf4"]}),
        ("bitsandbytes", {"load_in_8bit": True}),
    ],
)
def test_a_configuration_that_makes_no_sense_is_read_or_refused_in_a_sentence(
    format, change, checkpoints, tiny_models, tmp_path
):
    folder = tmp_path / format
    shutil.copytree(checkpoints[format].parent, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    words = refusal(folder, checkpoints[format], model_card(str(tiny_models / "llama")))
    if words:
        check_sentence(words, folder)


@pytest.mark.parametrize("size", ["num_hidden_layers", "hidden_size", "vocab_size", "head_dim", "num_key_value_heads"])
def test_a_model_far_larger_than_its_tensors_is_refused_before_it_is_built(
    size, checkpoints, tiny_models, tmp_path, bounded_memory
):
    folder, card = tmp_path / "gptq", model_card(str(tiny_models / "llama"))
    shutil.copytree(checkpoints["gptq"].parent, folder)
    config = json.loads((folder / "config.json").read_text())
    for huge in (10**5, 2**31, 2**63, 1e300):
        (folder / "config.json").write_text(json.dumps(config | {size: huge}))
        words = refusal(folder, checkpoints["gptq"], card)
        assert f"{folder / 'config.json'} says {size} " in words


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{folder}/../outside.safetensors", "..", "", "a\0b", 7, None]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(name, checkpoints, tiny_models, tmp_path):
    folder, weights = tmp_path / "gptq", checkpoints["gptq"]
    shutil.copytree(weights.parent, folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    name = name.format(folder=folder) if isinstance(name, str) else name
    index = {"weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    words = refusal(folder, weights, model_card(str(tiny_models / "llama")))
    assert "model.safetensors.index.json names " in words
    check_sentence(words, folder)


def damaged_in_the_middle(file):
    """A whole header, and numbers in the last block that are not finite: noticed when everything else is loaded."""
    gguf = file.suffix == ".gguf"
    fields, tensors = damage.gguf_of(file) if gguf else ({}, damage.safetensors_of(file.read_bytes()))
    last = [tensor for tensor in tensors if re.search(r"(layers|blk)\.1\..*(attn_norm|input_layernorm)", tensor.name)]
    last[0].data = b"\xff" * len(last[0].data)
    file.write_bytes(damage.as_gguf(fields, tensors) if gguf else damage.as_safetensors(tensors))


@pytest.mark.parametrize(
    "hurt", [damaged_in_the_middle, lambda file: os.truncate(file, 5000)], ids=["values", "cut off"]
)
@pytest.mark.parametrize("format", ["gptq", "gguf"])
def test_the_command_line_says_one_sentence_and_leaves_no_result(format, hurt, checkpoints, tiny_models, tmp_path, lab):
    shutil.copytree(checkpoints[format].parent, tmp_path / format)
    file = tmp_path / format / checkpoints[format].name
    hurt(file)
    words = ["--model", str(tiny_models / "llama"), "--checkpoint", str(file if format == "gguf" else file.parent)]
    for command in (["ask", "Hello", *words], ["run", *words, "-t", "perplexity", "--window", "64", "--limit", "1"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code in (1, 2), done.output
        assert (done.stdout, "Traceback" in done.stderr) == ("", False)
        (line,) = [line for line in done.stderr.splitlines() if str(file.parent) in line]
        check_sentence(line.partition(": ")[2], file.parent)
    assert not list(runs.run_folders())
    assert not [path for path in lab.rglob("*") if path.suffix == ".part" or path.parent == folders.results()]
