"""What a server does about clients that say nothing, say it slowly, or listen for ever; and how it ends."""

import dataclasses
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from app import address, connections
from app.connections import counted_as
from app.limits import MAX_STREAMS, PUBLIC
from app.quiet import Quiet
from app.runner import Runner
from app.server import serve
from tests import hostile
from tests.scripted import ScriptedReasoner
from tests.visitor import Tab

ROOT = Path(__file__).resolve().parents[1]
SERVER = """
from app.signals import ended_by_signals
from app.runner import Runner
from app.server import serve
from tests.scripted import ScriptedReasoner
with ended_by_signals():
    serve(Runner(["scripted"], lambda name: ScriptedReasoner(delay=0.3)), host="127.0.0.1", port=None, public=True)
"""
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Where a user's name is looked for first."""
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@contextmanager
def child(tmp_path, *, files: int):
    """A server in a process of its own that may open so many files: the process, its address and its log."""
    log, out = tmp_path / "log", tmp_path / "out"
    with log.open("w") as errors, out.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", SERVER],
            cwd=ROOT,
            env=os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "uploads")},
            stdout=said,
            stderr=errors,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
        )
    try:
        end = time.monotonic() + 240
        while not (found := re.search(r"http://\S+", out.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield process, found[0].rstrip("/") + "/", log
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_server_with_few_files_is_reached_among_connections_that_say_nothing_and_ends_when_told(tmp_path):
    """300 half-open connections where 256 files may be open; then a run is under way when SIGTERM comes."""
    with child(tmp_path, files=256) as (process, url, log):
        place = httpx.URL(url).host, httpx.URL(url).port
        silent = []
        for number in range(300):
            silent.append(socket.create_connection(place, timeout=10))
            silent[-1].sendall(b"GET / HTTP/1.1\r\nHost:" if number % 2 else b"")
        began = time.monotonic()
        assert httpx.get(f"{url}health", timeout=30).json()["status"] == "ok"
        assert time.monotonic() - began < 5 and len(log.read_text().splitlines()) < 5, log.read_text()
        for connection in silent:
            connection.close()
        tab, heard = Tab(url, "scripted"), []
        image = tab.file(hostile.written(hostile.Image.new("RGB", (96, 96)), "PNG"))
        visit = threading.Thread(target=lambda: heard.append(tab.press("Which?", image)))
        visit.start()
        while not httpx.get(f"{url}health").json()["running"]:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
        visit.join(20)
        assert "The server is going down; what came until then is shown." in heard[0][1]
        assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def server():
    limits = dataclasses.replace(PUBLIC, connections=12)
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=limits)
    page = serve(runner, host="127.0.0.1", port=None, wait=False, public=True)
    yield page.server.listener.getsockname()
    page.close()


def ends(connection: socket.socket) -> bytes:
    """All that is said until the server ends the connection."""
    connection.settimeout(10)
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_a_connection_ends_when_its_client_takes_too_long(server, monkeypatch):
    """Silent ones, half a head, the second head of a connection, half a body; a heartbeat goes on."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "SWEEP_SECONDS"):
        monkeypatch.setattr(connections, name, 0.2)
    with closing(socket.create_connection(server)) as listener:
        listener.sendall(b"GET /gradio_api/heartbeat/tab HTTP/1.1\r\nHost: localhost\r\n\r\n")
        heard = listener.recv(1000)
        kept = HEALTH.replace(b"Connection: close\r\n", b"")
        body = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
        for said in (b"", b"GET / HTTP/1.1\r\nHost: loc", kept + b"GET /", body):
            with closing(socket.create_connection(server)) as connection:
                connection.sendall(said)
                assert said.startswith(kept) == (b'"ok"' in ends(connection)), said
        assert b"200 OK" in heard
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            while listener.recv(1000):
                pass


def test_who_speaks_takes_the_place_of_who_is_silent(server):
    silent = [socket.create_connection(server) for _ in range(30)]
    for _ in range(3):
        with closing(socket.create_connection(server)) as connection:
            connection.sendall(HEALTH)
            assert b'"ok"' in ends(connection)
    assert ends(silent[0]) == b""  # the oldest made room
    for connection in silent:
        connection.close()


def test_listeners_are_counted_by_session_and_leave_room_for_others(server):
    def listen(session: str) -> tuple[socket.socket, bytes]:
        connection = socket.create_connection(server)
        connection.sendall(f"GET /gradio_api/heartbeat/{session} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return connection, connection.recv(2000)

    listeners = [listen("tab") for _ in range(MAX_STREAMS)]
    assert all(b" 200 " in said for _, said in listeners)
    refused, said = listen("tab")
    assert b" 503 " in said and b"too many who listen" in said + refused.recv(1000)
    refused.close()
    listeners += [listen(f"tab{number}") for number in range(12 * 3 // 4 - MAX_STREAMS)]
    assert all(b" 200 " in said for _, said in listeners)
    listeners.append(listen("another"))
    assert b" 503 " in listeners[-1][1]
    assert httpx.get(f"http://127.0.0.1:{server[1]}/health").json()["status"] == "ok"
    for connection, _ in listeners:
        connection.close()


def test_addresses_are_counted_unless_all_visitors_may_have_them():
    assert counted_as("93.184.216.34") == counted_as("::ffff:93.184.216.34") == "93.184.216.34"
    assert counted_as("2600:1f18:1::1") == counted_as("2600:1f18:1::2") != counted_as("2600:1f18:2::1")
    assert {counted_as(host) for host in ("127.0.0.1", "10.1.2.3", "::1", "fd00::1", "a proxy")} == {""}


def test_what_happens_often_is_said_once_a_minute(caplog):
    now = [0.0]
    quiet = Quiet(connections.quiet.log, clock=lambda: now[0])
    for second in range(0, 90, 10):
        now[0] = float(second)
        quiet.say("kind", "It happened.")
    assert caplog.messages == ["It happened.", "It happened. (5 more of this kind since it was said last.)"]


@pytest.mark.parametrize("text", ["0", "-1", "70000", "abc", "80 80", "٣", "1e3", ""])
def test_what_is_no_port_is_told(text, monkeypatch, capsys):
    from app.__main__ import main

    with pytest.raises(ValueError, match="is no port; choose a number from 1 to 65535"):
        address.as_port(text)
    with pytest.raises(SystemExit) as ended:
        main([f"--port={text}"])
    assert ended.value.code == 2 and "is no port" in capsys.readouterr().err
    monkeypatch.setenv("GRADIO_SERVER_PORT", text or "x")
    with pytest.raises(SystemExit):
        main([])
    assert "GRADIO_SERVER_PORT" in capsys.readouterr().err


def test_addresses_that_cannot_be_served_at_are_told():
    with closing(address.listen("127.0.0.1", None)) as taken:
        with pytest.raises(OSError, match="is taken; end what runs there"):
            address.listen("127.0.0.1", taken.getsockname()[1])
        for host in ("no-such-machine.invalid", "192.0.2.1", "x" * 64, "a..b"):
            with pytest.raises(OSError, match="name one"):
                address.listen(host, None)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_a_page_for_all_addresses_is_reached_by_either_kind():
    page = serve(Runner(["scripted"], lambda name: ScriptedReasoner()), host="::", port=None, wait=False)
    try:
        port = page.server.listener.getsockname()[1]
        for host in ("127.0.0.1", "[::1]", "localhost"):
            assert httpx.get(f"http://{host}:{port}/health").json()["status"] == "ok"
        assert page.local_url == f"http://[::1]:{port}/"
        assert httpx.get(f"http://127.0.0.1:{port}/", headers={"Host": "rebound.example"}).status_code == 421
    finally:
        page.close()


def test_a_page_is_asked_for_by_names_that_are_its_own():
    own, seen = address.ours("127.0.0.1", ["box.lan"], public=False), address.ours("0.0.0.0", [], public=False)
    public, named = (address.ours("127.0.0.1", names, public=True) for names in ([], ["Inscape.example"]))
    machine = socket.gethostname().lower()
    names = ("localhost", "127.0.0.1", "::1", "box.lan", machine, "10.0.0.7", "inscape.example", "evil.example")
    known = [[name for name in names if ours(name)] for ours in (own, seen, public, named)]
    loopback = ["localhost", "127.0.0.1", "::1"]
    assert known[0] == [*loopback, "box.lan"] and known[1] == [*loopback, machine, "10.0.0.7"]
    assert known[2] == list(names) and known[3] == [*loopback, "inscape.example"]


def test_other_sites_may_do_nothing_and_read_nothing(server):
    url = f"http://127.0.0.1:{server[1]}"
    web = httpx.Client(base_url=url)
    cancel = {"session_hash": "tab", "fn_index": 0, "event_id": "none"}
    for headers, status in (
        ({}, 200),
        ({"Origin": url}, 200),
        ({"Origin": "https://space.example", "Host": "space.example"}, 200),  # behind a proxy that speaks TLS
        ({"Origin": "https://space.example", "Sec-Fetch-Site": "same-origin"}, 200),  # one that hides the name
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1:{server[1] + 1}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ):
        assert web.post("/gradio_api/cancel", json=cancel, headers=headers).status_code == status, headers
        sent = web.post("/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=headers)
        assert sent.status_code == status, headers
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert web.options("/gradio_api/upload", headers=asked).status_code == 403
    read = web.get("/config", headers={"Origin": "https://evil.example", "Host": "space.example"})
    assert not [name for name in read.headers if name.startswith("access-control-")]


def test_what_gradio_fails_at_becomes_a_sentence_with_headers(server, caplog):
    """Sessions, functions and arguments that a visitor made up, and a fault of the server's: none leaves a traceback
    with the visitor, and none but the fault one in the log."""
    web = httpx.Client(base_url=f"http://127.0.0.1:{server[1]}/gradio_api")
    cases = [
        (web.post("/call/nothing", json={"data": []}), 404),
        (web.post("/call/v2/nothing", json={}), 404),
        (web.post("/call/v2/scene", json={"nothing": 1}), 400),
        (web.post("/queue/join", json={"fn_index": 9999, "session_hash": "tab", "data": []}), 404),
        (web.get("/queue/data?session_hash=nobody"), 200),
        (web.get("/call/scene/nothing"), 200),
    ]
    for said, status in cases:
        assert said.status_code == status and "content-security-policy" in said.headers, said.url
        assert "Traceback" not in said.text and (status == 200 or json.loads(said.text)["detail"].count(".")), (
            said.text
        )
    assert not caplog.records


def started(code: str, **environment: str) -> subprocess.CompletedProcess:
    """`import app` after some code, for a user who has no name in the environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GRADIO_TEMP_DIR", *NAMES)}
    script = f"{code}; import app, os; print(os.environ['GRADIO_TEMP_DIR'])"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=kept | environment, capture_output=True, text=True
    )


def test_a_user_without_a_name_and_a_machine_without_a_folder_to_write_to(tmp_path):
    """As in containers: a number that no list of users knows; a file system that may only be read."""
    nobody = "import pwd; pwd.getpwuid = lambda number: {}[number]"
    done = started(nobody, TMPDIR=str(tmp_path))
    assert done.stdout.strip() == str(tmp_path / f"inscape-files-{os.getuid()}"), done.stderr
    done = started("import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']")
    assert done.returncode == 1 and done.stderr.strip().endswith("that it may write to; name one in TMPDIR.")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_taken_port_ends_the_program_with_a_sentence(monkeypatch, capsys):
    from app.__main__ import main

    monkeypatch.setattr(Runner, "preload", lambda runner, name: threading.Thread())
    with closing(address.listen("127.0.0.1", None)) as taken:
        port = taken.getsockname()[1]
        assert main(["--no-browser", f"--port={port}"]) == 1
    said = capsys.readouterr().err
    assert (
        said == f"The page cannot be served: port {port} is taken; end what runs there, or name another with --port.\n"
    )
