"""The siege can fail: what it sees broken is told, and its traces are real ones. It is itself run by hand."""

import dataclasses
import socket

import pytest

from latent_core.trace import Trace
from tests import heavy, siege
from tests.attacks import ATTACKS
from tests.visitor import COMPLETE, fate
from tests.watch import LOST, Honest, Prober, Question

HELD = siege.Result(
    "an attack", "a | b", health=0.4, answer=3.0, questions={"answered": 5}, running=4, heard={"no": 9}
)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"health": 1.2}, "/health took 1.2 s"),
        ({"health_after": LOST}, "30.0 s afterwards"),
        ({"answer": 10.5}, "an honest try took 10.5 s"),
        ({"waited": 12.0}, "after a refusal 12.0 s"),
        ({"questions": {"answered": 5, "failed: no answer (ReadTimeout)": 1}}, "no answer (ReadTimeout)"),
        ({"questions": {"refused": 5}}, "no honest question was answered"),
        ({"running": 5}, "5 runs at once"),
        ({"logged": 3_300_000}, "the log grew by 3.3 MB"),
        ({"ended": "the instance was dead"}, "dead"),
        ({"breaches": ["a traceback in an answer"]}, "a traceback"),
    ],
)
def test_each_bound_that_is_broken_is_told(seen, words):
    assert HELD.broken() == []
    (broken,) = dataclasses.replace(HELD, **seen).broken()
    assert words in broken


def test_a_crowd_that_is_served_one_by_one_breaks_a_bound():
    least = ATTACKS["ten visitors"].least_running
    assert least == 4 and HELD.broken(least) == []
    assert "1 runs at once" in dataclasses.replace(HELD, running=1).broken(least)[0]


def test_back_to_the_start_means_within_a_tenth():
    start = {"memory": 500_000_000, "disk": 20_000}
    assert siege.grown(start, {"memory": 549_000_000, "disk": 20_000}) == []
    assert siege.grown(start, {"memory": 551_000_000, "disk": 20_000}) == ["memory is 551 MB, at the start 500 MB"]


def test_the_table_has_a_row_for_each_attack():
    *_, row = siege.table([HELD]).splitlines()
    assert row.startswith("| an attack | a ¦ b | 0.40 s, 0.00 s | 3.0 s, 0.0 s |") and "9 × no" in row


@pytest.mark.parametrize(
    ("ok", "said", "became"),
    [
        (True, '{"reason": "stop", "problem": null}', "answered"),
        (True, '{"reason": "cancelled", "problem": null}', "failed: "),
        (True, '{"problem": "That is more than 30 runs in a minute; wait 2 seconds and try again."}', "refused: That"),
        (False, '{"detail": "Queue is full. Max size is 32 and size is 32."}', "refused: Queue"),
        (False, '{"error": "Something went wrong here that should not have. Try again; …"}', "failed: Something"),
        (False, "Internal Server Error", "failed: Internal"),
        (False, "", "failed: "),
    ],
)
def test_what_became_of_a_question(ok, said, became):
    assert fate(ok, said, COMPLETE).startswith(became)


def test_a_server_that_is_gone_is_seen():
    with socket.socket() as closed:  # bound and not listened to: nobody answers there, and nobody else can begin to
        closed.bind(("127.0.0.1", 0))
        gone = type("Gone", (), {"url": f"http://127.0.0.1:{closed.getsockname()[1]}/"})
        prober = Prober(gone)
        prober.look()
        assert prober.worst() == LOST and prober.running() == 0
        honest = Honest(gone)
        honest.look()
        assert honest.questions[0].became.startswith("failed: no answer")
    assert Question("page").became.startswith("failed")


@pytest.mark.parametrize(
    "data",
    [
        heavy.wordy(" a" * 20, pieces=4),
        heavy.wide(3, 16),
        heavy.filled(5, 3, (2, 3)),
        heavy.filled(5, 0, (2, 3), width=1),
        heavy.tiny(),
    ],
)
def test_heavy_traces_are_traces(data, tmp_path):
    """Refused for their weight they may be, but not for a mistake in their making."""
    (tmp_path / "run.safetensors").write_bytes(data)
    trace = Trace.load(tmp_path / "run.safetensors")
    assert trace.text.startswith((" a", "ring")) and len(trace.steps) <= 8
