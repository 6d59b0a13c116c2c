"""The README keeps its promises: its Python runs, its files exist, its make targets too."""

import re
from pathlib import Path

from trainers.evidence.build import BEFORE_AND_AFTER, STUDIED
from trainers.evidence.results import BEGIN, END, RESULTS, evidence, headline

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"### In Python\n```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([8, 128])" in capsys.readouterr().out
    assert (tmp_path / "run.safetensors").is_file()


def test_pictures_and_files_exist():
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
    (tree,) = re.findall(r"```\n(latent_core/ .*?)```", README, re.DOTALL)
    folder = ""
    for line in tree.splitlines():
        names, top = line[:24].split(), not line.startswith(" ")
        for name in names:
            if not re.fullmatch(r"[\w./]+", name) or not ("." in name or name.endswith("/")):
                break
            folder = name if top else folder
            assert (ROOT / ("" if top else folder) / name).exists(), f"{folder} {name}"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)", README)) | set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_figures_are_those_of_the_measurements():
    (shown,) = re.findall(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", README, re.DOTALL)
    assert shown == headline(STUDIED)
    assert RESULTS.read_text(encoding="utf-8") == evidence(STUDIED, BEFORE_AND_AFTER)


def test_links_inside_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#:]*(?:#[\w-]+)?)\)", document.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            linked = (document.parent / path).resolve() if path else document
            assert linked.exists(), f"{document.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{document.name}: {target}"
