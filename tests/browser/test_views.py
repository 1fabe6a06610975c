"""Links, history, pins, provenance, exports, charts and methods as a visitor uses them."""

import io
import json
import re

import pandas as pd
import pytest
from playwright.sync_api import Page, Route, expect
from serving import NO_MODELS, NOBODY_ASKS, served, tab
from test_leaderboard import column, press, rows, summary_is

from leaderboard.findings import CLAIMS
from quant_engine import folders
from quant_engine.data.drawn import suite
from quant_engine.results import ItemOutput, LayerRecord, Result
from quant_engine.runs import folder as run_folder
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

pytestmark = pytest.mark.browser


def search_has(page: Page, *parts: str) -> None:
    page.wait_for_function(
        "parts => parts.every(part => decodeURIComponent(location.search).includes(part))", arg=parts
    )


def open_row(page: Page, method: str) -> None:
    page.locator("table.board button.open", has_text=re.compile(f"^{method}$")).first.click()
    expect(page.locator("#card .card")).to_be_visible()


def test_a_copied_link_opens_the_same_view_in_a_fresh_browser(lab, opened):
    page = opened(lab)
    press(page, "Method", "GPTQ")
    press(page, "Method", "AWQ")
    press(page, "Weight bits", "4")
    press(page, "Show", "% kept")
    page.get_by_label("Search").fill("g:128,row wikitext2:<99")
    page.get_by_role("button", name="PTB").click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("PTB")
    page.get_by_role("button", name="More filters and columns").click()
    press(page, "Columns (none chosen: all)", "Perplexity")
    open_row(page, "AWQ")
    page.locator("#card [data-pin]").click()
    search_has(page, "method=GPTQ,AWQ", "show=retained", "sort=ptb", "columns=Perplexity", "row=", "pin=", "q=")
    fresh = opened(lab, search=page.evaluate("location.search"))
    expect(fresh.locator("#card .card h2")).to_have_text(page.locator("#card .card h2").inner_text())
    expect(fresh.locator("#pins")).to_contain_text("AWQ W4A16")
    expect(fresh.locator("table.board tbody tr")).to_have_count(len(rows(page)))  # the table comes after the card
    assert rows(fresh) == rows(page)
    expect(fresh.get_by_label("Search")).to_have_value("g:128,row wikitext2:<99")
    expect(fresh).to_have_url(page.url)


def test_back_and_forward_go_through_views_and_tabs(page):
    press(page, "Method", "GPTQ")
    summary_is(page, "7 of 41 settings")
    search_has(page, "method=GPTQ")
    press(page, "Weight bits", "3")
    summary_is(page, "2 of 41 settings")
    search_has(page, "bits=3")
    tab(page, "Methods")
    search_has(page, "tab=methods")
    page.go_back()
    expect(page.get_by_role("tab", name="Leaderboard")).to_have_attribute("aria-selected", "true")
    summary_is(page, "2 of 41 settings")
    page.go_back()
    summary_is(page, "7 of 41 settings")
    page.go_back()
    summary_is(page, "41 settings")
    page.go_forward()
    summary_is(page, "7 of 41 settings")
    expect(page.locator("label.selected", has_text="GPTQ")).to_have_count(1)


def test_a_step_back_during_another_is_not_lost(page):
    press(page, "Method", "GPTQ")
    search_has(page, "method=GPTQ")
    press(page, "Weight bits", "3")
    search_has(page, "bits=3")
    page.evaluate("() => { history.back(); setTimeout(() => history.back(), 20); }")
    summary_is(page, "41 settings")
    expect(page.locator("label.selected", has_text="GPTQ")).to_have_count(0)


def test_more_filters_narrow_the_table(fresh_page):
    page = fresh_page
    page.get_by_role("button", name="More filters and columns").click()
    press(page, "Activation bits", "8")
    summary_is(page, "2 of 41 settings")
    press(page, "Activation bits", "8")
    page.get_by_label("Stored bits per weight").fill("<3")
    summary_is(page, "1[0-9] of 41 settings")
    page.get_by_label("Size of weights, GB").fill("<4.2")
    summary_is(page, "[1-9] of 41 settings")
    page.get_by_role("button", name="Clear filters").click()
    summary_is(page, "41 settings")
    expect(page.get_by_label("Stored bits per weight")).to_have_value("")


def test_two_pinned_rows_are_compared_and_can_be_unpinned(page):
    for method in ("GPTQ", "AWQ"):
        row = page.locator("table.board tbody tr", has_text=method).first
        row.hover()
        row.locator(".pin").click()
        expect(page.locator("#pins")).to_contain_text(method)
    expect(page.locator("#chart-pins .main-svg").first).to_be_visible()
    expect(page.locator("#pins")).to_contain_text("They differ most on")
    page.get_by_role("button", name=re.compile("^Unpin GPTQ")).click()
    expect(page.locator("#pins")).to_contain_text("Pin another row")


def test_the_card_of_a_paper_row_has_sources_notes_and_a_command(page):
    open_row(page, "QuIP")
    card = page.locator("#card .card")
    expect(card).to_contain_text("Table 1 of the study")
    expect(card).to_contain_text("look swapped")
    expect(card.locator("pre")).to_contain_text("--method quip --bits 4")
    card.get_by_role("button", name="Run this setting").click()
    expect(page.get_by_role("tab", name="Run")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_label("Method", exact=True).locator("visible=true")).to_have_value("QuIP")


def test_a_measured_row_is_run_again_as_it_was(tmp_path, opened):
    """GPTQ with act-order, which is no default."""
    with served(tmp_path, before=NOBODY_ASKS, LOWBIT_SHIPPED=str(folders.ASSETS / "runs")) as lab:
        page = opened(lab, search="?model=SmolLM2-135M&row=run~58a340e74720f3d1")
        page.locator("#card").get_by_role("button", name="Run this setting again").click()
        expect(page.get_by_role("tab", name="Run")).to_have_attribute("aria-selected", "true")
        page.get_by_role("button", name="Calibration and method options").click()
        for label, value in {
            "Method": "GPTQ", "Weight bits": "3", "Group size": "64", "Items per task (empty for all)": "16",
            "Samples": "32", "Tokens each": "512", "Perplexity window (tokens; empty for the model's own)": "",
        }.items():  # fmt: skip
            expect(page.get_by_label(label, exact=True).locator("visible=true")).to_have_value(value)
        expect(page.get_by_label("Act order").locator("visible=true")).to_be_checked()
        expect(page.get_by_label("True sequential").locator("visible=true")).to_be_checked()
        page = opened(lab, search="?model=SmolLM2-135M&row=run~b5917a86c9e47348")
        page.locator("#card").get_by_role("button", name="Run this setting again").click()
        page.get_by_role("button", name="Calibration and method options").click()
        for label, value in {"Items per task": "400", "Windows of a text": "32"}.items():
            expect(page.get_by_label(label).locator("visible=true")).to_have_value(value)


def test_the_card_closes_with_escape_and_the_keyboard_opens_it(page):
    button = page.locator("table.board button.open").nth(2)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#card .card")).to_be_visible()
    expect(page.locator("#card .close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#card .card")).to_have_count(0)


def measured(bits: int, value: float, right: int) -> RunSpec:
    """Writes a run of the demo's language model with items and layers."""
    setting = QuantSetting(method="rtn", w_bits=bits, group_size=64)
    spec = RunSpec(weights=WeightSpec(model="demo-llm", setting=setting), tasks=("piqa",), limit=8)
    result = Result(
        run_id=spec.run_id, source="measured", model="demo-llm", track="llm_ptq", method="rtn", w_bits=bits,
        group_size=64, stored_bits=bits + 0.25, task="piqa", metric="accuracy", value=value, standard_error=2.5,
        items=8, engine_version="0.1.0", engine_commit="abc1234", hardware="2 cores", seed=0, data_revision="r1",
        duration_s=12, peak_memory_bytes=900_000_000, command="python -m quant_engine run --model demo-llm",
    )  # fmt: skip
    layers = [
        LayerRecord(block=block, linear="self_attn.q_proj", out_features=8, in_features=8, stored_bits=4.25,
                    weight_error=0.01 * (block + 1), seconds=0.1)
        for block in range(4)
    ]  # fmt: skip
    items = [
        ItemOutput(item=str(n), prompt=f"Question {n}", gold=["0"], prediction="0" if n < right else "1",
                   score=100.0 * (n < right), log_probabilities=[-1.0, -2.0], choices=["0", "1"])
        for n in range(8)
    ]  # fmt: skip
    run_folder.write(spec, {}, [result], layers, {"piqa": items}, "")
    return spec


def test_a_measured_row_has_its_provenance_layers_and_flips(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))
    first, second = measured(4, 75.0, 6), measured(3, 50.0, 4)
    with served(tmp_path, **NO_MODELS) as lab:
        page = opened(lab, search=f"?model=SmolLM2-135M&row=run~{first.run_id}")
        card = page.locator("#card .card")
        for text in ("abc1234", "2 cores", "± 2.5", "8 items, data r1", "900 MB", "from the ledger"):
            expect(card).to_contain_text(text)
        with page.expect_download() as saved:
            card.get_by_role("button", name="Download run").click()
        assert saved.value.suggested_filename == f"{first.run_id}.zip"
        page.goto(f"{lab.url}/?tab=explore&x.model=SmolLM2-135M&x.run={first.run_id}&x.against={second.run_id}")
        page.locator("#chart-layers").scroll_into_view_if_needed()  # charts are drawn when they come into view
        expect(page.locator("#chart-layers .main-svg").first).to_be_visible()
        expect(page.locator("#weighed")).to_contain_text("made before histograms were kept")
        compared = page.locator("#compared")
        expect(compared).to_contain_text("Right → wrong")
        compared.get_by_text("2 items of piqa scored otherwise").click()
        expect(compared).to_contain_text("Question 5")


def drawn_run(bits: int, right: int) -> RunSpec:
    """Writes a run of the demo's multimodal model on eight drawn diagrams, with histograms of two linears."""
    setting = QuantSetting(method="rtn", w_bits=bits)
    spec = RunSpec(weights=WeightSpec(model="demo", setting=setting), tasks=("demo-ai2d",), limit=8)
    result = Result(
        run_id=spec.run_id, source="measured", model="demo", track="mllm_ptq", method="rtn", w_bits=bits,
        stored_bits=bits, task="demo-ai2d", metric="accuracy", value=12.5 * right, items=8,
        data_revision=suite.revision("demo-ai2d"),
    )  # fmt: skip
    layers = [
        LayerRecord(block=block, linear="self_attn.q_proj", out_features=8, in_features=8, stored_bits=bits,
                    weight_error=0.01 * (block + 1), seconds=0.1, weights_reach=0.5,
                    weights_before=[2, 10, 40, 10, 2], weights_after=[0, 0, 60, 0, 4])
        for block in range(2)
    ]  # fmt: skip
    items = [
        ItemOutput(item=item.id, prompt=item.question, gold=item.answers, prediction="A", score=float(number < right))
        for number, item in enumerate(suite.items("demo-ai2d", 8))
    ]
    run_folder.write(spec, {}, [result], layers, {"demo-ai2d": items}, "")
    return spec


def test_a_cell_shows_its_weights_a_flipped_item_its_picture_and_a_tie_its_mark(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))
    first, second = drawn_run(4, 6), drawn_run(3, 5)
    with served(tmp_path, **NO_MODELS) as lab:
        page = opened(lab, search="?model=Demo+LLaVA-NeXT&track=mllm_ptq")
        expect(page.locator("table.board tbody td.kr")).to_have_text(["1=", "1="])
        expect(page.locator("table.board th.kr")).to_have_attribute("title", re.compile("2= says that rows share"))
        page.goto(f"{lab.url}/?tab=explore&x.run={first.run_id}&x.against={second.run_id}")
        weighed = page.locator("#weighed")
        expect(weighed).to_contain_text("Block 1, self_attn.q_proj")  # the largest error
        page.locator("#chart-layers").scroll_into_view_if_needed()
        plot = page.locator("#chart-layers .nsewdrag").first
        expect(plot).to_be_visible()
        box = plot.bounding_box()
        plot.click(position={"x": box["width"] * 0.25, "y": box["height"] / 2})
        expect(weighed).to_contain_text("Block 0, self_attn.q_proj")
        search_has(page, "x.linear=0.self_attn.q_proj")
        expect(page.get_by_label("Weights of")).to_have_value("block 0, self_attn.q_proj")
        page.locator("#compared").get_by_text("1 item of demo-ai2d scored otherwise").click()
        expect(page.locator("#compared figure img")).to_have_attribute("src", re.compile("^data:image/jpeg"))


@pytest.mark.parametrize("form", ["CSV", "JSON", "Parquet", "Markdown", "LaTeX", "BibTeX"])
def test_an_export_holds_the_views_numbers(page, form):
    press(page, "Method", "GPTQ")
    summary_is(page, "7 of 41 settings")
    search_has(page, "method=GPTQ")
    with page.expect_download() as saved:
        page.locator("#board .exports").get_by_role("button", name=form).click()
    content = saved.value.path().read_bytes()
    shown = column(page, "WikiText2")
    if form == "BibTeX":
        assert b"10.1007/s44267-024-00070-x" in content
    elif form in ("Markdown", "LaTeX"):
        assert next(line for line in content.decode().splitlines() if "GPTQ W4A16 g128" in line).count("6.5") == 1
    else:
        values = {
            "CSV": lambda: pd.read_csv(io.BytesIO(content))["wikitext2"].tolist(),
            "JSON": lambda: [row["results"]["wikitext2"]["value"] for row in json.loads(content)["rows"]],
            "Parquet": lambda: pd.read_parquet(io.BytesIO(content))["wikitext2"].tolist(),
        }[form]()
        assert len(values) == len(shown) == 7
        assert f"{values[0]:.1f}" == shown[0] == "6.5"


def test_explore_draws_charts_with_their_tables_and_saves_them(page):
    tab(page, "Explore")
    expect(page.locator("#chart-bits .main-svg").first).to_be_visible()
    page.locator("#explore .figure").first.get_by_text("Table", exact=True).click()
    expect(page.locator("#explore .figure").first.locator("table")).to_contain_text("GPTQ W4A16 g128")
    with page.expect_download() as saved:
        page.locator("#explore .figure").first.get_by_role("button", name="SVG").click()
    assert b"<svg" in saved.value.path().read_bytes()
    within = page.get_by_label("Within (points or %)")
    within.fill("50")
    expect(page.locator("#explore .figure").first).to_contain_text("Cheapest within 50")
    search_has(page, "x.within=50", "tab=explore")


def test_what_fits_answers_for_a_card_and_for_typed_memory(page):
    tab(page, "Explore")
    expect(page.locator("#fit")).to_contain_text("settings of LLaMA3-8B fit RTX 4090")
    page.get_by_label("GPU").click()
    page.get_by_role("option", name="RTX 3060").click()
    expect(page.locator("#fit")).to_contain_text("fit RTX 3060")
    search_has(page, "fit.card=RTX")
    page.get_by_label("GPU").click()
    page.get_by_role("option", name="Other: type the memory").click()
    page.get_by_label("Memory, GiB").fill("5")
    expect(page.locator("#fit")).to_contain_text("5 GiB")


def test_a_gpu_chosen_while_the_tab_opens_again_is_not_lost(fresh_page):
    page, held = fresh_page, []
    tab(page, "Explore")
    expect(page.locator("#fit")).to_contain_text("fit RTX 4090")
    tab(page, "Leaderboard")

    def hold(route: Route) -> None:
        asked = '"RTX 4090"' in (route.request.post_data or "")
        route.fallback() if held or not asked else held.append(route)

    page.route("**/run/predict*", hold)
    with page.expect_request(lambda _: bool(held)):
        tab(page, "Explore")
    page.get_by_label("GPU").click()
    page.get_by_role("option", name="RTX 3060").click()
    with page.expect_response(lambda reply: reply.request == held[0].request):
        held[0].continue_()
    page.wait_for_timeout(1000)  # what the late answer writes is there
    expect(page.locator("#fit")).to_contain_text("fit RTX 3060")
    expect(page.get_by_label("GPU")).to_have_value("RTX 3060 · 12 GB")
    search_has(page, "fit.card=RTX")


def test_a_method_card_has_a_rendered_formula_and_leads_to_its_rows(page):
    tab(page, "Methods")
    expect(page.locator(".method .katex").first).to_be_visible()
    assert page.locator(".method .katex-error").count() == 0
    page.get_by_role("button", name="See AWQ on the leaderboard").click()
    summary_is(page, "[0-9]+ of 41 settings")
    assert {row[0] for row in rows(page)} == {"AWQ"}


def test_programs_can_ask_too(lab):
    from gradio_client import Client

    client = Client(lab.url, verbose=False)
    answer = client.predict(model="LLaMA3-8B", methods="GPTQ", bits="4", api_name="/leaderboard")
    assert len(answer["rows"]) == 2
    with pytest.raises(Exception, match="There is no model"):
        client.predict(model="GPT-5", api_name="/leaderboard")


def test_findings_have_their_verdicts_numbers_and_the_rows_behind_them(tmp_path, opened):
    with served(tmp_path, before=NOBODY_ASKS, LOWBIT_SHIPPED=str(folders.ASSETS / "runs")) as lab:
        page = opened(lab)
        tab(page, "Findings")
        cards = page.locator("#findings .finding")
        expect(cards).to_have_count(len(CLAIMS))
        search_has(page, "tab=findings")
        card = cards.filter(has_text="The bits in a name are not those that are stored.")
        expect(card.locator("mark")).to_have_text("agrees")
        expect(card).to_contain_text("Rule.")
        card.scroll_into_view_if_needed()
        expect(card.locator(".main-svg").first).to_be_visible()
        card.get_by_role("link", name="See the rows").click()
        expect(page.locator("table.board")).to_be_visible()
        search_has(page, "model=SmolLM2-135M", "method=RTN,PB-LLM,BiLLM", "source=measured")
        assert set(column(page, "Method")) == {"RTN", "PB-LLM", "BiLLM"}
