"""Publishing a Space, as a person runs it, against a Hub on this machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub_uploads import TOKEN, USER, Hub, Space, serving

ROOT = Path(__file__).resolve().parents[1]
REPO = f"{USER}/inscape"
README = b"---\nsdk: gradio\nsdk_version: 6.31.0\n---\n# Inscape\n"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small one, with all that matters: nested folders, an empty file, large files, bytes that are no text."""
    files = {
        "README.md": README,
        "app.py": "print('größer')\n".encode(),
        "app/__init__.py": b"",
        "app/page.py": b"\r\n",
        "latent_core/decoding/engine.py": b"pass\n",
        "assets/first.safetensors": bytes(range(256)) * 400,
        "assets/second.safetensors": b"\0" * 5000,
        "assets/third.safetensors": b"\1" * 5000,
    }
    for path, data in files.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(data)
    return tmp_path / "tree"


@pytest.fixture
def deploy(hub, tree, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    def run(repo: str = REPO, *options: str, token: str | None = TOKEN, **environment: str):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        given |= {"HF_TOKEN": token} if token else {}
        command = [sys.executable, "spaces/deploy.py", repo, "--tree", str(tree), "--poll", "0.01", *options]
        done = subprocess.run(
            command, cwd=ROOT, env={**kept, **given, **environment}, capture_output=True, text=True, timeout=120
        )
        assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr
        return done

    return run


def contents(tree: Path) -> dict[str, bytes]:
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def held(hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    return {path: data for path, data in hub.spaces[repo].files.items() if path != ".gitattributes"}


def refusals(*answers: tuple[int, str] | None) -> Callable[[], tuple[int, str] | None]:
    """These answers one after the other, then none."""
    left = list(answers)
    return lambda: left.pop(0) if left else None


def test_the_space_holds_the_tree_and_runs(hub, tree, deploy):
    done = deploy()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{REPO} runs: {hub.url}/spaces/{REPO}"
    assert [line.strip() for line in done.stdout.splitlines()[1:-1]] == ["building", "running"]
    space = hub.spaces[REPO]
    assert held(hub) == contents(tree)
    assert (space.sdk, space.private, len(space.commits)) == ("gradio", False, 1)


def test_a_new_version_replaces_the_old_one(hub, tree, deploy):
    assert deploy(REPO, "--private").returncode == 0 and hub.spaces[REPO].private
    (tree / "app" / "page.py").rename(tree / "app" / "other.py")
    (tree / "app" / "page.py").write_bytes(b"pass\n")
    (tree / "assets" / "second.safetensors").unlink()
    (tree / "assets" / "first.safetensors").write_bytes(b"new")
    hub.received.clear()
    hub.stages = [{"stage": "RUNNING", "sha": hub.spaces[REPO].commits[-1]}, {"stage": "RUNNING"}]
    done = deploy()
    assert done.returncode == 0, done.stderr
    assert held(hub) == contents(tree) and len(hub.received) == 1 and len(hub.spaces[REPO].commits) == 2
    assert hub.requests[-2:] == [f"GET /api/spaces/{REPO}/runtime"] * 2  # the old version's running does not count
    assert deploy().returncode == 0 and len(hub.spaces[REPO].commits) == 2  # nothing is new


def test_a_dry_run_lists_exactly_what_would_go(hub, tree, deploy):
    done = deploy(REPO, "--dry-run", token=None)
    *lines, last = done.stdout.splitlines()
    listed = {path: int(size.replace(",", "")) for size, path in (line.split(maxsplit=1) for line in lines)}
    assert listed == {path: len(data) for path, data in contents(tree).items()}
    assert f"{sum(listed.values()):,}  bytes in {len(listed)} files" in last and hub.requests == []


@pytest.mark.parametrize(
    ("token", "part", "answer", "sentence"),
    [
        ("hf_wrong", "", None, "The token was refused by the Hub (401: Unauthorized): make one that may write at"),
        (None, "", None, "There is no token for the Hub: run `hf auth login`, or set HF_TOKEN."),
        (
            TOKEN,
            "create",
            (403, "No write scope"),
            f"someone's token may not write the Space {REPO} (403: No write scope)",
        ),
        (TOKEN, "create", (402, "PRO only"), f"someone's token may not write the Space {REPO} (402: PRO only)"),
        (TOKEN, "preupload", (403, "Read only"), f"someone's token may not write the Space {REPO} (403: Read only)"),
        (TOKEN, "create", (409, "Taken"), f"{REPO} exists already (409: Taken): choose another name."),
    ],
)
def test_a_refusal_is_a_sentence(hub, deploy, token, part, answer, sentence):
    hub.faults[part] = refusals(answer)
    done = deploy(token=token)
    assert done.returncode == 1 and done.stderr.strip().startswith(sentence), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert REPO not in hub.spaces or not hub.spaces[REPO].commits


def test_somebody_elses_namespace_is_refused(hub, deploy):
    done = deploy("grace/inscape")
    assert done.returncode == 1 and "may not write the Space grace/inscape (403" in done.stderr and not hub.spaces


@pytest.mark.parametrize(
    ("sdk", "files"),
    [("gradio", {"app.py": b"", "README.md": README, "model.bin": b""}), ("docker", {"README.md": b""})],
)
def test_a_name_that_holds_something_else_is_left_alone(hub, deploy, sdk, files):
    hub.spaces[REPO] = Space(sdk, False, dict(files))
    done = deploy()
    assert done.returncode == 1 and f"{REPO} is a Space already and holds something else" in done.stderr
    assert hub.spaces[REPO].files == files


def test_names_that_are_none_and_trees_that_are_none_are_refused(hub, tree, deploy):
    assert "'inscape' names no Space" in deploy("inscape").stderr
    (tree / "app.py").unlink()
    done = deploy()
    assert done.returncode == 2 and "run `make space` first" in done.stderr and hub.requests == []


@pytest.mark.parametrize(
    ("part", "answers"),
    [
        ("object", (None, (403, "Request has expired"))),
        ("verify", (None, (400, "The size is wrong"))),
        ("commit", ((500, "Internal error"),)),
    ],
)
def test_an_upload_that_breaks_off_goes_on_when_it_is_repeated(hub, tree, deploy, part, answers):
    hub.faults[part] = refusals(*answers)
    done = deploy()
    assert done.returncode == 1 and "run the same command again" in done.stderr, done.stderr
    assert str(answers[-1][0]) in done.stderr and held(hub) == {"README.md": b"---\nsdk: gradio\n---\n"}
    arrived = set(hub.objects)
    assert arrived
    hub.received.clear()
    assert deploy().returncode == 0
    assert held(hub) == contents(tree) and not arrived & set(hub.received)


@pytest.mark.parametrize("stage", ["BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR"])
def test_a_failed_build_tells_its_reason(hub, deploy, stage):
    hub.stages = [{"stage": "BUILDING"}, {"stage": stage, "errorMessage": "No matching distribution\n for torch==9."}]
    done = deploy()
    assert done.returncode == 1
    assert f"{REPO} does not run ({stage}): No matching distribution for torch==9. Its logs" in done.stderr


@pytest.mark.parametrize(
    ("stages", "options", "sentence"),
    [
        ([{"stage": "BUILDING"}], ["--minutes", "0.005"], "after 0.005 minutes its stage is BUILDING"),
        ([{"stage": "NO_APP_FILE"}, {"stage": "PAUSED"}], [], "was uploaded, but is paused: start it at"),
    ],
)
def test_a_space_that_does_not_get_to_run_is_told(hub, deploy, stages, options, sentence):
    hub.stages = stages
    done = deploy(REPO, *options)
    assert done.returncode == 1 and sentence in done.stderr, done.stderr


def test_a_hub_that_does_not_answer_is_a_sentence(deploy):
    done = deploy(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and done.stderr.startswith("http://127.0.0.1:9 did not answer (ConnectError")
