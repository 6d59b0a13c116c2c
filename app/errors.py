"""Errors of handlers as sentences for the visitor, never as tracebacks."""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gradio as gr

UNEXPECTED = "Something went wrong here that should not have. Try again; the server's log says what it was."

Handler = TypeVar("Handler", bound=Callable[..., Any])
log = logging.getLogger("inscape")


def as_user_errors(handler: Handler) -> Handler:
    """The same handler of Gradio's, plain or a generator; what it raises becomes a gr.Error with a sentence."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _sentences():
                yield from handler(*args, **kwargs)

        return stream

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _sentences():
            return handler(*args, **kwargs)

    return call


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except ValueError as problem:
        raise gr.Error(sentence(problem), print_exception=False) from problem
    except Exception as problem:  # the last place before Gradio, which would send a visitor nothing to go by
        log.exception("A handler failed.")
        raise gr.Error(UNEXPECTED, print_exception=False) from problem


def sentence(problem: Exception) -> str:
    """The first line of what went wrong."""
    return str(problem).splitlines()[0] if str(problem) else UNEXPECTED
