"""Pictures between the page, its endpoints and the browser: what is taken, what is shown, what is given out."""

from types import SimpleNamespace

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.ask import answer_stream
from app.handlers import Handlers
from app.history import History
from app.runner import Runner
from app.server import serve
from latent_core import glyphs
from latent_core.checkpoints import loading as checkpoints
from latent_core.model.images import load_image
from tests.scripted import ScriptedReasoner

TAB = SimpleNamespace(session_hash="tab")


@pytest.fixture
def runner(tmp_path, monkeypatch) -> Runner:
    monkeypatch.setattr("app.components.get_upload_folder", lambda: str(tmp_path))
    return Runner(["scripted"], lambda name: ScriptedReasoner())


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "I;16", "1", "LA"])
def test_a_file_that_no_browser_shows_is_kept_as_one_that_it_does(runner, tmp_path, mode):
    Image.linear_gradient("L").convert(mode).save(tmp_path / "scan.tif")
    file = {"path": str(tmp_path / "scan.tif"), "orig_name": "scan.tif"}
    (shown,), (kept,), _ = Handlers(runner, History()).check([file], [], "scripted", TAB)
    assert shown == kept and shown["orig_name"] == "scan.tif"
    assert Image.open(shown["path"]).format == "PNG"
    assert np.array_equal(load_image(shown["path"]), load_image(file["path"]))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "AVIF"])
def test_a_file_that_browsers_show_stays_as_it_is(runner, tmp_path, format):
    Image.new("RGB", (32, 32)).save(tmp_path / "photo", format)
    file = {"path": str(tmp_path / "photo")}
    assert Handlers(runner, History()).check([file], [], "scripted", TAB)[0] == [file]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + bytes(64), b"Exif\0\0hello", b"Exif\0\0II*\0\x08\0\0\0\x09", b"Exif\0\0"]
)
def test_what_the_upload_accepts_a_run_accepts(runner, tmp_path, exif):
    real = Runner(["glyph-monet"], checkpoints.load)
    Image.new("RGB", (112, 112)).save(tmp_path / "photo.jpg", exif=exif)
    files, _, notice = Handlers(real, History()).check([{"path": str(tmp_path / "photo.jpg")}], [], "glyph-monet", TAB)
    assert files and "damaged" not in notice
    values = answer_stream(real, "tab", files, "What?", "glyph-monet", None, max_new_tokens=2, mode="text")
    assert list(values)[-1][0]["problem"] is None


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    runner = Runner(["scripted"], lambda name: ScriptedReasoner())
    page = serve(runner, host="127.0.0.1", port=None, wait=False)
    yield Client(page.local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("got")))
    page.close()


@pytest.mark.parametrize(("family", "seed"), [("views", 3), ("views", 0), ("find", 3), ("relate", 1), ("list", 2)])
def test_a_program_gets_every_image_of_a_scene(client, family, seed):
    images, scene = client.predict(family, seed, api_name="/scene")
    example = glyphs.sample(family, seed, split="test")
    assert [np.asarray(Image.open(image)).tolist() for image in images] == [
        np.asarray(i).tolist() for i in example.images
    ]
    assert (scene["question"], scene["answer"]) == (example.question, example.answer)
    asked = client.predict([handle_file(image) for image in images], scene["question"], api_name="/ask")[0]
    assert asked["answer"] == "ring"
