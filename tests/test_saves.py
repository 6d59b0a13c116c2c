"""Which checkpoint a run goes on from: the newest that is whole; what is not is named, and nothing begins anew in
silence.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState

from latent_core.checkpoints.embedded import EMBEDDED, available
from tests.training import curve, small
from trainers.loop.folder import held, set_aside
from trainers.loop.launch import train
from trainers.loop.origin import Origin, content_hash
from trainers.loop.saves import checkpoints, damage, final_damage, last_checkpoint, newest_whole, prune, step_of
from trainers.loop.stopping import Interrupted
from trainers.loop.trainer import JsonlLog, StageTrainer
from trainers.recipe import load_recipe, recipes

FILES = ["trainer_state.json", "rng_state.pth", "model.safetensors", "optimizer.pt", "scheduler.pt"]
GIVEN = ["max_steps=4", "save_steps=2", "lr_scheduler_type=cosine", "per_device_train_batch_size=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run with two checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(*small("glyph-vision", folder, *GIVEN))
    return folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of it that was killed before its end."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("final", "tensorboard"))
    return folder


def again(run: Path) -> Path:
    return train(*small("glyph-vision", run, *GIVEN))


def same(run: Path, whole: Path) -> bool:
    """Whether two runs learned the same at the same rates."""
    first, second = (folder / "final/model.safetensors" for folder in (run, whole))
    return curve(run) == curve(whole) and first.read_bytes() == second.read_bytes()


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def nan(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def other(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": 3}))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [Path.unlink, cut(0.6), cut(0), zeros], ids=["missing", "cut", "empty", "zeros"])
def test_a_checkpoint_that_lacks_a_part_is_left_out_by_name(file, harm, run):
    assert [damage(folder, FILES) for folder in checkpoints(run)] == ["", ""]
    harm(run / "checkpoint-4" / file)
    folder, (reason,) = newest_whole(run, FILES)
    assert folder == run / "checkpoint-2"
    assert reason.startswith(f"checkpoint-4 is left out: {file} ") and reason.count("\n") == 0 and len(reason) < 200


@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        ("model.safetensors", nan, "nan or infinite in 1 tensor"),
        ("trainer_state.json", other, "is not that of step 4"),
        ("scheduler.pt", lambda path: torch.save({}, path), "has no last_epoch"),
        ("optimizer.pt", lambda path: torch.save([1], path), "has no param_groups"),
        ("optimizer.pt", lambda path: torch.save(Path, path), "cannot be read"),  # a class: nothing is unpickled
        ("optimizer.pt", lambda path: path.write_text("{}"), "cannot be read"),
        ("rng_state.pth", lambda path: path.rename(path.with_name("rng_state_0.pth")), "rng_state.pth is missing"),
        ("complete", Path.unlink, "not marked as complete"),
    ],
)
def test_a_part_with_something_else_in_it_is_named(file, harm, words, run):
    harm(run / "checkpoint-4" / file)
    folder, (reason,) = newest_whole(run, FILES)
    assert folder == run / "checkpoint-2" and words in reason


@pytest.mark.slow
def test_a_run_goes_on_from_the_newest_whole_checkpoint(run, whole, capsys):
    (run / "checkpoint-4/optimizer.pt").unlink()
    for name in ("checkpoint-best", "checkpoint-12-old", "checkpoint-"):
        shutil.copytree(run / "checkpoint-2", run / name)
    (run / "checkpoint-99").write_text("a file")
    again(run)
    out = capsys.readouterr().out
    assert "checkpoint-4 is left out: optimizer.pt is missing. The run goes on from checkpoint-2." in out
    assert same(run, whole)
    assert newest_whole(run, FILES) == (run / "checkpoint-4", [])
    assert (run / "checkpoint-best/complete").exists() and (run / "checkpoint-12-old/complete").exists()


@pytest.mark.parametrize(
    "end",
    [b'{"step": 2, "lo', b'{"step": 1}\n{"st', b"\x00\x00\x00", b"\xff\xfe", b"[4]\n", b'{"step": "1"}', b"4"],
)
def test_a_cut_line_of_the_log_is_dropped_by_its_number(end, tmp_path, capsys):
    path, whole = tmp_path / "metrics.jsonl", b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    path.write_bytes(whole + b'{"step": 3, "loss": 1.0}\n' + end)
    JsonlLog(path).on_train_begin(None, TrainerState(global_step=2), TrainerControl())
    kept = end.splitlines(keepends=True)[:-1] if end.startswith(b'{"step": 1}') else []
    assert path.read_bytes() == whole + b"".join(kept)
    assert f"metrics.jsonl: line {4 + len(kept)} is no log line" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("rest", [b"", b'{"step": 3, "loss": 1.0, "learning_ra'])
def test_a_log_that_was_cut_goes_on(rest, run, whole):
    shutil.rmtree(run / "checkpoint-4")
    path = run / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]).rstrip(b"\n") + (rest and b"\n" + rest))
    again(run)
    assert curve(run) == curve(whole)


def test_where_none_is_whole_the_run_says_so_and_does_not_begin_anew(run):
    before = (run / "metrics.jsonl").read_bytes()
    (run / "checkpoint-4/scheduler.pt").unlink()
    cut(0.5)(run / "checkpoint-2/model.safetensors")
    with pytest.raises(ValueError) as error:
        again(run)
    said = str(error.value)
    assert "none is whole" in said and "--restart" in said and "\n" not in said
    assert "checkpoint-4 is left out: scheduler.pt is missing" in said
    assert "checkpoint-2 is left out: model.safetensors cannot be read" in said
    assert (run / "metrics.jsonl").read_bytes() == before and not (run / "final").exists()


@pytest.mark.slow
def test_a_run_killed_while_it_saved_for_the_first_time_begins_anew_aloud(run, whole, capsys):
    shutil.rmtree(run / "checkpoint-4")
    (run / "checkpoint-2/complete").unlink()
    again(run)
    assert "checkpoint-2 is left out: it is not marked as complete. The run begins anew." in capsys.readouterr().out
    assert same(run, whole)


def test_checkpoints_of_a_run_that_says_no_more_what_it_was_are_refused(run):
    (run / "recipe.json").unlink()
    with pytest.raises(ValueError, match="another version of this recipe"):
        again(run)


def test_weights_of_another_shape_are_named(run):
    path = run / "checkpoint-4/model.safetensors"
    tensors = load_file(path)
    tensors.pop(max(tensors))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="checkpoint-4/model.safetensors does not fit the recipe.*--restart"):
        again(run)


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (None, ["2", "4", "5", "6", "9", "12"]),
        (0, ["2", "4", "5", "6", "9", "12"]),
        (-1, ["2", "4", "5", "6", "9", "12"]),
        (1, ["9", "12"]),
        (2, ["6", "9", "12"]),
        (3, ["4", "6", "9", "12"]),
        (9, ["2", "4", "6", "9", "12"]),
    ],
)
def test_pruning_keeps_the_newest_complete_ones_and_what_is_no_checkpoint(keep, left, tmp_path):
    for step in (2, 4, 5, 6, 9, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 5:  # half-written
            (folder / "complete").touch()
    for name in ("checkpoint-best", "checkpoint-1-old", "final"):
        (tmp_path / name).mkdir()
    prune(tmp_path / "checkpoint-9", keep)
    assert [path.name.split("-")[1] for path in checkpoints(tmp_path)] == left
    assert all((tmp_path / name).is_dir() for name in ("checkpoint-best", "checkpoint-1-old", "final"))


@pytest.mark.slow
def test_a_run_killed_while_it_saves_still_has_the_checkpoint_before(run, monkeypatch):
    """With one kept, the former is removed once the new one is marked, and that is marked once it is written."""
    shutil.rmtree(run / "checkpoint-4")

    monkeypatch.setattr("transformers.Trainer._save_rng_state", killed)
    with pytest.raises(Interrupted, match="SIGINT.*checkpoint-2 is complete"):
        train(*small("glyph-vision", run, *GIVEN, "save_total_limit=1"))
    assert last_checkpoint(run) == run / "checkpoint-2"
    monkeypatch.undo()
    train(*small("glyph-vision", run, *GIVEN, "save_total_limit=1"))
    assert [path.name for path in checkpoints(run)] == ["checkpoint-4"]


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_last_finite_checkpoint_survives_a_kill_before_pruning_and_then_divergence(tmp_path, monkeypatch):
    run, given = tmp_path / "run", ("max_steps=3", "save_steps=1", "save_total_limit=1")
    given = small("glyph-vision", run, "per_device_train_batch_size=2", *given)
    with monkeypatch.context() as patch:
        patch.setattr("trainers.loop.trainer.prune", lambda folder, keep: killed() if step_of(folder) == 2 else None)
        with pytest.raises(Interrupted, match="checkpoint-2 is complete"):
            train(*given)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]
    trained = StageTrainer.training_step

    def spoil(self: StageTrainer, *given: object, **more: object) -> torch.Tensor:
        loss = trained(self, *given, **more)
        next(self.model.parameters()).data.view(-1)[0] = torch.nan
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", spoil)
    with pytest.raises(ValueError, match="diverged: .*The last finite checkpoint is kept: .*checkpoint-2"):
        train(*given)
    assert last_checkpoint(run) == run / "checkpoint-2" and damage(run / "checkpoint-2", FILES) == ""
    assert not (run / "final").exists()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_restart_that_is_killed_leaves_no_old_weights_under_the_new_name(whole, tmp_path, monkeypatch, capsys):
    """The old run lies aside, as it was, and the same command without --restart then begins the new one anew."""
    run, other = tmp_path / "run", ("learning_rate=1e-3", "seed=5")
    shutil.copytree(whole, run)
    before = files(run)
    with pytest.raises(ValueError, match="another version of this recipe.*--restart, which sets them aside"):
        train(*small("glyph-vision", run, *GIVEN, *other))
    assert files(run).items() >= before.items()
    with monkeypatch.context() as patch:
        patch.setattr(JsonlLog, "on_log", killed)
        with pytest.raises(Interrupted, match="No checkpoint is complete yet"):
            train(*small("glyph-vision", run, *GIVEN, *other), resume=False)
    assert "is set aside in earlier-1 (" in capsys.readouterr().out
    assert files(run / "earlier-1") == {name: data for name, data in before.items() if name != ".lock"}
    train(*small("glyph-vision", run, *GIVEN, *other))
    train(*small("glyph-vision", tmp_path / "new", *GIVEN, *other))
    assert same(run, tmp_path / "new") and not same(run, whole)
    assert again(run / "earlier-1") == run / "earlier-1/final"  # which is a finished run still


@pytest.mark.parametrize("number", range(8))
def test_a_kill_while_a_run_is_set_aside_leaves_weights_beside_their_recipe(number, whole, tmp_path, monkeypatch):
    """Killed before each renaming and deletion in turn: whatever has weights says what they are of, unchanged."""
    run, left = tmp_path / "run", [number]
    shutil.copytree(whole, run)
    recipe = (run / "recipe.json").read_bytes()

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*given: object, **more: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                killed()
            function(*given, **more)

        return call

    for target in ("os.rename", "os.replace", "pathlib.Path.unlink"):
        function = getattr(os, target[3:]) if target.startswith("os.") else Path.unlink
        monkeypatch.setattr(target, counted(function))
    with contextlib.suppress(KeyboardInterrupt):
        set_aside(run)
    monkeypatch.undo()
    for folder in (run, run / "earlier-1"):
        if (folder / "final").exists() or last_checkpoint(folder):
            assert (folder / "recipe.json").read_bytes() == recipe
    assert sum(path.name == "model.safetensors" for path in run.rglob("*")) == 3


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_and_drafts_are_those_of_the_dead(run):
    draft, mine = run / ".final.0123abcd", run / ".notes.0123abcd"
    draft.mkdir()
    mine.write_text("mine")
    (run / ".metrics.jsonl.89abcdef").write_text("{")
    before = files(run)
    with held(run), pytest.raises(ValueError, match="Another run is under way in .*; wait for its end or stop it"):
        again(run)
    assert draft.exists() and files(run).items() >= before.items()
    again(run)
    assert not draft.exists() and not (run / ".metrics.jsonl.89abcdef").exists() and mine.exists()


@pytest.mark.slow
def test_a_finished_checkpoint_that_is_damaged_is_set_aside_and_made_again(whole, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "final"
    for file in ("method.json", "config.json", "tokenizer.json", "model.safetensors"):
        shutil.copytree(whole / "final", other)
        cut(0.5)(other / file)
        assert final_damage(other).startswith(f"{file} of final") or "tokenizer in final cannot" in final_damage(other)
        shutil.rmtree(other)
    shutil.copytree(whole, run)
    cut(0.5)(run / "final/model.safetensors")
    again(run)
    out = capsys.readouterr().out
    assert (
        "final is left out: model.safetensors of final" in out and f"final in {run} is set aside in earlier-1" in out
    )
    assert same(run, whole) and not (run / "earlier-1/checkpoint-4").exists()


@pytest.mark.slow
def test_a_parent_that_changed_since_is_noticed(tmp_path, monkeypatch):
    """By its content, whatever it says of itself; that a finished run's is another by what it says, too."""
    parent, run = tmp_path / "parent", tmp_path / "run"
    shutil.copytree(EMBEDDED / "glyph-text", parent)
    given = small("glyph-text", run, *GIVEN, "save_steps=1", f"init={parent}")

    def once(self: JsonlLog, args: object, state: TrainerState, *_: object, **__: object) -> None:
        if state.global_step == 2:
            killed()

    with monkeypatch.context() as patch:
        patch.setattr(JsonlLog, "on_log", once)
        with pytest.raises(Interrupted, match="checkpoint-1 is complete"):
            train(*given)
    weights = (parent / "model.safetensors").read_bytes()
    tensors = load_file(parent / "model.safetensors")
    save_file(
        {name: tensor + 1e-3 for name, tensor in tensors.items()}, parent / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=f"init {parent} is no longer what the run in .* started from.*--restart"):
        train(*given)
    shutil.rmtree(parent)
    shutil.copytree(EMBEDDED / "glyph-text", parent)
    (parent / "model.safetensors").write_bytes(weights)
    final = train(*given)
    assert train(*given) == final
    record = json.loads((parent / "method.json").read_text())
    record["provenance"]["fingerprint"] = "of another run"
    (parent / "method.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is no longer what the run in"):
        train(*given)


def test_a_copy_has_the_content_of_its_original_and_another_checkpoint_another(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED / "glyph-text", copy)
    assert content_hash(copy) == content_hash(EMBEDDED / "glyph-text") != content_hash(EMBEDDED / "glyph-monet")
    with (copy / "model.safetensors").open("wb") as file:  # larger than what is read of it
        file.truncate(1 << 30)
        before = content_hash(copy)
        file.seek((1 << 30) - 1)
        file.write(b"x")
    assert content_hash(copy) != before


@pytest.mark.parametrize("name", sorted(set(recipes()) & set(available())))
def test_embedded_checkpoints_are_known_as_their_recipes(name):
    """Whichever way the program wrote options down when they were made."""
    recipe, _ = load_recipe(name, [])
    parents = [parent for parent in (recipe.init, recipe.teacher) if parent]
    if not all((EMBEDDED / parent).is_dir() for parent in parents):
        pytest.skip("a parent is not embedded")
    origin = Origin.of(recipe, EMBEDDED)
    assert origin.made(EMBEDDED / name)
    changed = dataclasses.replace(recipe, training=recipe.training | {"seed": 99})
    assert not Origin.of(changed, EMBEDDED).made(EMBEDDED / name)
