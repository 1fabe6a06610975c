"""The one place that asks the Hugging Face Hub, against a stand-in of it: commits, files, the cache, and refusals."""

import pytest
from evaluate import hub_stand_in
from test_requirements import imports
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from quant_engine import folders, hub
from quant_engine.cli import app
from quant_engine.models import catalog, files
from quant_engine.spec import UserError

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def repository(tmp_path):
    """A model repository's files."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_text("not asked for")
    return folder


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Makes a stand-in the hub that this process asks, with an empty cache."""
    return lambda address: hub_stand_in.ask(monkeypatch, address, tmp_path / "cache")


def refusal(call, *args, **named):
    with pytest.raises(UserError) as caught:
        call(*args, **named)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_branch_or_tag_is_pinned_to_its_commit_and_the_cache_remembers_it(serve, repository, kind):
    with hub_stand_in.hub({"lab/it": {"main": (NEW, repository), "v1": (OLD, repository)}}) as (address, asked):
        serve(address)
        assert hub.commit("lab/it", kind, None, title="it") == hub.commit("lab/it", kind, "main", title="it") == NEW
        assert hub.commit("lab/it", kind, "v1", title="it") == OLD
        asked.clear()
        assert hub.commit("lab/it", kind, OLD, title="it") == OLD
        assert not asked
        assert refusal(hub.commit, "lab/it", kind, "v2", title="it").endswith("has no revision 'v2'.")
    serve(NOWHERE)
    assert (hub.commit("lab/it", kind, None, title="it"), hub.commit("lab/it", kind, "v1", title="it")) == (NEW, OLD)
    assert "can't be reached (lab/it, " in refusal(hub.commit, "lab/it", kind, "v2", title="it")


def test_files_are_fetched_once_and_then_found_without_a_hub(serve, repository):
    with hub_stand_in.hub({"lab/it": {"main": (NEW, repository)}}) as (address, asked):
        serve(address)
        assert hub.find_cached("lab/it", "model", None, ["*.json"]) is None
        folder = hub.snapshot("lab/it", "model", None, ["*.json"], title="it")
        assert folder.name == NEW
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        assert "GET /lab/it/resolve/" + NEW + "/config.json" in asked
        assert "can't be reached" in refusal(hub.snapshot, "lab/it", "model", None, ["*.gguf"], title="it")
    serve(NOWHERE)
    for revision in (None, NEW):
        assert hub.snapshot("lab/it", "model", revision, ["*.json"], title="it") == folder
        assert hub.find_cached("lab/it", "model", revision, ["*.json"]) == folder
    assert hub.find_cached("lab/it", "model", OLD, ["*.json"]) is None
    assert hub.find_cached("lab/it", "model", NEW, ["*.bin"]) is None
    assert hub.find_cached("lab/../it", "model", None, ["*.json"]) is None


def test_a_refusal_names_what_to_do(serve, repository):
    with hub_stand_in.hub({"lab/it": {"main": (NEW, repository)}}) as (address, _):
        serve(address)
        unknown = "is gated or unknown to the Hugging Face Hub: accept its terms there and set HF_TOKEN, or "
        other = refusal(hub.snapshot, "lab/no", "model", None, ["*"], title="it", instead="wait")
        assert other.endswith(f"{unknown}wait.")
        for call, more in ((hub.commit, ()), (hub.snapshot, (["*"],))):
            assert f"{unknown}give the path of a folder" in refusal(call, "lab/no", "model", None, *more, title="it")
            assert "no name of a repository" in refusal(call, "lab/../no", "model", None, *more, title="it")
    serve(NOWHERE)
    assert refusal(hub.snapshot, "lab/it", "dataset", None, ["*"], title="The set").startswith(
        "The set is not on this machine and the Hugging Face Hub can't be reached (lab/it, "
    )


def test_a_full_disk_is_not_taken_for_a_missing_network(serve, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    serve(NOWHERE)
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    assert "make room, or set HF_HOME" in refusal(hub.snapshot, "lab/it", "model", None, ["*"], title="it")


def test_a_hub_that_is_switched_off_or_gone_does_not_answer(serve, monkeypatch):
    with hub_stand_in.hub({}) as (address, asked):
        serve(address)
        assert hub.answers()
        assert hub.answers()
        assert asked == ["HEAD /"]
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert not hub.answers()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    serve(NOWHERE)
    assert not hub.answers()


def test_a_hub_models_weights_are_identified_by_the_commit(serve, tiny_models):
    card = catalog.MODELS["llama3-8b"]
    revisions = {"main": (NEW, tiny_models / "llama"), "v1": (OLD, tiny_models / "llama")}
    with hub_stand_in.hub({card.location: revisions}) as (address, _):
        serve(address)
        assert catalog.fingerprint(card) == catalog.fingerprint(card, "main") == catalog.fingerprint(card, NEW) == NEW
        assert catalog.fingerprint(card, "v1") == OLD
        assert not catalog.available(card)
        assert files.folder_of(card, catalog.fingerprint(card)).name == NEW
        assert catalog.available(card)
    serve(NOWHERE)
    assert catalog.available(card)
    assert refusal(catalog.fingerprint, card, "v2").startswith("LLaMA3-8B is not on this machine and")


def test_a_model_that_was_fetched_in_part_is_not_on_this_machine(serve, tiny_models, tmp_path):
    card, repository = catalog.MODELS["llama3-8b"], tmp_path / "sharded"
    LlamaForCausalLM.from_pretrained(tiny_models / "llama").save_pretrained(repository, max_shard_size="40KB")
    shards = sorted(path.name for path in repository.glob("*.safetensors"))
    with hub_stand_in.hub({card.location: {"main": (NEW, repository)}}) as (address, _):
        serve(address)
        for patterns in (["config.json"], ["*.json"], ["*.json", shards[0]]):
            hub.snapshot(card.location, "model", None, patterns, title="it")
            assert not catalog.available(card)
    serve(NOWHERE)
    assert "LLaMA3-8B is not on this machine and" in refusal(files.folder_of, card, NEW)
    with hub_stand_in.hub({card.location: {"main": (NEW, repository)}}) as (address, _):
        serve(address)
        files.folder_of(card, NEW)
        assert catalog.available(card)


def test_the_hub_is_asked_nowhere_else():
    paths = [path for room in ("quant_engine", "leaderboard") for path in (folders.PROJECT / room).rglob("*.py")]
    asking = {path for path in paths if "huggingface_hub" in imports(path)}
    assert asking == {folders.PROJECT / "quant_engine" / name for name in ("hub.py", "hub_jobs.py")}


@pytest.fixture
def exported(tmp_path):
    """The folder of an exported checkpoint."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "README.md").write_text("# A model")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def push(monkeypatch, folder, *words, token=hub_stand_in.WRITER, said=None):
    monkeypatch.setenv("HF_TOKEN", token)
    return CliRunner().invoke(app, ["push", str(folder), *words], input=said)


@pytest.mark.parametrize(("words", "said"), [(["lab/mine", "--yes"], None), (["lab/mine", "--private"], "y\n")])
def test_an_exported_checkpoint_is_uploaded_whole(serve, exported, monkeypatch, words, said):
    uploaded = {}
    with hub_stand_in.hub({}, uploaded) as (address, _):
        serve(address)
        result = push(monkeypatch, exported, *words, said=said)
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"{address}/lab/mine\n")
    assert uploaded == {"lab/mine": {file.name: file.read_bytes() for file in exported.iterdir()}}


def test_nothing_is_uploaded_before_somebody_says_yes(serve, exported, monkeypatch):
    with hub_stand_in.hub({}, {}) as (address, asked):
        serve(address)
        result = push(monkeypatch, exported, "lab/mine", said="n\n")
        assert not asked
    assert (
        f"Upload 2 files of {exported}, 0.0 MB, to lab/mine on the Hugging Face Hub, for everyone to see?"
        in result.output
    )
    assert result.output.endswith("Nothing was uploaded.\n")


def test_what_cannot_be_uploaded_is_a_sentence(serve, exported, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    with hub_stand_in.hub({}, {}) as (address, _):
        serve(address)
        for folder in (tmp_path / "empty", tmp_path / "missing"):
            assert "holds no exported checkpoint" in push(monkeypatch, folder, "lab/mine", "-y").output
        assert "is no name of a repository" in push(monkeypatch, exported, "lab//mine", "-y").output
        refused = push(monkeypatch, exported, "lab/mine", "-y", token="hf_that_reads")
    assert refused.exit_code == 2
    assert "set HF_TOKEN to an access token that may write there" in " ".join(refused.output.split())
    serve(NOWHERE)
    assert "was not uploaded to lab/mine (ConnectError)" in " ".join(
        push(monkeypatch, exported, "lab/mine", "-y").output.split()
    )
