"""Limits, rates, retention and headers: what a visitor may ask, how often, and what stays of it."""

import dataclasses
import errno
import os
import re
import threading
import time

import httpx
import pytest
from gradio.utils import get_upload_folder

from app.__main__ import main
from app.ask import answer_stream, new_scene, save_trace
from app.components import as_files, inside
from app.headers import HEADERS
from app.history import History
from app.limits import MAX_NESTING, OWN, PUBLIC
from app.rate import Rate
from app.runner import Overtime, Runner, timely
from app.server import serve
from app.store import Store, store, stored_bytes
from latent_core import reasoner, settings
from latent_core.model import images
from tests import hostile
from tests.scripted import ScriptedReasoner
from tests.visitor import Visitor, result


def run(limits=OWN, session="tab", files=None, question=None, reasoner=None, runner=None, **settings):
    """The last value and path of a run with a scripted model."""
    runner = runner or Runner(["scripted"], lambda name: reasoner or ScriptedReasoner(), limits=limits)
    pictures, asked, _ = new_scene("find", 7)
    files = as_files(pictures) if files is None else files
    asked = asked if question is None else question
    return list(answer_stream(runner, session, files, asked, "scripted", None, **settings))[-1]


def test_a_public_instance_gives_no_more_than_ones_own_and_none_more_than_the_formats():
    for field in dataclasses.fields(OWN):
        own, public = getattr(OWN, field.name), getattr(PUBLIC, field.name)
        assert public is not None and (own is None or 0 < public <= own), field.name
    assert OWN.pixels <= images.MAX_PIXELS and OWN.latents <= settings.MAX_LATENTS
    assert OWN.question <= reasoner.MAX_QUESTION and OWN.images <= reasoner.MAX_IMAGES
    settings.Settings(max_new_tokens=OWN.tokens, max_blocks=OWN.blocks, latents=OWN.latents)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_new_tokens": 513}, "max_new_tokens is 513, but at most 512 is allowed here"),
        ({"max_blocks": 17}, "max_blocks is 17, but at most 16"),
        ({"latents": 65}, "K is 65, but at most 64"),
        ({"question": "x" * 2001}, "The question has 2,001 characters; at most 2,000 are accepted"),
        ({"files": [{}] * 5}, "A file was not uploaded"),
        ({"files": "abc"}, "The images are not a list of uploaded files"),
        ({"question": ["x"]}, "The question is not text"),
        ({"seed": float("inf")}, "The setting seed is 'inf'"),
        ({"top_k": True}, "The setting top k is 'True'"),
    ],
)
def test_what_is_above_a_limit_becomes_a_sentence(given, sentence):
    value, path = run(PUBLIC, **given)
    assert path is None and value["problem"].startswith(sentence), value["problem"]


def test_five_images_and_large_images_are_too_much():
    pictures, *_ = new_scene("find", 7)
    assert "at most 4" in run(PUBLIC, files=as_files(pictures * 5))[0]["problem"]
    small = dataclasses.replace(PUBLIC, pixels=96 * 96 - 1)
    assert "96 × 96 pixels" in run(small, files=as_files(pictures))[0]["problem"]


def test_a_run_that_takes_too_long_is_stopped_and_told_so():
    short = dataclasses.replace(OWN, run_seconds=0.3)
    reasoner = ScriptedReasoner(delay=0.12)
    value, path = run(short, reasoner=reasoner, latents=2)
    assert "stopped after 0.3 seconds" in value["problem"] and value["state"] == "finished"
    assert value["finish"]["reason"] == "cancelled" and 0 < value["finish"]["tokens"] < 9
    assert reasoner.closed == 1 and path is not None
    ticks = iter(range(100))
    events = timely("abcdef", 3.0, lambda: float(next(ticks)))
    with pytest.raises(Overtime, match="after 3 seconds"):
        list(events)


def test_who_starts_too_many_runs_hears_how_long_to_wait():
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=dataclasses.replace(OWN, runs_a_minute=2))
    assert [run(runner=runner)[0]["problem"] for _ in range(2)] == [None, None]
    # the clock goes on meanwhile
    assert re.search(r"more than 2 runs in a minute; wait (2\d|30) seconds", run(runner=runner)[0]["problem"])
    assert run(runner=runner, session="another tab")[0]["problem"] is None
    assert runner.running == 0


def test_a_rate_refills_evenly_and_remembers_so_many_sessions():
    now = [0.0]
    rate = Rate(6, "runs", most=2, clock=lambda: now[0])
    for _ in range(6):
        rate.take("a")
    with pytest.raises(ValueError, match="wait 10 seconds"):
        rate.take("a")
    now[0] = 9.5
    with pytest.raises(ValueError, match="wait 1 second and"):
        rate.take("a")
    now[0] = 10.0
    rate.take("a")
    for session in "bc":
        rate.take(session)
    rate.take("a")  # forgotten meanwhile, so full again
    Rate(None, "runs", most=1).take("a")


def test_old_files_are_swept_and_new_ones_and_the_pages_own_stay(tmp_path):
    old, new, own = (tmp_path / name / "image.png" for name in ("old", "new", "own"))
    for path in (old, new, own):
        path.parent.mkdir()
        path.write_bytes(b"image")
    for path in (old, own, old.parent):
        os.utime(path, (time.time() - 7200,) * 2)
    files, limits = Store(tmp_path), dataclasses.replace(OWN, keep_seconds=3600)
    files.protected = lambda: {str(own)}
    (tmp_path / "empty").mkdir()
    os.utime(tmp_path / "empty", (time.time() - 7200,) * 2)
    assert stored_bytes(tmp_path) == files.bytes == 15 and len(files) == 3
    assert files.sweep(limits) == 1
    assert not old.exists() and new.exists() and own.exists() and not (tmp_path / "empty").exists()
    assert own.stat().st_mtime > time.time() - 60  # for another server that shares the folder
    new.unlink()  # by that other server
    assert files.sweep(limits) == 0 and files.bytes == 5


def test_an_image_that_was_swept_away_is_asked_for_again():
    pictures, *_ = new_scene("find", 8)
    files = as_files(pictures)
    os.remove(inside(files[0]["path"]))
    assert "no longer kept; upload it again" in run(files=files)[0]["problem"]


def test_a_full_house_takes_no_more(tmp_path, monkeypatch):
    files = Store(tmp_path)
    monkeypatch.setattr("app.ask.store", lambda: files)
    value, path = run(dataclasses.replace(OWN, disk_bytes=0))
    assert path is None and value["finish"]["answer"] == "ring"
    assert "could not be saved: all files that this server has room for belong to pages" in value["problem"]


def test_runs_go_with_their_traces(tmp_path):
    limits = dataclasses.replace(OWN, session_runs=2, all_runs=3, sessions=2)
    history, paths = History(recorded=tmp_path, limits=limits), {}
    for session, number in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("c", 6)):
        paths[number] = tmp_path / str(number) / "run.safetensors"
        paths[number].parent.mkdir()
        paths[number].touch()
        history.add(session, number, "run", paths[number])
        if number == 3:
            assert not paths[1].parent.exists() and paths[2].exists()
    assert [number for number, path in paths.items() if path.exists()] == [4, 5, 6]  # a was heard of longest ago
    history.forget("b")
    assert not paths[4].exists() and not paths[5].parent.exists() and paths[6].exists()
    paths[6].unlink()
    with pytest.raises(ValueError, match="no longer kept"):
        history.find("c", "6")


def test_an_idle_session_leaves_nothing_in_memory():
    runner = Runner(["scripted"], lambda name: ScriptedReasoner())
    for number in range(3):
        run(runner=runner, session=str(number))
    assert not runner._sessions


def test_a_folder_of_this_machine_is_no_public_checkpoint(tmp_path, capsys):
    assert main(["--no-browser", "--public", "--checkpoint", str(tmp_path)]) == 2
    assert "is a folder of this machine" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server():
    runner = Runner(["scripted"], lambda name: ScriptedReasoner())
    page = serve(runner, host="127.0.0.1", port=None, wait=False, public=True)
    yield runner, page.local_url
    page.close()


def test_every_answer_carries_the_headers(server):
    _, url = server
    for path in ("", "health", "config", "plotly.min.js", "theme.css", "monitoring", "gradio_api/file=/etc/passwd"):
        found = httpx.get(f"{url}{path}").headers
        assert {name: found[name] for name in HEADERS} == HEADERS, path
        assert "frame-ancestors 'self' https://huggingface.co;" in f"{found['Content-Security-Policy']};"
        assert "x-frame-options" not in found  # it would keep the Space out of its own frame
    nonces = {httpx.get(url).headers["Content-Security-Policy"] for _ in range(3)}
    assert len(nonces) == 3
    assert httpx.head(url).status_code == 200


def test_the_pages_limits_are_those_of_the_instance(server):
    runner, url = server
    assert runner.limits is PUBLIC
    notice = PUBLIC.retention_notice
    assert "an hour after" in notice and notice.split(".")[0] in httpx.get(f"{url}config").text
    assert "24 hours after" in OWN.retention_notice and "within a minute after you close" in OWN.retention_notice


def test_what_gradio_keeps_for_sessions_is_bounded():
    page = serve(Runner(["scripted"], lambda name: ScriptedReasoner()), host="127.0.0.1", port=None, wait=False)
    try:
        assert page._queue.pending_messages_per_session.max_size == OWN.sessions + 4 * OWN.queue + OWN.places
        assert page._queue.ANALYTICS_MAX_EVENTS == 1
        assert page.app.state_holder.capacity == OWN.states
    finally:
        page.close()


def test_a_full_disk_refuses_uploads_with_a_sentence(server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = set(store().folder.iterdir())
    monkeypatch.setattr("app.uploads.os.rename", full)
    answer = Visitor(server[1]).upload(b"image of nobody")
    assert (
        answer.status_code == 507 and answer.json()["detail"] == "The file cannot be taken: No space left on device."
    )
    assert [
        path for path in set(store().folder.iterdir()) - before if path.is_file()
    ] == []  # what had arrived is gone


def test_requests_that_gradio_could_not_answer_are_refused(server):
    visitor = Visitor(server[1])
    deep = "x"
    for _ in range(MAX_NESTING + 5):
        deep = [deep]
    for value, words in ((float("nan"), "not finite"), ("\ud800", "half a"), (10**30, "above 2"), (deep, "nested")):
        answer = visitor.post("gradio_api/call/scene", {"data": [value, 1]})
        assert answer.status_code == 400 and words in answer.json()["detail"]


def test_a_session_with_an_endless_name_is_refused(server):
    visitor = Visitor(server[1])
    visitor.session = "x" * 1000
    (stop,) = [function["id"] for function in visitor.functions if function["api_name"] == "stop"]
    ok, answer = visitor.join(stop, [None])
    assert not ok and "at most 64 are accepted" in answer


def test_programs_without_a_session_do_not_stop_each_other(server):
    """Three at once, each a session of its own though none gives a name."""
    visitor, found = Visitor(server[1]), {}
    pictures, *_ = new_scene("find", 7)
    image = visitor.file(hostile.written(pictures[0], "PNG"))

    def visit(number: int) -> None:
        found[number] = result(Visitor(server[1]).ask("slow?", image)[1])[0]["reason"]

    slow = ScriptedReasoner(delay=0.1)
    server[0]._reasoners["scripted"] = slow
    threads = [threading.Thread(target=visit, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: "stop", 1: "stop", 2: "stop"}


def test_a_trace_has_a_folder_that_cannot_be_guessed():
    _, path = run()
    assert len(os.path.relpath(path, get_upload_folder()).split("/")[0]) == 32
    assert save_trace.__defaults__ == (OWN,)


def test_no_more_runs_at_once_than_the_instance_gives_whoever_calls():
    """39 calls past every queue, as many sessions, then again all in one session."""
    reasoner, most, entered = ScriptedReasoner(delay=0.01), 0, threading.Lock()
    limits = dataclasses.replace(PUBLIC, at_once=4, runs_a_minute=None)
    runner = Runner(["scripted"], lambda name: reasoner, limits=limits)
    play = reasoner._stream

    def counted(*arguments):
        nonlocal most
        with entered:
            most = max(most, runner.running)
        yield from play(*arguments)

    reasoner._stream = counted
    for sessions in (39, 1):
        answers = []

        def call(number: int) -> None:
            answers.append(run(runner=runner, session=str(number % sessions), latents=1)[0])  # noqa: B023

        threads = [threading.Thread(target=call, args=(number,)) for number in range(39)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 39 and most <= 4 and runner.running == 0
    assert not runner._sessions


def test_who_finds_no_place_is_told_and_a_place_that_comes_free_is_taken(monkeypatch):
    monkeypatch.setattr("app.runner.PATIENCE", 0.05)
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=dataclasses.replace(OWN, at_once=1))
    pictures, asked, _ = new_scene("find", 7)
    first = answer_stream(runner, "tab", as_files(pictures), asked, "scripted", None, speed="slow")
    next(first), next(first)
    problem = run(runner=runner, session="another")[0]["problem"]
    assert problem.startswith("One question is being answered, as many as this instance answers at once")
    assert runner.running == 1
    first.close()
    assert run(runner=runner, session="another")[0]["problem"] is None


def test_who_waits_for_looks_refuses_no_question():
    """Two scenes past those under way wait, the next is refused, and a question is answered meanwhile."""
    limits = dataclasses.replace(PUBLIC, light_at_once=1, queue=2)
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=limits)
    page = serve(runner, host="127.0.0.1", port=None, wait=False, public=True)
    try:
        line = page._queue.event_queue_per_concurrency_id
        visitor = Visitor(page.local_url)
        image = visitor.file(hostile.written(new_scene("find", 7)[0][0], "PNG"))
        visitor.call("scene", ["find", 7])
        line["light"].current_concurrency = 1  # as if one were under way that does not end
        body = {"fn_index": next(f["id"] for f in visitor.functions if f["api_name"] == "scene"), "data": ["find", 7]}
        responses = [
            visitor.post("gradio_api/queue/join", {**body, "session_hash": f"s{number}"}) for number in range(3)
        ]
        assert [answer.status_code for answer in responses] == [200, 200, 503]
        assert responses[2].json()["detail"].startswith("Queue is full. 2 wait already; try again")
        assert visitor.ask("Which?", image)[0]
    finally:
        page.close()


def test_every_event_names_its_group_and_the_groups_limit():
    """An event that leaves the limit out would set its whole group to one at once, and the page's first Run did."""
    page = serve(Runner(["scripted"], lambda name: ScriptedReasoner()), host="127.0.0.1", port=None, wait=False)
    try:
        queued = [fn for fn in page.fns.values() if fn.queue and not any(on == "unload" for _, on in fn.targets)]
        for fn in queued:
            page._queue.create_event_queue_for_fn(fn)
        lines = {name: line.concurrency_limit for name, line in page._queue.event_queue_per_concurrency_id.items()}
        assert lines == {
            "model": OWN.at_once,
            "look": OWN.inspections_at_once,
            "light": OWN.light_at_once,
            "choose": 1,
        }
    finally:
        page.close()


def test_no_route_goes_past_the_queue(server):
    """Plainly, by number, with slashes and encoded: nothing that queues is run by a direct call."""
    runner, url = server
    visitor = Visitor(url)
    numbers = {function["api_name"]: function["id"] for function in visitor.functions}
    body = {"data": ["find", 7], "session_hash": visitor.session}
    for path in ("run/scene", "api/scene", "run/scene/", "%72un/scene", "run/%73cene", "run//scene", "/run/scene"):
        assert visitor.post(f"gradio_api/{path}", body).status_code == 404, path
    for name in ("scene", "ask", "ask_1", "region"):
        for path in ("run/predict", "api/predict/", "run/stop"):
            answer = visitor.post(f"gradio_api/{path}", {**body, "fn_index": numbers[name]})
            assert answer.status_code == 404 and "join the queue" in answer.json()["detail"], (name, path)
    assert visitor.post("gradio_api/run/predict", {"data": [1.0], "fn_index": numbers["stop"]}).status_code == 200
    assert visitor.call("scene", ["find", 7])[0]
