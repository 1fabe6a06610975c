import json

from leaderboard.store import COLUMNS, Store, method_name, model_name, options_text, read_notes, read_paper


def test_the_study_has_840_rows_under_the_columns_of_a_result():
    paper = read_paper()
    assert len(paper) == 840
    assert list(paper.columns) == COLUMNS
    assert set(paper["status"]) == {"ok", "collapsed"}
    assert set(paper["source"]) == {"paper"}
    assert paper["task"].notna().all()


def test_a_printed_number_is_found_with_its_table():
    paper = read_paper()
    cell = paper[
        (paper.model == "LLaMA3-8B")
        & (paper.method == "GPTQ")
        & (paper.w_bits == 4)
        & (paper.group_size == 128)
        & (paper.task == "wikitext2")
    ]
    assert cell["value"].tolist() == [6.5]
    assert cell["table"].tolist() == ["1"]


def test_runs_stand_beside_the_study_under_its_names(make_run):
    folder = make_run(perplexity=25.5)
    snapshot = Store().snapshot()
    run = snapshot.frame[snapshot.frame.source == "measured"]
    assert run[["run_id", "model", "method", "value"]].values.tolist() == [[folder.name, "SmolLM2-135M", "RTN", 25.5]]
    assert len(snapshot.frame) == 841
    assert snapshot.problems == ()


def test_corrupt_folders_are_named_with_the_reason_and_the_rest_shows(make_run, results):
    good = make_run(perplexity=25.5)
    half = results / "0123456789abcdef"
    half.mkdir()
    damaged = make_run(method="gptq", perplexity=24.0)
    (damaged / "results.parquet").write_bytes(b"no parquet")
    snapshot = Store().snapshot()
    assert {problem.folder for problem in snapshot.problems} == {half.name, damaged.name}
    assert all(problem.reason.endswith(".") for problem in snapshot.problems)
    assert "run.json is missing" in next(problem.reason for problem in snapshot.problems if problem.folder == half.name)
    assert set(snapshot.frame.run_id.dropna()) == {good.name}


def test_what_is_being_written_is_no_problem(results):
    (results / ".0123456789abcdef-x").mkdir(parents=True)
    assert Store().snapshot().problems == ()


def test_new_and_removed_runs_show_without_a_restart_and_nothing_is_read_twice(make_run, results, monkeypatch):
    from leaderboard import store as module

    store = Store()
    assert len(store.snapshot().frame) == 840
    make_run(perplexity=25.5)
    assert len(store.snapshot().frame) == 841
    read = []
    monkeypatch.setattr(module, "read_run", lambda folder: read.append(folder) or module.Problem(folder.name, "No."))
    assert store.snapshot() is store.snapshot()
    assert read == []
    other = make_run(method="gptq", perplexity=24.0)
    store.snapshot()
    assert read == [other]


def test_without_a_results_folder_the_study_shows(results):
    assert not results.exists()
    assert len(Store().snapshot().frame) == 840


def test_names_are_the_studys_where_it_has_one():
    assert method_name("gptq") == "GPTQ"
    assert method_name("slim_llm") == "SliM-LLM"
    assert method_name("brand_new") == "BRAND_NEW"
    assert model_name("llama3-8b") == "LLaMA3-8B"
    assert model_name("/models/my-llama") == "my-llama"


def test_every_note_belongs_to_a_setting_of_the_study():
    paper = read_paper()
    for (model, method, _), notes in read_notes().items():
        rows = paper[(paper.model == model) & (paper.method == method)]
        for note in notes:
            groups = rows.group_size.fillna(0)
            assert any(note.covers(*row) for row in zip(rows.w_bits, rows.a_bits, groups, strict=True)), note.text


def test_a_results_folder_that_cannot_be_read_is_said(results):
    results.write_text("a file where the folder should be")
    snapshot = Store().snapshot()
    assert len(snapshot.frame) == 840
    assert [problem.reason for problem in snapshot.problems] == [
        f"The results folder {results} can't be read: Not a directory."
    ]


def test_options_text_are_those_that_are_no_defaults():
    given = {"act_order": True, "true_sequential": True, "groups": "static", "mse_clip": False}
    assert options_text("GPTQ", json.dumps(given)) == "act_order, groups=static"
    assert options_text("RTN", json.dumps({"symmetric": False, "mse_clip": False})) == ""
    assert options_text("OmniQuant", "{}") == ""
    for unreadable in ("", "act_order", "[1]"):
        assert options_text("GPTQ", unreadable) == ""
