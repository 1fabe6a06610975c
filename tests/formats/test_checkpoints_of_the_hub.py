"""Quantized checkpoints in repositories of the hub, against a stand-in of it."""

import json
import shutil

import pytest
import torch
from evaluate import hub_stand_in
from formats import plain, plain_gguf
from models import tiny_chat

from quant_engine.formats import published
from quant_engine.formats.load import load_published
from quant_engine.models.catalog import model_card
from quant_engine.models.load import load_dense
from quant_engine.spec import PublishedCheckpoint, UserError

COMMIT, NOWHERE = "c" * 40, "http://127.0.0.1:9"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "meta": {"quantizer": ["gptqmodel:7.6.0"]}}
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def repository(tiny_models, tmp_path_factory):
    """A repository with a GPTQ checkpoint and a GGUF file, and the dense weights that they stand for."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    base = tiny_models / "llama"
    dense = plain.checkpoint(base, folder, GPTQ, lambda n, r, c: plain.gptq(r, c, 4, 16, seed=n))
    (folder / "README.md").write_text("---\nbase_model: demo-llm\n---\n")
    plain_gguf.model(base, tiny_chat.llama(), ("Q4_0",), folder / "model-q4.gguf")
    return folder, dense


@pytest.fixture
def serve(tmp_path, monkeypatch):
    return lambda address: hub_stand_in.ask(monkeypatch, address, tmp_path / "cache")


def find(location, revision=None):
    return published.find(PublishedCheckpoint(location=location, revision=revision))


def refusal(location, revision=None):
    with pytest.raises(UserError) as caught:
        find(location, revision)
    return str(caught.value)


def fetched(asked):
    return {line.rpartition("/")[2] for line in asked if "/resolve/" in line}


def test_a_repository_is_read_as_its_folder_is_and_once_fetched_needs_no_hub(repository, tiny_models, serve):
    folder, dense = repository
    card = model_card(str(tiny_models / "llama"))
    with hub_stand_in.hub({"lab/gptq": {"main": (COMMIT, folder)}}) as (address, asked):
        serve(address)
        found = find("lab/gptq")
        assert found.source == PublishedCheckpoint(location="lab/gptq", revision=COMMIT)
        assert "model.safetensors" in fetched(asked)
        assert "model-q4.gguf" not in fetched(asked)
        assert found.base().id == "demo-llm"
        assert refusal("lab/gptq", "d" * 40).endswith(".")
        assert find("lab/gptq/model-q4.gguf").setting.method == "gguf:q4_0"
    serve(NOWHERE)
    loaded = load_published(find("lab/gptq"), card, "float32", "cpu")
    whole = load_dense(card, None, "float32", "cpu")
    whole.model.load_state_dict({name: weight.float() for name, weight in dense.items()}, strict=False)
    with torch.inference_mode():
        expected, logits = (model.model(input_ids=IDS).logits for model in (whole, loaded))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert load_published(find("lab/gptq/model-q4.gguf"), card, "float32", "cpu").model


def test_of_what_is_not_read_here_no_weights_are_fetched(repository, tmp_path, serve):
    folder, _ = repository
    dense, odd = tmp_path / "dense", tmp_path / "odd"
    for copy, quantization in ((dense, None), (odd, {"quant_method": "aqlm"})):
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text()) | {"quantization_config": quantization}
        (copy / "config.json").write_text(json.dumps(config))
    repositories = {"lab/dense": {"main": (COMMIT, dense)}, "lab/odd": {"main": ("d" * 40, odd)}}
    with hub_stand_in.hub(repositories) as (address, asked):
        serve(address)
        assert refusal("lab/dense") == ("lab/dense is not quantized: download it, and give its folder as the --model.")
        assert "quantized as 'aqlm'" in refusal("lab/odd")
        assert "model.safetensors" not in fetched(asked)
        assert refusal("lab/dense/none.gguf").endswith(".")
        assert "unknown to the Hugging Face Hub" in refusal("lab/other")
    serve(NOWHERE)
    assert "can't be reached" in refusal("lab/another")
