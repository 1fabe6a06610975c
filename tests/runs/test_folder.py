import shutil

import pytest

from quant_engine.results import ItemOutput, LayerRecord, Result
from quant_engine.runs import folder
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec

SPEC = RunSpec(
    weights=WeightSpec(model="tiny", setting=QuantSetting(method="rtn", w_bits=4)),
    tasks=("perplexity:/a/b.txt@0123456789ab",),
)


def result(**fields):
    common = {"source": "measured", "model": "Tiny", "track": "llm_ptq", "method": "rtn", "w_bits": 4.0}
    return Result(run_id=SPEC.run_id, task=SPEC.tasks[0], metric="perplexity", **common, **fields)


def write(value=6.5):
    return folder.write(
        SPEC,
        {"created": "now"},
        [result(value=value), result(value=None, status="collapsed")],
        [LayerRecord(block=0, linear="x", out_features=2, in_features=3, stored_bits=4.5, weight_error=0.1, seconds=1)],
        {SPEC.tasks[0]: [ItemOutput(item="1", prompt="p", gold=["g"], prediction="x", score=1.0)]},
        "a line\n",
    )


def test_what_is_written_is_read_back(lab):
    path = write()
    run = folder.read(path)
    assert run.spec == SPEC
    assert [one.value for one in run.results] == [6.5, None]
    assert run.results[1].status == "collapsed"
    assert folder.read_layers(path)[0].output_error is None
    assert folder.read_items(path, SPEC.tasks[0])[0].gold == ["g"]
    assert (path / "log.txt").read_text() == "a line\n"
    assert list(folder.run_folders()) == [path]


def test_writing_again_replaces_the_run_and_leaves_nothing_behind(lab):
    write(1.0)
    path = write(2.0)
    assert folder.read(path).results[0].value == 2.0
    assert [one.name for one in path.parent.iterdir()] == [SPEC.run_id]


def test_shipped_runs_are_shown_until_the_same_run_is_made_here(lab, monkeypatch):
    monkeypatch.setenv("LOWBIT_RESULTS", str(lab / "shipped"))
    shipped = write(1.0)
    monkeypatch.delenv("LOWBIT_RESULTS")
    monkeypatch.setenv("LOWBIT_SHIPPED", str(lab / "shipped"))
    assert list(folder.run_folders()) == [shipped]
    assert not folder.exists(SPEC.run_id), "asked for again it is made, not found"
    own = write(2.0)
    assert list(folder.run_folders()) == [own] != [shipped]
    assert folder.read(shipped).results[0].value == 1.0


@pytest.mark.parametrize("text", ["", "..", "../../etc", "/etc", "f" * 15, "F" * 16, f"{'f' * 16}/..", "f" * 16 + "\n"])
def test_what_is_no_run_id_never_names_a_folder(lab, text):
    with pytest.raises(UserError, match="is not a run id"):
        folder.run_path(text)


def test_a_write_that_fails_leaves_no_folder(lab, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.pq, "write_table", full)
    with pytest.raises(UserError, match=r"No space left on device.*free space there"):
        write()
    assert list((lab / "results").iterdir()) == []


def test_a_results_folder_that_can_not_be_written_is_one_sentence(lab, monkeypatch):
    lab.mkdir(parents=True, exist_ok=True)
    (lab / "file").write_text("not a folder")
    monkeypatch.setenv("LOWBIT_RESULTS", str(lab / "file"))
    with pytest.raises(UserError, match="LOWBIT_RESULTS"):
        folder.check_writable()


@pytest.mark.parametrize("missing", ["run.json", "results.parquet"])
def test_an_incomplete_run_is_named_with_what_is_missing(lab, missing):
    path = write()
    (path / missing).unlink()
    with pytest.raises(UserError, match=f"{SPEC.run_id} is incomplete: {missing}"):
        folder.read(path)


@pytest.mark.parametrize("damaged", ["run.json", "results.parquet"])
@pytest.mark.parametrize("content", [b"", b"{", b"PAR1 nonsense"])
def test_a_damaged_run_is_named(lab, damaged, content):
    path = write()
    (path / damaged).write_bytes(content)
    with pytest.raises(UserError, match=f"{SPEC.run_id} can't be read"):
        folder.read(path)


def test_a_renamed_folder_is_noticed(lab):
    path = write()
    other = path.with_name("0" * 16)
    shutil.move(path, other)
    with pytest.raises(UserError, match="was renamed"):
        folder.read(other)


def test_tasks_with_long_paths_have_file_names_of_their_own():
    tasks = [f"perplexity:/{name * 60}/{'folder, ' * 30}text.txt@0123456789ab" for name in ("a", "b")]
    first, second = map(folder.file_name, tasks)
    assert first != second
    assert max(len(first), len(second)) < 240
    assert first.endswith("text.txt@0123456789ab")
    assert folder.file_name("perplexity:/a/b, c.txt@0123456789ab") == "perplexity_a_b_c.txt@0123456789ab"
