"""A visitor without a browser: speaks Gradio's protocol over HTTP, so that it can also say what no client would."""

import json
import re
import secrets
import socket
import time
from typing import Any

import httpx


def client(url: str, *, timeout: float, address: str | None = None) -> httpx.Client:
    """Plain HTTP. To read the certificates of the others would take longer than most answers do."""
    return httpx.Client(
        base_url=url, timeout=timeout, transport=httpx.HTTPTransport(local_address=address, verify=False)
    )


class Visitor:
    """One session. What is asked is sent as it is: NaN, half characters and huge numbers included.

    Who has waited for an answer for `timeout` seconds has waited long enough, though the server may say now and then
    that it is still there. `address` is the visitor's own, such as 127.0.0.2, where that should not be everybody's.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        functions: list[dict[str, Any]] | None = None,
        address: str | None = None,
    ) -> None:
        self.http = client(url, timeout=timeout, address=address)
        self.session, self.patience = secrets.token_hex(6), timeout
        self.functions = functions or self.http.get("config").json()["dependencies"]
        self.numbers = {function["api_name"]: function["id"] for function in self.functions}

    def close(self) -> None:
        """Ends the connections."""
        self.http.close()

    def upload(self, data: bytes, name: str = "image.png") -> httpx.Response:
        """Sends a file; the answer is a list with its path on the server."""
        return self.http.post("gradio_api/upload", files={"files": (name, data)})

    def file(self, data: bytes, name: str = "image.png") -> dict[str, Any]:
        """An uploaded file as an argument."""
        (path,) = self.upload(data, name).raise_for_status().json()
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def post(self, path: str, body: Any) -> httpx.Response:
        """JSON as Python writes it."""
        return self.http.post(path, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    def call(self, name: str, arguments: list[Any]) -> tuple[bool, str]:
        """A named endpoint by position; whether it answered with a result, and all that it said."""
        said = self.post(f"gradio_api/call/{name}", {"data": arguments})
        if said.status_code != 200:
            return False, said.text
        return self._heard(f"gradio_api/call/{name}/{said.json()['event_id']}", "event: complete")

    def join(self, number: int, values: list[Any], event_data: Any = None) -> tuple[bool, str]:
        """Any function of the page, named or not."""
        said = self.join_unheard(number, values, event_data)
        if said.status_code != 200:
            return False, said.text
        return self._heard(f"gradio_api/queue/data?session_hash={self.session}", '"success":true')

    def join_unheard(self, number: int, values: list[Any], event_data: Any = None) -> httpx.Response:
        """The same without listening to what becomes of it."""
        body = {"fn_index": number, "session_hash": self.session, "data": values, "event_data": event_data}
        return self.post("gradio_api/queue/join", body)

    def act(self, name: str, values: list[Any] | None = None, **told: Any) -> tuple[bool, str]:
        """An event of the page by its function's name; `told` is what a component's script says with it."""
        return self.join(self.numbers[name], values or [], told or None)

    def ask(self, question: str, image: dict[str, Any], **settings: Any) -> tuple[bool, str]:
        """A question with the settings that the page has at first."""
        usual = {
            "checkpoint": None,
            "mode": "latent",
            "rule": "own",
            "temperature": 0,
            "top_p": 1,
            "top_k": 0,
            "repetition_penalty": 1,
            "max_new_tokens": 64,
            "max_blocks": 8,
            "seed": 0,
            "latents": None,
        }
        chosen = {**usual, "checkpoint": self.checkpoint(), **settings}
        return self.call("ask", [[image], question, *chosen.values()])

    def checkpoint(self) -> str:
        """The checkpoint offered first."""
        return self.http.get("health").json()["checkpoints"][0]

    def _heard(self, path: str, good: str) -> tuple[bool, str]:
        parts, end = [], time.monotonic() + self.patience
        with self.http.stream("GET", path) as stream:
            for line in stream.iter_lines():
                parts.append(line)
                if '"msg":"close_stream"' in line:
                    break
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("Nothing but signs of life.")
        text = "\n".join(parts)
        return good in text, text


class Tab(Visitor):
    """A visitor with an open page: the server hears when it is closed."""

    def __init__(self, url: str, checkpoint: str, *, timeout: float = 120.0, **given: Any) -> None:
        super().__init__(url, timeout=timeout, **given)
        self.chosen = checkpoint
        # a socket that nobody reads from, for one that is being read from stays open when it is closed
        own = (given["address"], 0) if given.get("address") else None
        there = self.http.base_url.host, self.http.base_url.port
        self.heartbeat = socket.create_connection(there, timeout=timeout, source_address=own)
        request = f"GET /gradio_api/heartbeat/{self.session} HTTP/1.1\r\nHost: {self.http.base_url.host}\r\n\r\n"
        self.heartbeat.sendall(request.encode())

    def press(self, question: str, image: dict[str, Any], *, speed: str = "real") -> tuple[bool, str]:
        """Presses Run."""
        return self.join(self.numbers["ask_1"], self._fields(question, image, speed))

    def press_unheard(self, question: str, image: dict[str, Any]) -> httpx.Response:
        """Presses Run and does not listen to what becomes of it."""
        return self.join_unheard(self.numbers["ask_1"], self._fields(question, image, "slow"))

    def leave(self, question: str, image: dict[str, Any]) -> None:
        """Presses Run, and closes the tab as soon as it hears of the run or that it has to wait."""
        if self.press_unheard(question, image).status_code == 200:
            with self.http.stream("GET", f"gradio_api/queue/data?session_hash={self.session}") as said:
                next(said.iter_lines(), None)
        self.close()

    def _fields(self, question: str, image: dict[str, Any], speed: str) -> list[object]:
        return [None, [image], question, None, self.chosen, "latent", 8, speed, 0, 1, 0, 1, 64, 8, 0, "own"]

    def close(self) -> None:
        """Closes the tab."""
        self.heartbeat.close()
        super().close()


def result(text: str) -> Any:
    """The values in what `call` or `ask` heard."""
    return json.loads(text.rpartition("data: ")[2])


def outcome(text: str) -> list[Any]:
    """The values of the components in what `join` heard; none where the event failed."""
    for line in reversed(text.splitlines()):
        if line.startswith("data: ") and '"msg":"process_completed"' in line:
            return json.loads(line.removeprefix("data: "))["output"].get("data", [])
    return []


def sentence(text: str) -> str | None:
    """What went wrong, as an answer tells it; None where it tells of nothing."""
    told = re.search(r'"(?:problem|error|detail)": ?("(?:[^"\\]|\\.)+")', text)
    return json.loads(told[1]) if told else None


COMPLETE = r'"reason": ?"(stop|length)"'
"""What the answer to a question holds that was answered to its end."""
WAIT = r"(?i)\bwait\b|try again|\bfull\b|in a moment|later"
"""What a sentence holds that sends a visitor away for a while."""


def fate(ok: bool, said: str, expected: str = "") -> str:
    """What became of a call, by what was heard: `answered`, `refused: …` for who should try again, or `failed: …`."""
    told = sentence(said)
    if ok and told is None and re.search(expected, said):
        return "answered"
    if told and re.search(WAIT, told) and "went wrong" not in told:
        return f"refused: {told}"
    return f"failed: {told or said[-160:]}"
