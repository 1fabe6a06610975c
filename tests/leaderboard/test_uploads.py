"""What the page does with a file that a visitor gives: a clean picture or one sentence, and nothing left behind."""

import errno
import struct
import tempfile
import zlib
from pathlib import Path

import httpx
import pytest
from fuzzed_uploads import uploads
from PIL import Image, PngImagePlugin

from leaderboard import pictures
from leaderboard.lab import Lab
from leaderboard.ui import page
from quant_engine.data import open_picture
from quant_engine.spec import UserError


def huge_png(path: Path, width: int = 20_000, height: int = 10_000) -> Path:
    """A PNG of 200 million pixels in a few hundred kilobytes, made without holding it in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        pictures.accept(path)
    return str(caught.value)


def test_a_picture_becomes_a_small_clean_png(tmp_path):
    source = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = "a secret"
    Image.new("RGB", (3000, 1500), "red").save(source, exif=exif)
    clean = pictures.accept(source)
    with Image.open(clean) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (800, 1600))
    assert b"secret" not in clean.read_bytes()
    assert pictures.preview(clean).startswith("data:image/jpeg;base64,")
    pictures.forget(str(clean))
    assert not clean.exists()


def test_forget_touches_no_other_file(tmp_path):
    other = tmp_path / "lowbit-picture-x.png"
    other.write_bytes(b"")
    pictures.forget(str(other))
    pictures.forget(None)
    assert other.exists()


def test_a_text_file_is_refused_whatever_its_name(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    assert "is not a picture" in refusal(text)


def test_200_million_pixels_are_refused_before_decoding(tmp_path):
    assert "the most is 40 million" in refusal(huge_png(tmp_path / "huge.png"))


def test_a_cut_picture_is_refused(tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((300, 300), 50).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:4000])
    assert "damaged" in refusal(cut)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, empty at first. Large pictures are refused early, for the test's time."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(open_picture, "MOST_PIXELS", 1_000_000)
    return folder


def test_nothing_of_an_upload_but_its_pixels_is_in_the_clean_picture(tmp_path, temporary):
    words = PngImagePlugin.PngInfo()
    words.add_text("Comment", "a secret")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png", pnginfo=words, icc_profile=b"a secret", dpi=(99, 99))
    clean = pictures.accept(tmp_path / "a.png")
    with Image.open(clean) as image:
        image.load()
        assert image.info == {}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_each_of_900_fuzzed_files_is_a_clean_picture_or_one_sentence(tmp_path, temporary):
    accepted, refusals = 0, set()
    for _, content in uploads(900):
        (tmp_path / "file.png").write_bytes(content)
        try:
            clean = pictures.accept(tmp_path / "file.png")
        except UserError as error:
            refusals.add(str(error))
            continue
        with Image.open(clean) as image:
            assert (image.format, image.mode, max(image.size) <= pictures.LONGEST_SIDE) == ("PNG", "RGB", True)
        pictures.forget(str(clean))
        accepted += 1
    assert 300 < accepted < 600
    assert [words for words in refusals if not words.endswith(".") or "\n" in words] == []
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_a_sentence_and_no_half_picture_stays(tmp_path, temporary, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "can't be stored" in refusal(tmp_path / "a.png")
    assert list(temporary.iterdir()) == []


@pytest.fixture
def served(lab, tmp_path, monkeypatch):
    """The page on a free port: its address, the number of the function that takes uploads, and Gradio's folder."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    blocks = page.build(Lab())
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    (takes,) = [number for number, block in blocks.fns.items() if getattr(block.fn, "__name__", "") == "_accept"]
    yield url, takes, tmp_path / "gradio"
    blocks.close(verbose=False)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_upload_to_the_page_is_an_http_error_and_none_leaves_a_file_behind(served, temporary):
    url, takes, folder = served
    pictures_shown = 0
    with httpx.Client(base_url=url, timeout=60) as client:
        for number, (name, content) in enumerate(uploads(160, seed=1)):
            stored = client.post("gradio_api/upload", files={"files": (name, content)})
            assert stored.status_code == 200, (number, name, stored.text)
            file = {"path": stored.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            body = {"data": [file, None], "fn_index": takes, "session_hash": "a visitor"}
            reply = client.post("gradio_api/run/predict", json=body)
            assert reply.status_code == 200, (number, name, reply.text)
            _, shown, upload, notice = reply.json()["data"]
            assert upload is None
            assert (".</div>" in notice) or (not notice and "<img" in shown), (number, name)
            pictures_shown += not notice
    assert 40 < pictures_shown < 110
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert len(list(temporary.iterdir())) == 1, "the picture that is shown"
