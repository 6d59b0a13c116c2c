"""What was written before a name changed: traces, checkpoints, recipes, measurements and calls keep working."""

import json
import shutil

import pytest

from app.controls import CONTROLS
from app.fields import program_field
from latent_core import Trace, load
from latent_core.assets import ASSETS
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.config import MethodConfig, Sampling
from latent_core.evaluation.study_rows import row_from_json
from latent_core.settings import FORMER_NAMES, Settings
from trainers.loop.origin import normal
from trainers.recipe import load_recipe


def test_settings_know_the_former_name_of_a_rule():
    assert Settings(rule="everything") == Settings(rule="causal")


def test_a_checkpoint_that_ships_says_it_and_is_read():
    said = json.loads((EMBEDDED / "glyph-monet-faithful/method.json").read_text())["rule"]
    assert said == "everything" and MethodConfig.read(EMBEDDED / "glyph-monet-faithful").rule == "causal"
    assert load("glyph-monet-faithful").settings().rule == "causal"


def test_a_recorded_trace_says_it_and_is_read():
    trace = Trace.load(ASSETS / "traces/find_glyph-monet-faithful.safetensors")
    assert trace.settings.rule == "causal" and trace.tokens and trace.blocks


def test_measurements_that_ship_say_it_and_are_read():
    rows = json.loads((EMBEDDED / "glyph-monet/metrics.json").read_text())["rows"]
    assert {"everything", "latents_only"} == {row["condition"]["rule"] for row in rows}
    assert {"causal", "latents_only"} == {row_from_json(row).condition.rule for row in rows}


def test_a_recipe_with_former_names_is_the_recipe_of_today():
    former, _ = load_recipe("glyph-latent", ["rule=everything", "everything_share=0.25"])
    assert former == load_recipe("glyph-latent", ["rule=causal", "causal_share=0.25"])[0]
    assert normal({"rule": "everything", "everything_share": 0.25}) == {"rule": "causal", "causal_share": 0.25}


def test_a_program_may_send_the_former_name():
    (rule,) = (control for control in CONTROLS if control.name == "rule")
    offered = [value for _, value in program_field(rule, Sampling()).choices]
    assert FORMER_NAMES.keys() <= set(offered)


@pytest.mark.parametrize("name", ["load", "Trace", "Settings", "Reasoner", "glyphs", "interventions"])
def test_the_readmes_names_stay(name):
    import latent_core

    assert getattr(latent_core, name) is not None


def test_modules_that_scripts_import_stay(tmp_path):
    from latent_core import checkpoints
    from latent_core.replay import lens_by_layer, replay

    assert callable(replay) and callable(lens_by_layer)
    shutil.copytree(EMBEDDED / "glyph-text", tmp_path / "mine")
    assert (
        checkpoints.find(tmp_path / "mine") == tmp_path / "mine" and checkpoints.load(tmp_path / "mine").name == "mine"
    )
