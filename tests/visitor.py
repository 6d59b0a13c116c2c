"""A visitor without a browser: speaks Gradio's protocol over HTTP, so that it can also say what no client would."""

import json
import secrets
from typing import Any

import httpx


class Visitor:
    """One session. What is asked is sent as it is: NaN, half characters and huge numbers included."""

    def __init__(self, url: str, *, timeout: float = 60.0, functions: list[dict[str, Any]] | None = None) -> None:
        self.http = httpx.Client(base_url=url, timeout=timeout)
        self.session = secrets.token_hex(6)
        self.functions = functions or self.http.get("config").json()["dependencies"]

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
        body = {"fn_index": number, "session_hash": self.session, "data": values, "event_data": event_data}
        said = self.post("gradio_api/queue/join", body)
        if said.status_code != 200:
            return False, said.text
        return self._heard(f"gradio_api/queue/data?session_hash={self.session}", '"success":true')

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
        parts = []
        with self.http.stream("GET", path) as stream:
            for line in stream.iter_lines():
                parts.append(line)
                if '"msg":"close_stream"' in line:
                    break
        text = "\n".join(parts)
        return good in text, text


def result(text: str) -> Any:
    """The values in what `call` or `ask` heard."""
    return json.loads(text.rpartition("data: ")[2])
