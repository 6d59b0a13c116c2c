"""Hundreds of hostile requests against a public instance with a real model: it refuses, tells nothing, and goes on."""

import json
import random
import threading
from pathlib import Path

import httpx
import pytest

from app.components import inside
from app.runner import Runner
from app.server import serve
from latent_core import glyphs
from latent_core.checkpoints import loading as checkpoints
from tests import hostile
from tests.visitor import Visitor, result

SECRET = "canary-3f1c9d"
ENDPOINTS = ("ask", "scene", "inspect", "region", "compare", "checkpoints")


@pytest.fixture(scope="module")
def canary(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("outside") / "canary.png"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def url():
    page = serve(Runner(["glyph-monet"], checkpoints.load), host="127.0.0.1", port=None, wait=False, public=True)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def scene() -> tuple[bytes, str, str]:
    example = glyphs.sample("find", 3, split="test")
    return hostile.written(example.images[0], "PNG"), example.question, example.answer


@pytest.fixture(scope="module")
def good_trace(url, scene, tmp_path_factory) -> Path:
    visitor = Visitor(url)
    _, answer = visitor.ask(scene[1], visitor.file(scene[0]))
    path = tmp_path_factory.mktemp("good") / "run.safetensors"
    path.write_bytes(Path(result(answer)[1]["path"]).read_bytes())
    return path


@pytest.fixture
def visitor(url, scene, caplog):
    """Afterwards the page still answers a good question, and nothing failed where it was not foreseen."""
    visitor = Visitor(url)
    yield visitor
    ok, answer = visitor.ask(scene[1], visitor.file(scene[0]))
    assert ok and result(answer)[0]["answer"] == scene[2], answer
    assert httpx.get(f"{url}health").json()["running"] == 0
    unforeseen = [str(record.exc_info[1]) for record in caplog.records if record.exc_info and "failed" in record.msg]
    assert not unforeseen, unforeseen
    visitor.close()


def silent(answer: str, case: object) -> None:
    """Nothing in an answer is the canary's, or shows the program's inside."""
    for word in (SECRET, "Traceback", "site-packages", "root:x:0"):
        assert word not in answer, f"{word} in the answer to {str(case)[:200]!r}: {answer[:300]}"


def usual(visitor: Visitor, image: dict, trace: dict) -> dict[str, list]:
    """Arguments that each endpoint accepts."""
    return {
        "ask": [[image], "Which?", visitor.checkpoint(), "latent", "own", 0, 1, 0, 1, 8, 1, 0, 1],
        "scene": ["find", 1],
        "inspect": [trace],
        "region": [trace, 0, 0, 0, 1, 1, 0, 0, 0],
        "compare": [trace, trace],
        "checkpoints": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDPOINTS)
def test_wrong_arguments_are_refused(visitor, canary, scene, good_trace, name):
    """Every argument of every endpoint replaced by every wrong value, and argument lists of wrong length."""
    image, trace = visitor.file(scene[0]), visitor.file(good_trace.read_bytes(), "run.safetensors")
    arguments = usual(visitor, image, trace)[name]
    assert visitor.call(name, arguments)[0]
    cases = [
        [*arguments[:place], value, *arguments[place + 1 :]]
        for place in range(len(arguments))
        for value in hostile.values(canary, random.Random(place))
    ]
    cases += [[], [None] * 40, arguments * 2]
    for case in random.Random(0).sample(cases, min(len(cases), 150)):
        _, answer = visitor.call(name, case)
        silent(answer, case)


@pytest.mark.slow
def test_the_pages_own_functions_refuse_wrong_values(visitor, canary):
    """All functions behind the page, called as the page would, with wrong inputs and wrong events."""
    rng = random.Random(1)
    wrong = [*hostile.values(canary, rng)]
    events = [*wrong, {"id": wrong[0], "a": [], "b": {}, "path": str(canary), "name": 7, "family": [], "seed": 10**30}]
    events += [{"id": "../../etc/passwd", "changes": {"checkpoint": "/etc", "latents": 10**9, "rule": "x"}}]
    events += [{"run": "1", "box": [float("nan")] * 4, "image": "a", "level": {}, "layer": 1e9, "head": -1}]
    count = 0
    for function in visitor.functions:
        for n in range(12):
            visitor.session = f"{function['id']}-{n}"  # otherwise the rate would be all that answers
            inputs = [rng.choice(wrong) for _ in function["inputs"]]
            _, answer = visitor.join(function["id"], inputs, rng.choice(events))
            silent(answer, inputs)
            count += 1
    assert count >= 300


@pytest.mark.slow
def test_image_files_that_lie_become_a_sentence(visitor, scene):
    """Bombs, cut, damaged and double files, under names of every kind: an answer, or a sentence on what is wrong."""
    cases = list(hostile.images(random.Random(2)))
    assert len(cases) > 70
    for name, data in cases:
        sent = visitor.upload(data, name)
        if sent.status_code != 200:  # a name that cannot be a file's
            silent(sent.text, name)
            continue
        (path,) = sent.json()
        assert inside(path) == path, f"{name} was put outside of the uploads"
        ok, answer = visitor.ask(
            scene[1], {"path": path, "meta": {"_type": "gradio.FileData"}}, max_new_tokens=2, latents=1
        )
        silent(answer, name)
        assert ok or result(answer)["error"].endswith("."), f"{name}: {answer}"


def test_traces_that_lie_become_a_sentence(visitor, good_trace):
    """Each broken trace through /inspect, /region and /compare: figures, or a sentence, and not minutes of work."""
    cases = list(hostile.traces(good_trace, random.Random(3)))
    assert len(cases) > 100
    for what, data in cases:
        try:
            file = visitor.file(data, "run.safetensors")
        except httpx.HTTPStatusError as refused:
            assert refused.response.status_code == 413, what
            continue
        for name, arguments in (
            ("inspect", [file]),
            ("region", [file, 0, 0, 0, 1, 1, 0, 0, 0]),
            ("compare", [file] * 2),
        ):
            ok, answer = visitor.call(name, arguments)
            silent(answer, what)
            assert ok or result(answer)["error"], f"{name} of {what}: {answer}"


def test_an_opened_trace_is_read_by_no_model_that_it_does_not_fit(visitor, good_trace):
    """The Inspect page opens broken traces and reads them with the model that they name."""
    numbers = {function["api_name"]: function["id"] for function in visitor.functions}
    for what, data in hostile.traces(good_trace, random.Random(3)):
        if not what.startswith(("token_id", "position", "image_states", "kind", "a block", "the checkpoint", "text")):
            continue
        visitor.session = f"{random.random()}"[2:]
        file = visitor.file(data, "run.safetensors")
        _, answer = visitor.join(numbers["upload"], [], {"path": file["path"]})
        silent(answer, what)
        completed = [line for line in answer.splitlines() if "process_completed" in line]
        value = json.loads(completed[0].removeprefix("data: "))["output"]["data"][0]
        if "id" in value:
            ok, answer = visitor.join(numbers["read"], [], {"id": value["id"]})
            assert ok, f"{what}: {answer}"
            silent(answer, what)


def test_files_outside_are_never_served(url, canary):
    """Gradio's file route, by plain, encoded and disguised names; addresses; routes that the page does not need."""
    for path in [*hostile.disguised(canary), "/etc/passwd", "README.md", "assets/checkpoints/glyph-monet/config.json"]:
        for way in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "gradio_api/proxy="):
            try:
                answer = httpx.get(f"{url}{way}{path}")
            except httpx.InvalidURL:
                continue
            assert answer.status_code >= 400, f"{way}{path}"
            silent(answer.text, path)
    for path in ("file=http://127.0.0.1:9/", "file=https://example.com/x.png", "file=%68ttp://127.0.0.1:9/"):
        assert httpx.get(f"{url}gradio_api/{path}").status_code == 403
    for path in ("monitoring", "gradio_api/dev/reload", "gradio_api/vibe-code", "gradio_api/runs", "svelte/x", "docs"):
        assert httpx.get(f"{url}{path}").status_code == 404, path
    for path in ("component_server", "process_recording", "vibe-edit"):
        assert httpx.post(f"{url}gradio_api/{path}", json={}).status_code == 404, path


def test_uploads_are_never_served_as_pages(visitor):
    """Markup comes back as a download, whatever its name says; a picture's name makes no page of it."""
    script = f"<script>{hostile.PROBE}</script>".encode()
    for name in ("page.html", "page.svg", "page.xhtml", "page.js", "page.pdf", "page", "page.png", "page.xml"):
        (path,) = visitor.upload(script, name).json()
        answer = visitor.http.get(f"gradio_api/file={path}")
        assert answer.content == script and answer.headers["X-Content-Type-Options"] == "nosniff"
        download = answer.headers["Content-Disposition"].startswith("attachment")
        assert download or answer.headers["Content-Type"].startswith("image/png"), name
        assert "script-src 'self';" in answer.headers["Content-Security-Policy"]


def test_files_are_not_fetched_from_addresses(visitor):
    """A file argument that is an address is refused before Gradio would fetch it."""
    for address in ("http://127.0.0.1:9/x.png", "https://example.com/x.png", " HTTP://x", "file:///etc/passwd"):
        file = {"path": address, "meta": {"_type": "gradio.FileData"}}
        for name, arguments in (("inspect", [file]), ("ask", [[file]] + [None] * 12)):
            ok, answer = visitor.call(name, arguments)
            assert not ok and "not fetched from addresses" in answer


def test_a_visitor_cannot_name_a_checkpoint(visitor, scene, tmp_path):
    """Neither a repository nor a folder, not even one that holds a checkpoint of ours."""
    image = visitor.file(scene[0])
    for name in ("glyph-text", "NOVAglow646/Monet-7B", "assets/checkpoints/glyph-lvr", "../glyph-lvr", str(tmp_path)):
        ok, answer = visitor.ask(scene[1], image, checkpoint=name)
        assert not ok and result(answer)["error"].startswith("Unknown checkpoint"), answer


def test_requests_without_end_are_refused(visitor, url):
    """Bodies above the limit, uploads above theirs, JSON nested without end."""
    assert visitor.post("gradio_api/call/scene", {"data": ["x" * 3_000_000, 1]}).status_code == 413
    assert visitor.upload(bytes(11_000_000)).status_code == 413
    deep = httpx.post(
        f"{url}gradio_api/call/scene", content=b"[" * 1_000_000, headers={"Content-Type": "application/json"}
    )
    assert deep.status_code == 400
    files = [("files", (f"{n}.png", bytes(9_000_000))) for n in range(6)]
    try:
        assert httpx.post(f"{url}gradio_api/upload", files=files, timeout=60).status_code >= 400
    except httpx.TransportError:  # the connection was ended in the middle
        pass


def test_nobody_sees_anothers_run(url, scene):
    """Each of four visitors at once asks its own question and finds only its own in all that it hears."""
    heard: dict[int, str] = {}

    def visit(number: int) -> None:
        visitor = Visitor(url)
        image = visitor.file(scene[0])
        parts = [visitor.ask(f"unique-{number}-question", image, max_new_tokens=8)[1] for _ in range(3)]
        trace = result(parts[-1])[1]
        parts.append(httpx.get(trace["url"]).text)
        heard[number] = "".join(parts)
        visitor.close()

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in heard.items():
        assert f"unique-{number}-question" in answer
        assert not any(f"unique-{other}-question" in answer for other in range(4) if other != number)
