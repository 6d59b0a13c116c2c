"""Glyphs in the published formats: what is written passes the check, and what a format cannot hold is refused."""

import pytest

from latent_core import glyphs
from trainers.__main__ import main
from trainers.data.formats import FORMATS

FAMILIES = (*glyphs.FAMILIES, "list", "views")


@pytest.mark.parametrize("split", ["train", "compose"])
@pytest.mark.parametrize("family", [None, *FAMILIES])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_passes_the_check_or_nothing_is_written(format, family, split, tmp_path, capsys):
    chosen = [] if family is None else ["--families", family]
    asked = ["data", "write", str(tmp_path), "--n", "12", "--split", split, "--format", format, *chosen]
    holds = FORMATS[format].families
    status, said = main(asked), capsys.readouterr()
    if family is None or family in holds:
        assert status == 0
    if status == 0:
        (file,) = tmp_path.glob("glyphs/train.*")
        assert main(["data", "check", str(file), "--root", str(tmp_path), "--format", format, "--pixels"]) == 0
        assert "12 rows can be used, 0 cannot." in capsys.readouterr().out
    else:
        assert (
            said.err.startswith(f"error: --format {format} cannot hold {family}/{split}/")
            and "Traceback" not in said.err
        )
        assert said.err.endswith(f"Nothing was written. Families that it can hold: {', '.join(holds)}.\n")
        assert not list(tmp_path.iterdir())


def test_a_refusal_leaves_what_was_written_before(tmp_path, capsys):
    assert main(["data", "write", str(tmp_path), "--n", "60", "--format", "lvr"]) == 0
    assert "60 rows of find, relate, trace;" in capsys.readouterr().out
    before = (tmp_path / "glyphs/train.json").read_bytes()
    for families in (["views"], ["count"], ["find", "views"]):
        assert main(["data", "write", str(tmp_path), "--format", "lvr", "--families", *families]) == 2
        assert (tmp_path / "glyphs/train.json").read_bytes() == before
