"""Who may start, stop and delete runs on a public page: the same rules for the page, the API and signed-in users."""

import json
import shutil
import time
from types import SimpleNamespace

import httpx
import pytest

from leaderboard.lab import Lab
from leaderboard.ui import page, signed_in
from quant_engine.runs.queue import Queue
from quant_engine.spec import RunSpec, UserError, WeightSpec

pytestmark = pytest.mark.demo
ASKED = {"model": "demo-llm", "method": "rtn", "bits": 4, "group_size": 64, "items": 1}


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A public page and its lab. Those who sign in there are Anna."""
    home = tmp_path_factory.mktemp("home")
    user = {"type": "user", "name": "anna", "fullname": "Anna", "avatarUrl": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBIT_HOME", str(home))
        patch.setenv("OAUTH_CLIENT_ID", "1")
        patch.setattr("gradio.oauth.whoami", lambda: user)
        patch.setattr("gradio.oauth.get_space", lambda: None)
        patch.setattr("gradio.oauth.get_token", lambda: "hf_")
        lab = Lab(queue=Queue(home / "queue.sqlite"), hosted=True, owner_token="secret")
        blocks = page.build(lab)
        _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
        yield lab, address
        blocks.close()


@pytest.fixture
def outside(public):
    """A program that asks the page, `allowed` users being those; with a session of its own and an empty queue."""
    lab, address = public

    def begin(allowed=()):
        lab.allowed = frozenset(allowed)
        return httpx.Client(base_url=address, timeout=60)

    yield begin
    for run in lab.queue.list():
        lab.queue.cancel(run.run_id)
        lab.queue.delete(run.run_id)


def call(client, name, **arguments):
    """What an endpoint answers, or the sentence that it refuses with."""
    event = client.post(f"/gradio_api/call/{name}", json={"data": list(arguments.values())})
    answer = client.get(f"/gradio_api/call/{name}/{event.json()['event_id']}").text
    kind, data = (line.partition(": ")[2] for line in answer.splitlines()[:2])
    data = json.loads(data)
    return data[0] if kind == "complete" else str(data.get("error", data))


ORDER = ("model", "method", "bits", "group_size", "activation_bits", "tasks", "items", "token")


def start(client, token=""):
    values = {"activation_bits": 16, "tasks": "perplexity", "token": token, **ASKED}
    return call(client, "start_run", **{name: values[name] for name in ORDER})


def sign_in(client):
    """Signs in at Gradio's stand-in of the hub. A session's cookie is sent to https alone, here by hand."""
    answer = client.get("/login/huggingface")
    answer = client.get(answer.headers["location"])
    client.headers["Cookie"] = answer.headers["set-cookie"].partition(";")[0]


def test_a_program_without_the_token_cannot_start_stop_or_delete_and_sees_the_queue(outside):
    client = outside()
    assert "owner's token" in start(client)
    assert "owner's token" in start(client, token="wrong")
    assert call(client, "runs", newest=5) == {"runs": []}
    run = start(client, token="secret")
    assert (run["state"], run["by"]) == ("queued", "the owner")
    for action in ("cancel", "pause", "resume", "delete"):
        assert "owner's token" in call(client, "change_run", run=run["run"], action=action, token="")
    assert call(client, "runs", newest=5)["runs"][0]["state"] == "queued"
    assert call(client, "change_run", run=run["run"], action="pause", token="secret")["state"] == "paused"
    assert call(client, "change_run", run=run["run"], action="delete", token="secret")["state"] == "paused"
    assert call(client, "runs", newest=5) == {"runs": []}


def test_a_user_who_is_allowed_starts_runs_by_signing_in(outside):
    client = outside({"anna"})
    assert "needs a sign-in" in start(client)
    sign_in(client)
    run = start(client)
    assert (run["state"], run["by"]) == ("queued", "anna")
    del client.headers["Cookie"]
    assert "needs a sign-in" in start(client)


def test_a_user_who_is_not_allowed_is_named(outside):
    client = outside({"ben"})
    sign_in(client)
    assert "anna may not start runs here" in start(client)


def test_a_sign_in_ends():
    about = {"expires_at": time.time() - 1, "userinfo": {"preferred_username": "anna"}}
    request = SimpleNamespace(scope={"session": {"oauth_info": about}})
    token = signed_in.LocalContext.request.set(request)
    try:
        assert signed_in.user() == ""
        about["expires_at"] = time.time() + 60
        assert signed_in.user() == "anna"
    finally:
        signed_in.LocalContext.request.reset(token)


def test_only_models_of_the_owners_list_are_run(outside, monkeypatch):
    monkeypatch.setenv("LOWBIT_RUN_MODELS", "demo")
    assert "choose a model" in start(outside(), token="secret")


@pytest.mark.parametrize("words", ["../../etc/passwd", "'; DROP TABLE runs; --", "$(touch /tmp/x)", "a" * 5000, "\x00"])
def test_whatever_is_typed_for_a_run_is_only_ever_a_name(tmp_path, words):
    queue = Queue(tmp_path / "queue.sqlite")
    queue.submit(RunSpec(weights=WeightSpec(model="m"), tasks=("perplexity",)), submitter=words)
    for ask in (queue.get, queue.cancel, queue.pause, queue.resume, queue.log_path, queue.delete):
        with pytest.raises(UserError):
            ask(words)
    assert len(queue.list()) == 1
    shutil.rmtree(tmp_path)
