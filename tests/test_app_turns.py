"""What a person asks for while something runs: the last of it is what comes, and after Stop nothing does."""

import dataclasses
import random
import threading
import time
from types import SimpleNamespace

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app import turns
from app.ask import new_scene
from app.choosing import Choosing
from app.components import as_files
from app.handlers import Handlers
from app.history import History
from app.limits import OWN
from app.runner import Runner
from app.server import serve
from app.turns import InOrder, Session, taking_turns
from latent_core.trace import Trace
from tests.scripted import ScriptedReasoner

TAB = SimpleNamespace(session_hash="tab")
SETTINGS = {
    "mode": "latent",
    "latents": 8,
    "speed": "slow",
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 64,
    "max_blocks": 8,
    "seed": 0,
    "rule": "own",
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(turns, "SETTLE", 0.01)
    monkeypatch.setattr("app.runner.SLOW", 100.0)


@pytest.fixture
def page():
    """Ask's handlers on a scripted model, with a scene and a way to ask about it at a time of the page's clock."""
    images, question, scene = new_scene("find", 7)
    files = as_files(images)
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=dataclasses.replace(OWN, at_once=1))
    handlers = Handlers(runner, History())

    def ask(at, question=question, files=files, **changes):
        return handlers.ask(at, files, question, scene, "scripted", *(SETTINGS | changes).values(), TAB)

    return SimpleNamespace(runner=runner, handlers=handlers, ask=ask, question=question, files=files, scene=scene)


def ends(values: list[dict]) -> list[tuple[int, str]]:
    """K and end of every run, in their order."""
    last = {value["run"]: value for value in values}
    return [(value["k"], value["finish"]["reason"] if "finish" in value else "unread") for value in last.values()]


def shown(values: list[dict]) -> tuple:
    """K, mode, and number of cards of the last run, all of one value."""
    value = values[-1]
    return value["k"], value["mode"], sum(item["k"] == "latent" for item in value["items"])


def test_the_second_change_wins_however_soon_it_comes(page):
    """Each change is a call that makes room and a call that asks; both in every order of arrival."""
    for order in ("r2 a2 r7 a7", "r2 r7 a2 a7", "r7 r2 a7 a2", "a7 r7 a2 r2", "r2 a7 r7 a2", "a2 a7 r2 r7"):
        run, at = page.ask(10.0), {"r2": 20.0, "a2": 21.0, "r7": 30.0, "a7": 31.0}
        values = [next(run), next(run)]
        for call in order.split():
            if call[0] == "r":
                page.handlers.interrupt(at[call], TAB)
            else:  # the first is at work already, so these only hand over
                assert list(page.ask(at[call], latents=int(call[1]))) == []
        values += run
        assert shown(values) == (7, "latent", 7), order
        assert ends(values)[0] == (8, "cancelled") and ends(values)[-1] == (7, "stop") and len(ends(values)) == 2
        assert values[-1]["at"] == 31.0 and values[-1]["name"].startswith("Scripted, K 7: ")
        page.handlers.forget(TAB)


def test_what_makes_room_may_end_the_run_before_the_next_one_has_a_place(page):
    """Where one run at a time is allowed, what is asked for waits in the queue until the interrupted one has ended."""
    first = page.ask(10.0)
    next(first), next(first)
    page.handlers.interrupt(20.0, TAB)
    assert ends(list(first)) == [(8, "cancelled")]
    page.handlers.interrupt(20.5, TAB)
    page.handlers.interrupt(25.0, TAB)  # a second change, while the first one still waits
    assert shown(list(page.ask(21.0, latents=2))) == (2, "latent", 2)  # what made room is no end of what comes after
    assert shown(list(page.ask(26.0, latents=7))) == (7, "latent", 7)


@pytest.mark.parametrize("behind", [0, 1, 5])
def test_six_presses_and_a_stop_leave_nothing_to_start(page, behind):
    """However many of the presses reach their place only after the stop."""
    run = page.ask(1.0)
    values = [next(run), next(run)]
    for press in range(2, 7 - behind):
        assert list(page.ask(float(press))) == []
    page.handlers.stop(7.0, TAB)
    for press in range(7 - behind, 7):
        assert list(page.ask(float(press))) == []
    values += run
    assert ends(values) == [(8, "cancelled")] and page.runner.running == 0
    assert ends(list(page.ask(8.0))) == [(8, "stop")]  # and Run works again


def test_a_stop_that_arrives_after_the_next_press_is_no_stop_of_that(page):
    run = page.ask(3.0)
    next(run), next(run)
    page.handlers.stop(2.0, TAB)
    assert ends(list(run)) == [(8, "stop")]
    assert list(page.ask(-1)) == []  # a setting that changed at rest


@pytest.mark.parametrize("change", [{"mode": "markers"}, {"seed": 5}, {"latents": 0}, {"rule": "no_image"}])
def test_a_restart_can_be_restarted_stopped_and_closed(page, change):
    def restarting():
        """A run that was interrupted and whose successor has given its first word."""
        run = page.ask(page.handlers.clock + 1)
        values = [next(run), next(run)]
        assert list(page.ask(page.handlers.clock + 2, latents=2)) == []
        page.handlers.clock += 10
        while values[-1]["k"] != 2 or not values[-1]["items"]:
            values.append(next(run))
        return run, values

    page.handlers.clock = 0.0
    run, values = restarting()
    assert list(page.ask(page.handlers.clock - 1, **change)) == []
    values += run
    trace = Trace.load(page.handlers.history.find("tab", str(values[-1]["run"])).path)
    assert {name: getattr(trace.settings, name) for name in change} == change
    run, values = restarting()
    page.handlers.stop(page.handlers.clock, TAB)
    assert ends(values + list(run))[-1] == (2, "cancelled") and page.runner.running == 0
    run, values = restarting()
    assert list(page.ask(page.handlers.clock - 1, **change)) == []
    page.handlers.forget(TAB)  # the tab is closed while one waits
    assert ends(values + list(run))[-1][1] == "cancelled" and page.runner.running == 0 and not page.runner._sessions


def test_another_image_and_question_come_with_the_press_that_carries_them(page):
    images, other, scene = new_scene("count", 3)
    run = page.ask(1.0)
    values = [next(run), next(run)]
    assert list(page.ask(2.0, question=other, files=as_files(images))) == []
    values += run
    assert values[-1]["question"] == other and values[-1]["truth"] is None  # the scene named with it is another
    first, last = values[0]["run"], values[-1]["run"]
    assert [run.id for run in page.handlers.history.runs("tab")][:2] == [str(last), str(first)]


def test_one_session_never_runs_two_things_and_ends_with_the_last(page, monkeypatch):
    """Forty calls of eight threads in any order, each of its own time: the latest is what has run to its end."""
    reasoner, under_way, most = ScriptedReasoner(), [], []
    stream = reasoner._stream

    def counted(*given):
        under_way.append(1)
        most.append(len(under_way))
        try:
            yield from stream(*given)
        finally:
            under_way.pop()

    monkeypatch.setattr(reasoner, "_stream", counted)
    page.runner._load = lambda name: reasoner
    draw = random.Random(5)
    for _ in range(4):
        times, values = draw.sample(range(1, 41), 40), []
        base = max((session.asked_at for session in page.runner._sessions.values()), default=0)

        def visit(mine, values=values, base=base):
            for at in mine:
                values += page.ask(base + at, latents=at % 16, speed="real")

        threads = [threading.Thread(target=visit, args=(times[n::8],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        newest = max(value["run"] for value in values)
        last = [value for value in values if value["run"] == newest][-1]
        assert last["at"] == base + 40 and last["k"] == 40 % 16 and last["finish"]["reason"] == "stop"
    assert max(most) == 1


def test_a_call_that_is_closed_lets_the_next_one_work(page):
    run = page.ask(1.0)
    next(run), next(run)
    run.close()
    assert page.runner.running == 0 and ends(list(page.ask(2.0))) == [(8, "stop")]


def test_stopped_before_the_prompt_is_read_nothing_is_computed(page):
    reasoner = page.runner.reasoner("scripted")
    run = page.ask(1.0)
    next(run)  # the first value comes before the model is asked
    page.handlers.stop(2.0, TAB)
    (value,) = list(run)
    assert value["state"] == "stopped" and not value["problem"] and "finish" not in value and reasoner.closed == 0


def test_a_dragged_slider_starts_again_once_it_rests(monkeypatch):
    monkeypatch.setattr(turns, "SETTLE", 0.15)
    session, done = Session(), []
    first = session.turns(1.0, "first")
    done.append(next(first).work)

    def drag():
        for at in range(2, 12):
            list(session.turns(float(at), at))
            time.sleep(0.02)

    hand = threading.Thread(target=drag)
    hand.start()
    time.sleep(0.03)
    done += [turn.work for turn in first]
    hand.join()
    assert done == ["first", 11] and session.idle


def test_sessions_that_have_been_idle_longest_are_forgotten():
    runner = Runner(["scripted"], lambda name: ScriptedReasoner(), limits=dataclasses.replace(OWN, sessions=3))
    busy = runner.turns("busy", 1.0, "work")
    next(busy)
    for number in range(10):
        runner.stop(str(number), 1.0)
    assert set(runner._sessions) == {"busy", "8", "9"}


@pytest.fixture
def client(tmp_path):
    reasoner = ScriptedReasoner(delay=0.3)
    runner = Runner(["scripted"], lambda name: reasoner)
    page = serve(runner, host="127.0.0.1", port=None, wait=False)
    client = Client(page.local_url, verbose=False, download_files=str(tmp_path))
    images, scene = client.predict("find", 7, api_name="/scene")
    yield SimpleNamespace(
        runner=runner,
        reasoner=reasoner,
        ask=lambda: client.submit([handle_file(image) for image in images], "?", api_name="/ask"),
    )
    page.close()


def until(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)


def test_a_cancelled_job_ends_in_the_server(client):
    job = client.ask()
    until(lambda: len(job.outputs()) > 1)
    assert job.outputs()[0][0] == {"text": ""} and client.runner.running == 1
    job.cancel()
    until(lambda: client.runner.running == 0)
    assert client.reasoner.closed == 1
    found, trace = client.ask().result()  # the next one is served
    assert found["answer"] == "ring" and Trace.load(trace).finish.reason == "stop"
    waiting = client.ask()
    waiting.cancel()  # at once
    until(lambda: client.runner.running == 0)


# ---- an earlier run in the fields


@pytest.fixture
def choosing(page):
    chooser = Choosing(page.handlers.history, OWN, page.handlers.photo_notice)

    def choose(run, question, drafts=(), files=page.files):
        event = SimpleNamespace(_data={"run": run})
        return chooser.choose(files, question, page.scene, list(drafts), "scripted", event, TAB)

    return SimpleNamespace(choose=choose, resume=lambda drafts: chooser.resume(drafts, "scripted"))


def test_an_earlier_run_brings_what_it_was_asked_and_keeps_what_is_being_written(page, choosing):
    images, other, scene = new_scene("count", 3)
    others = as_files(images)
    first = list(page.ask(1.0, speed="real"))[-1]
    second = list(page.handlers.ask(2.0, others, other, scene, "scripted", *SETTINGS.values(), TAB))[-1]
    files, kept, question, identity, notice, family, drafts, back = choosing.choose(str(second["run"]), "half a quest")
    assert files == kept == others and question == other and identity == scene and family == "count"
    assert notice == "" and [draft["question"] for draft in drafts] == ["half a quest"] and back["visible"]
    # what was asked is no draft, what was put aside is put aside once
    files, _, question, _, _, family, drafts, _ = choosing.choose(str(first["run"]), other, drafts, others)
    assert question == page.question and files == page.files and family == "find" and len(drafts) == 1
    drafts = choosing.choose(str(second["run"]), "half a quest", drafts)[6]
    assert len(drafts) == 1
    drafts = choosing.choose(str(second["run"]), "another", drafts)[6]
    *_, question, _, _, _, drafts, back = choosing.resume(drafts)
    assert question == "another" and back["visible"]
    files, _, question, identity, *_, drafts, back = choosing.resume(drafts)
    assert question == "half a quest" and files == page.files and identity == page.scene
    assert drafts == [] and not back["visible"]
    with pytest.raises(Exception, match="Nothing was put aside"):
        choosing.resume([])


@pytest.mark.parametrize("run", [None, 7, "8", ["7"], {}, "../x"])
def test_a_run_that_is_not_there_leaves_the_fields_alone(choosing, run):
    with pytest.raises(Exception, match="no longer kept"):
        choosing.choose(run, "half a question")


def test_a_run_whose_image_was_swept_away_shows_what_the_model_saw(page, choosing, tmp_path, monkeypatch):
    monkeypatch.setattr("app.components.get_upload_folder", lambda: str(tmp_path))
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "photo.png"
    new_scene("find", 9)[0][0].resize((200, 200)).save(mine)
    value = list(page.ask(1.0, speed="real", files=[{"path": str(mine)}]))[-1]
    assert choosing.choose(str(value["run"]), "?", files=[])[0] == [{"path": str(mine)}]
    mine.unlink()
    (file,), _, question, scene, *_ = choosing.choose(str(value["run"]), "?", files=[])
    assert question == page.question and scene is None
    assert Image.open(file["path"]).size == (96, 96)  # as the scripted model sees everything


def test_a_later_answer_is_not_overtaken_by_an_earlier_one():
    """Of one session; another's is not held up."""
    in_order, begun, go, done = InOrder(), threading.Event(), threading.Event(), []

    def work(name: str, session: str) -> None:
        with in_order(session):
            begun.set()
            assert name != "first" or go.wait(10)
            done.append(name)

    first = threading.Thread(target=work, args=("first", "tab"))
    first.start()
    assert begun.wait(10)
    second = threading.Thread(target=work, args=("second", "tab"))
    second.start()
    work("another's", "another tab")
    go.set()
    first.join()
    second.join()
    assert done == ["another's", "first", "second"] and not in_order._locks


def test_addresses_take_turns():
    """An attacker's many come after another's one, and what is under way counts; alike they stay in their order."""
    assert taking_turns([], ["a", "a", "b", "a", "b"]) == [0, 2, 1, 4, 3]
    assert taking_turns(["a", "a"], ["a", "a", "b", "b", "b"]) == [2, 3, 0, 4, 1]
    assert taking_turns(["a"], ["a", "a"]) == [0, 1] and taking_turns(["a"], []) == []


def test_what_comes_after_its_tab_was_closed_leaves_nothing():
    """A change that was on its way still runs; of a page that is open it is remembered when it last asked."""
    runner = Runner(["scripted"], lambda name: ScriptedReasoner())
    with runner.listening.open("tab", "here"):
        assert [turn.work for turn in runner.turns("tab", 1.0, "asked")] == ["asked"]
        assert not list(runner.turns("tab", 1.0, "older"))
    runner.forget("tab")
    assert [turn.work for turn in runner.turns("tab", 2.0, "late")] == ["late"] and not runner._sessions
    assert not runner.stop("tab", 3.0) and not runner._sessions
    for number in range(runner.limits.sessions):
        runner.forget(f"{number}")
    assert len(runner._closed_tabs) == runner.limits.sessions
