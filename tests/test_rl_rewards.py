"""Rewards: what counts as right, formats, penalties, a user's own function, and a judge behind a real HTTP server."""

import contextlib
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.example import Example
from trainers.recipe import load_recipe
from trainers.rl.judge import Judge, JudgeFailed
from trainers.rl.options import JudgeOptions, RlOptions
from trainers.rl.rewards import PARTS, Reward, load_part
from trainers.rl.rollouts import SampledResponse


def example(answer: str, name: str = "sample") -> Example:
    return Example(images=(), question="What is it?", steps=(), answer=answer, name=name)


def response(text: str, *segments, reason: str = "stop", ids: int = 10) -> SampledResponse:
    values = {item.name: None for item in dataclasses.fields(SampledResponse)}
    latents = [torch.zeros(segment.latents, 2) for segment in segments if isinstance(segment, Block)]
    row = ForcedSequence(None, segments)
    return SampledResponse(**values | dict(text=text, latents=latents, row=row, reason=reason, ids=tuple(range(ids))))


@pytest.mark.parametrize(
    ("part", "given", "value"),
    [
        ("accuracy", response(r"I see. \boxed{tee}"), 1),
        ("accuracy", response("<answer>Tee</answer>"), 1),
        ("accuracy", response(r"\boxed{9}"), 0),
        ("accuracy", response(""), 0),
        ("accuracy", response(r"<answer>\boxed{\textbf{tee}}</answer>"), 1),
        ("accuracy", response('\\boxed {"Tee"!}'), 1),
        ("accuracy", response(r"\boxed{}"), 0),
        ("accuracy", response(r"\boxed{tee, ring}"), 0),
        ("boxed", response(r"\boxed{9}"), 1),
        ("boxed", response(r"\boxed {9}"), 1),
        ("boxed", response(r"\boxed{} <answer>9</answer>"), 0),
        ("boxed", response(r"\boxed{"), 0),
        ("boxed", response("<answer>tee</answer>"), 0),
        ("answer_tags", response("so <answer>tee</answer>."), 1),
        ("answer_tags", response("<answer>tee"), 0),
        ("answer_tags", response("<answer> </answer>"), 0),
        ("answer_tags", response("<Answer>tee</Answer>"), 1),
        ("block_then_answer", response("<answer>tee</answer>", Block(8), Tokens((1,))), 1),
        ("block_then_answer", response("First <answer>tee</answer>", Tokens((1,)), Block(8), Tokens((1,))), 0),
        ("block_then_answer", response("so <answer>tee</answer>", Block(8), Tokens((1,))), 0),
        ("block_then_answer", response("<answer>tee</answer>", Block(8, closed=False), Tokens((1,))), 0),
        ("block_then_answer", response("<answer>tee</answer>", Block(8), Block(8), Tokens((1,))), 0),
        ("block_then_answer", response("<answer>tee</answer>", Block(8), Tokens((1,)), reason="length"), 0),
        ("block_then_answer", response("<answer>tee</answer>", Tokens((1,))), 0),
        ("block_then_answer", response("<answer> </answer>", Block(8), Tokens((1,))), 0),
        ("invocation", response("", Block(8)), 1),
        ("invocation", response(""), 0),
        ("finished", response("", reason="length"), 0),
        ("finished", response(""), 1),
        ("length", response("", ids=50), 0.5),
        ("repetition", response("a b c d e"), 0),
        ("repetition", response("a b c d a b c d a b c d"), 1 - 4 / 9),
        ("repetition", response("a b"), 0),
    ],
)
def test_parts(part, given, value):
    assert PARTS[part](given, example("tee")) == pytest.approx(value)


def brief(rollout: SampledResponse, example: Example) -> float:
    return 1.0 if len(rollout.text) < 20 else 0.0


def broken(rollout: SampledResponse, example: Example) -> float:
    return math.nan


def test_a_reward_is_the_weighted_sum_of_named_parts_and_of_ones_own():
    rewards = {"accuracy": 0.9, "boxed": 0.1, f"{__name__}:brief": -0.5}
    reward = Reward.build(RlOptions(rewards=rewards), None)
    given = [response(r"\boxed{tee}"), response("I do not know what it could be"), response(r"\boxed{9}")]
    found, right = reward(given, [example("tee")] * 3)
    assert found == pytest.approx([0.5, 0, -0.4]) and right == [True, False, False]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acuracy", "no reward 'acuracy'; did you mean 'accuracy'"),
        ("nowhere:at_all", "'nowhere:at_all' cannot be imported"),
        (f"{__name__}:nothing", "cannot be imported"),
        ("math:pi", "'math:pi' is no function"),
    ],
)
def test_a_reward_that_there_is_not(name, words):
    with pytest.raises(ValueError, match=words):
        load_part(name)


def test_what_gives_no_number_is_an_error():
    reward = Reward.build(RlOptions(rewards={f"{__name__}:broken": 1.0}), None)
    with pytest.raises(ValueError, match="broken' gave nan for sample"):
        reward([response("")], [example("tee")])


def test_rewards_in_a_recipe_are_names_with_numbers():
    recipe, _ = load_recipe("glyph-monet-rl", ["rl.rewards={accuracy: 1, length: -0.1}"])
    assert recipe.stage_options.rewards == {"accuracy": 1, "length": -0.1}
    for bad in ("[accuracy]", "{accuracy: high}", "{}", "{accuracy: true}"):
        with pytest.raises(ValueError, match="rl.rewards is .* it gives names their numbers"):
            load_recipe("glyph-monet-rl", [f"rl.rewards={bad}"])
    with pytest.raises(ValueError, match="names a judge, judge.url none"):
        Reward.build(RlOptions(rewards={"judge": 1.0}), None)


Reply = Callable[[dict], tuple[int, bytes]]


class Endpoint:
    """An HTTP server on this machine that answers chat completions as it is told to, and counts."""

    def __init__(self, reply: Reply) -> None:
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.headers.append(dict(self.headers))
                status, data = reply(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                with contextlib.suppress(BrokenPipeError):  # who asked has given up
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/chat/completions"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def says(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def judge(url: str, tmp_path, **options: object) -> Judge:
    given = dict(url=url, model="wise", wait=0.01, retries=2, timeout=5.0, cache=str(tmp_path / "verdicts.jsonl"))
    return Judge(JudgeOptions(**given | options))


def test_a_judge_is_asked_once_about_what_rules_leave_open(tmp_path, monkeypatch):
    monkeypatch.setenv("WISE_KEY", "secret")
    texts = [rf"\boxed{{{text}}}" for text in ("a red ring", "ring", "a cross", "a red ring")]
    given = [response(text) for text in (*texts, "")]
    with Endpoint(lambda body: says("Yes." if "a red ring" in body["messages"][0]["content"] else "NO")) as endpoint:
        asked = judge(endpoint.url, tmp_path, key_variable="WISE_KEY")
        reward = Reward.build(RlOptions(rewards={"judge": 1.0, "boxed": 0.5}), asked)
        found, right = reward(given, [example("ring")] * 5)
        assert found == [1.5, 1.5, 0.5, 1.5, 0] and right == [True, True, False, True, False]
        assert len(endpoint.asked) == 2  # one and the same answer is one question; a match and no answer are none
        assert endpoint.asked[0]["model"] == "wise" and endpoint.headers[0]["Authorization"] == "Bearer secret"
        again = Reward.build(RlOptions(rewards={"judge": 1.0}), judge(endpoint.url, tmp_path))
        assert again(given, [example("ring")] * 5)[1] == right and len(endpoint.asked) == 2  # from the file
    assert "secret" not in (tmp_path / "verdicts.jsonl").read_text()


def test_a_judge_that_fails_for_a_while_is_asked_again(tmp_path):
    replies = [(503, b"busy"), says("I would have to think."), says("yes")]
    with Endpoint(lambda body: replies.pop(0)) as endpoint:
        asked = judge(endpoint.url, tmp_path)
        asked.ask([(response(r"\boxed{hoop}"), example("ring"))])
        assert asked.verdict(response(r"\boxed{hoop}"), example("ring")) == 1 and len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda body: (500, b"broken"), "500"),
        (lambda body: (200, b"<html>"), "no chat completion came back, but '<html>'"),
        (lambda body: (200, b'{"choices": []}'), "no chat completion came back"),
        (lambda body: says("maybe"), "it said 'maybe', neither YES nor NO"),
        (lambda body: (time.sleep(1.5), says("yes"))[1], "ReadTimeout"),
    ],
    ids=["down", "no JSON", "no choices", "nonsense", "slow"],
)
def test_a_judge_that_fails_stops_the_run_and_nothing_is_invented(reply, words, tmp_path):
    with Endpoint(reply) as endpoint:
        asked = judge(endpoint.url, tmp_path, timeout=0.8)
        reward = Reward.build(RlOptions(rewards={"judge": 1.0}), asked)
        with pytest.raises(JudgeFailed, match="gave no verdict on sample in 3 attempts") as error:
            reward([response(r"\boxed{hoop}")], [example("ring")])
        assert words in str(error.value) and len(endpoint.asked) == 3
        assert not (tmp_path / "verdicts.jsonl").exists()
        with pytest.raises(JudgeFailed, match="Nobody asked"):
            asked.verdict(response(r"\boxed{hoop}"), example("ring"))


def test_a_judge_that_is_not_there(tmp_path):
    asked = judge("http://127.0.0.1:9/v1/chat/completions", tmp_path, retries=0)
    with pytest.raises(JudgeFailed, match="in 1 attempt .*ConnectError"):
        asked.ask([(response(r"\boxed{hoop}"), example("ring"))])


@pytest.mark.parametrize("line", [b'{"key": "b", "ri', b"[]", b'{"key": 1, "right": true}', b'{"key": "b"}', b"\xff"])
def test_a_line_that_holds_no_verdict_is_named_and_the_judge_asked_again(line, tmp_path, caplog):
    given = [response(r"\boxed{hoop}")], [example("ring")]
    with Endpoint(lambda body: says("yes")) as endpoint:
        file = tmp_path / "verdicts.jsonl"
        file.write_bytes(line)
        for _ in range(2):
            reward = Reward.build(RlOptions(rewards={"judge": 1.0}), judge(endpoint.url, tmp_path))
            assert "verdicts.jsonl: line 1 holds no verdict" in caplog.text
            assert reward(*given)[0] == [1.0] and len(endpoint.asked) == 1
        assert len(file.read_bytes().splitlines()) == 2


def test_a_judge_is_described_wholly_or_not_at_all(tmp_path):
    for given, words in (
        ({"url": "http://x", "model": ""}, "belong together"),
        ({"url": "ftp://x", "model": "m"}, "begins with http"),
        ({"workers": 0}, "workers is 0"),
        ({"timeout": -1.0}, "judge.timeout is -1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            JudgeOptions(**given)
    with pytest.raises(ValueError, match="INSCAPE_NO_SUCH_KEY .* is not set"):
        judge("http://x", tmp_path, key_variable="INSCAPE_NO_SUCH_KEY")
