"""The Space's tree: what is in it, that it configures a Space, that its app.py starts; the Dockerfile beside it."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import pytest
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from packaging.version import Version
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.runner import Runner
from app.server import serve
from latent_core.checkpoints import embedded
from latent_core.checkpoints.loading import load
from latent_core.checkpoints.published import PUBLISHED
from latent_core.trace import Trace
from tests.hub_uploads import SHORT_DESCRIPTION, front_matter
from tests.scripted import ScriptedReasoner
from tests.test_boundaries import imports

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def script(name: str) -> ModuleType:
    """A script of spaces/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"space_{name}", ROOT / "spaces" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return script("build")


@pytest.fixture(scope="module")
def tree(build, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    build.fill(folder)
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_tree_holds_what_the_page_offers_and_nothing_else(tree):
    files = listing(tree)
    tops = {
        "LICENSE",
        "README.md",
        "app",
        "app.py",
        "assets",
        "latent_core",
        "pre-requirements.txt",
        "requirements.txt",
    }
    assert {path.partition("/")[0] for path in files} == tops
    assert {path.split("/")[1] for path in files if path.startswith("assets/")} == {"app", "checkpoints", "traces"}
    checkpoints = {path.split("/")[2] for path in files if path.startswith("assets/checkpoints/")}
    assert checkpoints == set(embedded.offered())
    kinds = {"", ".css", ".html", ".jinja", ".js", ".json", ".md", ".py", ".safetensors", ".txt"}
    assert {Path(path).suffix for path in files} <= kinds
    unwanted = ("__pycache__", "spaces", "tests", "trainers", "training.jsonl", "metrics.json")
    assert not [path for path in files if set(path.split("/")) & set(unwanted)]
    for path, data in files.items():
        if path not in ("app.py", "README.md", "requirements.txt", "pre-requirements.txt"):
            assert data == (ROOT / path).read_bytes(), path


def test_every_companion_of_an_offered_checkpoint_is_there(tree):
    for path in (ROOT / "assets" / "checkpoints").glob("*/*"):
        companion = path.name in ("bank.safetensors", "depict.safetensors", "depict.json", "grounding.json")
        if path.parent.name in embedded.offered() and (companion or path.name.startswith(("m", "tok"))):
            copied = (tree / path.relative_to(ROOT)).exists()
            assert copied == (path.name != "metrics.json"), path
    assert load(tree / "assets" / "checkpoints" / "glyph-lvr").config.method == "lvr"


def test_a_second_build_is_equal_and_replaces_the_first(build, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "TREE", tmp_path / "again")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "old.py").write_text("from a build before this one")
    assert build.main(["--no-check"]) == 0
    assert listing(tmp_path / "again") == listing(tree)


def test_the_summary_counts_all(build, tree):
    head, *parts = build.summary(tree).splitlines()
    size = sum(len(data) for data in listing(tree).values())
    assert f"{len(listing(tree))} files, {size / 1e6:.1f} MB" in head and size < 100e6
    assert sum(int(re.search(r"(\d+) files", part)[1]) for part in parts) == len(listing(tree))


def test_the_front_matter_configures_the_space(tree):
    given = front_matter((tree / "README.md").read_text())
    constraints = (ROOT / "constraints.txt").read_text()
    assert given["sdk"] == "gradio" and f"\ngradio=={given['sdk_version']}\n" in constraints
    assert (tree / given["app_file"]).is_file()
    assert isinstance(given["python_version"], str) and allowed(given["python_version"])
    assert given["models"] == list(script("space_app").PUBLISHED)
    assert given["license"] == "apache-2.0" and (tree / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert 0 < len(given["short_description"]) <= SHORT_DESCRIPTION
    assert given["suggested_hardware"] == "cpu-basic" and re.fullmatch(r"\d+[mh]", given["startup_duration_timeout"])


def allowed(version: str) -> bool:
    """Whether the Makefile takes this version of Python."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    low, high = re.search(r"\(3, (\d+)\) <= sys.version_info < \(3, (\d+)\)", makefile).groups()
    major, minor = version.split(".")[:2]
    return major == "3" and int(low) <= int(minor) < int(high)


def test_requirements_are_what_the_page_imports(tree):
    lines = [line for line in (tree / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    wanted = [Requirement(line) for line in lines]
    names = {requirement.name for requirement in wanted}
    assert not names & {"gradio", "spaces", "huggingface_hub", "pytest", "playwright", "accelerate", "datasets"}
    modules = {
        "pillow": "PIL",
        "umap-learn": "umap",
        "scikit-learn": "sklearn",
        "diff-match-patch": "diff_match_patch",
    }
    provided = {modules.get(name, name) for name in names} | {"app", "latent_core"}
    with_gradio = {"gradio", "gradio_client", "huggingface_hub", "starlette", "uvicorn", "anyio", "orjson", "spaces"}
    for path in [*(tree / "app").rglob("*.py"), *(tree / "latent_core").rglob("*.py"), tree / "app.py"]:
        for line, name in imports(path.read_text(encoding="utf-8")):
            known = name in sys.stdlib_module_names or name in provided | with_gradio
            assert known, f"{path.relative_to(tree)}:{line} imports {name}, which no requirement brings"
    for version in ("3.10", "3.12", "3.13"):  # one line of each package for every version
        for name in names:
            chosen = [
                requirement
                for requirement in wanted
                if requirement.name == name
                and (requirement.marker is None or requirement.marker.evaluate({"python_version": version}))
            ]
            assert len(chosen) == 1, f"{name} on Python {version}"
    torch = next(requirement.specifier for requirement in wanted if requirement.name == "torch")
    (tested,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert Version(tested) in torch and Version("2.8.0") in torch and Version("99") not in torch


def test_the_web_stack_is_locked_with_hashes_in_the_versions_that_the_tests_run_with(tree, build):
    lock = (tree / "pre-requirements.txt").read_text()
    assert lock == (ROOT / "spaces" / "web.lock").read_text() and "//" not in lock
    entries = re.split(r"\n(?=\S)", lock.strip())[1:]
    assert all(re.fullmatch(r"\S+==\S+[^\n]*( \\\n    --hash=sha256:[0-9a-f]{64})+", entry) for entry in entries)
    held = {name: [Requirement(line) for line in lines] for name, lines in build.locked().items()}
    named = [Requirement(line) for line in (tree / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert set(build.WEB) | {"gradio", "safetensors", "pillow"} <= set(held) and set(build.WEB) <= {
        line.name for line in named
    }
    for python in ("3.10.0", "3.11.0", "3.12.0", "3.13.0"):
        version = {"python_full_version": python, "python_version": python[:-2]}

        def at(lines: list[Requirement]) -> list[str]:
            return [str(line.specifier) for line in lines if not line.marker or line.marker.evaluate(version)]  # noqa: B023

        for name, pins in build.tested().items():
            if (name := name.replace("_", "-")) in held:
                remedy = "run python spaces/lock.py"
                assert at(held[name]) == at([Requirement(pin) for pin in pins]), f"{name} on Python {python}: {remedy}"
    assert "--require-hashes -r /tmp/web.lock" in DOCKERFILE


def test_the_app_knows_where_it_runs(monkeypatch, tree):
    space = script("space_app")
    for name, trusted in (("", None), ("someone/inscape", space.PROXIES)):
        monkeypatch.setenv("SPACE_ID", name)
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")  # so that it is set back afterwards
        monkeypatch.delenv("FORWARDED_ALLOW_IPS")
        space.trust_proxies()
        assert os.environ.get("FORWARDED_ALLOW_IPS") == trusted
    proxies = ProxyHeadersMiddleware(None, space.PROXIES).trusted_hosts
    invented = "192.0.2.9, 198.51.100.7, 10.0.3.4"  # the visitor sends the first, the platform adds the others
    assert proxies.get_trusted_client_address(invented)[0] == "198.51.100.7"
    assert space.lender() is None
    marker = object()
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=marker))
    assert space.lender() is None  # installed, but not needed
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert space.lender() is marker
    assert space.chosen() == list(space.PUBLISHED) and set(space.PUBLISHED) <= set(PUBLISHED)
    monkeypatch.setenv("INSCAPE_CHECKPOINTS", "someone/one  LVR-7B")
    assert space.chosen() == ["someone/one", "vincentleebang/LVR-7B"]
    monkeypatch.setenv("INSCAPE_CHECKPOINTS", "")
    assert space.chosen() == []
    assert space.load("glyph-monet").backbone.device.type == "cpu"


@pytest.fixture
def served(monkeypatch):
    """What space_app.main would serve, with models that cost nothing."""
    given = []
    monkeypatch.setattr("app.server.serve", lambda runner, **options: given.append((runner, options)))
    monkeypatch.setattr(Runner, "preload", lambda runner, name: threading.Thread())
    return given


def test_on_a_cpu_the_embedded_checkpoints_are_served(served, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert script("space_app").main() == 0
    ((runner, options),) = served
    assert list(runner.names) == embedded.offered() and options == {
        "host": "0.0.0.0",
        "port": 7860,
        "public": True,
        "allowed_hosts": [],
    }


def test_a_port_that_is_none_and_one_that_is_taken_are_told(served, monkeypatch, capsys):
    space = script("space_app")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    assert space.main() == 2 and "GRADIO_SERVER_PORT: 'abc' is no port" in capsys.readouterr().err
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7999")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def taken(*_, **__):
        raise OSError("port 7999 is taken.")

    monkeypatch.setattr("app.server.serve", taken)
    assert space.main() == 1 and "cannot be served: port 7999 is taken" in capsys.readouterr().err


def test_on_a_gpu_of_its_own_published_checkpoints_are_loaded_before_visitors_come(served, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("INSCAPE_CHECKPOINTS", "someone/one")
    space = script("space_app")
    monkeypatch.setattr(space, "load", ScriptedReasoner)
    assert space.main() == 0
    ((runner, _),) = served
    assert runner.names == (*embedded.offered(), "someone/one") and runner.loaded == ("someone/one",)


def test_with_zero_gpu_published_checkpoints_are_loaded_first_and_borrow(served, monkeypatch, capsys):
    tasks = []

    def gpu(*, duration):
        return lambda task: tasks.append(task) or task

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setenv("INSCAPE_CHECKPOINTS", "someone/one")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7999")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    space = script("space_app")
    monkeypatch.setattr(space, "load", ScriptedReasoner)
    assert space.main() == 0
    ((runner, options),) = served
    assert (
        runner.names == (*embedded.offered(), "someone/one") and runner.loaded == ("someone/one",) and len(tasks) == 2
    )
    assert options["port"] == 7999

    def absent(name):
        raise ValueError(f"{name} could not be fetched from the Hub.")

    monkeypatch.setattr(space, "load", absent)
    assert space.main() == 2 and "someone/one could not be fetched" in capsys.readouterr().err


@pytest.mark.slow
def test_the_trees_own_app_answers(tree):
    """In this environment; check.py makes one from the tree's requirements."""
    check = script("check")
    before = listing(tree)
    log = tree.with_name("server.log")
    with check.start(Path(sys.executable), tree, log) as (process, url):
        check.wait_for_health(process, url, log)
        health = httpx.get(f"{url}health").json()
        assert health["checkpoints"] == embedded.offered()
        client = Client(url, verbose=False, download_files=str(tree.with_name("downloads")))
        (image,), scene = client.predict("find", 7, api_name="/scene")
        answer, trace = client.predict([handle_file(image)], scene["question"], api_name="/ask")
        assert answer["answer"] == scene["answer"] and Trace.load(trace).blocks
    assert process.returncode is not None and listing(tree) == before


def test_an_app_that_ends_is_told_with_its_last_words(tmp_path):
    check = script("check")
    (tmp_path / "app.py").write_text("raise SystemExit('no model is here')")
    log = tmp_path / "server.log"
    with check.start(Path(sys.executable), tmp_path, log) as (process, url):
        with pytest.raises(RuntimeError, match="ended with status 1: no model is here"):
            check.wait_for_health(process, url, log)


@pytest.mark.slow
def test_requirements_that_cannot_be_installed_are_told(tmp_path):
    check = script("check")
    tree = tmp_path / "space"
    tree.mkdir()
    (tree / "README.md").write_text("---\nsdk_version: 6.31.0\n---\n")
    (tree / "pre-requirements.txt").write_text("")
    (tree / "requirements.txt").write_text("numpy==0.0.0.0.1.no-such-version\n")
    with pytest.raises(RuntimeError, match="pip could not install its requirements: ERROR"):
        check.install(tree, tmp_path / "environment")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_the_image_copies_what_is_there_and_not_ignored():
    kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    copied = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]
    assert {"app", "latent_core", "assets", "spaces"} <= set(copied) and kept[0] == "*"
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in kept, f"{source} is hidden from the build by .dockerignore"
    build = ast.parse((ROOT / "spaces" / "build.py").read_text())
    (page,) = (node.value for node in build.body if isinstance(node, ast.Assign) and node.targets[0].id == "PAGE")
    hidden = [line.removeprefix("**/") for line in kept[1:] if not line.startswith("!")]
    for pattern in ast.literal_eval(page):
        assert not any(fnmatch(pattern, f"{line}/*") for line in hidden), pattern
    for line in instructions("COPY --from=tree"):
        assert line.split()[0].startswith("/inscape/build/space")


def test_the_images_python_is_allowed_and_its_torch_a_cpus():
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert allowed(version) and DOCKERFILE.count("FROM python:${PYTHON}-slim") == 1
    assert re.findall(r"^ARG TORCH=(\S+)$", DOCKERFILE, re.MULTILINE) == ["cpu"]
    assert "--torch-backend=${TORCH}" in DOCKERFILE


def test_the_image_runs_as_nobody_in_particular():
    (user,) = instructions("USER")
    assert f"useradd --create-home {user}" in DOCKERFILE
    assert DOCKERFILE.index("USER ") < DOCKERFILE.index("\nCMD ")


def test_the_images_health_check_asks_the_page():
    _, *rest = json.loads(re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])
    command = [sys.executable, *rest]
    page = serve(Runner(["scripted"], lambda name: ScriptedReasoner()), host="127.0.0.1", port=None, wait=False)
    port = re.search(r":(\d+)", page.local_url)[1]
    try:
        assert subprocess.run(command, env=os.environ | {"GRADIO_SERVER_PORT": port}).returncode == 0
    finally:
        page.close()
    after = subprocess.run(command, env=os.environ | {"GRADIO_SERVER_PORT": port}, stderr=subprocess.PIPE)
    assert after.returncode != 0  # nobody serves any more
    assert "GRADIO_SERVER_PORT=7860" in DOCKERFILE and instructions("EXPOSE") == ["7860"]
