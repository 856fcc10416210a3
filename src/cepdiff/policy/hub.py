"""The Hugging Face hub, by its own library: files to and from a repository, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cepdiff import __version__
from cepdiff.errors import CepdiffError, ConfigError, HubError, MissingExtraError, RunError, one_line, shortened
from cepdiff.policy.recipe import read_recipe
from cepdiff.policy.shared import SHARED_FILE, WEIGHTS_FILE

POLICY = (SHARED_FILE, WEIGHTS_FILE)
OF_THE_HUB = {".gitattributes", "README.md"}  # files that a new repository may have
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def hub_library() -> Any:
    """Import `huggingface_hub`; raises MissingExtraError if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise MissingExtraError("The Hugging Face hub", "hub") from None
    return huggingface_hub


def check_name(repo: str) -> None:
    """Raise ConfigError unless `repo` is a repository's full name."""
    hub = hub_library()
    try:
        hub.utils.validate_repo_id(repo)
        if repo.count("/") != 1:  # the library takes names without a user
            raise ValueError("no user")
    except ValueError as error:
        raise ConfigError(f"'{repo}' is no repository of the hub; expected user/name") from error


def download(repo: str, revision: str | None = None, files: Sequence[str] = POLICY) -> Path:
    """Return the folder in the hub's cache with the `files` of a repository that holds a policy.

    Only these are downloaded, unless they are in the cache already; a damaged copy in the cache is replaced.
    `revision` is a branch, tag or commit.

    Raises:
        ConfigError: not a repository's name, or a policy of another version.
        HubError: no network and nothing in the cache, no such repository or revision, no access, or no policy in it.
        MissingExtraError: the hub's library is not installed.
    """
    check_name(repo)
    hub = hub_library()
    for again in (False, True):
        with errors_of_the_hub(repo, revision):
            folder = Path(hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(files), force_download=again,
                library_name="cepdiff", library_version=__version__,
            ))  # fmt: skip
        if missing := [name for name in POLICY if not (folder / name).is_file()]:
            raise HubError(f"{repo} holds no policy of cepdiff: it has no {missing[0]}; `cepdiff push` makes one")
        with suppress(RunError):
            read_recipe(folder)
            return folder
    raise HubError(f"{repo} is damaged, or was changed by hand: {' and '.join(POLICY)} do not have the hash they tell")


def upload(repo: str, files: Mapping[str, Path], known: Sequence[str], *, private: bool, message: str) -> str:
    """Put `files` (name -> local file) into a repository in one commit, and return the address of that commit.

    A repository that does not exist is made. Of the `known` names, those that are not among `files` are removed.

    Raises:
        ConfigError: not a repository's name.
        HubError: no network, token or permission; a repository with other things in it; `private` for one that exists
            and is public.
        MissingExtraError: the hub's library is not installed.
    """
    check_name(repo)
    hub = hub_library()
    if hub.get_token() is None:
        raise HubError(f"pushing to {repo} needs a token that may write there: {LOG_IN}")
    api = hub.HfApi(library_name="cepdiff", library_version=__version__)
    with errors_of_the_hub(repo):
        try:
            info = api.model_info(repo)
        except hub.errors.RepositoryNotFoundError:
            info = None
            api.create_repo(repo, private=private or None)
        there = {file.rfilename for file in info.siblings or ()} if info is not None else set()
        if foreign := there - OF_THE_HUB if SHARED_FILE not in there else set():
            raise HubError(f"{repo} exists and holds no policy of cepdiff (it has {min(foreign)}): choose another name")
        if info is not None and private and not info.private:
            raise HubError(f"{repo} exists and is public: make it private on the hub, or choose another name")
        changes = [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
        changes += [hub.CommitOperationDelete(name) for name in known if name in there and name not in files]
        return str(api.create_commit(repo, changes, commit_message=message).commit_url)


@contextmanager
def errors_of_the_hub(repo: str, revision: str | None = None) -> Iterator[None]:
    """Raise the library's errors as HubError, in one line."""
    hub = hub_library()
    errors, place = hub.errors, hub.constants.ENDPOINT
    try:
        yield
    except CepdiffError:
        raise
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repo} has no revision '{revision}'") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{repo} is gated: ask for access on {place}/{repo}, then {LOG_IN}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"there is no repository {repo} on {place}, or it is private: {LOG_IN}") from error
    except Exception as error:  # the network fails in many ways, each with its own type
        raise HubError(_message(repo, place, error)) from error


def _message(repo: str, place: str, error: BaseException) -> str:
    """One line for any other error; the library wraps the one of the server in its own."""
    while getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and "/xet-" in str(error):
        return f"{place} has no Xet storage for {repo}: set HF_HUB_DISABLE_XET=1"
    if status is None:
        return f"{place} cannot be reached for {repo} ({type(error).__name__}: {shortened(one_line(error), 200)})"
    if status == 401:
        return f"{place} does not accept the token: {LOG_IN}"
    if status == 403:
        return f"{place} refuses access to {repo} with this token: use one that has it, or {LOG_IN}"
    said = getattr(error, "server_message", None) or one_line(error)
    return f"{place} answered with error {status} for {repo} ({shortened(said, 200)}); try again later"
