"""Which models can answer on a machine, by the memory that it has free."""

from types import SimpleNamespace

import pytest
import torch

from leaderboard import fit, requests, room
from leaderboard.ui.ask_columns import about_model
from quant_engine.answers.messages import AskRequest
from quant_engine.models import device
from quant_engine.models.catalog import MODELS
from quant_engine.models.files import folder_of
from quant_engine.models.load import Skeleton
from quant_engine.spec import QuantSetting, UserError

LARGE = MODELS["llava-next-8b"]
W4, W2 = (QuantSetting(method="rtn", w_bits=bits, group_size=64) for bits in (4, 2))


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many bytes free, whose hub has every model."""

    def has(free: float, device: str = "cpu", hub: bool = True) -> None:
        monkeypatch.setattr(room, "answering_device", lambda: device)
        monkeypatch.setattr(room, "gpu_memory", lambda: free)
        monkeypatch.setattr(room, "held_memory", lambda: 0)
        monkeypatch.setattr(room.memory, "free", lambda: free)
        monkeypatch.setattr(room, "available", lambda card: False)
        monkeypatch.setattr(room, "reachable", lambda repository: hub)

    return has


@pytest.mark.parametrize(
    ("free", "hub", "mark"),
    [
        (22e9, True, ""),
        (22e9, False, "(not to be had here)"),
        (12e9, True, "(too large in 16 bits here)"),
        (12e9, False, "(too large here)"),
        (6e9, True, "(too large here)"),
    ],
)
def test_a_list_of_models_marks_what_cannot_answer_here(machine, free, hub, mark):
    machine(free, hub=hub)
    labels = {model: label for label, model in requests.model_choices()}
    assert labels == {"demo": "Demo LLaVA-NeXT", "llava-next-8b": f"LLaVA-Next-8B {mark}".strip()}
    assert ('role="alert"' in about_model("llava-next-8b")) == bool(mark)
    assert "role" not in about_model("demo") + about_model("no model")


def test_the_sentence_has_the_sizes_and_what_fits(machine):
    machine(10e9)
    needed = room.need(LARGE, room.FP16)
    assert needed.total == pytest.approx(19.4e9, rel=0.01)
    assert room.lack(LARGE) == (
        "LLaVA-Next-8B takes 19.4 GB in 16 bits; this machine has 10.0 GB free. "
        "In 4 bits its weights are 7.2 GB and it takes 9.2 GB: choose RTN W4A16 g64."
    )
    machine(7.5e9, device="cuda")
    assert "takes 18.2 GB in 16 bits; this machine's GPU has 7.5 GB free. In 3 bits" in room.lack(LARGE)
    machine(1e9)
    assert room.lack(LARGE, W4).endswith("takes 9.2 GB in RTN W4A16 g64; this machine has 1.0 GB free. Free memory.")
    machine(22e9, hub=False)
    assert room.lack(LARGE, W4).endswith("can't be asked for it: connect, or choose Demo LLaVA-NeXT.")


def test_a_public_page_without_a_gpu_fetches_no_model_for_its_visitors(machine, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/lab")
    machine(22e9)
    assert room.lack(LARGE).endswith("has no GPU: run Low-Bit Lab on your machine, or choose Demo LLaVA-NeXT.")
    machine(22e9, device="cuda")
    assert room.lack(LARGE) == ""
    machine(22e9)
    monkeypatch.setattr(room, "available", lambda card: True)
    assert room.lack(LARGE) == ""


def test_a_question_is_refused_where_no_side_fits_and_else_the_sides_that_do_not(machine, monkeypatch):
    monkeypatch.setattr(requests, "available", lambda card: True)
    machine(10e9)
    asked = requests.question(LARGE.id, "/tmp/a.png", "What?", [W4, W2], 64)
    assert {side: event.message for side, event in room.settled(asked).items()} == {0: room.lack(LARGE)}
    machine(8e9)
    assert list(room.settled(asked)) == [0, 1]
    machine(6e9)
    with pytest.raises(UserError) as refusal:
        requests.question(LARGE.id, "/tmp/a.png", "What?", [W4, W2], 64)
    assert str(refusal.value) == room.lack(LARGE)


def test_models_that_answer_now_make_room_and_what_is_not_known_is_not_refused(machine, monkeypatch):
    machine(10e9)
    monkeypatch.setattr(room, "held_memory", lambda: 12_000_000_000)
    assert room.lack(LARGE) == ""
    machine(None, device="cuda")
    assert room.lack(LARGE) == ""
    assert not room.settled(AskRequest(model="/a/folder", question="What?", sides=(W4,)))


def test_a_gpu_says_what_is_free_and_a_machine_without_its_tool_nothing(monkeypatch):
    def run(command, **named):
        assert command[-2:] == ["-i", "1"]
        return SimpleNamespace(stdout="15095\n")

    device.gpu_memory.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setattr(device.subprocess, "run", run)
    assert device.gpu_memory() == 15095 * 2**20
    device.gpu_memory.cache_clear()
    monkeypatch.setattr(device.subprocess, "run", lambda command, **named: SimpleNamespace(stdout="No devices\n"))
    assert device.gpu_memory() is None
    device.gpu_memory.cache_clear()


@pytest.mark.demo
@pytest.mark.parametrize(("device", "bytes_each"), [("cpu", 4), ("cuda", 2)])
def test_the_estimate_of_all_weights_is_what_the_model_will_hold(monkeypatch, device, bytes_each):
    monkeypatch.setattr(room, "answering_device", lambda: device)
    dtype = torch.float32 if bytes_each == 4 else torch.bfloat16
    skeleton = Skeleton(MODELS["demo"], folder_of(MODELS["demo"], None), dtype, "cpu", in_halves=True)
    needed = room.need(MODELS["demo"], room.FP16)
    assert needed.model == pytest.approx(skeleton.weight_bytes, rel=0.01)
    assert needed.overhead == (fit.HOST_OVERHEAD if device == "cpu" else fit.OVERHEAD)
