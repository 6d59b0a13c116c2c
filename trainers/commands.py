"""The command line, parsed and carried out: `python -m trainers --help`."""

import argparse
import sys
import threading

import yaml

from latent_core.settings import check
from trainers.data.formats import FORMATS
from trainers.loop.stopping import Interrupted
from trainers.planning.costs import GPUS
from trainers.recipe import load_recipe, recipes


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; what a user got wrong is one sentence on stderr and status 2.

    A signal that ends it gives the shell's status for it: 143 for SIGTERM, 130 for Ctrl-C.
    """
    parser = _parser()
    threading.excepthook = _once
    options, rest = parser.parse_known_args(argv)
    if rest:  # argparse takes overrides in one go only: those behind an option are left over
        if options.command != "run" or any(item.startswith("-") or "=" not in item for item in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides += rest
    try:
        _check_counts(options)
        match options.command:
            case "list":
                for name, path in recipes().items():
                    print(f"{name:30}{yaml.safe_load(path.read_text(encoding='utf-8'))['description']}")
            case "run":
                from trainers.loop.launch import train

                recipe, arguments = load_recipe(options.recipe, options.overrides)
                if options.dry_run:
                    from trainers.planning.dryrun import plan

                    print(plan(recipe, arguments, config=options.config, gpus=options.gpus, gpu=options.gpu))
                    return 0
                print(f"Finished: {train(recipe, arguments, resume=not options.restart)}")
            case "study":
                from trainers.evidence.measurements import study

                for name in options.checkpoints:
                    out = study(name, families=options.families, split=options.split, n=options.n, batch=options.batch)
                    print(f"{(out / 'metrics.md').read_text()}\nWritten: {out}")
            case "ablations":
                from trainers.evidence.ablations import ablate

                for name in options.checkpoints:
                    out = ablate(name, n=options.n, split=options.split)
                    print(f"{out.read_text()}\nWritten: {out}")
            case "reinforce":
                from trainers.evidence.reinforcement import reinforce

                for name in options.recipes:
                    out = reinforce(name, n=options.n, split=options.split)
                    print(f"{out.read_text()}\nWritten: {out}")
            case "ground":
                from trainers.evidence.grounding import ground

                out = ground(options.checkpoint, n=options.n)
                print(f"{out.read_text()}\nWritten: {out}")
            case "depict":
                from trainers.evidence.decoder import depict

                out = depict(options.checkpoint, n=options.n)
                print(f"{out.read_text()}\nWritten: {out}")
            case "bank":
                from trainers.evidence.bank import bank

                print(f"Written: {bank(options.checkpoint, n=options.n)}")
            case "teachers":
                from trainers.evidence.teachers import KINDS, teach

                for name in KINDS:
                    teach(name)
            case "record":
                from trainers.evidence.recorded_runs import record

                print("\n".join(f"Written: {path}" for path in record()))
            case "data":
                from trainers.data import commands

                chosen = {"format": options.format}
                if options.action == "write":
                    values = options.folder, options.families, options.n, options.split, options.seed
                    print(commands.write(*values, **chosen))
                else:
                    values = options.files, options.root, options.on_bad_row
                    print(commands.check(*values, pixels=options.pixels, **chosen))
            case "glyphs":
                from trainers.evidence.build import build

                build(n=options.n)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def _once(failure: threading.ExceptHookArgs) -> None:
    """Says nothing of a full disk that TensorBoard's thread meets, for the main one says it."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _check_counts(options: argparse.Namespace) -> None:
    """Refuses counts that nothing can be measured with, before anything is loaded or trained."""
    least = {"n": 1 if options.command == "data" else 2, "batch": 1, "seed": 0}
    for name, fewest in least.items():
        count = getattr(options, name, None)
        check(count is None or count >= fewest, f"--{name} is {count}; it must be at least {fewest}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainers", description="Train and measure latent reasoners.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="recipes that ship")
    run = commands.add_parser("run", help="run a recipe; resumes where it stopped")
    run.add_argument("recipe", help="a name from `list`, or a YAML file")
    run.add_argument("overrides", nargs="*", metavar="field=value", help="any field of the recipe, in YAML's notation")
    run.add_argument("--restart", action="store_true", help="set aside what an earlier run left, and begin anew")
    run.add_argument("--dry-run", action="store_true", help="check data and settings, say what the run would cost")
    run.add_argument("--config", help="accelerate's configuration file, for --dry-run; none: one process")
    run.add_argument("--gpus", type=int, help="processes, for --dry-run (default: the configuration's)")
    run.add_argument("--gpu", choices=GPUS, default="h100-80", help="kind of GPU, for --dry-run (default h100-80)")
    study = commands.add_parser("study", help="measure checkpoints: accuracy, K sweep, interventions, with intervals")
    study.add_argument("checkpoints", nargs="+", help="embedded names, folders or Hub ids")
    study.add_argument("--n", type=int, default=500, help="samples per family (default 500)")
    study.add_argument("--split", default="test", help="train, val, test or compose (default test)")
    study.add_argument("--families", nargs="+", default=["find", "relate", "count", "trace"])
    study.add_argument("--batch", type=int, default=64, help="samples decoded at once (default 64)")
    ablations = commands.add_parser(
        "ablations", help="methods with one part left out at a time, on equal short budgets"
    )
    ablations.add_argument("checkpoints", nargs="*", default=["glyph-monet"], help="(default glyph-monet)")
    ablations.add_argument("--n", type=int, default=500, help="samples per family (default 500)")
    ablations.add_argument("--split", default="test", help="train, val, test or compose (default test)")
    ground = commands.add_parser("ground", help="how often latents look at the thing that they are about")
    ground.add_argument("checkpoint", help="an embedded name, a folder or a Hub id")
    ground.add_argument("--n", type=int, default=300, help="samples of each split (default 300)")
    depict = commands.add_parser("depict", help="train the decoder from latents to pictures, and test what it shows")
    depict.add_argument("checkpoint", help="an embedded name, a folder or a Hub id")
    depict.add_argument("--n", type=int, default=500, help="samples per family in the test (default 500)")
    bank = commands.add_parser("bank", help="the reference bank that trajectories are drawn on")
    bank.add_argument("checkpoint", help="an embedded name, a folder or a Hub id")
    bank.add_argument("--n", type=int, default=100, help="samples per family (default 100)")
    reinforced = commands.add_parser(
        "reinforce", help="train and measure a reinforced checkpoint's seeds and variants"
    )
    reinforced.add_argument("recipes", nargs="+")
    reinforced.add_argument("--split", default="test", help="val or test (default test)")
    reinforced.add_argument("--n", type=int, default=500, help="samples per family (default 500)")
    commands.add_parser("teachers", help="train the small frozen encoders that VaLR aligns with on Glyphs")
    commands.add_parser("record", help="write the example traces that the page opens without a model")
    data = commands.add_parser("data", help="write Glyphs in a published format, or check files in it")
    actions = data.add_subparsers(dest="action", required=True)
    write = actions.add_parser("write", help="Glyphs as a subset: FOLDER/glyphs with its rows and images")
    write.add_argument("folder")
    write.add_argument(
        "--families", nargs="+", help="(default: those of find, relate, count and trace that the format can hold)"
    )
    write.add_argument("--n", type=int, default=1000, help="rows in all (default 1000)")
    write.add_argument("--split", default="train", help="train, val, test or compose (default train)")
    write.add_argument("--seed", type=int, default=0, help="seed of the first sample (default 0)")
    check = actions.add_parser("check", help="check every row; prints counts by dataset_name")
    check.add_argument("files", nargs="+")
    check.add_argument("--root", required=True, help="folder that the image paths start from")
    check.add_argument("--on-bad-row", choices=["error", "skip"], default="error")
    check.add_argument("--pixels", action="store_true", help="decode every image, too")
    for action in (write, check):
        action.add_argument("--format", choices=tuple(FORMATS), default="monet", help="(default monet)")
    glyphs = commands.add_parser("glyphs", help="rebuild the embedded checkpoints; goes on where it stopped")
    glyphs.add_argument("--n", type=int, default=500, help="samples per family in their studies (default 500)")
    return parser
