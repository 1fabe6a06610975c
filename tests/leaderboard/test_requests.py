from json import JSONDecodeError
from types import SimpleNamespace

import pytest
from httpx2 import Request, Response
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from leaderboard import lab, requests, room
from leaderboard.lab import Lab
from quant_engine.spec import QuantSetting, UserError


@pytest.fixture(autouse=True)
def every_model_is_here(monkeypatch):
    monkeypatch.setattr(requests, "available", lambda card: True)
    monkeypatch.setattr(lab, "available", lambda card: True)


def refusal(call, *args, **named) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **named)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("device", "lacks", "offered"),
    [
        ("cuda", {}, ["llava-next-8b", "demo"]),
        ("cuda", {"llava-next-8b"}, ["demo", "llava-next-8b"]),
        ("cpu", {}, ["demo", "llava-next-8b"]),
        ("cpu", {"demo"}, ["llava-next-8b", "demo"]),
    ],
)
def test_with_a_gpu_the_large_model_is_offered_first_and_one_that_cannot_answer_here_last(
    monkeypatch, device, lacks, offered
):
    monkeypatch.setattr(requests, "answering_device", lambda: device)
    monkeypatch.setattr(room, "lack", lambda card: "Too large." if card.id in lacks else "")
    assert [card.id for card in requests.picture_models()] == offered


@pytest.mark.parametrize(
    "problem",
    [
        OSError("no network"),
        HTTPError("timed out"),
        RepositoryNotFoundError("no access", response=Response(401, request=Request("GET", "https://hub.test"))),
        OfflineModeIsEnabled("switched off"),
        JSONDecodeError("a login page", "<html>", 0),
    ],
)
def test_a_hub_that_does_not_answer_has_nothing(monkeypatch, problem):
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: (_ for _ in ()).throw(problem))
    room.reachable.cache_clear()
    assert not room.reachable("llava-hf/llama3-llava-next-8b-hf")
    room.reachable.cache_clear()


def test_a_mistake_in_asking_the_hub_is_not_hidden(monkeypatch):
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: {}["no such name"])
    room.reachable.cache_clear()
    with pytest.raises(KeyError):
        room.reachable("llava-hf/llama3-llava-next-8b-hf")


def test_a_setting_is_resolved_with_every_option_spelled_out():
    assert requests.setting("rtn", "4", "64") == QuantSetting(
        method="rtn", w_bits=4, group_size=64, options={"symmetric": False, "mse_clip": False}
    )
    assert requests.setting("rtn", "3", "per row").group_size is None
    assert requests.setting("fp16", "9", "0") == requests.FP16
    # Controls that a method has no use for are hidden; what they still hold is ignored.
    assert requests.setting("smoothquant", "8", "64", a_bits="6").label == "SMOOTHQUANT W8A6"
    assert requests.setting("rtn", "4", "64", a_bits="6").a_bits == 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rtn", "9", "64"), "from 1 to 8"),
        (("rtn", "four", "64"), "not 'four'"),
        (("rtn", "4", "0"), "Group size must be 1 or more"),
        (("rtn", "4", "6.5"), "whole number"),
        (("magic", "4", "64"), "no method 'magic'"),
        (("rtn", "4", "64", {"colour": 1}), "no option 'colour'"),
    ],
)
def test_a_bad_setting_is_one_sentence(arguments, said):
    assert said in refusal(requests.setting, *arguments)


def test_an_option_in_words_names_on_a_hosted_page_what_comes_with_the_project():
    for source in ("builtin", "demo"):
        for hosted in (True, False):
            assert requests.setting("qlora", "4", None, {"data": source}, hosted=hosted).options["data"] == source
    for source in ("/etc/passwd", "hub:somebody/data"):
        with pytest.raises(UserError, match="On this page option data is builtin or demo"):
            requests.setting("qlora", "4", None, {"data": source}, hosted=True)


RTN = QuantSetting(method="rtn", w_bits=4, group_size=64)


def test_a_run_is_resolved_and_uses_the_models_window():
    spec = requests.run("demo-llm", RTN, ["perplexity"], limit="8", window="")
    assert (spec.limit, spec.window, spec.tasks) == (8, 1024, ("perplexity",))
    assert requests.run("demo-llm", RTN, ["perplexity"], limit="").limit is None


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"model": "gpt-5"}, "no model 'gpt-5'"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["sudoku"]}, "no task 'sudoku'"),
        ({"tasks": ["demo-chartqa"]}, "asks about pictures"),
        ({"limit": "0"}, "Items per task must be 1 or more"),
        ({"limit": "many"}, "whole number"),
        ({"window": "2"}, "window"),
        ({"hosted": True, "tasks": ["perplexity:/etc/passwd"]}, "from the lists"),
        ({"hosted": True, "model": "/tmp"}, "from the lists"),
        ({"hosted": True, "calibration": requests.calibration("/etc/passwd", "", "")}, "builtin"),
    ],
)
def test_a_bad_run_is_one_sentence(named, said):
    named = {"model": "demo-llm", "setting": RTN, "tasks": ["perplexity"], **named}
    assert said in refusal(requests.run, **named)


def test_calibration_has_the_engines_defaults_and_refuses_nonsense():
    assert requests.calibration("", "", "").samples == 32
    assert requests.calibration("builtin", "4", "128").length == 128
    assert "samples" in refusal(requests.calibration, "builtin", "100000", "")


def test_a_question_needs_a_picture_and_words():
    ask = requests.question
    assert "picture first" in refusal(ask, "demo", None, "What is it?", [RTN], 64)
    assert refusal(ask, "demo", "/tmp/a.png", "  ", [RTN], 64) == "Type a question."
    assert "shorten it" in refusal(ask, "demo", "/tmp/a.png", "x" * 5000, [RTN], 64)
    assert "from the list" in refusal(ask, "/etc", "/tmp/a.png", "What is it?", [RTN], 64)
    asked = ask("demo", "/tmp/a.png", " What is it? ", [RTN], 64)
    assert (asked.question, asked.sides) == ("What is it?", (requests.FP16, RTN))


def test_a_demo_model_that_is_not_there_names_the_command(monkeypatch):
    monkeypatch.setattr(requests, "available", lambda card: False)
    assert "quant_engine get demo" in refusal(requests.question, "demo", "/tmp/a.png", "What?", [RTN], 64)
    assert "quant_engine get demo" in refusal(requests.run, "demo-llm", RTN, ["perplexity"])


def test_the_first_model_is_loaded_ahead_where_it_is_here(monkeypatch):
    loaded = []

    def warm_up(model):
        loaded.append(model)
        raise UserError("The answering process can't be started: free memory.")

    monkeypatch.setattr(requests, "answering_device", lambda: "cpu")
    page = Lab(answers=SimpleNamespace(warm_up=warm_up))
    page.warm_up()
    assert loaded == ["demo"]
    monkeypatch.setattr(lab, "available", lambda card: False)
    page.warm_up()
    assert loaded == ["demo"]


def test_on_a_space_runs_need_the_owners_token():
    Lab(hosted=False, owner_token="").check_may_start("")
    Lab(hosted=True, owner_token="secret").check_may_start("secret")
    assert "owner's token" in refusal(Lab(hosted=True, owner_token="secret").check_may_start, "sécret")
    assert "LOWBIT_OWNER_TOKEN" in refusal(Lab(hosted=True, owner_token="").check_may_start, "")
    assert "secret" not in repr(Lab(hosted=True, owner_token="secret"))


ASKED = {"models": ["demo-llm"], "methods": ["rtn"], "bits": ["4"], "groups": ["64"], "tasks": ["perplexity"]}


def test_a_sweep_of_the_form_is_the_runs_of_all_settings():
    asked = requests.sweep(
        **ASKED | {"methods": ["fp16", "rtn", "db_llm"], "bits": ["2", "4"], "groups": [requests.PER_ROW, "64"]},
        limit="2",
    )
    planned = requests.sweep_runs(asked)
    labels = [spec.weights.setting.label for spec in planned.specs]
    assert labels == [
        "FP16",
        "RTN W2A16",
        "RTN W2A16 g64",
        "RTN W4A16",
        "RTN W4A16 g64",
        "DB_LLM W2A16",
        "DB_LLM W2A16 g64",
    ]
    assert {spec.limit for spec in planned.specs} == {2}
    assert set(planned.left_out) == {"DB-LLM is defined for 2 weight bits, not 4."}


def test_fp16_alone_needs_neither_bits_nor_groups():
    asked = requests.sweep(**ASKED | {"methods": ["fp16"], "bits": [], "groups": None})
    assert len(requests.sweep_runs(asked).specs) == 1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"models": []}, "at least one model"),
        ({"models": "demo-llm"}, "at least one model"),
        ({"methods": None}, "at least one method"),
        ({"bits": []}, "at least one number of weight bits"),
        ({"groups": []}, "at least one group size"),
        ({"tasks": []}, "at least one task"),
        ({"bits": ["many"]}, "must be a number"),
        ({"limit": "0"}, "Items per task must be 1 or more"),
    ],
)
def test_a_bad_sweep_is_one_sentence(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        requests.sweep(**ASKED | changed)


@pytest.mark.parametrize("changed", [{"models": ["demo-llm", "/etc"]}, {"tasks": ["perplexity:/etc/passwd"]}])
def test_on_a_hosted_page_a_sweep_has_models_and_tasks_of_the_lists(changed):
    assert requests.sweep(**ASKED, hosted=True)
    with pytest.raises(UserError, match="from the lists"):
        requests.sweep(**ASKED | changed, hosted=True)
