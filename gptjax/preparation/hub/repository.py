"""Data sets on the Hugging Face hub: their files at one commit, and the hub's errors in words.

huggingface_hub talks to the hub, so HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE work as it
documents them.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.config.names import HubName, read_hub_name


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub: its name there, its size in bytes, and its hash.

    The hash is the sha256 of a file in LFS, where all large files are, and git's of any other.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """A data set at one commit, with the files of its top folder."""

    name: HubName
    commit: str
    files: tuple[RemoteFile, ...]


def hub_name(text: str | None) -> HubName:
    """The name in `data.hub`, which has been validated."""
    name = read_hub_name(text or "")
    assert name is not None
    return name


def find_repository(name: HubName) -> Repository:
    """Ask the hub for the commit and the files of a name; raises `UserError`."""
    with hub_errors(name.repository):
        from huggingface_hub import HfApi, RepoFile

        api, repository = HfApi(library_name="gptjax"), name.repository
        commit = api.dataset_info(repository, revision=name.revision).sha
        entries = api.list_repo_tree(repository, revision=commit, repo_type="dataset")
        files = [
            RemoteFile(f.path, f.size, f.lfs.sha256 if f.lfs else f.blob_id)
            for f in entries
            if isinstance(f, RepoFile)
        ]
    return Repository(name, str(commit), tuple(files))


@contextmanager
def hub_errors(repository: str, what: str = "data set", extra: str = "hub") -> Iterator[None]:
    """Turn errors of the hub, the network or the repository into one `UserError`.

    `what` the repository is goes into the message; `extra` of gptjax installs what is missing.

    Errors of this machine's own files pass through.
    """
    try:
        yield
    except (UserError, TypeError, AttributeError, NameError, AssertionError):  # or a bug
        raise
    except Exception as error:  # from HTTP libraries, which change, or readers of any data file
        is_network = isinstance(error, ConnectionError | TimeoutError)
        if isinstance(error, OSError) and error.errno and not is_network:
            raise
        raise UserError(_in_words(repository, what, extra, list(_causes(error)))) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then the errors that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _in_words(repository: str, what: str, extra: str, chain: list[BaseException]) -> str:
    """The cause in words, from the first error of a chain that has any."""
    for error in chain:
        if isinstance(error, ModuleNotFoundError):
            return f"{repository} needs {error.name}: pip install 'gptjax[{extra}]'"

    from huggingface_hub import errors as hub

    for error in chain:
        if isinstance(error, hub.OfflineModeIsEnabled):
            return (
                f"HF_HUB_OFFLINE is set, and {repository} is not here yet: unset it, or fetch "
                f"the {what} on a machine with a network"
            )
        if isinstance(error, hub.GatedRepoError):
            return (
                f"{repository} is gated: accept its terms on its page of the hub, and set HF_TOKEN "
                "to a token of that account (or run `hf auth login`)"
            )
        if isinstance(error, hub.RevisionNotFoundError):
            return f"{repository} has no such revision: check the name after @"
        if isinstance(error, hub.RepositoryNotFoundError):
            return (
                f"the hub has no {what} {repository}, or it is private: check the spelling, or "
                "set HF_TOKEN to a token that may read it (or run `hf auth login`)"
            )
        if isinstance(error, hub.HfHubHTTPError) and error.response.status_code != 404:
            return (
                f"the hub answered {error.response.status_code} about {repository}: fetched bytes "
                "are kept; try the same command again later"
            )
    is_away = isinstance(chain[0], hub.LocalEntryNotFoundError)  # no network, nothing cached
    if isinstance(chain[0], ValueError | FileNotFoundError) and not is_away:  # they say enough
        return f"{repository}: {chain[0]}"
    first = (str(chain[0]).strip() or "without details").splitlines()[0]
    return (
        f"the hub cannot be reached for {repository}, or its files cannot be read "
        f"({type(chain[0]).__name__}: {first}): check the network; fetched bytes are kept, and "
        "the same command continues from there"
    )


def require_disk(where: Path, needed: int) -> int:
    """Bytes free on the disk of `where`; raises `UserError` if fewer than `needed`."""
    from rich.filesize import decimal

    there = next(p for p in [where, *where.parents] if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{where} needs {decimal(needed)}, but the disk has {decimal(free)} free: make room, "
            "choose an --out on a larger disk, or ask for less"
        )
    return free


def source_name(data: DataConfig, commit: str | None = None) -> str:
    """The name of a hub data set in a manifest."""
    field = "" if data.text_field in (None, "text") else f" ({data.text_field})"
    return f"{data.hub}{field}" + (f" at {commit}" if commit else "")
