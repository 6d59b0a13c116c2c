"""Runs of one small recipe killed at random, by hand: `python -m tests.kills --minutes 10 --seed 0`.

Again and again a child starts a run in one folder and is killed at a random time (SIGKILL), or ends by itself. What it
is started with is drawn, too: the same recipe or another, with --restart or without, two at once in the one folder, a
parent that is trained again meanwhile. After each, the weights of every complete checkpoint and every finished one,
those set aside among them, must be bit for bit those of an undisturbed run of the recipe and the parent that their
folder names, and a start that says Finished must have left what it was asked for.

Reported as JSON: starts, kills, how starts ended, checkpoints compared, and what was wrong, which makes it exit with
1.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.files import write_folder
from trainers.commands import main as command
from trainers.loop.folder import held  # noqa: F401, what a child needs is imported once, before it is forked
from trainers.loop.launch import train  # noqa: F401
from trainers.loop.origin import content_hash

SMALL = (
    *("max_steps=6", "save_steps=2", "per_device_train_batch_size=2", "warmup_steps=1", "logging_steps=1"),
    *("eval_strategy=no", "use_cpu=true", "save_total_limit=2"),
)
RECIPES = (("learning_rate=1e-3", "seed=0"), ("learning_rate=3e-3", "seed=0"), ("learning_rate=1e-3", "seed=7"))
PARENTS = 2


class Kills:
    """The folder that is killed in, the runs that it is compared with, and the figures."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.run, self.parent = root, root / "run", root / "parent"
        self.draw = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.known: dict[tuple[str, str], dict[str, str]] = {}
        self.seconds = 0.0
        for number in range(PARENTS):
            self._make_parent(number)
            for recipe in RECIPES:
                folder = root / f"reference-{number}-{RECIPES.index(recipe)}"
                began = time.monotonic()
                status, text = self.wait(self.start(recipe, folder, "save_total_limit=null"))
                self.seconds = max(self.seconds, time.monotonic() - began)
                if status:
                    raise RuntimeError(text)
                self.known[self._names(folder)] = {p.parent.name: _hash(p) for p in folder.glob("*/model.safetensors")}
        self.recipe, self.number = RECIPES[0], PARENTS - 1

    def _make_parent(self, number: int) -> None:
        """Has the parent trained again, by another recipe."""

        def fill(folder: Path) -> None:
            for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
                shutil.copy(EMBEDDED / "glyph-text" / file, folder)
            tensors = load_file(EMBEDDED / "glyph-text/model.safetensors")
            moved = {name: tensor + 1e-3 * number for name, tensor in tensors.items()}
            save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})

        write_folder(self.parent, fill)
        self.number = number

    def _names(self, folder: Path) -> tuple[str, str]:
        """What a folder says that its weights are of."""
        recipe = json.loads((folder / "recipe.json").read_text())
        return json.dumps(recipe, sort_keys=True), json.loads((folder / "parents.json").read_text())["init"]["content"]

    def start(self, recipe: tuple[str, ...], folder: Path, *more: str) -> int:
        """The id of a child that runs a recipe; what it writes lies beside the folders under that id."""
        child = os.fork()
        if child:
            return child
        status = 70  # of an exception that the command let through
        try:
            with (self.root / f"{os.getpid()}.txt").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            given = ["run", "glyph-vision", *SMALL, f"init={self.parent}", f"output_dir={folder}", *recipe, *more]
            status = command(given)
        finally:
            sys.stdout.flush()
            os._exit(status)

    def wait(self, child: int) -> tuple[int, str]:
        """A child's exit status, negative for a signal, and what it said."""
        _, status = os.waitpid(child, 0)
        log = self.root / f"{child}.txt"
        text = log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        return os.waitstatus_to_exitcode(status), text

    def round(self) -> None:
        """Starts one or two children, disturbs them, and looks at what they leave."""
        draw = self.draw
        if draw.random() < 0.35:
            self.recipe = draw.choice(RECIPES)
        ended = (self.run / "final").exists()  # and would not be run again
        more = ["--restart"] if draw.random() < (0.7 if ended else 0.25) else []
        before = self.number
        if draw.random() < 0.1:
            self._make_parent(draw.randrange(PARENTS))
            before = self.number
        children = {self.start(self.recipe, self.run, *more)}
        if draw.random() < 0.2:
            self.counts["two at once"] += 1
            children.add(self.start(draw.choice(RECIPES), self.run, *more))
        if draw.random() < 0.15:
            time.sleep(draw.uniform(0, self.seconds / 2))
            self._make_parent(draw.randrange(PARENTS))
            self.counts["parents trained again meanwhile"] += 1
        undisturbed = draw.random() < 0.15
        if not undisturbed:
            time.sleep(draw.uniform(0, self.seconds))
        for child in children:
            if not undisturbed:
                os.kill(child, signal.SIGKILL)
            self._ended(*self.wait(child), alone=len(children) == 1 and before == self.number)
        self._compare()
        for folder in sorted(self.run.glob("earlier-*")):  # what was looked at once is left alone by all
            shutil.rmtree(folder)

    def _ended(self, status: int, text: str, *, alone: bool) -> None:
        self.counts["starts"] += 1
        end = {-signal.SIGKILL: "killed", 0: "finished"}.get(status)
        if end is None:
            known = ("another version", "no longer what", "under way", "was replaced while", "no config.json")
            end = "refused: " + next((words for words in known if words in text), "otherwise")
            if status != 2 or "Traceback" in text or end.endswith("otherwise"):
                self.wrong.append(f"status {status}: {text[-600:]}")
        self.counts[end] += 1
        if status == 0 and alone:
            asked = self.known[self._wanted()]["final"]
            if _hash(self.run / "final/model.safetensors") != asked:
                self.wrong.append("a start said Finished, but what lies there is not what it was asked for")

    def _wanted(self) -> tuple[str, str]:
        """What the folder names, where that is the recipe and the parent of now."""
        folder = self.root / f"reference-{self.number}-{RECIPES.index(self.recipe)}"
        return self._names(folder)

    def _compare(self) -> None:
        for folder in (self.run, *self.run.glob("earlier-*")):
            found = [path for path in folder.glob("checkpoint-*") if (path / "complete").exists()]
            found += [path for path in (folder / "final",) if path.exists()]
            for path in found:
                self.counts["checkpoints compared"] += 1
                names = self._names(folder)
                if names not in self.known or _hash(path / "model.safetensors") != self.known[names].get(path.name):
                    self.wrong.append(f"{path} is not of the recipe and the parent that {folder} names")
            steps = [json.loads(line)["step"] for line in _lines(folder / "metrics.jsonl")]
            if steps != sorted(steps):
                self.wrong.append(f"{folder}/metrics.jsonl goes back: {steps}")


def _lines(path: Path) -> list[str]:
    """The whole lines of a log."""
    return re.findall(r"^\{.*\}$", path.read_text(), re.MULTILINE) if path.exists() else []


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        kills = Kills(Path(root), options.seed)
        assert len(set(kills.known)) == len(RECIPES) * PARENTS, content_hash(kills.parent)
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end and len(kills.wrong) < 5:
            kills.round()
    print(json.dumps({"seconds of a run": round(kills.seconds, 1), **kills.counts, "wrong": kills.wrong}, indent=1))
    return 1 if kills.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
