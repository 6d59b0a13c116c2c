"""The page's events as Gradio calls them: values of components in, values of components out. Wired in page.py."""

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from app.asking import Scene, answer_stream, new_scene
from app.components import Files, as_files, paths
from app.runner import MAX_IMAGES, Runner
from latent_core import glyphs
from latent_core.images import load_image

PHOTO = (
    "This model only knows Glyphs scenes; its answer means nothing here. "
    "Choose a GPU checkpoint to ask about other pictures."
)


class Handlers:
    """The page's events, bound to one runner."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def ask(
        self,
        restart: bool,
        files: Files,
        question: str,
        scene: Scene | None,
        checkpoint: str,
        mode: str,
        latents: int,
        speed: str,
        temperature: float,
        top_p: float,
        top_k: int,
        repetition_penalty: float,
        max_new_tokens: int,
        max_blocks: int,
        seed: int,
        rule: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any]]:
        """Run and, at the end, the trace to download; with `restart` only where a run was interrupted before."""
        if restart and not self.runner.take_restart(session_of(request)):
            yield gr.skip(), gr.skip()
            return
        settings = {
            "mode": mode,
            "latents": latents,
            "speed": speed,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
            "max_new_tokens": max_new_tokens,
            "max_blocks": max_blocks,
            "seed": seed,
            "rule": rule,
        }
        session = session_of(request)
        for value, path in answer_stream(self.runner, session, files, question, checkpoint, scene, **settings):
            yield value, gr.DownloadButton(value=path, interactive=True) if path else gr.skip()

    def interrupt(self, request: gr.Request) -> None:
        """K, method or mode has changed: what runs is stopped, to start again."""
        self.runner.interrupt(session_of(request))

    def stop(self, request: gr.Request) -> None:
        """The Stop button."""
        self.runner.stop(session_of(request))

    def forget(self, request: gr.Request) -> None:
        """The tab is closed."""
        self.runner.forget(session_of(request))

    def scene(self, family: str) -> tuple[Files, Files, str, Scene, str]:
        """A new scene."""
        return loaded(family)

    def example(self, event: gr.EventData) -> tuple[Files, Files, str, Scene, str]:
        """The example scene that was clicked."""
        family, seed = event._data["family"], event._data["seed"]
        if family not in glyphs.FAMILIES or type(seed) is not int or seed < 0:
            raise gr.Error("That example does not exist; choose another.")
        return loaded(family, seed)

    def check(self, files: Files, kept: Files, checkpoint: str) -> tuple[Files, Files, str]:
        """New images: those that can be used (else the ones before), the same to remember, and a notice."""
        good, problems = [], []
        for file in files[:MAX_IMAGES]:
            try:
                load_image(*paths([file]))
                good.append(file)
            except ValueError as problem:
                problems.append(f'<p class="ins-problem" role="alert">{escape(str(problem))}</p>')
        use = good or (kept if problems else [])
        return use, use, "".join(problems) + self.photo_notice(use, checkpoint)

    def photo_notice(self, files: Files, checkpoint: str) -> str:
        """HTML that says so where a picture is shown to a model that cannot know such pictures."""
        if self.runner.reasoner(checkpoint).config.world != "glyphs":
            return ""
        if all(glyphs.looks_like(load_image(path)) for path in paths(files)):
            return ""
        return f'<p class="ins-notice" role="status">{PHOTO}</p>'


def loaded(family: str, seed: int | None = None) -> tuple[Files, Files, str, Scene, str]:
    """Images, the same to remember, question, identity of a scene, and no notice."""
    images, question, scene = new_scene(family, seed)
    files = as_files(images)
    return files, files, question, scene, ""


def session_of(request: gr.Request) -> str:
    """Gradio's name of the browser tab or API client."""
    return request.session_hash or "no session"
