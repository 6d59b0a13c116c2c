"""`python spaces/lock.py`: the web stack's lock, spaces/web.lock, anew: exact versions, and the hash of every file.

It holds what stands between the network and the page, and all that it stands on: Gradio, safetensors, and what they
bring, for every Python that Inscape runs on, in the versions of constraints.txt. Needs uv: `pip install uv`.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "spaces" / "web.lock"
LOCKED = ("gradio", "safetensors")
OLDEST = "3.10"
"""The oldest Python; the lock says in markers where a newer one gets another version."""
HEAD = "# Written by `python spaces/lock.py`; installed with every file's hash checked.\n"


def main(arguments: list[str] | None = None) -> int:
    """1 where uv is missing or finds no versions that fit."""
    argparse.ArgumentParser(prog="spaces/lock.py", description="Write spaces/web.lock anew.").parse_args(arguments)
    if shutil.which("uv") is None:
        print("There is no uv here: pip install uv.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        packages, compiled = Path(folder) / "wanted.in", Path(folder) / "web.lock"
        packages.write_text("\n".join(LOCKED) + "\n", encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST, "--generate-hashes"]
        command += ["--no-emit-index-url", "--no-annotate", "--no-header", "--output-file", str(compiled)]
        done = subprocess.run([*command, "--constraint", str(ROOT / "constraints.txt"), str(packages)])
        if done.returncode:
            print("uv found no versions that fit together; it says above why.", file=sys.stderr)
            return 1
        LOCK.write_text(HEAD + compiled.read_text(encoding="utf-8"), encoding="utf-8")
    count = sum(line[0] not in " #" for line in LOCK.read_text(encoding="utf-8").splitlines())
    print(f"{LOCK.relative_to(ROOT)}: {count} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
