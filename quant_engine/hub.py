"""The Hugging Face Hub, asked in this one place: files of models and data sets, their commits, and errors as sentences.

`huggingface_hub` loads when it is first asked: the page process imports this module and must start fast.
"""

from __future__ import annotations

import errno
import functools
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from quant_engine.deferred import deferred
from quant_engine.spec import UserError

huggingface_hub, constants = deferred("huggingface_hub"), deferred("huggingface_hub.constants")
errors, utils = deferred("huggingface_hub.errors"), deferred("huggingface_hub.utils")

Kind = Literal["model", "dataset"]

PATIENCE_S = 5.0
FRESH_S = 60.0  # for so long an answer to "can it be reached?" is believed
COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTEAD = {
    "model": "give the path of a folder with its files",
    "dataset": "give the path of a file or folder with its rows",
}


def snapshot(
    repo: str,
    kind: Kind,
    revision: str | None,
    patterns: Sequence[str],
    *,
    title: str,
    instead: str | None = None,
) -> Path:
    """The folder with a repository's files, fetched if needed; what lies in the cache where the hub does not answer.

    Args:
        revision: a branch, tag or commit; None is the default branch. The folder's name is the commit.
        patterns: globs of the files that are needed.
        title: what the files are to the user, for the sentence of an error.
        instead: what else the user can do, for that sentence.

    Raises:
        UserError: one sentence, where the files can't be had.
    """
    if kind == "dataset":
        utils.disable_progress_bars()  # what reads data sets has a progress bar of its own
    with _errors_as_sentences(repo, kind, revision, title, instead):
        folder = Path(
            huggingface_hub.snapshot_download(
                repo, repo_type=kind, revision=revision, allow_patterns=list(patterns), local_files_only=not answers()
            )
        )
        if not _holds(folder, patterns):
            raise errors.LocalEntryNotFoundError(f"{', '.join(patterns)} is not in the repository.")
    return folder


def find_cached(repo: str, kind: Kind, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """The folder with a repository's files in the cache, without asking the hub; None if they are not there."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repo, repo_type=kind, revision=revision, allow_patterns=list(patterns), local_files_only=True
            )
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError):
        return None
    return folder if _holds(folder, patterns) else None


def commit(repo: str, kind: Kind, revision: str | None, *, title: str, instead: str | None = None) -> str:
    """The commit that a branch or tag stands at now (None: the default branch); a commit is returned as it is.

    Where the hub does not answer, it is the commit that the cache has for that branch or tag. Raises UserError where
    neither is to be had; `title` and `instead` are for its sentence, as in `snapshot`.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    api = huggingface_hub.HfApi()
    with _errors_as_sentences(repo, kind, revision, title, instead):
        return api.resolve_revision(repo, repo_type=kind, revision=revision, local_files_only=not answers()).resolved


def answers() -> bool:
    """Whether the hub can be reached: asked briefly, where the library would try for half a minute."""
    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, int(time.monotonic() / FRESH_S))


@functools.lru_cache(maxsize=1)
def _answers(endpoint: str, _minute: int) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PATIENCE_S).close()
    except urllib.error.HTTPError:
        return True  # it answers, if not this question
    except OSError:
        return False
    return True


def offers_model(repo: str, patience: float) -> bool:
    """Whether the hub answers within `patience` seconds and lets this machine see a model. Without network, without
    access, or switched off (HF_HUB_OFFLINE), it does not."""
    try:
        huggingface_hub.model_info(repo, timeout=patience)
    except (errors.HTTPError, OSError, ValueError):  # ValueError: something else answered than the hub
        return False
    return True


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Uploads the files of a folder to a model repository, in one commit; one that is not there is made. Returns the
    repository's address. Raises UserError, one sentence, where that can't be done; the repository is then as it was, or
    empty."""
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Upload {folder.name}")
    except errors.HFValidationError:
        raise _no_name(repo) from None
    except (errors.HTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            raise UserError(
                f"The Hugging Face Hub refuses the upload to {repo}: set HF_TOKEN to an access token that may write "
                "there."
            ) from error
        raise UserError(
            f"{folder} was not uploaded to {repo} ({type(error).__name__}{f' {status}' if status else ''}): the Hugging"
            " Face Hub can't be reached, or refuses it; connect to the network and try again."
        ) from error
    return str(address)


def user() -> str:
    """The name of whoever HF_TOKEN belongs to, asked once: the hub answers this only so often. Raises UserError."""
    return _user(constants.ENDPOINT, huggingface_hub.get_token())


@functools.lru_cache(maxsize=1)
def _user(_endpoint: str, token: str | None) -> str:
    with asking("Your name"):
        return str(huggingface_hub.HfApi().whoami(token)["name"])


def listed(repo: str) -> list[str]:
    """The names of all files of a data set; none where there is no such data set yet. Raises UserError."""
    with asking(f"The data set {repo}"):
        try:
            return huggingface_hub.HfApi().list_repo_files(repo, repo_type="dataset")
        except errors.RepositoryNotFoundError:
            return []


def fetched(repo: str, name: str) -> bytes:
    """The content of a file of a data set. Raises UserError."""
    with asking(f"{name} of the data set {repo}"):
        return Path(huggingface_hub.hf_hub_download(repo, name, repo_type="dataset")).read_bytes()


def add_file(repo: str, name: str, content: bytes) -> None:
    """Adds a file to a data set, in one commit; a data set that is not there is made, private. Raises UserError, and
    the data set is then as it was."""
    api = huggingface_hub.HfApi()
    with asking(f"{name} of the data set {repo}"):
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.upload_file(
            path_or_fileobj=content, path_in_repo=name, repo_id=repo, repo_type="dataset", commit_message=f"Add {name}"
        )


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turns what the hub refuses into a UserError that names what to change."""
    try:
        yield
    except (errors.HFValidationError, ValueError) as error:
        raise UserError(f"{what}: the Hugging Face Hub takes no such name, or something else answered.") from error
    except (errors.HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            why = "set HF_TOKEN to an access token that is valid and may read and write there"
        elif status == 404:
            why = "there is no such thing, or HF_TOKEN may not see it"
        elif status == 429:
            why = "too many requests in a short time: it is tried again later"
        else:
            why = "it can't be reached, or has no answer: connect to the network and try again"
        number = f" ({status})" if status else ""
        raise UserError(f"{what}: the Hugging Face Hub refuses{number}; {why}.") from error


def _no_name(repo: str) -> UserError:
    return UserError(f"{repo!r} is no name of a repository on the Hugging Face Hub; write OWNER/NAME.")


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    return any(next(folder.rglob(pattern), None) for pattern in patterns)


@contextmanager
def _errors_as_sentences(
    repo: str, kind: Kind, revision: str | None, title: str, instead: str | None = None
) -> Iterator[None]:
    instead = instead or _INSTEAD[kind]
    try:
        yield
    except errors.HFValidationError:
        raise _no_name(repo) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"The repository {repo} on the Hugging Face Hub has no revision {revision!r}.") from None
    except errors.RepositoryNotFoundError:  # a gated one too
        raise UserError(
            f"The repository {repo} is gated or unknown to the Hugging Face Hub: accept its terms there and set "
            f"HF_TOKEN, or {instead}."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise UserError(
                f"{title} can't be written to {constants.HF_HUB_CACHE} ({error.strerror}): make room, or set HF_HOME "
                "to a folder with room that you may write to."
            ) from error
        raise UserError(
            f"{title} is not on this machine and the Hugging Face Hub can't be reached ({repo}, "
            f"{type(error).__name__}); connect to the network, or {instead}."
        ) from error
