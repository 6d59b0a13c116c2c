"""The judge: a language model that says whether an answer means the true one, over an OpenAI-compatible endpoint.

It is asked only where words, numbers and formulae do not match already. A verdict is cached on disk, so that a run
that goes on asks nothing twice. What cannot be had (no connection, a refusal, an answer that is neither YES nor NO)
is tried again as often as the recipe says, and then stops the run: no reward is invented.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from latent_core import answers
from latent_core.evaluation.grading import equal
from latent_core.example import Example
from latent_core.lines import append_line, read_lines
from latent_core.settings import check, counted, short
from trainers.rl.options import JudgeOptions
from trainers.rl.rollouts import SampledResponse

PROMPT = """Question: {question}
True answer: {truth}
Answer to judge: {answer}

Does the answer to judge mean the same as the true answer? Reply with the one word YES or NO."""

log = logging.getLogger("inscape")


class JudgeFailed(ConnectionError):
    """The judge gave no verdict in all its tries."""


class Judge:
    """The judge's verdicts on answers, with their cache; `ask` fetches what is missing, `verdict` reads."""

    def __init__(self, options: JudgeOptions) -> None:
        """Raises ValueError where the key's variable is named, but not set, for an address that is none, and for a
        broken file of verdicts.
        """
        self.options = options
        headers = {}
        if options.key_variable:
            key = os.environ.get(options.key_variable)
            check(bool(key), f"The environment variable {options.key_variable} (judge.key_variable) is not set.")
            fits = key.isascii() and key.isprintable()
            check(fits, f"{options.key_variable} (judge.key_variable) holds letters that no key has, or line breaks.")
            headers["Authorization"] = f"Bearer {key}"
        try:
            httpx.URL(options.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"judge.url is {short(options.url)}, which is not an address: {error}.") from error
        self._client = httpx.Client(headers=headers, timeout=options.timeout)
        self._cache = Path(options.cache)
        self._verdicts: dict[str, bool] = {}
        lines, broken = read_lines(self._cache)
        for number, entry in lines:
            if isinstance(entry.get("key"), str) and isinstance(entry.get("right"), bool):
                self._verdicts[entry["key"]] = entry["right"]
            else:
                broken.append(number)
        if broken:
            numbers = ", ".join(map(str, sorted(broken)))
            log.warning("%s: line %s holds no verdict; the judge is asked again.", self._cache, numbers)

    def ask(self, pairs: Sequence[tuple[SampledResponse, Example]]) -> None:
        """Fetches the verdicts on all answers that are not known yet, several at a time. Raises JudgeFailed."""
        missing: dict[str, tuple[str, Example]] = {}
        for rollout, example in pairs:
            answer = self._open(rollout, example)
            if answer is not None and (key := self._key(answer, example)) not in self._verdicts:
                missing[key] = answer, example
        if not missing:
            return
        with ThreadPoolExecutor(self.options.workers) as pool:
            tasks = {key: pool.submit(self._fetch, *pair) for key, pair in missing.items()}
            try:
                for key, task in tasks.items():
                    self._keep(key, task.result())
            finally:
                pool.shutdown(cancel_futures=True)

    def verdict(self, rollout: SampledResponse, example: Example) -> float:
        """1 where the answer is right; `ask` has to come first. Raises JudgeFailed where it did not."""
        answer = self._open(rollout, example)
        if answer is None:
            extracted = answers.extract(rollout.text)
            return float(extracted is not None and equal(extracted, example.answer))
        key = self._key(answer, example)
        if key not in self._verdicts:
            raise JudgeFailed(f"Nobody asked the judge about {example.name}.")
        return float(self._verdicts[key])

    def _open(self, rollout: SampledResponse, example: Example) -> str | None:
        """The answer if only a judge can tell; None where there is none or where it is the true one."""
        extracted = answers.extract(rollout.text)
        return None if extracted is None or equal(extracted, example.answer) else extracted

    def _key(self, answer: str, example: Example) -> str:
        decisive = [self.options.model, PROMPT, example.question, example.answer, answer]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def _keep(self, key: str, right: bool) -> None:
        self._verdicts[key] = right
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._cache, {"key": key, "right": right})

    def _fetch(self, answer: str, example: Example) -> bool:
        options, problem = self.options, ""
        prompt = PROMPT.format(question=example.question, truth=example.answer, answer=answer)
        body = {"model": options.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        for attempt in range(options.retries + 1):
            if attempt:
                time.sleep(options.wait * 2 ** (attempt - 1))
            try:
                reply = self._client.post(options.url, json=body)
                reply.raise_for_status()
                content = reply.json()["choices"][0]["message"]["content"]
            except httpx.HTTPError as error:
                problem = " ".join(f"{type(error).__name__}: {error}".split())
                continue
            except (ValueError, KeyError, IndexError, TypeError):
                problem = f"no chat completion came back, but {reply.text[:200]!r}"
                continue
            word = str(content).strip().strip(".!*\"'").casefold()
            if word in ("yes", "no"):
                return word == "yes"
            problem = f"it said {str(content)[:200]!r}, neither YES nor NO"
        raise JudgeFailed(
            f"The judge {options.model!r} at {options.url} gave no verdict on {example.name} in "
            f"{counted(options.retries + 1, 'attempt')} ({problem}). The run stops before its step; start it again to "
            "go on from its last checkpoint."
        )
