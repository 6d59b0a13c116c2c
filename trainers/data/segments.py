"""The response of an example in segments: text, then a latent step, then its observation, … and the answer.

Every collator derives from this one layout (Monet's order: text · block · observation).
"""

from latent_core.example import Example, LatentStep, TextSpan

__all__ = ["LatentStep", "TextSpan", "segments"]


def segments(example: Example) -> list[TextSpan | LatentStep]:
    """The response in order: its exact parts where the example has them, otherwise made from steps and answer.

    Texts carry their leading space, so that they can be encoded one by one. Questions with steps end in
    `\\boxed{answer}`; without steps (captions) the answer stands alone.
    """
    if example.parts is not None:
        return list(example.parts)
    parts: list[TextSpan | LatentStep] = []
    for number, step in enumerate(example.steps):
        if step.text:
            parts.append(TextSpan(f" {step.text}" if number else step.text, "text"))
        parts.append(LatentStep(step))
        if step.observation:
            parts.append(TextSpan(f" {step.observation}", "observation"))
    parts.append(TextSpan(f" \\boxed{{{example.answer}}}" if parts else example.answer, "answer"))
    return parts
