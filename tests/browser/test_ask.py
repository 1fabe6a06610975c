"""Asking about a picture: what is refused, and two answers side by side."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect
from serving import Lab, served, started, tab, wait_until

pytestmark = pytest.mark.browser

STAND_IN = f"""
import sys
from quant_engine.answers.client import AnswerService

command = (sys.executable, {str(Path(__file__).parents[1] / "answers" / "stand_in.py")!r})
AnswerService.__init__.__defaults__ = (command, *AnswerService.__init__.__defaults__[1:])
"""
"""For a page whose answers come from a tiny model, of which 2 bits are another."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """A page as everybody starts it, which loads the model that it offers first."""
    with started(tmp_path_factory.mktemp("asked")) as lab:
        yield lab


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A page whose answers come from a tiny model."""
    with served(tmp_path_factory.mktemp("stand-in"), before=STAND_IN) as lab:
        yield lab


@pytest.fixture
def asking(fresh_page) -> Page:
    tab(fresh_page, "Ask a picture")
    return fresh_page


def give(page: Page, picture: Path) -> None:
    page.locator("#drop input[type=file]").set_input_files(picture)


def png(path: Path, width: int, height: int) -> Path:
    """A white PNG of any size, made row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), b"\x00" + b"\xff" * width
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def refused(page: Page, sentence: str) -> None:
    expect(page.locator("#ask-problem")).to_contain_text(sentence)
    expect(page.locator("body")).not_to_contain_text("Traceback")


def test_a_text_file_named_png_is_refused_in_one_sentence(asking, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    give(asking, tmp_path / "notes.png")
    refused(asking, "is not a picture")


def test_a_200_megapixel_png_is_refused_in_one_sentence(asking, tmp_path):
    give(asking, png(tmp_path / "huge.png", 20_000, 10_000))
    refused(asking, "the most is 40 million")


def test_a_picture_of_too_many_bytes_is_refused_in_one_sentence(asking, tmp_path):
    picture = png(tmp_path / "heavy.png", 100, 100)
    picture.write_bytes(picture.read_bytes() + bytes(25 * 2**20))
    give(asking, picture)
    refused(asking, "the most is 20 MB")


def test_an_empty_question_and_a_missing_picture_are_said(asking, tmp_path):
    asking.locator("#ask").click()
    refused(asking, "Give a picture first")
    Image.new("RGB", (200, 100), "teal").save(tmp_path / "teal.jpg")
    give(asking, tmp_path / "teal.jpg")
    expect(asking.locator("#picture img")).to_be_visible()
    expect(asking.locator("#ask-problem")).not_to_contain_text("Give a picture")
    asking.locator("#ask").click()
    refused(asking, "Type a question.")


def test_a_refused_picture_leaves_the_one_before(asking, tmp_path):
    Image.new("RGB", (200, 100), "teal").save(tmp_path / "teal.jpg")
    give(asking, tmp_path / "teal.jpg")
    expect(asking.locator("#picture img")).to_be_visible()
    (tmp_path / "notes.png").write_text("no picture")
    give(asking, tmp_path / "notes.png")
    refused(asking, "is not a picture")
    expect(asking.locator("#picture img")).to_be_visible()


def test_a_question_before_the_form_fits_a_method_without_activation_bits_is_no_error_in_the_log(lab, asking):
    answers = []

    def hold_back(route: Route) -> None:
        """The server's answer to what GPTQ allows reaches the page only after the question was asked."""
        if (route.request.post_data or "").startswith('{"data":["gptq"'):
            answers.append((route, route.fetch()))
        else:
            route.continue_()

    asking.route("**/gradio_api/run/predict*", hold_back)
    asking.get_by_label("Method", exact=True).locator("visible=true").click()
    asking.get_by_role("option", name="GPTQ", exact=True).click()
    while not answers:
        asking.wait_for_timeout(100)
    asking.locator("#ask").click()
    refused(asking, "Give a picture first")
    for route, response in answers:
        route.fulfill(response=response)
    assert "not in the list of choices" not in lab.log.read_text()


def test_bits_that_do_not_exist_are_refused(asking, tmp_path):
    bits = asking.get_by_role("tabpanel").get_by_label("Weight bits").locator("visible=true")
    bits.fill("9")
    bits.press("Enter")
    asking.locator("#ask").click()
    refused(asking, "from 1 to 8")


def columns(page: Page) -> list[str]:
    """What is chosen above each answer of a quantized setting."""
    return [
        " ".join(box.input_value() for box in column.locator(".setting input:visible").all())
        for column in page.locator(".answer-column:visible").all()[1:]
    ]


def linked(lab, opened, link: str, **window) -> Page:
    """The tab as a link opens it."""
    page = opened(lab, **window)
    page.goto(f"{lab.url}/{link}")
    return page


LINK = "?tab=ask&ask.settings=gptq-3-g64,smoothquant-8-a8&ask.question=Where%3F&ask.example=2&ask.tokens=32"


def test_a_link_holds_the_settings_the_question_and_the_example(lab, opened):
    page = linked(lab, opened, LINK)
    expect(page.get_by_label("Question")).to_have_value("Where?")
    expect(page.locator("#picture figcaption")).to_contain_text("The deadline is")
    expect(page.get_by_label("Most tokens")).to_have_value("32")
    wait_until(lambda: columns(page) == ["GPTQ 3 64", "SmoothQuant 8 8"], 20)
    page.locator("#add").click()
    expect(page.locator("#add")).to_be_disabled()
    wait_until(lambda: columns(page) == ["GPTQ 3 64", "SmoothQuant 8 8", "RTN 2 64"], 20)
    page.get_by_role("button", name="Remove").first.click()
    expect(page.locator(".answer-column:visible")).to_have_count(3)
    wait_until(lambda: columns(page) == ["GPTQ 3 64", "RTN 2 64"], 20)
    page.get_by_label("Weight bits").locator("visible=true").first.fill("9")
    page.get_by_label("Question").press("Enter")
    refused(page, "from 1 to 8")


def test_a_link_of_one_setting_that_no_method_has_opens_the_first(lab, opened):
    page = linked(lab, opened, "?tab=ask&ask.settings=rtn-9-g64&ask.question=Where%3F")
    expect(page.get_by_label("Question")).to_have_value("Where?")
    wait_until(lambda: columns(page) == ["RTN 4 64"], 20)


def test_four_columns_are_swiped_on_a_narrow_screen_and_a_follow_up_keeps_the_conversation(stand_in, opened):
    link = "?tab=ask&ask.settings=rtn-4-g64,rtn-3-g64,rtn-2-g64&ask.example=1&ask.tokens=16&ask.question="
    page = linked(stand_in, opened, f"{link}Which+bar%3F", width=390, height=844)
    expect(page.locator("#picture img")).to_be_visible()
    page.get_by_label("Question").press("Enter")
    for side in range(4):
        expect(page.locator(f"#answer-{side} .at-done")).to_be_visible(timeout=180_000)
    first = page.locator("#answer-3 .said").inner_text()
    last = page.locator(".answer-column").last
    assert last.bounding_box()["x"] > 390
    last.scroll_into_view_if_needed()
    assert last.bounding_box()["x"] + last.bounding_box()["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Question").fill("And which colour?")
    page.locator("#follow").click()
    expect(page.locator("#answer-3 .asked").last).to_have_text("And which colour?")
    expect(page.locator("#answer-3 .at-done")).to_be_visible(timeout=180_000)
    assert page.locator("#answer-3 .before").inner_text() == first.strip()
    expect(page.locator("#answer-0 .asked").first).to_have_text("Which bar?")
    page.locator("[data-example]").last.click()
    expect(page.locator("#picture figcaption")).to_contain_text("Cool")
    page.locator("#follow").click()
    refused(page, "Another picture begins a new conversation: press Ask.")


@pytest.mark.demo
def test_an_example_gets_two_answers_with_their_costs(asking):
    asking.locator("[data-example]").first.click()
    expect(asking.locator("#picture img")).to_be_visible()
    asking.locator("#ask").click()
    for side in ("#answer-0", "#answer-1"):
        expect(asking.locator(f"{side} .at-done")).to_be_visible(timeout=180_000)
        assert asking.locator(f"{side} .said").inner_text().strip()
        costs = asking.locator(f"{side} dd").all_inner_texts()
        assert "–" not in (costs[0], costs[2]), costs
        expect(asking.locator(f"{side} header")).to_contain_text("computed in float32")
    assert 4 < float(asking.locator("#answer-1 dd").nth(3).inner_text()) < 5
    expect(asking.locator("#ask")).to_be_visible()


def test_fp16s_tokens_are_gone_along_by_keyboard_and_the_quantized_model_goes_on_from_the_fork(stand_in, opened):
    link = "?tab=ask&ask.settings=rtn-2-g64&ask.example=1&ask.tokens=16&ask.question=Which+bar%3F"
    page = linked(stand_in, opened, link)
    expect(page.locator("#picture img")).to_be_visible()
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#answer-1 .verdict")).to_contain_text("Parted at token", timeout=180_000)
    tokens = page.locator("#answer-1 .token")
    text = "".join(tokens.all_inner_texts()).replace("▯", "")  # a token may be part of a character
    assert text.startswith(page.locator("#answer-0 .said").inner_text().strip()[:4])
    expect(page.locator("#answer-1 .token.fork")).to_have_count(1)
    tokens.first.focus()
    first = page.locator("#answer-1 .detail").inner_text()
    assert "nats" in first
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator("#answer-1 .detail")).not_to_have_text(first)
    tokens.first.hover()
    expect(page.locator("#answer-1 .detail")).to_have_text(first)
    page.locator("#answer-1 [data-fork]").click()
    expect(page.locator("#answer-1 .onward q")).not_to_be_empty()
    expect(page.locator("#ask")).to_be_visible(timeout=180_000)
    expect(page.locator("#answer-1 .onward .wait")).to_have_count(0)
    expect(page.locator("#follow")).to_be_enabled()


WATCH_PANES = """panes => {
  window.waiting = { texts: [], heights: [] };
  const look = () => {
    waiting.texts.push(panes.innerText);
    for (const line of panes.querySelectorAll('.wait')) waiting.heights.push(line.offsetHeight);
  };
  new MutationObserver(look).observe(panes, { childList: true, subtree: true, characterData: true });
  const frame = () => { look(); requestAnimationFrame(frame); };
  frame();
}"""


def test_a_pane_that_waits_says_for_what_in_one_calm_line_and_nothing_else(stand_in, opened):
    page = opened(stand_in)
    tab(page, "Ask a picture")
    page.locator("[data-example]").first.click()
    expect(page.locator("#picture img")).to_be_visible()
    page.get_by_label("Question").fill("What is in the picture, and where?")
    page.locator(".answers").evaluate(WATCH_PANES)
    page.locator("#ask").click()
    expect(page.locator("#answer-1 .at-done")).to_be_visible(timeout=180_000)
    texts, heights = page.evaluate("[waiting.texts, waiting.heights]")
    assert any("Reading" in text for text in texts)
    assert [text for text in texts if "processing" in text or "queue:" in text] == []
    assert heights
    assert max(heights) < 25, set(heights)  # a line is 20 pixels high


def test_stop_ends_the_answers_and_another_question_can_be_asked(stand_in, opened):
    page = opened(stand_in)
    tab(page, "Ask a picture")
    page.locator("[data-example]").first.click()
    expect(page.locator("#picture img")).to_be_visible()
    page.get_by_label("Question").fill("Describe everything in this picture in great detail.")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    for side in ("#answer-0", "#answer-1"):
        expect(page.locator(f"{side} .answer")).to_have_attribute("aria-busy", "false", timeout=60_000)
    said = page.locator(".answer .said").all_inner_texts()
    assert any("Stopped." in text for text in said), said  # a side may have come to its end just before
    expect(page.locator("#ask")).to_be_visible()


def test_a_question_is_answered_at_every_width_and_saved(stand_in, opened):
    page = linked(stand_in, opened, "?tab=ask&ask.example=1&ask.tokens=16&ask.question=Which+bar%3F")
    expect(page.locator("#picture img")).to_be_visible()
    page.get_by_label("Method of the sweep").click()
    page.get_by_role("option", name="NormalFloat").click()
    page.locator("#sweep").click()
    expect(page.locator(".swept .at-done")).to_have_count(4, timeout=240_000)
    expect(page.locator(".swept b")).to_have_text(["FP16", *(f"NORMAL_FLOAT W{bits}A16" for bits in (4, 3, 2))])
    expect(page.locator(".swept .parted").last).to_contain_text("mean KL", timeout=60_000)
    for ending in ("md", "csv", "png"):
        with page.expect_download() as saved:
            page.locator(f'[data-save="low-bit-lab-sweep.{ending}"]').click()
        assert Path(saved.value.path()).stat().st_size > 100
    expect(page.locator("#sweep")).to_be_visible()


def test_a_picture_of_ones_own_comes_with_questions_of_the_study(asking, tmp_path):
    Image.new("RGB", (200, 100), "teal").save(tmp_path / "teal.jpg")
    give(asking, tmp_path / "teal.jpg")
    asking.locator("[data-suggestion]").last.click()
    expect(asking.get_by_label("Question")).to_have_value("Whose painting is this? Answer in three sentences.")
