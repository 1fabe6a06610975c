"""Every test writes into a folder of its own; models fetched before are shared."""

import os
import tempfile

import pytest

from quant_engine import folders
from quant_engine.deferred import deferred
from quant_engine.models import catalog

torch = deferred("torch")  # the process that only hands out tests does without

os.environ.pop("COLUMNS", None)  # tables are as wide as a test says
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of one process would wait for another's
    os.environ["OMP_NUM_THREADS"] = "1"
# Nothing that a test does touches the home of whoever runs it, but for the machine's demo models.
_HOME = tempfile.TemporaryDirectory(prefix="low-bit-lab-tests-")
os.environ |= {"LOWBIT_MODELS": str(folders.models()), "LOWBIT_HOME": _HOME.name}
os.environ["LOWBIT_SHIPPED"] = "/nowhere"  # a test sees the runs that it makes, in its own process and in the page's


def pytest_configure(config):
    hands_out_tests = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out_tests and not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A fresh LOWBIT_HOME, with the machine's demo models."""
    models = folders.models()
    monkeypatch.setenv("LOWBIT_MODELS", str(models))
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOWBIT_RESULTS", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Tiny models as folders: "llama", "deep" with a third block, and "llava"."""
    from models import tiny_chat

    root = tmp_path_factory.mktemp("models")
    models = (("llama", tiny_chat.llama()), ("deep", tiny_chat.llama(layers=3)), ("llava", tiny_chat.llava_next()))
    for name, made in models:
        made.model.save_pretrained(root / name)
        (made.processor or made.tokenizer).save_pretrained(root / name)
    return root


SLOWEST = (
    "test_demo_runs.py", "test_demo_memory.py", "test_real_run.py", "test_real_answer.py", "browser",
    "test_client.py", "test_gpu_kernels.py", "test_model_folder.py",
)  # fmt: skip
"""Files whose few tests take longest: they begin first, so that all processes end at about the same time."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(part in SLOWEST for part in item.path.parts))


def pytest_runtest_setup(item):
    """A test that needs the demo models says in one sentence how to get them."""
    if item.get_closest_marker("demo") and not all(
        catalog.available(card) for card in catalog.MODELS.values() if card.origin == "demo"
    ):
        pytest.fail("The demo models are not on this machine; run: python -m quant_engine get demo", pytrace=False)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
