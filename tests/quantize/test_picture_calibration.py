"""Calibration on pictures with questions: the blocks see what the model itself makes of them."""

import json
import re

import pytest
import torch
from models import tiny_chat
from PIL import Image

from quant_engine.checkpoints import Checkpoint
from quant_engine.data import pictures
from quant_engine.data.pictures import Turn
from quant_engine.methods.block import CalibratedBlock, block_kwargs
from quant_engine.models.decode import prompt_inputs
from quant_engine.progress import Hooks
from quant_engine.quantize.inputs import picture_inputs
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import quantize
from quant_engine.spec import Calibration, QuantSetting, UserError, WeightSpec

GPTQ = QuantSetting(method="gptq", w_bits=3, group_size=16)


@pytest.fixture
def folder(tmp_path):
    """Three pictures of different shapes, four questions about them."""
    for name, size in (("a", (60, 40)), ("b", (40, 90)), ("c", (50, 50))):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{name}.png")
    asked = [("a", "What?", "This."), ("b", "Which one?", ""), ("c", "How many?", "3"), ("a", "Where?", "There.")]
    lines = [json.dumps({"image": f"{name}.png", "question": q, "answer": a}) for name, q, a in asked]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def spec_for(model, source, setting=GPTQ, **text):
    calibration = Calibration(source=source, **{"samples": 3, "length": 260, **text})
    return WeightSpec(model=str(model), setting=setting, calibration=calibration)


def model_inputs(loaded, turn):
    inputs = prompt_inputs(loaded, turn.image, turn.question)
    if not turn.answer:
        return inputs
    answer = loaded.tokenizer(turn.answer + loaded.tokenizer.eos_token, return_tensors="pt")["input_ids"]
    return {**inputs, "input_ids": torch.cat([inputs["input_ids"], answer], 1)}


@torch.no_grad()
def test_blocks_see_what_they_see_when_the_model_reads_the_picture_itself():
    loaded = tiny_chat.llava_next()
    turn = Turn(Image.effect_noise((60, 40), 80).convert("RGB"), "What is to be seen?", "Noise.")
    inputs = model_inputs(loaded, turn)
    length = inputs["input_ids"].shape[1]
    assert (inputs["input_ids"] == loaded.model.config.image_token_id).sum() > 4
    expected = loaded.model(**inputs, output_hidden_states=True).hidden_states

    hidden = picture_inputs(loaded, iter([turn]), 1, length)
    assert torch.equal(hidden, expected[0])
    decoder = loaded.model.get_decoder()
    for index, block in enumerate(decoder.layers):
        CalibratedBlock(block, hidden, block_kwargs(decoder, hidden)).advance(hidden)
        # The model's last hidden state is behind its norm.
        found = decoder.norm(hidden) if index + 1 == len(decoder.layers) else hidden
        assert torch.allclose(found, expected[index + 1], atol=1e-5)


@torch.no_grad()
def test_windows_begin_with_a_whole_turn_and_are_filled_with_further_ones(folder):
    loaded = tiny_chat.llava_next()
    source = pictures.pin(f"pictures:{folder}")
    given = pictures.turns(source, seed=1)
    turns = [next(given) for _ in range(8)]
    assert {turn.question for turn in turns[:4]} == {"What?", "Which one?", "How many?", "Where?"}
    windows = picture_inputs(loaded, iter(turns), 2, 120)
    used = iter(turns)
    for window in windows:
        parts = []
        while sum(map(len, parts)) < 120:
            inputs = model_inputs(loaded, next(used))
            parts.append(loaded.model(**inputs, output_hidden_states=True).hidden_states[0][0])
        assert len(parts) > 1
        assert torch.equal(window, torch.cat(parts)[:120])
    with pytest.raises(UserError, match=r"takes \d+ tokens of Tiny LLaVA-NeXT, more than the 20"):
        picture_inputs(loaded, iter(turns), 2, 20)


@pytest.mark.parametrize("source", ["pictures", "pictures:FOLDER"])
def test_a_model_is_calibrated_on_pictures_and_the_run_says_so(lab, tiny_models, folder, source):
    plan = resolve_weights(spec_for(tiny_models / "llava", source.replace("FOLDER", str(folder))))
    assert re.fullmatch(r"pictures@v\d+|pictures:/.+@[0-9a-f]{12}", plan.spec.calibration.source)
    assert resolve_weights(plan.spec) == plan
    text = resolve_weights(spec_for(tiny_models / "llava", "builtin"))
    path, other = quantize(plan, "cpu", Hooks()), quantize(text, "cpu", Hooks())
    assert path != other
    assert Checkpoint(path).spec() == plan.spec
    records = Checkpoint(path).records()
    assert len(records) == 14
    assert all(0 < record.output_error < 1 for record in records)
    assert (path / "000.safetensors").read_bytes() != (other / "000.safetensors").read_bytes()


def test_drawn_pictures_follow_the_seed():
    source = pictures.pin("pictures")
    first, same, other = (next(pictures.turns(source, seed)) for seed in (0, 0, 1))
    assert (first.question, first.image.tobytes()) == (same.question, same.image.tobytes())
    assert first.image.tobytes() != other.image.tobytes()


def test_what_can_not_be_used_is_said_in_a_sentence(tiny_models, folder):
    with pytest.raises(UserError, match="llama is a text model and takes no pictures: calibrate it on a text"):
        resolve_weights(spec_for(tiny_models / "llama", "pictures"))
    with pytest.raises(UserError, match="DB-LLM trains on texts alone"):
        resolve_weights(spec_for(tiny_models / "llava", "pictures", QuantSetting(method="db_llm", w_bits=2)))
    with pytest.raises(UserError, match="drawn pictures have changed"):
        pictures.pin("pictures@v0")
    pinned = pictures.pin(f"pictures:{folder}")
    assert pictures.pin(pinned) == pinned
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(UserError, match="have changed since this run was made"):
        pictures.pin(pinned)
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match=r"names the picture 'a.png', which can't be read"):
        pictures.pin(f"pictures:{folder}")
    for line, said in (
        ('{"image": "b.png"}', "line 1: question"),
        ("[1]", "no JSON object"),
        ("b.png", "no JSON object"),
        ("", "has no question"),
    ):
        (folder / "questions.jsonl").write_text(line)
        with pytest.raises(UserError, match=said):
            pictures.pin(f"pictures:{folder}")
    with pytest.raises(UserError, match=r"questions.jsonl can't be read: write a line"):
        pictures.pin("pictures:/no/such/folder")
