"""What the server keeps for visitors: files, runs, answers. Each is bounded, and an attacker's go first."""

import asyncio
import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gradio.server_messages import EstimationMessage, ProcessCompletedMessage, ProcessGeneratingMessage

import app
from app import visitor
from app.ask import new_scene
from app.folder import MARK, claim
from app.history import History
from app.limits import PUBLIC
from app.listening import Listening, Remembered
from app.runner import Runner
from app.server import serve
from app.store import Store, store
from app.waiting import LOST, AllWaiting
from tests import hostile
from tests.scripted import ScriptedReasoner
from tests.visitor import Tab, Visitor

SMALL = dataclasses.replace(PUBLIC, disk_bytes=1000, disk_files=8, share=0.5, settled_seconds=600)


def put(files: Store, owner: str, name: str, size: int = 100, age: float = 0) -> Path:
    """A file of an address."""
    path = files.folder / name / "image.png"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    files.add(path, owner)
    return path


def test_the_start_deletes_no_file_that_is_not_ours(tmp_path, monkeypatch):
    """`GRADIO_TEMP_DIR=mydir`: years of somebody's files in it are left alone, for ours lie in a folder below it."""
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    os.utime(mine, (0, 0))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    ours = Path(app._folder())
    claim(ours)
    left = put(Store(ours), "", "left", age=7200)  # by an earlier server
    assert Store(ours).sweep(PUBLIC) == 1 and not left.exists()
    assert mine.exists() and ours.parent == tmp_path and (ours / MARK).exists() and ours.stat().st_mode & 0o77 == 0
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(ours))  # as a process that the server starts is told
    assert Path(app._folder()) == ours


def test_a_folder_that_may_be_somebodys_is_refused_in_a_sentence(tmp_path, monkeypatch):
    others, link, file = tmp_path / "others", tmp_path / "link", tmp_path / "file"
    others.mkdir()
    (others / "letter.txt").touch()
    link.symlink_to(others)
    file.touch()
    for folder, words in (
        (others, "files that are not Inscape's"),
        (link, "is a link"),
        (file, "is a link or a file"),
    ):
        with pytest.raises(OSError, match=words):
            claim(folder)
    claim(tmp_path / "new")
    claim(tmp_path / "new")
    uid = os.getuid()
    monkeypatch.setattr("app.folder.os.getuid", lambda: uid + 1)
    with pytest.raises(OSError, match="belongs to another user"):
        claim(tmp_path / "new")


def test_whose_share_is_full_hears_when_there_is_room_and_nobody_else_is_refused(tmp_path):
    files = Store(tmp_path)
    for number in range(4):
        assert files.fits("attacker", SMALL, 90)
        put(files, "attacker", f"a{number}", 90, age=10 * (4 - number))
    with pytest.raises(OSError, match="share of this server, 0 MB or 4 files; delete runs, or try again in 10 min"):
        files.make_room("attacker", SMALL, 90)
    assert files.fits("honest", SMALL, 90)
    oldest = put(files, "behind one proxy", "p0", 90, age=700)
    for number in range(1, 4):
        put(files, "behind one proxy", f"p{number}", 90)
    files.make_room("behind one proxy", SMALL, 90)
    assert not oldest.exists() and len(files) == 7


def test_where_all_space_is_taken_the_largest_owners_oldest_files_go_but_none_in_view(tmp_path):
    files = Store(tmp_path)
    for number in range(5):
        put(files, "much", f"m{number}", 150)
    honest, view = put(files, "little", "l", 100, age=1000), tmp_path / "m0" / "image.png"
    files.protected = lambda: {str(view)}
    assert files.bytes == 850 and not files.fits("new", SMALL, 200)
    files.make_room("new", SMALL, 200)
    assert honest.exists() and view.exists() and not (tmp_path / "m1").exists() and files.bytes == 700
    with files.arriving("slow") as more:
        more(250)
        files.make_room("new", SMALL, 100)
        assert not (tmp_path / "m2").exists() and files.bytes == 800
    assert files.bytes == 550
    files.protected = lambda: {str(path) for path in tmp_path.glob("*/*")}
    with pytest.raises(OSError, match="belong to pages that are open"):
        files.make_room("new", SMALL, 480)


def test_an_address_is_one_visitor_and_so_is_an_ipv6_network():
    assert visitor.network("2001:db8:1:2:3::4") == visitor.network("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert visitor.network("::ffff:192.0.2.1") == visitor.network("192.0.2.1") == "192.0.2.1"


@pytest.fixture(scope="module")
def server():
    """A public page that forgets a closed one at once."""
    limits = dataclasses.replace(PUBLIC, away_seconds=0.2, disk_files=4000, runs_a_minute=None)
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=limits)
    page = serve(runner, host="127.0.0.1", port=None, wait=False, public=True)
    yield runner, page
    page.close()


def test_a_request_carries_no_more_files_than_a_question(server):
    """A thousand empty files, fields, files by another name, half a request: a sentence, and nothing stays."""
    url, before = f"{server[1].local_url}gradio_api/upload", set(store().folder.rglob("*"))
    visitor = Visitor(server[1].local_url)
    answer = httpx.post(url, files=[("files", (f"{n}.png", b"")) for n in range(1000)])
    assert answer.status_code == 400 and "Maximum number of files is 4" in answer.json()["detail"]
    answer = httpx.post(url, files={"files": ("a.png", b"a")}, data={"files": "b"})
    assert answer.status_code == 400 and "Maximum number of fields is 0" in answer.json()["detail"]
    answer = httpx.post(url, content=b"x" * 10, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400 and "multipart/form-data" in answer.json()["detail"]
    half = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nhalf'
    assert httpx.post(url, content=half, headers={"Content-Type": "multipart/form-data; boundary=b"}).json() == []
    assert visitor.upload(b"x", "..").status_code == 400
    assert visitor.upload(bytes(PUBLIC.file_bytes + 1)).status_code == 413
    assert set(store().folder.rglob("*")) <= before  # what others left may go meanwhile
    assert not any(share.arriving for share in store()._shares.values())
    (path,) = httpx.post(url, files={"other": ("b" * 400 + ".png", b"content")}).json()
    assert path in store() and Path(path).read_bytes() == b"content" and len(Path(path).name) <= 200
    store().delete(path)


def test_nobody_walks_through_all_files_for_an_upload(server, monkeypatch):
    monkeypatch.setattr("app.store.os.walk", None)
    assert Visitor(server[1].local_url).upload(b"small").status_code == 200


def runs(history: History, session: str) -> list[str]:
    return [run.id for run in history.runs(session)[: -len(history.recorded) or None]]


def test_invented_sessions_make_room_before_one_whose_page_is_open(tmp_path):
    now = [0.0]
    limits = dataclasses.replace(PUBLIC, sessions=3, all_runs=5, away_seconds=40)
    listening = Listening(limits.sessions, 0.6)
    history = History(limits=limits, listening=listening, clock=lambda: now[0])
    with listening.open("tab", "here"), listening.open("tab", "here"):
        history.add("tab", 1, "run", tmp_path / "1")
        for number in range(505):
            history.add(f"invented-{number}", number, "run", tmp_path / "x")
        assert runs(history, "tab") == ["1"] and len(history._runs) == 3
        assert history.held() == {str(tmp_path / "1")}
    now[0] = 39
    history.expire()
    assert runs(history, "tab") == ["1"]
    with listening.open("tab", "here"):  # the connection is back
        now[0] = 100
        history.expire()
        assert runs(history, "tab") == ["1"] and list(history._runs) == ["tab"]
    now[0] = 141
    history.expire()
    assert not history._runs and not history._heard
    with (
        listening.open("a", "there"),
        listening.open("b", "there"),
        listening.open("c", "there"),  # more than the share of one address: served, but not remembered before others
        listening.open("d", "elsewhere"),
    ):
        assert set("abcd") & set(listening._open) == set("abd")
        for session in "abd":
            history.add(session, 1, "run", tmp_path / "x")
        with pytest.raises(ValueError, match="keeps the runs of 3 open pages, and so many are open"):
            history.admit("e")
        for number in range(9):
            history.add("a", number, "run", tmp_path / "x")
        assert runs(history, "b") == runs(history, "d") == ["1"] and len(runs(history, "a")) == 3
    remembered = Remembered(listening)
    remembered.update(a=1, b=2, c=3)
    with listening.open("a", "here"), listening.open("b", "here"):
        remembered["e"] = remembered["c"]
        assert remembered.popitem(last=False) == ("c", 3)
        assert remembered.popitem(last=False) == ("a", 1)  # and not the one that just came


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)


def test_runs_stay_while_the_page_is_open_and_go_soon_after(server):
    runner, page = server
    tab = Tab(page.local_url, "scripted")
    until(lambda: tab.session in runner.listening)
    image = tab.file(hostile.written(new_scene("find", 7)[0][0], "PNG"))
    ok, answer = tab.press("Which?", image)
    path = answer[answer.index("/inscape-run-") - 200 :].partition('"path":"')[2].partition('"')[0]
    assert ok and Path(path).exists() and path in store() and store()._files[path].owner == "127.0.0.1"
    tab.close()
    until(lambda: path not in store())
    assert not Path(path).exists() and tab.session not in runner.listening


def message(event: str, size: int) -> ProcessGeneratingMessage:
    return ProcessGeneratingMessage(event_id=event, output={"data": ["x" * size]}, success=True)


def end(event: str, size: int) -> ProcessCompletedMessage:
    return ProcessCompletedMessage(event_id=event, output={"data": ["y" * size]}, success=True)


def test_what_waits_for_a_session_is_bounded_and_ends_with_the_whole_answer():
    few = {"sessions": 2, "queue": 0, "at_once": 1, "inspections_at_once": 0, "light_at_once": 0}
    limits = dataclasses.replace(PUBLIC, **few, waiting_bytes=20_000, all_waiting_bytes=50_000)
    listening, events = Listening(2), {"deaf": {"1"}}
    everything = AllWaiting(limits, listening, events)

    async def told():
        everything["deaf"] = asyncio.Queue()
        deaf = everything["deaf"]
        for number in range(100):
            deaf.put_nowait(EstimationMessage(event_id="1", queue_size=number))
            deaf.put_nowait(message("1", 3000))
            assert deaf.size <= 20_000
        deaf.put_nowait(end("1", 9000))
        heard = [deaf.get_nowait() for _ in range(deaf.qsize())]
        assert heard[-1] == end("1", 9000) and deaf.size == 0
        assert not [each for each in heard if isinstance(each, ProcessGeneratingMessage)]
        deaf.put_nowait(end("2", 30_000))
        lost = deaf.get_nowait()
        assert lost.success is False and lost.output == {"error": LOST}

        listens = asyncio.ensure_future(deaf.get())
        await asyncio.sleep(0)
        deaf.put_nowait(message("3", 100_000))  # is handed on at once, however long it is
        assert (await listens).output == {"data": ["x" * 100_000]} and deaf.size == 0

        with listening.open("tab", "here"):
            everything["tab"] = None
            everything["tab"].put_nowait(end("4", 8000))
            for number in range(12):  # an attacker's sessions: his answers are lost before anybody else's
                everything[f"invented-{number}"] = None
                for event in "ab":
                    everything[f"invented-{number}"].put_nowait(end(event, 9000))
                assert sum(each.size for each in everything.values()) <= 50_000
            assert everything["tab"].get_nowait() == end("4", 8000) and len(everything) == 4
        assert "deaf" not in events  # and with it what its events were called
        everything["gone"].put_nowait(end("5", 100))  # an event goes on for whom was dropped: no failure

    with ThreadPoolExecutor(1) as other:  # a browser test before may have left a loop in this thread
        other.submit(asyncio.run, told()).result()


def test_what_nobody_comes_to_hear_goes():
    """After the time that runs outlast their page; what an open page has not read yet stays."""
    limits = dataclasses.replace(PUBLIC, away_seconds=0.05)
    listening = Listening(2)
    everything = AllWaiting(limits, listening, {})

    async def told():
        with listening.open("tab", "here"):
            for session in ("tab", "deaf"):
                everything[session] = None
                everything[session].put_nowait(end("1", 1000))
            while "deaf" in everything:
                await asyncio.sleep(0.01)
            assert everything["tab"].qsize() == 1

    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: asyncio.run(asyncio.wait_for(told(), 10))).result()


def test_a_tab_that_never_listens_holds_no_more_than_its_budget_and_gets_its_answer_in_the_end():
    limits = dataclasses.replace(PUBLIC, waiting_bytes=60_000)
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=limits)
    page = serve(runner, host="127.0.0.1", port=None, wait=False)
    try:
        tab, queue = Tab(page.local_url, "scripted"), page._queue
        image = tab.file(hostile.written(new_scene("find", 7)[0][0], "PNG"))
        events = [tab.press_unheard("Which?", image).raise_for_status().json()["event_id"] for _ in range(3)]
        until(lambda: not queue.event_ids_to_events)
        assert 0 < queue.pending_messages_per_session[tab.session].size <= 60_000
        assert not page.app.state_holder[tab.session].config_values  # where Gradio would keep the value of the view
        ok, answer = tab._heard(f"gradio_api/queue/data?session_hash={tab.session}", '"state":"finished"')
        assert ok and all(event in answer for event in events)
        tab.close()
    finally:
        page.close()
