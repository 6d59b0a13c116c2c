"""`make space-deploy REPO=user/name`: the upload of build/space as a Space of the Hub, and the wait until it runs.

The token is the one that `hf auth login` keeps or HF_TOKEN holds; it is never printed. What goes wrong is told in one
sentence.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# One commit for the whole tree. The newer way to upload makes several of a large folder, and a Space is built anew
# after each, the first time from half a tree. Read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

from huggingface_hub import CommitInfo, HfApi, get_token  # noqa: E402
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError  # noqa: E402

TREE = Path(__file__).resolve().parent.parent / "build" / "space"
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
INITIAL = {".gitattributes", "README.md"}
"""All that a Space holds which was created and never uploaded to."""
OURS = {"app.py", "app/page.py", "latent_core/decoding/engine.py"}
"""By these a Space is known to hold Inscape; every other one is left alone."""
FAILURES = ("BUILD_ERROR", "CONFIG_ERROR", "RUNTIME_ERROR")
IDLE = ("PAUSED", "STOPPED", "SLEEPING", "DELETING")


def main(arguments: list[str] | None = None) -> int:
    """1 where the Space was not published or does not run, 2 for arguments that cannot be used."""
    parser = argparse.ArgumentParser(prog="spaces/deploy.py", description="Publish build/space as a Space.")
    parser.add_argument("repo", help="user/name or organisation/name of the Space")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and nothing else")
    parser.add_argument("--private", action="store_true", help="a Space that only its owner sees, if it is a new one")
    parser.add_argument("--tree", type=Path, default=TREE, help="what to publish (default: build/space)")
    parser.add_argument("--minutes", type=float, default=30, help="to wait for the build (default: %(default)g)")
    parser.add_argument("--poll", type=float, default=5, help="seconds between two looks at it (default: %(default)g)")
    options = parser.parse_args(arguments)
    if not NAME.fullmatch(options.repo):
        print(f"{options.repo!r} names no Space: give REPO=user/name.", file=sys.stderr)
        return 2
    files = [path for path in sorted(options.tree.rglob("*")) if path.is_file()]
    if not (options.tree / "app.py").is_file():
        print(f"{options.tree} holds no Space: run `make space` first.", file=sys.stderr)
        return 2
    if options.dry_run:
        for path in files:
            print(f"{path.stat().st_size:>12,}  {path.relative_to(options.tree).as_posix()}")
        size = sum(path.stat().st_size for path in files)
        print(f"{size:>12,}  bytes in {len(files)} files would go to the Space {options.repo}; nothing was done.")
        return 0
    try:
        address = deploy(
            HfApi(), options.repo, options.tree, private=options.private, minutes=options.minutes, poll=options.poll
        )
    except RuntimeError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{options.repo} runs: {address}")
    return 0


def deploy(api: HfApi, repo: str, tree: Path, *, private: bool, minutes: float, poll: float) -> str:
    """Publishes `tree` and waits until it runs; its address. Raises RuntimeError with a sentence and its remedy."""
    if get_token() is None:
        raise RuntimeError("There is no token for the Hub: run `hf auth login`, or set HF_TOKEN.")
    with as_runtime_errors(api, "The token", repo):
        user = api.whoami()["name"]
    with as_runtime_errors(api, f"{user}'s token", repo):
        prepare(api, repo, private=private)
    print(f"Uploading to {repo} …", flush=True)
    commit = upload(api, user, repo, tree)
    remedy = "The upload is complete; run the same command again to look at the build once more."
    with as_runtime_errors(api, f"{user}'s token", repo, remedy=remedy):
        return wait(api, repo, commit.oid, minutes=minutes, poll=poll)


def prepare(api: HfApi, repo: str, *, private: bool) -> None:
    """Creates the Space unless it is there. Raises RuntimeError where something else has its name."""
    try:
        info = api.space_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private or None)
        return
    held = {file.rfilename for file in info.siblings or ()}
    if info.sdk not in (None, "gradio") or not (held <= INITIAL or held >= OURS):
        raise RuntimeError(
            f"{repo} is a Space already and holds something else ({len(held)} files, SDK {info.sdk}), which would be "
            "lost: choose another name, or delete that Space first."
        )


def upload(api: HfApi, user: str, repo: str, tree: Path) -> CommitInfo:
    """Makes the Space hold exactly the tree, in one commit."""
    again = "Nothing was published; run the same command again, it sends only what has not arrived."
    with as_runtime_errors(api, f"{user}'s token", repo, remedy=again):
        try:
            return api.upload_folder(
                repo_id=repo,
                repo_type="space",
                folder_path=tree,
                commit_message="Publish Inscape",
                delete_patterns="*",
            )
        except HfHubHTTPError:
            raise
        except (RuntimeError, ValueError) as problem:  # of one file; of the front matter or the storage
            cause = problem.__cause__
            if isinstance(cause, HfHubHTTPError):  # whose own words hold signed addresses
                cause = f"status {cause.response.status_code}"
            reason = f"{_plain(problem)} ({_plain(cause)})" if cause else _plain(problem)
            raise RuntimeError(f"The upload to {repo} broke off: {reason}. {again}") from problem


def wait(api: HfApi, repo: str, commit: str, *, minutes: float, poll: float) -> str:
    """The address of the Space once it runs `commit`. Raises RuntimeError where it fails or takes too long."""
    settings = f"{api.endpoint}/spaces/{repo}"
    end, shown, stage = time.monotonic() + 60 * minutes, None, "unknown"
    while time.monotonic() < end:
        raw = api.get_space_runtime(repo).raw
        stage = raw["stage"]
        current = raw.get("sha") in (None, commit)  # otherwise it is about the commit before
        if stage != shown:
            print(f"  {stage.lower().replace('_', ' ')}", flush=True)
            shown = stage
        if current and stage == "RUNNING":
            return settings
        if current and stage in FAILURES:
            reason = _plain(raw.get("errorMessage") or "no reason was given")
            raise RuntimeError(f"{repo} does not run ({stage}): {reason}. Its logs are at {settings}?logs=build.")
        if current and stage in IDLE:
            raise RuntimeError(f"{repo} was uploaded, but is {stage.lower()}: start it at {settings}/settings.")
        time.sleep(poll)
    raise RuntimeError(
        f"{repo} was uploaded, but after {minutes:g} minutes its stage is {stage}: look at {settings}?logs=build, "
        "or wait longer with --minutes."
    )


@contextmanager
def as_runtime_errors(api: HfApi, token: str, repo: str, *, remedy: str = "Try again later.") -> Iterator[None]:
    """A context in which what the Hub or the network refuses becomes a RuntimeError with a sentence."""
    try:
        yield
    except HfHubHTTPError as problem:
        status = problem.response.status_code
        reason = _plain(problem.server_message or problem.response.reason_phrase)
        if status == 401:
            raise RuntimeError(
                f"{token} was refused by the Hub (401: {reason}): make one that may write at "
                f"{api.endpoint}/settings/tokens, then run `hf auth login` or set HF_TOKEN."
            ) from problem
        if status in (402, 403):
            raise RuntimeError(
                f"{token} may not write the Space {repo} ({status}: {reason}): use one that may, or a name of "
                "your own."
            ) from problem
        if status == 409:
            raise RuntimeError(f"{repo} exists already (409: {reason}): choose another name.") from problem
        raise RuntimeError(f"The Hub failed to serve {repo} ({status}: {reason}). {remedy}") from problem
    except HTTPError as problem:  # no answer at all
        raise RuntimeError(
            f"{api.endpoint} did not answer ({type(problem).__name__}: {_plain(problem)}). {remedy}"
        ) from problem


def _plain(message: object) -> str:
    """On one line, without the full stop at its end."""
    return " ".join(str(message).split()).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
