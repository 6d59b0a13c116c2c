"""Model cards of the embedded checkpoints: what a checkpoint is, and its reports, made from their JSON."""

from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation.grounding import FILE as GROUNDING_FILE
from latent_core.evaluation.image_decoder import REPORT as DEPICT_FILE
from trainers.evidence import ablation_table, reinforcement_table
from trainers.evidence import decoder as depict
from trainers.evidence import grounding as ground
from trainers.evidence import measurements as evidence
from trainers.evidence.reports import ABLATIONS_FILE, METRICS_FILE, REINFORCEMENT_FILE, read_report
from trainers.recipe import Recipe, load_recipe

SECTIONS = {
    METRICS_FILE: ("Measurements", evidence.markdown),
    GROUNDING_FILE: ("Where the latents look", ground.markdown),
    DEPICT_FILE: ("What the latents depict", depict.markdown),
    ABLATIONS_FILE: ("Ablations", ablation_table.markdown),
    REINFORCEMENT_FILE: ("Before and after", reinforcement_table.markdown),
}
"""By a report's name in a checkpoint's folder: its title in the card, and what makes Markdown of it."""


def card(name: str) -> str:
    """The model card of an embedded checkpoint, with a section for each report that lies beside the weights."""
    recipe, _ = load_recipe(name, [])
    text = (
        f"---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n---\n\n# {name}\n\n"
        f"{recipe.description} A Qwen2.5-VL of 1.7M parameters, trained from scratch on Glyphs, a procedural "
        "micro-world; outside of it its answers mean nothing.\n\n"
        f"Made by `python -m trainers run {name}` (or `make glyphs`) on two CPU cores; recipe, seed and versions are "
        f"in `method.json`, the training curve in `training.jsonl`.\n\n{_latents(recipe)}"
    )
    reports = {file: as_markdown(name, file) for file in SECTIONS}
    sections = {file: f"## {SECTIONS[file][0]}\n\n{report}" for file, report in reports.items() if report}
    text += "\n".join([sections.pop(METRICS_FILE, ""), *sections.values()])
    return text.rstrip() + "\n"


def as_markdown(name: str, file: str) -> str:
    """A report beside an embedded checkpoint, as Markdown; empty where there is none."""
    path = EMBEDDED / name / file
    return SECTIONS[file][1](read_report(path)) if path.is_file() else ""


def _latents(recipe: Recipe) -> str:
    """The sentences of the model card on blocks."""
    text = recipe.spec.stage.card(recipe)
    if recipe.method == "text" or not text:
        return ""
    if recipe.spec.reinforces:
        return f"{text} Attention rule: `{recipe.rule}`.\n\n"
    text += f" Attention rule: `{recipe.rule}`"
    text += f", for {recipe.causal_share:.0%} of the batches `causal`.\n\n" if recipe.causal_share else ".\n\n"
    if recipe.rule in ("latents_only", "sealed"):
        text += (
            "Text after a block sees nothing but latents and itself. That the answer depends on the latents then "
            "holds by construction, because the other wires are cut; the rows under `causal` are the ones to "
            "compare with published models.\n\n"
        )
    return text
