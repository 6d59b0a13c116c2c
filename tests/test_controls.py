"""The table of settings: page, programs and limits take their rows from it, and none is missing."""

import dataclasses
import inspect
from types import SimpleNamespace

import gradio as gr
import pytest

from app.controls import CONTROLS, PARAMETERS, by_name, read
from app.fields import page_field, program_field, with_settings
from app.limits import Limits
from latent_core.config import LatentRange, Sampling
from latent_core.settings import Settings

NAMES = tuple(control.name for control in CONTROLS)


def test_every_setting_of_a_run_has_a_row_and_programs_know_their_order():
    assert {*NAMES} == {field.name for field in dataclasses.fields(Settings)} | {"speed"}
    assert NAMES == (
        *("mode", "latents", "speed", "temperature", "top_p", "top_k"),
        *("repetition_penalty", "max_new_tokens", "max_blocks", "seed", "rule"),
    )
    assert tuple(control.name for control in PARAMETERS) == (
        *("mode", "rule", "temperature", "top_p", "top_k", "repetition_penalty"),
        *("max_new_tokens", "max_blocks", "seed", "latents"),
    )


def test_what_the_page_begins_with_is_what_a_run_takes():
    """The checkpoint's own K and sampling, its own rule, and the defaults of Settings."""
    k, sampling = LatentRange(default=4, max=9), Sampling(temperature=0.5, top_k=7)
    with gr.Blocks():
        begun = {each.name: page_field(each, k, sampling).value for each in CONTROLS}
        asked = {each.name: program_field(each, sampling).value for each in PARAMETERS}
    assert begun.pop("speed") == "slow" and asked.pop("latents") is None
    wanted = Settings(latents=4, temperature=0.5, top_k=7)
    assert Settings(**read(begun)) == wanted
    assert Settings(**read(asked), latents=4) == wanted


def test_values_are_read_as_what_they_are():
    assert read({"top_k": 8.0, "top_p": 1, "rule": "own", "mode": "text", "slow": "?"}) == {
        **{"top_k": 8, "top_p": 1, "rule": None, "mode": "text", "slow": "?"}
    }
    for value, words in ((None, "top k is empty"), ("8", "top k is '8'"), (True, "top k is 'True'")):
        with pytest.raises(ValueError, match=words):
            read({"top_k": value})
    with pytest.raises(ValueError, match="temperature is 'nan'"):
        read({"temperature": float("nan")})


def test_values_get_their_names_and_what_is_left_out_has_none():
    values = ("text", 4, "real", 0.0, 1.0, 0, 1.0, 9, 8, 1, "own")
    assert by_name(values) == dict(zip(NAMES, values, strict=True))
    assert by_name(range(11)) == dict(zip(NAMES, range(11), strict=True))
    assert "latents" not in by_name([0] * 9 + [None], PARAMETERS)
    with pytest.raises(ValueError):
        by_name(values[:-1])


@pytest.mark.parametrize("control", [each for each in CONTROLS if each.limit], ids=lambda each: each.name)
def test_every_limit_is_one_that_limits_have(control):
    limits = Limits(tokens=5, blocks=5, latents=5)
    limits.check_settings({control.name: 5})
    with pytest.raises(ValueError, match=f"^{control.called or control.name} is 6, but at most 5"):
        limits.check_settings({control.name: 6})


def test_gradio_sees_every_setting_and_where_the_request_is():
    @with_settings(PARAMETERS)
    def asked(question: str, *values):
        *given, request = values
        return question, by_name(given, PARAMETERS), request

    parameters = inspect.signature(asked).parameters
    assert list(parameters) == ["question", *(control.name for control in PARAMETERS), "request"]
    assert parameters["latents"].default is None and parameters["request"].annotation is gr.Request
    tab = SimpleNamespace()
    assert asked("Which?", *range(9), None, tab) == (
        "Which?",
        {control.name: n for n, control in enumerate(PARAMETERS[:-1])},
        tab,
    )
