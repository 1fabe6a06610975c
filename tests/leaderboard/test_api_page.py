"""What the served page says of its endpoints to people, programs and tools."""

import importlib.util
import json
import time
import urllib.request

import pytest
from gradio.queueing import Queue
from gradio.utils import get_function_description

from leaderboard.lab import Lab
from leaderboard.ui import page

ENDPOINTS = {
    "leaderboard": ["model", "track", "methods", "bits", "search", "sort", "show"],
    "export_view": ["address", "format"],
    "where_from": ["row"],
    "what_fits": ["model", "memory_gib", "context", "batch", "pictures"],
    "cheapest_setting": ["model", "quality", "within"],
    "methods": [],
    "ask_picture": ["picture", "question", "settings", "sweep", "divergence", "model", "most_tokens"],
    "runs": ["newest"],
    "start_run": ["model", "method", "bits", "group_size", "activation_bits", "tasks", "items", "token"],
    "change_run": ["run", "action", "token"],
}
WITH_MCP = importlib.util.find_spec("mcp") is not None


@pytest.fixture(scope="module")
def blocks():
    blocks = page.build(Lab())
    blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, mcp_server=WITH_MCP)
    yield blocks
    blocks.close()


def ask(blocks, path: str, body: dict | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{blocks.local_url}gradio_api/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read().decode()


def test_the_queue_of_an_idle_page_looks_a_few_times_a_second_and_not_a_thousand(blocks, monkeypatch):
    looks, length = [], Queue.__len__
    monkeypatch.setattr(Queue, "__len__", lambda queue: (looks.append(1), length(queue))[1])
    time.sleep(0.5)
    assert 1 <= len(looks) <= 12


def test_the_api_page_names_and_describes_every_argument_and_answer(blocks):
    endpoints = json.loads(ask(blocks, "info"))["named_endpoints"]
    assert {
        name.strip("/"): [p["parameter_name"] for p in e["parameters"]] for name, e in endpoints.items()
    } == ENDPOINTS
    for endpoint in endpoints.values():
        assert endpoint["description"].endswith(".")
        for argument in endpoint["parameters"]:
            assert argument["label"] == argument["parameter_name"]
            assert argument["python_type"]["description"] == argument["type"]["description"]
            assert argument["type"]["description"].endswith(".")
        (answer,) = endpoint["returns"]
        assert answer["label"] == "answer"
        assert answer["python_type"]["type"].startswith("dict")
        assert answer["python_type"]["description"].endswith(".")


def test_a_tool_is_described_as_the_api_page_describes_the_endpoint(blocks):
    endpoints = json.loads(ask(blocks, "info"))["named_endpoints"]
    functions = {function.api_name: function.fn for function in blocks.fns.values() if function.api_name in ENDPOINTS}
    for name, function in functions.items():
        _, arguments, _ = get_function_description(function)
        listed = {p["parameter_name"]: p["type"]["description"] for p in endpoints[f"/{name}"]["parameters"]}
        assert arguments == listed


@pytest.mark.skipif(not WITH_MCP, reason="needs gradio[mcp]")
def test_the_tools_schema_describes_every_argument(blocks):
    tools = {tool["name"]: tool["inputSchema"]["properties"] for tool in json.loads(ask(blocks, "mcp/schema"))}
    assert {name: list(arguments) for name, arguments in tools.items()} == ENDPOINTS
    assert all(argument["description"].endswith(".") for arguments in tools.values() for argument in arguments.values())


@pytest.mark.parametrize("row", ["nothing", "\ud800\x00", None, ["a"]])
def test_a_refusal_reaches_the_caller_as_its_sentence(blocks, row):
    event = json.loads(ask(blocks, "call/where_from", {"data": [row]}))["event_id"]
    event, data = ask(blocks, f"call/where_from/{event}").strip().split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"].endswith(".")
