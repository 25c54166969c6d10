"""Datasets on the Hugging Face hub, through huggingface_hub: found, and copied into its cache, at one commit.

The token is ``HF_TOKEN`` of the environment and no other; ``HF_ENDPOINT`` and ``HF_HOME`` are honoured. A copy is
written beside its place and renamed, so that a download which is cut leaves nothing that could be taken for a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

SCHEME = "hf://"
TOKEN = "HF_TOKEN"  # noqa: S105
_PREFIX = f"{SCHEME}datasets/"
_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(
    rf"{_PREFIX}(?P<repo>{_PART}/{_PART})(?:@(?P<revision>refs/(?:convert|pr)/[^/@]+|[^/@]+))?(?:/(?P<path>.*))?"
)
_REPO = re.compile(rf"{_PART}/{_PART}")
_REFUSED = (401, 403)


@dataclass(frozen=True)
class HubPath:
    """A file or folder of a dataset; ``path`` is empty for the whole of it, ``revision`` None for ``main``."""

    repo: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{_PREFIX}{self.repo}{at}{'/' if self.path else ''}{self.path}"


def is_on_hub(name: str | Path) -> bool:
    """Whether a name means the hub and not this machine."""
    return str(name).startswith(SCHEME)


def hub_path(name: str) -> HubPath:
    """What ``hf://datasets/ORG/NAME@REVISION/PATH`` names; revision and path may be left out.

    Raises:
        InputError: it names nothing of a dataset.
    """
    found = _NAME.fullmatch(name)
    path = ((found and found["path"]) or "").removesuffix("/")
    if found is None or (path and any(part in ("", ".", "..") for part in path.split("/"))):
        raise InputError(f"is no name of a dataset's file: write {_PREFIX}ORG/NAME/FILE", name)
    return HubPath(found["repo"], path, found["revision"])


def dataset_name(name: str) -> str:
    """``name``, if it can be a dataset's on the hub.

    Raises:
        InputError: it is not of the form ``ORG/NAME``.
    """
    if not _REPO.fullmatch(name):
        raise InputError(f"must be ORG/NAME, is {name!r}", None, None, "--push")
    return name


def hub_api() -> Any:
    """huggingface_hub's client, with this environment's endpoint and token.

    Raises:
        InputError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InputError("needs huggingface_hub: pip install 'atlas-ray[hub]'", _PREFIX) from None
    # False: no token that somebody has saved on this machine
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get(TOKEN) or False)


def find(place: HubPath, wanted: Callable[[str], bool]) -> tuple[str, list[str]]:
    """(commit, paths in the dataset) of a file, or of the files of a folder whose names are ``wanted``.

    Raises:
        InputError: the dataset, its revision or the path is not there; no access, or no network.
    """
    api = hub_api()
    with asked(place):
        commit = api.dataset_info(place.repo, revision=place.revision).sha
        here = {"repo_id": place.repo, "revision": commit, "repo_type": "dataset"}
        found = api.get_paths_info(paths=[place.path], **here) if place.path else []
        if place.path and not found:
            raise InputError(f"no such file or folder at revision {commit}", str(place))
        if found and hasattr(found[0], "size"):
            return commit, [place.path]
        entries = api.list_repo_tree(path_in_repo=place.path or None, recursive=False, **here)
        names = sorted(entry.path for entry in entries if hasattr(entry, "size"))
    names = [name for name in names if not name.rpartition("/")[2].startswith(".") and wanted(name)]
    return commit, names


def download(place: HubPath, commit: str, names: list[str]) -> Path:
    """Copy files of a dataset at a commit to this machine, in pieces, where they are not yet.

    Returns:
        Where ``place`` lies now: the file itself, or the folder of the files.

    Raises:
        InputError: no access, no network, or a download that is cut again and again.
    """
    api, folder = hub_api(), Path()
    for name in names:
        with asked(place):
            copy = api.hf_hub_download(place.repo, name, repo_type="dataset", revision=commit)
        if name == place.path:
            return Path(copy)
        folder = Path(copy).parent
    return folder


def push(repo: str, files: Mapping[str, Path | bytes], message: str, mark: str, public: bool) -> str:
    """Put files into a dataset in one commit; a dataset that is not there is made, private unless ``public``.

    Args:
        repo: ``ORG/NAME``.
        files: by their path in the dataset; those that are there under other names stay.
        message: of the commit.
        mark: stands in a ``README.md`` that may be replaced.
        public: others may read it. The dataset that is there already stays as private or public as it is.

    Returns:
        The commit's address.

    Raises:
        InputError: no token, no access, no network; the dataset is public and ``public`` is not asked for, or has a
            card of somebody's own.
    """
    place = HubPath(dataset_name(repo))
    if not os.environ.get(TOKEN):
        raise InputError(f"{TOKEN} is not set: it must hold a token that may write to {repo}", field="--push")
    api = hub_api()
    import huggingface_hub as hub

    with asked(place):
        try:
            there = api.dataset_info(repo)
        except hub.errors.RepositoryNotFoundError:
            api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
        else:
            if not there.private and not public:
                raise InputError("is a public dataset: give --public to publish there, or another name", str(place))
            _refuse_own_card(api, place, there.sha, mark)
        made = [
            hub.CommitOperationAdd(name, str(data) if isinstance(data, Path) else data) for name, data in files.items()
        ]
        return str(api.create_commit(repo, made, commit_message=message, repo_type="dataset").commit_url)


def _refuse_own_card(api: Any, place: HubPath, commit: str, mark: str) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        card = Path(api.hf_hub_download(place.repo, "README.md", repo_type="dataset", revision=commit))
    except EntryNotFoundError:
        return
    text = card.read_text(encoding="utf-8", errors="replace")
    if mark not in text and re.sub(r"\A---\n.*?^---$", "", text, flags=re.DOTALL | re.MULTILINE).strip():
        raise InputError("has a README.md of its own, which would be lost: push to another dataset", str(place))


@contextmanager
def asked(place: HubPath) -> Iterator[None]:
    """Say in one line, and without secrets, why the hub did not do what is asked of it inside.

    Raises:
        InputError: it did not.
    """
    import huggingface_hub.errors as hub

    where = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = f"{TOKEN} is set" if os.environ.get(TOKEN) else f"{TOKEN} is not set"
    failed = False
    try:
        yield
    except hub.GatedRepoError:
        message = (
            f"is gated: ask for access on {where}/datasets/{place.repo}, and set {TOKEN} to a token of that account"
        )
    except hub.RepositoryNotFoundError:
        message = f"there is no such dataset on {where}, or it is private and may not be read with this token ({token})"
    except hub.RevisionNotFoundError:
        message = f"the dataset has no revision {place.revision or 'main'!r}"
    except hub.OfflineModeIsEnabled:
        message = "HF_HUB_OFFLINE is set: unset it, or give a file of this machine"
    except hub.LocalEntryNotFoundError as error:
        message, failed = f"{where} cannot be reached: {_cause(error)}", True
    except hub.EntryNotFoundError:
        message = "no such file"
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        message, failed = f"{where} answers {status}: try again", True
        if status in _REFUSED:
            message, failed = f"{where} answers {status}: the token has no right to do this ({token})", False
    except hub.HFValidationError as error:
        message = f"is no name of a dataset: {str(error).splitlines()[0]}"
    except hub.HTTPError as error:  # type: ignore[attr-defined]
        message, failed = f"{where} cannot be reached: {_cause(error)}", True
    except OSError as error:  # of the disk, too
        message, failed = f"cannot be copied: {error.strerror or str(error).splitlines()[0]}", True
    else:
        return
    if failed:
        raise InputError(message, str(place), code="hub_failed") from None
    raise InputError(message, str(place)) from None


def _cause(error: BaseException) -> str:
    """What kind of error is behind one, without its words, which may hold a signed address."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return type(error).__name__
