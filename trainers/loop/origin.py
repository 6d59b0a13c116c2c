"""The origin of a run, as recorded with it: its recipe, and the checkpoints that it starts and learns from."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.checkpoints.loading import find
from latent_core.checkpoints.published import FINAL
from latent_core.files import write_file
from latent_core.settings import check
from trainers.recipe import Recipe, nested_fields, recipes, renamed

RECIPE = "recipe.json"
PARENTS = "parents.json"
"""Both in the run's folder, written before its first step."""
_INCIDENTAL = ("output_dir", "logging_steps", "save_steps", "save_total_limit", "report_to")
"""Training arguments that do not decide the result."""
_DECISIVE = ("config.json", "tokenizer.json", "model*.safetensors", "method.safetensors")
"""Files of a parent that decide what a run learns from it."""
_PIECES, _PIECE = 4096, 4096
"""How many pieces of a large file are read, and their bytes: of the gigabytes of a large model some megabytes."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A recipe and its parents at a run's start."""

    recipe: dict[str, object]
    """`written(recipe)`, as JSON gives it back."""
    parents: dict[str, dict[str, str]]
    """`init` and `teacher`, as far as there are: name, recorded fingerprint or an empty one, hash of the content."""

    @classmethod
    def of(cls, recipe: Recipe, runs: Path) -> "Origin":
        """Raises ValueError for a parent that is not there, or that lies in the run's own folder."""
        parents = {}
        for role, name in (("init", recipe.init), ("teacher", recipe.teacher)):
            if name is not None:
                folder = source_folder(name, runs)
                parents[role] = {"name": name, "fingerprint": fingerprint_of(folder), "content": content_hash(folder)}
        return cls(recipe=json.loads(json.dumps(written(recipe))), parents=parents)

    @property
    def text(self) -> str:
        """The content of recipe.json."""
        return json.dumps(self.recipe, indent=1, sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """Hash of a recipe and of all that it starts and learns from."""
        return _hash(self.recipe, [parent["fingerprint"] or parent["content"] for parent in self.parents.values()])

    def record(self, run: Path) -> None:
        """Writes both files into a run's folder, that which names its weights last."""
        write_file(run / PARENTS, json.dumps(self.parents, indent=1).encode())
        write_file(run / RECIPE, self.text.encode())

    def began(self, run: Path) -> bool:
        """Whether the run in a folder was begun with this recipe."""
        try:
            before = json.loads((run / RECIPE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(before, dict) and normal(before) == self.recipe

    def check_parents(self, run: Path) -> None:
        """Raises ValueError where a parent is no longer what the run in a folder began with."""
        try:
            before = json.loads((run / PARENTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            print(f"{run} does not say what it started from: a parent that changed since would not be noticed.")
            return
        except ValueError as error:
            raise ValueError(f"{run / PARENTS} cannot be read: {error}. Pass --restart to begin anew.") from error
        for role, parent in self.parents.items():
            former = before.get(role) if isinstance(before, dict) else None
            same = isinstance(former, dict) and former.get("content") == parent["content"]
            check(same, _changed_parent(run, role, parent["name"]))

    def made(self, final: Path) -> bool:
        """Whether a finished checkpoint is this recipe's.

        Raises ValueError where it is, but its parents have changed since.
        """
        provenance = _provenance(final)
        run = provenance.get("run")
        if not isinstance(run, dict) or normal(run) != self.recipe:
            return False
        fingerprints = [parent["fingerprint"] for parent in self.parents.values()]
        contents = [parent["fingerprint"] or parent["content"] for parent in self.parents.values()]
        accepted = {_hash(run, fingerprints), _hash(run, contents)}  # the first as runs of earlier versions have it
        if provenance.get("fingerprint") not in accepted and self.parents:
            names = {role: parent["name"] for role, parent in self.parents.items()}
            raise ValueError(_changed_parent(final.parent, " or ".join(names) or "init", " or ".join(names.values())))
        return provenance.get("fingerprint") in accepted


def _changed_parent(run: Path, role: str, name: str) -> str:
    return (
        f"{role} {name} is no longer what the run in {run} started from: it was trained again or replaced. Put the "
        "former one back, or pass --restart to begin anew from what it is now."
    )


def source_folder(init: str, runs: Path) -> Path:
    """The folder of `init`: a recipe's finished run, a checkpoint folder or name, or a Hub id, which is fetched.

    A recipe that has not run here, but whose checkpoint is embedded, need not run again.
    """
    for folder in (runs / init / FINAL, Path(init), EMBEDDED / init):
        if (folder / "config.json").is_file():
            return folder
    if init in recipes():
        raise ValueError(
            f"init is {init!r}, a recipe that has not finished; run `python -m trainers run {init}` first."
        )
    return find(init)


def written(recipe: Recipe) -> dict[str, object]:
    """The fields that are not at their defaults, those inside fields likewise: what a run is, whatever options are
    added to the program later.
    """
    values = {}
    for name, default in _defaults(Recipe).items():
        value = getattr(recipe, name)
        if name != "options" and value != default:
            values[name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    values |= {name: dataclasses.asdict(value) for name, value in recipe.options.items()}
    training = {name: value for name, value in recipe.training.items() if name not in _INCIDENTAL}
    return normal(values) | {"training": training}


def normal(run: dict[str, object]) -> dict[str, object]:
    """A recipe as any version has written it down, with those inner fields alone that are not at their
    defaults.
    """
    values, nested = renamed(run), nested_fields()
    for name in values.keys() & nested.keys():
        if isinstance(inner := values[name], dict):
            defaults = _defaults(nested[name])
            changed = {field: value for field, value in inner.items() if defaults.get(field, ...) != value}
            values[name] = changed
            if not changed:
                del values[name]
    return values


def _defaults(kind: type) -> dict[str, object]:
    """Field → default of a dataclass; no defaults are MISSING."""
    return {
        item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        for item in dataclasses.fields(kind)
    }


def _hash(recipe: dict[str, object], parents: list[str]) -> str:
    return hashlib.sha256("".join([json.dumps(recipe, indent=1, sort_keys=True), *parents]).encode()).hexdigest()


def _provenance(folder: Path) -> dict[str, object]:
    """What a checkpoint says of its making; nothing where it says none."""
    path = folder / "method.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    provenance = values.get("provenance") if isinstance(values, dict) else None
    return provenance if isinstance(provenance, dict) else {}


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of the run that made a checkpoint; empty where none is recorded."""
    fingerprint = _provenance(folder).get("fingerprint", "")
    return fingerprint if isinstance(fingerprint, str) else ""


def content_hash(folder: Path) -> str:
    """Hash of what a run would learn from a checkpoint, the same for a copy of it.

    Of large files evenly spread pieces count, which a training run does not leave as they were.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _DECISIVE for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _PIECES * _PIECE:
                digest.update(file.read())
                continue
            for number in range(_PIECES):
                file.seek(number * (size - _PIECE) // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()
