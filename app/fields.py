"""The table of settings (controls.py) as Gradio's components, and as parameters of the functions that Gradio calls."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from app.controls import Control
from latent_core.config import LatentRange, Sampling

Function = TypeVar("Function", bound=Callable[..., Any])
_TYPES = {"choice": str, "whole": int, "fraction": float}


def page_field(control: Control, k: LatentRange, sampling: Sampling) -> gr.components.Component:
    """The field of a setting on the page, beginning with the checkpoint's own where the table has no default."""
    if control.kind == "choice" and control.folded:
        choices = list(control.choices)
        return gr.Dropdown(choices, value=control.default, label=control.label, filterable=False)
    if control.kind == "choice":
        return gr.Radio(list(control.choices), value=control.default, label=control.label, elem_classes="ins-seg")
    if not control.folded:
        return gr.Slider(0, k.max, k.default, step=1, label=control.label, elem_id="ins-k", buttons=[])
    # no limits here: the checkpoint's own say in a sentence what is possible
    value = getattr(sampling, control.name) if control.default is None else control.default
    whole = {"precision": 0} if control.kind == "whole" else {"step": control.step}
    return gr.Number(value, label=control.label, **whole)


def program_field(control: Control, sampling: Sampling) -> gr.components.Component:
    """The invisible component by which /ask takes a setting: its name is the label, its value the default."""
    hidden = {"label": control.name, "visible": False}
    if control.kind == "choice":
        return gr.Dropdown(
            [*(value for _, value in control.choices), *control.former], value=control.default, **hidden
        )
    value = None if control.optional else control.default
    if value is None and not control.optional:
        value = getattr(sampling, control.name)
    return gr.Number(value, precision=0 if control.kind == "whole" else None, **hidden)


def with_settings(controls: tuple[Control, ...]) -> Callable[[Function], Function]:
    """For a function of Gradio's that ends in `*values`: these settings one by one, then the request.

    Gradio goes by the signature: it passes the request where that has it, and tells programs the names.
    """

    def named(function: Function) -> Function:
        signature = inspect.signature(function)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        first = [each for each in signature.parameters.values() if each.kind is kind]
        ours = [inspect.Parameter(each.name, kind, annotation=_TYPES[each.kind]) for each in controls]
        if controls[-1].optional:  # the only kind of default that Gradio's clients know is one of none, at the end
            ours[-1] = ours[-1].replace(annotation=ours[-1].annotation | None, default=None)
        request = inspect.Parameter("request", kind, annotation=gr.Request, default=None)
        function.__signature__ = signature.replace(parameters=[*first, *ours, request])
        function.__annotations__ |= {each.name: each.annotation for each in (*ours, request)}
        return function

    return named
