"""`python -m trainers ground`: how often latents look at what they are about; rule from val, figures on test."""

import dataclasses
import json
from pathlib import Path

from latent_core import glyphs, load
from latent_core.files import write_file
from latent_core.grounding import Grounding, Share, best, collect, report
from trainers.evidence import beside_weights

FAMILY = "find"
KINDS = ("similarity", "attention")


def ground(checkpoint: str, *, n: int = 300) -> Path:
    """Measures `find` on seeds 0…n−1; returns the Markdown table. It lies beside the weights.

    Raises ValueError for a checkpoint without latents and for n below 2.
    """
    if n < 2:
        raise ValueError(f"n is {n}; at least 2 samples are needed.")
    reasoner = load(checkpoint)
    latents = reasoner.config.latents.default
    if reasoner.method.open_id is None:
        raise ValueError(f"{checkpoint} has no latents, so there is nothing to ground.")
    found = {}
    for split in ("val", "test"):
        examples = [glyphs.sample(FAMILY, seed, split) for seed in range(n)]
        found[split] = collect(reasoner, examples, latents=latents)
    rows = [report(found["test"], best(found["val"], kind)) for kind in KINDS]
    command = f"python -m trainers ground {checkpoint} --n {n}"
    content = {
        "command": command,
        "fingerprint": reasoner.config.provenance.get("fingerprint", "unknown"),
        "family": FAMILY,
        "latents": latents,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    head = (
        f"`{command}`: `{FAMILY}`, K = {latents}, seeds 0 to {n - 1} of test, rule chosen on as many of val; share of "
    )
    head += "looks at the thing asked for in percent, 95% intervals over runs.\n\n"
    out = beside_weights(checkpoint, "ground")
    write_file(out / "grounding.json", json.dumps(content, indent=1).encode())
    write_file(out / "grounding.md", (head + table(rows)).encode())
    return out / "grounding.md"


def table(rows: list[Grounding]) -> str:
    """Markdown, a line per rule."""
    count = len(rows[0].by_latent)
    numbers = " | ".join(str(t) for t in range(1, count + 1))
    lines = [
        f"| looks at the highest | all latents | {numbers} | words of the same runs | random region of that size |",
        "|---" * (count + 4) + "|",
    ]
    for row in rows:
        each = " | ".join(f"{100 * one.value:.0f}" for one in row.by_latent)
        lines.append(
            f"| {row.rule} | {_share(row.latents)} | {each} | {_share(row.words)} | {_share(row.elsewhere)} |"
        )
    return "\n".join(lines) + "\n"


def _share(share: Share) -> str:
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
