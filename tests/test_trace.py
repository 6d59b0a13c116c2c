"""Trace: collected, replayed, saved and loaded without loss; hostile files are refused with a sentence."""

import json
import resource
from dataclasses import fields, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latent_core.events import AttentionSummary, FinishEvent, LatentEvent, StartEvent, TokenEvent
from latent_core.settings import Settings
from latent_core.trace import Source, Trace

D = 8
SOURCE = Source(checkpoint="glyph-monet", method="monet", world="glyphs", versions={"torch": "2.13.0"})


def vector(seed):
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


def token(position, text, kind="text", **options):
    values = {"token_id": position, "logprob": -0.1 * position, "p_open": 0.25, "seconds": 0.5}
    return TokenEvent(position=position, text=text, kind=kind, **{**values, "hidden": vector(position), **options})


def latent(position, block, index, **options):
    values = {"fed": vector(100 + position), "hidden": vector(200 + position), "seconds": 0.25}
    return LatentEvent(position=position, block=block, index=index, **{**values, **options})


def run_events(record=True):
    """ "It" <block of 3> " is \\boxed{ring}" <block of 0>, on two images."""
    generator = torch.Generator().manual_seed(0)
    bare = {} if record else {"hidden": None}
    bare_latent = {} if record else {"hidden": None, "fed": None}
    yield StartEvent(
        prompt_tokens=20,
        images=tuple(torch.randint(0, 256, (8, w, 3), generator=generator, dtype=torch.uint8) for w in (16, 24)),
        grids=((1, 2), (1, 3)),
        levels=(0, 2) if record else (),
        image_states=torch.randn(2 if record else 0, 5, D, generator=generator),
        seconds=0.125,
    )
    yield token(20, "It", **bare)
    yield token(21, "", "open", **bare)
    for index in range(3):
        yield latent(22 + index, 0, index, **bare_latent)
    yield token(25, "", "close", forced=True, logprob=0.0, hidden=None)
    yield token(26, " is \\boxed{", **bare)
    yield token(27, "ring}", **bare)
    yield token(28, "", "open", **bare)
    yield token(29, "", "close", forced=True, logprob=float("-inf"), **bare)
    yield FinishEvent(
        reason="stop", tokens=7, latents=3, blocks=2, text_seconds=1.5, latent_seconds=0.75, max_p_open=0.5
    )


def collect(events, **options):
    values = {"question": "Which mark?", "system": "Help.", "settings": Settings(latents=3, seed=5, rule="sealed")}
    return Trace.collect(events, **{**values, "source": SOURCE, **options})


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, tuple):
        return isinstance(second, tuple) and len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and first == second


def equal_events(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
        for a, b in zip(first, second, strict=True)
    )


def test_what_a_trace_says():
    trace = collect(run_events())
    assert trace.text == "It is \\boxed{ring}" and trace.answer == "ring"
    assert [block.latents.shape for block in trace.blocks] == [(3, D), (0, D)]
    assert torch.equal(trace.blocks[0].latents[1], vector(123)) and torch.equal(trace.blocks[0].hidden[1], vector(223))
    assert [latent.index for latent in trace.blocks[0].events] == [0, 1, 2]
    assert len(trace.tokens) == 7 and len(trace.images) == 2


def test_replay_equals_the_run():
    assert equal_events(collect(run_events()).events(), run_events())
    assert not equal_events(collect(run_events()).events(), list(run_events())[:-1])


@pytest.mark.parametrize("record", [True, False])
def test_saved_and_loaded_is_equal(tmp_path, record):
    trace = collect(run_events(record))
    trace.save(tmp_path / "run.safetensors")
    loaded = Trace.load(tmp_path / "run.safetensors")
    assert equal_events(loaded.events(), trace.events())
    for name in ("question", "system", "settings", "source"):
        assert getattr(loaded, name) == getattr(trace, name)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_16_bit_states_take_16_bits(tmp_path):
    start, *rest = run_events()
    rounded = replace(start, image_states=start.image_states.bfloat16().float())
    collect([rounded, *rest]).save(tmp_path / "a")
    assert load_file(tmp_path / "a")["image_states"].dtype == torch.bfloat16
    assert equal_events(Trace.load(tmp_path / "a").events(), [rounded, *rest])


def test_a_loaded_run_of_16_bits_takes_twice_its_file(tmp_path):
    """Each stack is converted once, and what the steps hold are its rows."""
    start, *rest = with_attention()
    half = [replace(step, hidden=vector(n).bfloat16().float()) for n, step in enumerate(rest[:1] * 400)]
    collect([start, *half]).save(tmp_path / "run.safetensors")
    assert load_file(tmp_path / "run.safetensors")["token.hidden"].dtype == torch.bfloat16
    held: dict[int, int] = {}
    for step in Trace.load(tmp_path / "run.safetensors").steps:
        for tensor in (step.hidden, step.attention.image, step.attention.shares, step.attention.entropy):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert sum(held.values()) < 2 * (tmp_path / "run.safetensors").stat().st_size


def test_a_typical_trace_is_small(tmp_path):
    start = StartEvent(
        prompt_tokens=70,
        images=(torch.zeros(96, 96, 3, dtype=torch.uint8),),
        grids=((6, 6),),
        levels=tuple(range(6)),
        image_states=torch.randn(6, 36, 128),
        seconds=0.0,
    )
    latents = [latent(n, 0, n, fed=torch.randn(128), hidden=torch.randn(128)) for n in range(16)]
    collect([start, *latents]).save(tmp_path / "run")
    assert (tmp_path / "run").stat().st_size < 200_000


def test_a_stopped_run_is_kept():
    trace = collect(list(run_events())[:5])
    assert trace.finish.reason == "cancelled"
    assert (trace.finish.tokens, trace.finish.latents, trace.finish.blocks) == (2, 2, 1)
    assert (trace.finish.text_seconds, trace.finish.latent_seconds, trace.finish.max_p_open) == (1.0, 0.5, 0.25)
    with pytest.raises(ValueError, match="stopped before its prompt"):
        collect([])
    with pytest.raises(TypeError, match="str is no event"):
        collect(["hello"])


@pytest.fixture
def stored(tmp_path):
    """(path, tensors, content) of a valid file, to be spoilt."""
    path = tmp_path / "run.safetensors"
    collect(run_events()).save(path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return path, load_file(path), json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["trace"])


def spoil(content, at, value):
    *route, last = at
    for name in route:
        content = content[name]
    content[last] = value


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (["version"], 3, "format version is 3; this program reads version 2"),
        (["version"], None, "format version is None"),
        (["question"], 5, "trace.question is '5', but str is expected"),
        (["anwser"], "ring", "unknown field 'anwser'"),
        (["settings", "latents"], 10**6, "K is 1000000"),
        (["settings", "mode"], "loud", "trace.settings.mode is 'loud'"),
        (["source", "versions"], ["torch"], "trace.source.versions"),
        (["start", "grids"], [[10**9, 10**9], [1, 3]], "but it holds the states of 5"),
        (["start", "grids"], [[1, 5]], "tensors that belong to no event: image.1"),
        (["start", "grids"], [[1, 2], [1, 3], [0, 0]], "the tensor image.2 is missing"),
        (["start", "grids"], [[-1, -2], [1, 3]], "at least one row"),
        (["start", "grids"], 7, "start.grids is '7'"),
        (["start", "levels"], [0], "names 1 levels, but holds image states of 2"),
        (["start", "seconds"], "soon", "start.seconds is 'soon', but float is expected"),
        (["steps"], [{}], "steps\\[0\\] is neither a token nor a latent"),
        (["steps", 0, "event"], "word", "steps\\[0\\] is neither"),
        (["steps", 0, "event"], [], "steps\\[0\\] is neither"),
        (["steps", 0, "position"], True, "steps\\[0\\].position is 'True', but int is expected"),
        (["steps", 0, "rows"], {"hidden": 99}, "row 99 of the tensor token.hidden is asked for; it has 6"),
        (["steps", 0, "rows"], {"hidden": -1}, "row -1"),
        (["steps", 0, "rows"], {"hidden": 1}, "row 1 of the tensor token.hidden belongs to two steps"),
        (["steps", 0, "seconds"], 10**400, "a whole number of 401 digits"),
        (["steps", 0, "seconds"], 10**19, "but float is expected"),
        (["question"], "x" * 9_000_000, "beside its tensors takes 9,"),
        (["steps", 0, "rows"], {"text": 0}, "steps\\[0\\] is neither"),
        (["steps", 0, "hidden"], 1, "steps\\[0\\] has an unknown field 'hidden'"),
        (["steps", 2, "block"], 10**9, "a block that does not exist"),
        (["finish", "reason"], "bored", "trace.finish.reason is 'bored'"),
        (["finish"], {}, "trace.finish lacks the field reason, tokens"),
    ],
)
def test_hostile_content_is_named(stored, at, value, message):
    path, tensors, content = stored
    spoil(content, at, value)
    save_file(tensors, path, {"trace": json.dumps(content)})
    with pytest.raises(ValueError, match="run.safetensors is not a trace that can be read: .*" + message):
        Trace.load(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("latent.fed", None, "the tensor latent.fed is missing"),
        ("image_states", None, "the tensor image_states is missing"),
        ("image_states", torch.zeros(2, 5, D + 1), "is 8 wide, the image states 9"),
        ("image_states", torch.zeros(2, 5, D, dtype=torch.int32), "int32"),
        ("image.0", torch.zeros(8, 16, 3), "the tensor image.0 is torch.float32"),
        ("image.0", torch.zeros(8, 16, 4, dtype=torch.uint8), "not \\(height, width, 3\\)"),
        ("latent.fed", torch.zeros(3, D - 1), "latent.fed is 7 wide"),
        ("latent.fed", torch.zeros(1, D), "row 1 of the tensor latent.fed is asked for; it has 1"),
        ("extra", torch.zeros(1), "tensors that belong to no event: extra"),
    ],
)
def test_hostile_tensors_are_named(stored, name, tensor, message):
    path, tensors, content = stored
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path, {"trace": json.dumps(content)})
    with pytest.raises(ValueError, match=message):
        Trace.load(path)


def header(claim):
    text = json.dumps(claim).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        (2**60).to_bytes(8, "little") + b"{}",
        header({"image_states": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}),
        header({"image_states": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}) + b"1234",
        header({}),
        header({"__metadata__": {"trace": "[" * 100_000}}),
        header({"__metadata__": {"trace": "[1]"}}),
        header({"__metadata__": {"trace": "{"}}),
    ],
    ids=["empty", "text", "huge header", "huge tensor", "overlapping", "no trace", "deep", "a list", "cut"],
)
def test_corrupt_files_are_refused(tmp_path, data):
    path = tmp_path / "run.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="run.safetensors is not a trace that can be read"):
        Trace.load(path)


def test_truncated_and_missing_files_are_refused(stored):
    path, _, _ = stored
    path.write_bytes(path.read_bytes()[:-10])
    for target in (path, path.with_name("gone"), path.parent):
        with pytest.raises(ValueError, match="is not a trace that can be read"):
            Trace.load(target)


def test_a_full_disk_loses_nothing(stored):
    path, _, _ = stored
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow past 1000 bytes
    try:
        with pytest.raises(OSError, match="run.safetensors could not be saved: File too large.*nothing was"):
            collect(run_events()).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_saving_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(OSError, match="could not be saved: No such file or directory"):
        collect(run_events()).save(tmp_path / "gone" / "run.safetensors")


def with_attention(layers=(1, 3), heads=2, tokens=5):
    """The run again, every word and latent but the forced ones with an AttentionSummary."""

    def summary(seed):
        generator = torch.Generator().manual_seed(seed)
        size = len(layers), heads
        return AttentionSummary(
            image=torch.rand(*size, tokens, generator=generator).half(),
            shares=torch.rand(*size, 5, generator=generator).softmax(-1),
            entropy=torch.rand(size, generator=generator),
        )

    for event in run_events():
        if isinstance(event, StartEvent):
            event = replace(event, layers=layers)
        elif not isinstance(event, FinishEvent) and event.hidden is not None:
            event = replace(event, attention=summary(event.position))
        yield event


def test_attention_is_saved_and_comes_back(tmp_path):
    trace = collect(with_attention())
    trace.save(tmp_path / "run.safetensors")
    back = Trace.load(tmp_path / "run.safetensors")
    for first, second in zip(trace.steps, back.steps, strict=True):
        assert (first.attention is None) == (second.attention is None)
        for name in ("image", "shares", "entropy") if first.attention is not None else ():
            assert torch.equal(getattr(first.attention, name), getattr(second.attention, name))
    found = back.attention
    assert found.layers == (1, 3) and found.image.shape == (9, 2, 2, 5) and found.shares.shape == (9, 2, 2, 5)
    assert [trace.steps[number].position for number in found.steps] == [20, 21, 22, 23, 24, 26, 27, 28, 29]
    assert found.image.dtype == torch.float16 and torch.equal(found.image[0], trace.steps[0].attention.image)
    assert collect(run_events()).attention is None


def test_a_run_stopped_at_once_keeps_its_layers(tmp_path):
    """Attention was to be recorded, but nothing had been said yet."""
    trace = collect([next(with_attention())])
    trace.save(tmp_path / "run.safetensors")
    back = Trace.load(tmp_path / "run.safetensors")
    assert back.start.layers == (1, 3) and back.attention is None and back.finish.reason == "cancelled"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"look.image": torch.zeros(9, 2, 2, 4, dtype=torch.float16)}, "fits neither"),
        ({"look.image": torch.zeros(9, 2, 2, 5, dtype=torch.uint8)}, "look.image is torch.uint8"),
        ({"look.rest": torch.zeros(9, 2, 2, 3)}, "fits neither"),
        ({"look.rest": torch.zeros(9, 3, 2, 6)}, "fits neither"),
        ({"look.rest": None}, "look.rest is missing"),
        ({"look.image": torch.zeros(7, 2, 2, 5, dtype=torch.float16), "look.rest": torch.zeros(7, 2, 2, 6)}, "has no"),
        (
            {"look.image": torch.zeros(10, 2, 2, 5, dtype=torch.float16), "look.rest": torch.zeros(10, 2, 2, 6)},
            "no event",
        ),
    ],
)
def test_recorded_attention_that_does_not_fit_is_refused(change, words, tmp_path):
    path = tmp_path / "run.safetensors"
    collect(with_attention()).save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor for name, tensor in (load_file(path) | change).items() if tensor is not None}
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=words):
        Trace.load(path)


def test_files_keep_the_names_of_fields_that_were_renamed(tmp_path):
    """An event's sequence and attention are `row` and `look` in files, as in those that were written before."""
    path = tmp_path / "run.safetensors"
    start, *steps, finish = with_attention()
    numbered = [replace(event, sequence=3) for event in (start, *steps, finish)]
    collect(numbered).save(path)
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["trace"])
    records = content["start"], *content["steps"], content["finish"]
    assert all(record["row"] == 3 for record in records)
    assert [record["look"] for record in content["steps"]] == [step.attention is not None or None for step in steps]
    assert not any({"sequence", "attention"} & record.keys() for record in records)
    assert equal_events(replaced_attention(Trace.load(path)), replaced_attention(collect(numbered)))


def replaced_attention(trace):
    """The events with their attention's maps in place of the attention, for these can be compared."""
    for event in trace.events():
        if getattr(event, "attention", None) is not None:
            event = replace(event, attention=event.attention.image)
        yield event
