"""Damaged checkpoints: each is read, or refused in one sentence; none is a traceback."""

import json
import os
import random
import resource
import shutil

import psutil
import pytest
from formats import plain, plain_gguf
from models import tiny_chat

from quant_engine.formats import published
from quant_engine.formats.load import load_published
from quant_engine.models.catalog import model_card
from quant_engine.spec import PublishedCheckpoint, UserError

DAMAGED = int(os.environ.get("DAMAGED", "24"))
"""Files of each format that the suite damages; DAMAGED=500 takes minutes."""
SPARE_BYTES = 2**30
"""What reading a file of some 100 kB may take of address space: libraries load code and start threads."""
PACKED = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}, "input_activations": None}
CONFIGURATIONS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16},
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
def bounded_memory():
    """Address space that is not much more than what is taken now: a size that a file invents is then not to be had."""
    taken = psutil.Process().memory_info().vms
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def damage(data, chance):
    """The bytes with something wrong: cut off, bits flipped, mostly in the header, a piece lost or moved, a digit."""
    header = min(len(data), 12000)
    what = chance.randrange(5)
    if what == 0:
        return data[: chance.randrange(len(data))]
    if what == 1:
        data = bytearray(data)
        for _ in range(chance.choice((1, 4, 64))):
            data[chance.randrange(header if chance.random() < 0.8 else len(data))] ^= 1 << chance.randrange(8)
        return bytes(data)
    if what == 2:
        start, size = chance.randrange(header), chance.randrange(1, 64)
        return data[:start] + data[start + size :]
    if what == 3:
        start, other = chance.randrange(header - 64), chance.randrange(header - 64)
        return data[:start] + data[other : other + 32] + data[start + 32 :]
    digits = [place for place in range(header) if chr(data[place]).isdigit()]
    data = bytearray(data)
    data[chance.choice(digits)] = ord(chance.choice("0123456789"))
    return bytes(data)


def refusal(source, card):
    """Why a checkpoint is refused; None where it is read."""
    try:
        load_published(published.find(PublishedCheckpoint(location=str(source))), card, "float32", "cpu")
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("format", [*CONFIGURATIONS, "gguf"])
def test_a_damaged_file_is_read_or_refused_in_a_sentence(
    format, checkpoints, tiny_models, tmp_path, lab, bounded_memory
):
    card, file, refusals = model_card(str(tiny_models / "llama")), checkpoints[format], []
    for seed in range(DAMAGED):
        folder = tmp_path / str(seed)
        shutil.copytree(file.parent, folder)
        (folder / file.name).write_bytes(damage(file.read_bytes(), random.Random(seed)))
        words = refusal(folder / file.name if file.suffix == ".gguf" else folder, card)
        refusals += [words] if words else []
        shutil.rmtree(folder)
    assert len(refusals) > DAMAGED / 3
    assert all(words.endswith(".") and "\n" not in words for words in refusals)


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
    words = refusal(folder, model_card(str(tiny_models / "llama")))
    assert words is None or words.endswith(".")
