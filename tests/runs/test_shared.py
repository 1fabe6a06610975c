"""Results that are shared in a data set, and runs that Hugging Face Jobs do, against a stand-in of the hub."""

import io
import json
import shutil
import threading
import time
import zipfile

import pytest
from evaluate import hub_stand_in
from runs import sharing_hub
from typer.testing import CliRunner

from leaderboard import sharing
from leaderboard.analysis import arrange
from leaderboard.boards import Boards
from leaderboard.provenance import provenance_of
from leaderboard.store import Store
from leaderboard.ui.card import problems_html
from leaderboard.view import find_row
from quant_engine import folders, hub, hub_jobs
from quant_engine.cli import app
from quant_engine.progress import Hooks
from quant_engine.runs import archive, executors, folder, jobs_executor, shared
from quant_engine.runs.execute import execute
from quant_engine.runs.queue import ENDED, Queue
from quant_engine.runs.resolve import resolve
from quant_engine.runs.worker import run_claimed
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec

pytestmark = pytest.mark.demo


def spec_of(setting=None, **more):
    weights = WeightSpec(model="demo-llm", setting=setting or QuantSetting())
    return resolve(RunSpec(weights=weights, tasks=("perplexity",), limit=1, window=64, **more)).spec


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's archive."""
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBIT_HOME", str(home))
        path = execute(spec_of(), Hooks())
        return path.name, archive.pack(path)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The hub, asked by a machine with a home of its own."""
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOWBIT_SHARED", sharing_hub.REPO)
    monkeypatch.setenv("HF_TOKEN", sharing_hub.TOKEN)
    hub._answers.cache_clear()
    with sharing_hub.serve() as there:
        hub_stand_in.ask(monkeypatch, there.address, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", there.address)
        yield there


def put(made, root=None):
    return archive.unpack(made[1], made[0], root or folders.results())


def test_a_run_is_added_once_and_fetched_once_and_shows_who_measured_it(there, made, tmp_path, monkeypatch):
    put(made)
    assert shared.exchange(sharing_hub.REPO) == shared.Exchange(added=(made[0],))
    assert shared.exchange(sharing_hub.REPO) == shared.Exchange()
    assert list(there.files) == [f"runs/anna/{made[0]}.zip"]
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "other"))
    assert shared.exchange(sharing_hub.REPO) == shared.Exchange(fetched=(made[0],))
    assert shared.exchange(sharing_hub.REPO) == shared.Exchange()
    run = folder.read(folder.run_path(made[0]))
    assert run.about["shared"] == {"by": "anna", "repository": sharing_hub.REPO}
    results = Store().snapshot().frame
    assert set(results[results["run_id"] == made[0]]["shared_by"]) == {f"anna ({sharing_hub.REPO})"}
    card = provenance_of(arrange(results), find_row(arrange(results), f"run~{made[0]}"), {})
    assert ("Shared by", f"anna ({sharing_hub.REPO})") in card.about
    assert not folder.exists(made[0])  # it was not made on this machine: a run of it is computed


def test_the_command_says_what_was_fetched_and_added(there, made, monkeypatch):
    put(made)
    done = CliRunner().invoke(app, ["share"])
    assert done.exit_code == 0, done.output
    assert "0 runs fetched, 1 added" in done.output
    monkeypatch.delenv("LOWBIT_SHARED")
    refused = CliRunner().invoke(app, ["share"])
    assert refused.exit_code == 2
    assert "LOWBIT_SHARED" in refused.output


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"POST /api/datasets": 500}, "connect to the network and try again"),
        ({"POST /api/datasets": 401}, "set HF_TOKEN"),
        ({"POST /api/datasets": 403}, "set HF_TOKEN"),
        ({"GET /api/whoami": 401}, "set HF_TOKEN"),
        ({"GET /api/datasets": 429}, "too many requests"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence_and_works_later(there, made, broken, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    put(made)
    there.files, there.broken = {}, broken
    with pytest.raises(UserError, match=words) as refused:
        shared.exchange(sharing_hub.REPO)
    assert "\n" not in str(refused.value)
    assert there.files == {}
    there.broken = {}
    assert shared.exchange(sharing_hub.REPO).added == (made[0],)


def test_a_half_written_data_set_gives_what_is_whole(there, made):
    run_id, content = made
    other = "0" * 16
    there.files = {
        f"runs/anna/{run_id}.zip": content,
        f"runs/ben/{other}.zip": content,  # another run's
        "runs/carl/1111111111111111.zip": content[: len(content) // 2],
        "runs/../2222222222222222.zip": content,
        "README.md": b"words",
    }
    exchanged = shared.exchange(sharing_hub.REPO)
    assert exchanged.fetched == (run_id,)
    assert len(exchanged.refused) == 2
    assert [path.name for path in folders.shared().iterdir()] == [run_id]


def test_a_download_that_breaks_off_leaves_nothing(there, made, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    there.files = {f"runs/anna/{made[0]}.zip": made[1]}
    there.broken = {f"GET /datasets/{sharing_hub.REPO}/resolve": "cut"}
    exchanged = shared.exchange(sharing_hub.REPO)
    assert len(exchanged.refused) == 1
    assert not folders.shared().is_dir() or not list(folders.shared().iterdir())


def harmful(content, how):
    """A run's archive, changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive_file:
        files = {name: archive_file.read(name) for name in archive_file.namelist()}
    if how == "outside":
        files["../outside.txt"] = b"x"
    if how == "other file":
        files["script.py"] = b"x"
    if how == "half":
        del files["results.parquet"]
    if how == "items":
        files = {name: b"no" if name.startswith("items/") else data for name, data in files.items()}
    if how == "large":
        files["log.txt"] = bytes(2 * 2**20)
    if how == "number":
        about = json.loads(files["run.json"])
        about["spec"]["limit"] = 7
        files["run.json"] = json.dumps(about).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive_file:
        for name, data in files.items():
            archive_file.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["outside", "other file", "half", "items", "large", "number"])
def test_a_harmful_archive_is_a_sentence_and_leaves_nothing(made, how, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    with pytest.raises(UserError):
        archive.unpack(harmful(made[1], how), made[0], tmp_path / "runs")
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["runs"])


def test_a_run_with_files_of_ones_own_is_not_shared(there, tmp_path):
    text = tmp_path / "private.txt"
    text.write_text("Words of mine. " * 400)
    weights = WeightSpec(model="demo-llm")
    spec = resolve(RunSpec(weights=weights, tasks=(f"perplexity:{text}",), limit=1, window=64)).spec
    execute(spec, Hooks())
    assert shared.exchange(sharing_hub.REPO) == shared.Exchange()
    assert there.files is None


def test_a_page_fetches_at_the_start_and_adds_what_ends_and_says_what_fails(there, made, monkeypatch):
    monkeypatch.setattr(sharing, "TICK_S", 0.05)
    there.files = {f"runs/ben/{made[0]}.zip": made[1]}
    page = sharing.Sharing(sharing_hub.REPO)
    boards = Boards(Store(), sharing=page)
    page.start()

    def soon(condition):
        end = time.monotonic() + 30
        while time.monotonic() < end and not condition():
            time.sleep(0.05)
        assert condition()

    try:
        soon(lambda: (folders.shared() / made[0]).is_dir())
        there.files = {}
        put(made)
        soon(lambda: list(there.files) == [f"runs/anna/{made[0]}.zip"])
        assert page.problem == ""
        there.broken = {"GET": 403}
        monkeypatch.setattr(sharing, "LOOK_S", 0.1)
        state = boards.state()
        soon(lambda: "set HF_TOKEN" in page.problem)
        assert boards.state() != state
        assert "set HF_TOKEN" in problems_html((), of_sharing=boards.sharing_problem())
    finally:
        page.stop()


@pytest.fixture
def jobs(there, monkeypatch):
    monkeypatch.setenv("LOWBIT_JOBS_IMAGE", "hf.co/spaces/anna/lab")
    monkeypatch.setattr(jobs_executor, "LOOK_S", 0.5)
    return there


def test_a_job_does_a_run_and_its_folder_comes_home(jobs, made):
    queue, spec, seen = Queue(folders.queue()), spec_of(), []
    queue.submit(spec)
    run = run_claimed(queue, spec.run_id, seen.append, executors.executor("jobs"))
    assert run.state == "done", run.error
    here, before = folder.read(folder.run_path(spec.run_id)), zipfile.ZipFile(io.BytesIO(made[1]))
    assert folder.exists(spec.run_id)
    assert [result.value for result in here.results] == [
        row["value"] for row in folder.pq.read_table(io.BytesIO(before.read("results.parquet"))).to_pylist()
    ]
    assert any(progress.stage == "loading" for progress in seen)
    assert "Job job0 works on it." in queue.log_tail(spec.run_id)
    about = jobs.jobs["job0"]["about"]
    assert about["labels"][hub_jobs.LABEL] == spec.run_id
    assert sharing_hub.TOKEN not in json.dumps(about["environment"])
    shutil.rmtree(folders.results())
    assert executors.executor("jobs").execute(spec, Hooks()).is_dir()  # found in the data set, no second job
    assert len(jobs.jobs) == 1


def test_a_job_is_followed_by_the_next_page_and_ended_by_a_cancel(jobs):
    spec = spec_of(QuantSetting(method="awq", w_bits=4, group_size=64))
    queue, shutdown = Queue(folders.queue()), threading.Event()
    queue.submit(spec)

    def work():
        run_claimed(queue, spec.run_id, lambda progress: None, executors.executor("jobs"), shutdown)

    def begin():
        worker, before = threading.Thread(target=work), queue.log_tail(spec.run_id).count("works on it")
        worker.start()
        end = time.monotonic() + 60
        while time.monotonic() < end and queue.log_tail(spec.run_id).count("works on it") == before:
            time.sleep(0.05)
        return worker

    first = begin()
    shutdown.set()
    first.join()
    assert queue.get(spec.run_id).state == "queued"
    assert jobs.job("job0")["status"]["stage"] == "RUNNING"
    shutdown.clear()
    second = begin()
    queue.cancel(spec.run_id)
    second.join()
    assert queue.get(spec.run_id).state in ENDED
    assert len(jobs.jobs) == 1
    assert jobs.job("job0")["status"]["stage"] == "CANCELED"


def test_a_job_that_nobody_follows_ends_when_its_run_is_cancelled(jobs, monkeypatch):
    monkeypatch.setenv("LOWBIT_EXECUTOR", "jobs")
    monkeypatch.setattr(sharing, "TICK_S", 0.2)
    queue, spec = Queue(folders.queue()), spec_of(QuantSetting(method="awq", w_bits=4, group_size=64))
    queue.submit(spec)
    job = executors.executor()._start(spec)
    page = sharing.Sharing(sharing_hub.REPO, queue)
    page.start()
    try:
        time.sleep(1)
        assert jobs.job(job)["status"]["stage"] == "RUNNING"
        queue.cancel(spec.run_id)
        end = time.monotonic() + 20
        while time.monotonic() < end and jobs.job(job)["status"]["stage"] == "RUNNING":
            time.sleep(0.1)
        assert jobs.job(job)["status"]["stage"] == "CANCELED"
    finally:
        page.stop()


def test_a_job_that_fails_says_why_and_a_hub_that_is_away_is_asked_again(jobs):
    spec = spec_of().model_copy(update={"data": {"perplexity": "another"}})
    with pytest.raises(UserError, match="changed"):
        executors.executor("jobs").execute(spec, Hooks())
    jobs.broken = {"POST /api/jobs": 402}
    with pytest.raises(UserError, match="402"):
        executors.executor("jobs").execute(spec_of(), Hooks())


def test_jobs_without_a_data_set_or_image_say_what_to_set(jobs, monkeypatch):
    monkeypatch.delenv("LOWBIT_JOBS_IMAGE")
    with pytest.raises(UserError, match="LOWBIT_JOBS_IMAGE"):
        executors.executor("jobs")
    monkeypatch.delenv("LOWBIT_SHARED")
    with pytest.raises(UserError, match="LOWBIT_SHARED"):
        executors.executor("jobs")
