"""Damaged checkpoints: each is read, or refused in one sentence; none is a traceback."""

import json
import random
import shutil

import pytest
from formats import plain, plain_gguf
from models import tiny_chat

from quant_engine.formats import published
from quant_engine.formats.load import load_published
from quant_engine.models.catalog import model_card
from quant_engine.spec import PublishedCheckpoint, UserError

DAMAGED = 30
"""Files that the suite damages."""
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}


@pytest.fixture(scope="module")
def checkpoints(tiny_models, tmp_path_factory):
    """A whole checkpoint of each format: the file with its weights."""
    root = tmp_path_factory.mktemp("whole")
    base = tiny_models / "llama"
    plain.checkpoint(base, root / "gptq", GPTQ, lambda n, r, c: plain.gptq(r, c, 4, 16, act_order=True, seed=n))
    plain.checkpoint(base, root / "awq", AWQ, lambda n, r, c: plain.awq_gemm(r, c, 16, seed=n))
    (root / "gguf").mkdir()
    plain_gguf.model(base, tiny_chat.llama(), ("Q4_0", "Q4_1"), root / "gguf" / "m.gguf")
    return [root / "gptq" / "model.safetensors", root / "awq" / "model.safetensors", root / "gguf" / "m.gguf"]


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


def test_a_damaged_file_is_read_or_refused_in_a_sentence(checkpoints, tiny_models, tmp_path, lab):
    card, refused = model_card(str(tiny_models / "llama")), 0
    for seed in range(DAMAGED):
        chance = random.Random(seed)
        file = checkpoints[seed % 3]
        folder = tmp_path / str(seed)
        shutil.copytree(file.parent, folder)
        (folder / file.name).write_bytes(damage(file.read_bytes(), chance))
        source = folder / file.name if file.suffix == ".gguf" else folder
        refused += refusal(source, card) is not None
        shutil.rmtree(folder)
    assert refused > DAMAGED / 3


@pytest.mark.parametrize(
    "change",
    [
        {"group_size": 0},
        {"group_size": "sixteen"},
        {"group_size": 10**12},
        {"bits": "4"},
        {"bits": None},
        {"checkpoint_format": {}},
        {"meta": [1]},
        {"meta": {"quantizer": [None]}},
    ],
)
def test_a_configuration_that_makes_no_sense_is_read_or_refused_in_a_sentence(
    change, checkpoints, tiny_models, tmp_path
):
    for file in checkpoints[:2]:
        folder = tmp_path / file.parent.name
        shutil.copytree(file.parent, folder)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= change
        (folder / "config.json").write_text(json.dumps(config))
        words = refusal(folder, model_card(str(tiny_models / "llama")))
        assert words is None or words.endswith(".")
