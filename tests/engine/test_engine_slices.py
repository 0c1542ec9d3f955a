"""An engine of a model with slices against the same blocks run through Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convert.bundle.manifest import Bundle
from convert.bundle.targets import PHONE
from convert.checkpoint.config import VisionConfig
from convert.checkpoint.positions import square_side
from convert.conversion.bundle_writer import add_golden as convert_golden
from quantize.errors import ConfigError
from runtime.engine_client.client import EngineClient, EngineError, engine_command
from runtime.engine_client.options import LOCAL, QEMU, EngineOptions
from runtime.engine_client.places import open_place
from runtime.engine_client.protocol import ErrorCode, Field, Op, Stage, Stop, Tap
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.picture_file import write_picture_file
from runtime.inputs.prompt import PromptError, Tokenizer
from runtime.inputs.slices import images_of, limit_slices, plan_cut
from runtime.sessions.engine_session import EngineSession
from runtime.sessions.reference_session import ReferenceSession
from tests.engine.engines import Built, add_phone
from tests.engine.operations import add_golden, ask
from tests.engine.test_engine import ROUNDING
from tests.engine.test_picture import random_picture
from tests.support import compiled
from tests.support.compare import Record, assert_close
from tests.support.compiled import CompiledBackend, CompiledModel, compile_here
from tests.support.needs import need_qemu
from tests.support.once import once

WINDOW = 260
BLOCKS = 6  # calls for an image: embedding, four blocks, resampler
# Smaller than an image, on both sides of the first border, tall, wide, most slices.
SIZES = [(20, 31), (42, 42), (43, 42), (30, 300), (200, 44), (400, 300), (97, 61)]
QUESTIONS = ("What colour is the shape?", "图片里有几个圆形？")
ANSWER = GenerationOptions(max_new_tokens=12)


@pytest.fixture(scope="module")
def model(sliced: Built) -> CompiledModel:
    bundle = Bundle.open(sliced.bundle)
    return CompiledModel(bundle.config, compile_here(bundle.config, bundle.plan), bundle.weights())


@pytest.fixture(autouse=True)
def exact_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resamples positions in float64, as the engine does.

    Otherwise an activation halfway between two int8 codes might round to either, and with random
    weights answers would differ.
    """

    def resample(positions: Tensor, rows: int, columns: int) -> Tensor:
        side = square_side(positions.shape[1])
        plane = positions.double().view(1, side, side, -1).permute(0, 3, 1, 2)
        size = (rows, columns)
        plane = F.interpolate(plane, size=size, mode="bicubic", antialias=True)
        return plane.permute(0, 2, 3, 1).reshape(1, rows * columns, -1).float()

    monkeypatch.setattr(compiled, "resample_grid", resample)


@pytest.fixture(scope="module")
def vision(sliced: Built) -> VisionConfig:
    vision = Bundle.open(sliced.bundle).config.vision
    assert vision is not None
    return vision


@pytest.fixture(scope="module")
def running(sliced: Built) -> Iterator[EngineClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_NUM_THREADS", "1")
        with EngineClient(engine_command(LOCAL, sliced.program), quiet_seconds=60) as client:
            yield client


@pytest.fixture
def client(sliced: Built, running: EngineClient) -> EngineClient:
    """An engine with the bundle freshly loaded."""
    running.load(sliced.bundle, window=WINDOW)
    return running


@pytest.fixture
def session(sliced: Built, model: CompiledModel) -> ReferenceSession:
    tokenizer = Tokenizer(sliced.bundle / "tokenizer.model", model.config)
    return ReferenceSession(CompiledBackend(model), tokenizer, window=WINDOW)


def _refusal(client: EngineClient, op: str, **fields: Any) -> str:
    with pytest.raises(EngineError) as error:
        client.request(op, fields)
    return f"{error.value.code}: {error.value}"


def test_load_says_how_many_slices(sliced: Built, running: EngineClient) -> None:
    line = running.load(sliced.bundle, window=WINDOW)
    assert (line[Field.IMAGE_TOKENS], line[Field.MAX_SLICES]) == (9, 9)


@pytest.mark.parametrize("limit", [None, 1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_cut_and_pixels(
    client: EngineClient, vision: VisionConfig, size: tuple[int, int], limit: int | None
) -> None:
    picture = random_picture(*size)
    images = images_of(picture, limit_slices(vision, limit) or vision)
    sizes = client.tap(Tap.CUT, picture, {Field.MAX_SLICES: limit} if limit else {})
    assert sizes.tolist() == [[*reversed(pixels.shape[2:])] for pixels in images.pixels]
    for i, pixels in enumerate(images.pixels):
        fields = {Field.INDEX: i} | ({Field.MAX_SLICES: limit} if limit else {})
        np.testing.assert_array_equal(
            client.tap(Tap.PREPROCESS, picture, fields), pixels[0].numpy()
        )


@pytest.mark.parametrize("size", SIZES)
def test_vision_stages(
    client: EngineClient,
    model: CompiledModel,
    vision: VisionConfig,
    size: tuple[int, int],
    record_property: Record,
) -> None:
    """For the overview and for a slice, whose shapes differ."""
    images = images_of(random_picture(*size), vision)
    for i in {0, len(images.pixels) - 1}:
        pixels = images.pixels[i][0].numpy()
        height, width = pixels.shape[1:]
        shape = (height // vision.patch_size, width // vision.patch_size)
        sides = {Field.WIDTH: width, Field.HEIGHT: height}
        x = model.vision_embed(pixels)
        tapped = client.tap(Tap.VISION_EMBED, pixels, sides)
        assert_close("vision_embed", tapped, x, ROUNDING, record_property)
        tapped = client.tap(Tap.VISION_BLOCK, x, {Field.INDEX: 0})
        x = model.vision_block(0, x)
        assert_close("vision_block", tapped, x, ROUNDING, record_property)
        tapped = client.tap(Tap.VISION_NORM, x)
        x = model.vision_norm(x)
        assert_close("vision_norm", tapped, x, ROUNDING, record_property)
        patches = {Field.COLUMNS: shape[1], Field.ROWS: shape[0]}
        tapped = client.tap(Tap.RESAMPLER, x, patches)
        assert_close("resampler", tapped, model.resample(x, shape), ROUNDING, record_property)


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("size", SIZES)
def test_greedy_answers(
    client: EngineClient,
    session: ReferenceSession,
    size: tuple[int, int],
    limit: int | None,
) -> None:
    """Two questions about a picture: the same ids, the same answers, the same tokens reused."""
    picture = random_picture(*size)
    line = client.image(picture, max_slices=limit)
    vision = limit_slices(session.config.vision, limit)
    assert vision is not None
    grid = plan_cut(size, vision).grid
    assert line.get(Field.GRID) == (None if grid is None else [*grid])
    assert line[Field.IMAGES] == 1 + (0 if grid is None else grid[0] * grid[1])
    turns: list[str] = []
    for question in QUESTIONS:
        turns.append(question)
        prompt = session.tokenizer.prompt(ask(*turns), 9, grid=grid)
        assert client.tokenize(ask(*turns), 9, grid) == (
            prompt.ids,
            prompt.image_start,
            prompt.slice_starts,
        )
        expected = session.reply(ask(*turns), picture, ANSWER, max_slices=limit)
        answer = client.chat(ask(*turns), image=line[Field.IMAGE], max_new_tokens=12)
        assert (answer.ids, answer.text) == (expected.ids, expected.text)
        for field in (Field.PROMPT_TOKENS, Field.REUSED_TOKENS):
            assert answer.statistics[field] == getattr(expected.statistics, field)
        turns.append(answer.text)


def test_sessions_answer_alike(sliced: Built, session: ReferenceSession) -> None:
    """`EngineSession` and `ReferenceSession`, with and without a limit of slices."""
    bundle = Bundle.open(sliced.bundle)
    place = open_place(bundle, EngineOptions(threads=1))
    picture = random_picture(130, 90)
    with closing(EngineSession(place, bundle.config, window=WINDOW)) as engine:
        for limit in (None, 1, 3, None):
            replies = [
                one.reply(ask(QUESTIONS[0]), picture, ANSWER, max_slices=limit)
                for one in (engine, session)
            ]
            assert replies[0].ids == replies[1].ids
            counts = [reply.statistics.prompt_tokens for reply in replies]
            assert counts[0] == counts[1]
        assert replies[0].statistics.encode_ms == 0
        for bad in (0, 10):
            with pytest.raises(ConfigError, match=f"max_slices is {bad}"):
                engine.reply(ask(QUESTIONS[0]), picture, ANSWER, max_slices=bad)


def test_progress_counts_the_blocks_of_all_images(client: EngineClient) -> None:
    stages: list[tuple[str, int, int]] = []
    lines: list[Any] = []
    receive = client._process.receive

    def watched(*arguments: Any) -> Any:
        lines.append(receive(*arguments))
        return lines[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client._process, "receive", watched)
        done = client.image(random_picture(400, 300), lambda *event: stages.append(event))
    assert (done[Field.IMAGES], done[Field.GRID]) == (10, [3, 3])
    assert stages == [(Stage.ENCODE, i + 1, 10 * BLOCKS) for i in range(10 * BLOCKS)]
    assert all(line[Field.GRID] == [3, 3] for line in lines)


def test_a_cancelled_picture_goes_on_where_it_stopped(
    sliced: Built, running: EngineClient, tmp_path: Path
) -> None:
    """Of so many images that a cancel comes before the last."""
    running.load(_with_model(sliced.bundle, tmp_path / "many", max_slice_nums=400), window=WINDOW)
    picture, count = random_picture(850, 850), 401
    stages: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(done)
        if done == 3 * BLOCKS:
            running.cancel()

    with pytest.raises(EngineError) as error:
        running.image(picture, progress)
    assert error.value.code == ErrorCode.CANCELLED
    complete = stages[-1] // BLOCKS
    assert 3 <= complete < count
    stages.clear()
    whole = running.image(picture, lambda stage, done, total: stages.append(done))
    assert (stages[0], stages[-1]) == (complete * BLOCKS + 1, count * BLOCKS)
    assert len(stages) == (count - complete) * BLOCKS and not whole[Field.REMEMBERED]


def test_fewer_slices_reuse_the_overview(client: EngineClient) -> None:
    picture = random_picture(400, 300)
    stages: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(done)

    whole = client.image(picture)
    overview = client.image(picture, progress, max_slices=1)
    assert overview[Field.REMEMBERED] and not stages and Field.GRID not in overview
    assert overview[Field.IMAGE] != whole[Field.IMAGE]
    two = client.image(picture, progress, max_slices=2)
    assert stages[0] == BLOCKS + 1 and two[Field.GRID] == [2, 1]
    again = client.image(picture, progress)
    assert again[Field.REMEMBERED] and again[Field.IMAGE] == whole[Field.IMAGE]


def test_slices_with_the_same_pixels_are_encoded_once(
    client: EngineClient, vision: VisionConfig
) -> None:
    stages: list[int] = []
    cut = plan_cut((400, 300), vision)
    plain = Image.new("RGB", (400, 300), "red")
    line = client.image(plain, lambda stage, done, total: stages.append(done))
    assert line[Field.IMAGES] == 10
    encoded = len({cut.overview, cut.cell})
    assert len([done for done in stages if done % BLOCKS]) == encoded * (BLOCKS - 1)
    assert stages[-1] == 10 * BLOCKS


def test_saved_pictures(client: EngineClient, sliced: Built, tmp_path: Path) -> None:
    picture, path = random_picture(130, 90), tmp_path / "embeddings"
    line = client.image(picture)
    answer = client.chat(ask(QUESTIONS[0]), image=line[Field.IMAGE], max_new_tokens=8)
    client.save_image(line[Field.IMAGE], path)
    client.load(sliced.bundle, window=WINDOW)
    restored = client.restore_image(path)
    assert not restored[Field.REMEMBERED]
    for field in (Field.IMAGE, Field.IMAGES, Field.GRID):
        assert restored[field] == line[field]
    again = client.chat(ask(QUESTIONS[0]), image=line[Field.IMAGE], max_new_tokens=8)
    assert again.ids == answer.ids
    assert client.image(picture)[Field.REMEMBERED]
    content = path.read_bytes()
    for offset, value, problem in (
        (8, 1, "version 1 of the format; expected 2: encode the picture again"),
        (16, 8, "as many slices"),
        (16, 0, "as many slices"),
        (20, 0, "as many slices"),
        (16, 1, "bytes; embeddings of this model have"),
        (44, 0xFFFFFFFF, "damaged or altered"),
    ):
        damaged = content[:offset] + value.to_bytes(4, "little") + content[offset + 4 :]
        path.write_bytes(damaged)
        refusal = _refusal(client, Op.RESTORE_IMAGE, path=str(path))
        assert refusal.startswith("invalid_embeddings: ") and problem in refusal


def test_a_picture_that_does_not_fit_the_window(
    client: EngineClient, sliced: Built, session: ReferenceSession
) -> None:
    """Numbers, and the hint that fewer slices take fewer tokens; the overview alone fits."""
    client.load(sliced.bundle, window=100)
    picture = random_picture(400, 300)
    image = client.image(picture)[Field.IMAGE]
    fields = {"messages": ask("What?"), "image": image, "max_new_tokens": 1}
    refusal = _refusal(client, Op.CHAT, **fields)
    narrow = ReferenceSession(session.backend, session.tokenizer, window=100)
    with pytest.raises(PromptError, match="lower --max-slices") as error:
        narrow.reply(ask("What?"), picture, ANSWER)
    assert refusal.startswith("prompt_too_long: " + str(error.value).partition(":")[0])
    assert refusal.endswith("or a lower max_slices")
    image = client.image(picture, max_slices=1)[Field.IMAGE]
    assert client.chat(ask("What?"), image=image, max_new_tokens=2).ids


def test_bad_requests(client: EngineClient, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    write_picture_file(path, random_picture(100, 100))
    for limit in (0, 10, -1, 2**40, 1.5, "2"):
        refusal = _refusal(client, Op.IMAGE, path=str(path), max_slices=limit)
        assert refusal.startswith("invalid_request: ") and "max_slices" in refusal
    assert "this model takes 1 (the overview only) to 9" in _refusal(
        client, Op.IMAGE, path=str(path), max_slices=10
    )
    tokenize = {"messages": ask("What?"), "image_tokens": 9}
    for grid in ([], [1], [0, 1], [4, 3], [2**62, 2**62], [1, 1, 1], "1x1", 4):
        assert _refusal(client, Op.TOKENIZE, **tokenize, grid=grid).startswith("invalid_request: ")
    refusal = _refusal(client, Op.TOKENIZE, messages=ask("What?"), grid=[1, 2])
    assert "grid: needs image_tokens" in refusal
    files = {"input": str(path), "output": str(tmp_path / "output")}
    for fields in (
        {"what": Tap.PREPROCESS, "index": 7},
        {"what": Tap.CUT, "max_slices": 0},
        {"what": Tap.VISION_EMBED},
        {"what": Tap.VISION_EMBED, "width": 13, "height": 14},
        {"what": Tap.VISION_EMBED, "width": 14 * 19, "height": 14},
        {"what": Tap.VISION_EMBED, "width": 2**62, "height": 14},
        {"what": Tap.RESAMPLER, "columns": 5, "rows": 5},
        {"what": Tap.RESAMPLER, "columns": 0, "rows": 5},
    ):
        assert _refusal(client, Op.TAP, **files, **fields).startswith("invalid_request: "), fields
    (tmp_path / "picture").write_bytes(bytes(1000))
    for fields in ({"what": Tap.VISION_BLOCK, "index": 0}, {"what": Tap.VISION_NORM}):
        assert _refusal(client, Op.TAP, **files, **fields).startswith("file_error: ")
    write_picture_file(path, Image.new("RGB", (2, 3000)))
    refusal = _refusal(client, Op.IMAGE, path=str(path))
    assert refusal.startswith("invalid_picture: 2 x 3000 pixels are too long and narrow")


def test_a_model_without_slices_refuses_limits(built: Built, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    write_picture_file(path, random_picture(100, 100))
    with EngineClient(engine_command(LOCAL, built.program)) as client:
        assert client.load(built.bundle, window=100)[Field.MAX_SLICES] == 0
        refusal = _refusal(client, Op.IMAGE, path=str(path), max_slices=1)
        assert refusal.startswith("invalid_request: ") and "one square; leave it out" in refusal
        line = client.image(random_picture(100, 100))
        assert line[Field.IMAGES] == 1 and Field.GRID not in line
        sizes = client.tap(Tap.CUT, random_picture(100, 70))
        assert sizes.tolist() == [[56, 56]]
        tokenize = {"messages": ask("What?"), "image_tokens": 9, "grid": [1, 2]}
        assert "leave it out" in _refusal(client, Op.TOKENIZE, **tokenize)


def _with_model(bundle: Path, folder: Path, **model: Any) -> Path:
    """Copies a bundle with other keys in its model's configuration."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["model"] |= model
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_slice_mode_off_is_one_image(sliced: Built, running: EngineClient, tmp_path: Path) -> None:
    """With the positions of an image of its shape."""
    picture = random_picture(130, 90)
    running.load(sliced.bundle, window=WINDOW)
    image = running.image(picture, max_slices=1)[Field.IMAGE]
    expected = running.chat(ask(QUESTIONS[0]), image=image, max_new_tokens=8)
    off = _with_model(sliced.bundle, tmp_path / "off", slice_mode=False)
    assert running.load(off, window=WINDOW)[Field.MAX_SLICES] == 1
    line = running.image(picture)
    assert line[Field.IMAGE] == image and line[Field.IMAGES] == 1
    assert running.chat(ask(QUESTIONS[0]), image=image, max_new_tokens=8).ids == expected.ids


@pytest.mark.parametrize(
    "model",
    [
        {"max_slice_nums": 0},
        {"max_slice_nums": 2**20},
        {"max_slice_nums": None},
        {"scale_resolution": 13},
        {"scale_resolution": None},
        {"slice_mode": "yes"},
        {"slice_mode": None},
        {"slice_start_token_id": 99},
        {"slice_end_token_id": 501},
        {"slice_end_token_id": 101},
    ],
)
def test_bad_configurations(
    sliced: Built, running: EngineClient, tmp_path: Path, model: dict[str, Any]
) -> None:
    folder = _with_model(sliced.bundle, tmp_path / "bundle", **model)
    refusal = _refusal(running, Op.LOAD, bundle=str(folder), window=WINDOW)
    assert refusal.startswith("invalid_bundle: ")


def test_as_original_keeps_the_picture_whole(
    sliced: Built, running: EngineClient, tmp_path: Path
) -> None:
    """A picture of more tokens than the original keeps of a prompt is refused with numbers."""
    many = _with_model(sliced.bundle, tmp_path / "many", max_slice_nums=200)
    running.load(many, window=4096)
    image = running.image(random_picture(640, 600))[Field.IMAGE]
    fields = {"messages": ask("What?"), "image": image, "max_new_tokens": 1}
    refusal = _refusal(running, Op.CHAT, **fields, as_original=True)
    assert refusal.startswith("prompt_too_long: the picture takes 2") and "2048" in refusal
    assert running.request(Op.CHAT, fields)[Field.IDS]


def test_self_check_with_slices(sliced: Built, client: EngineClient, tmp_path: Path) -> None:
    """The golden picture is cut as any other."""
    picture = random_picture(33, 210, seed=5)
    image = client.image(picture)[Field.IMAGE]
    answer = client.chat(ask(QUESTIONS[0]), image=image, max_new_tokens=8)
    prompt = {"messages": ask(QUESTIONS[0]), "image": "golden.picture", "max_new_tokens": 8}
    golden = add_golden(
        sliced.bundle,
        tmp_path / "golden",
        [{**prompt, "ids": ids, "steps": []} for ids in (answer.ids, [1, 2])],
        picture=picture,
    )
    client.load(golden, window=WINDOW)
    checks = client.self_check()[Field.CHECKS]
    assert [check[Field.PASSED] for check in checks] == [True, False]


def test_recorded_golden_answers(sliced: Built, running: EngineClient, tmp_path: Path) -> None:
    """Those that `convert` records, logits included; the picture has slices here."""
    shutil.copytree(sliced.bundle, tmp_path / "bundle")
    convert_golden(tmp_path / "bundle", Bundle.open(sliced.bundle).manifest, lambda *_: None)
    running.load(tmp_path / "bundle", window=WINDOW)
    assert running.self_check()[Field.PASSED] is True


def test_the_phones_engine(
    sliced: Built,
    client: EngineClient,
    vision: VisionConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Under qemu, as it ships: the same cut and pixels, and an answer about the picture."""
    need_qemu()

    def make(folder: Path) -> None:
        shutil.copytree(sliced.bundle, folder / "bundle")
        add_phone(folder / "bundle")

    bundle = once(tmp_path_factory, "phone-slices", make) / "bundle"
    picture = random_picture(130, 90)
    with EngineClient(engine_command(QEMU, Bundle.open(bundle).program(PHONE))) as arm64:
        arm64.load(bundle, window=WINDOW)
        lines = [one.image(picture) for one in (client, arm64)]
        for field in (Field.IMAGE, Field.GRID):
            assert lines[0][field] == lines[1][field]
        for i in range(lines[0][Field.IMAGES]):
            pixels = [one.tap(Tap.PREPROCESS, picture, {"index": i}) for one in (client, arm64)]
            np.testing.assert_array_equal(*pixels)
        features = np.random.default_rng(0).normal(size=(12, vision.embed_dim)).astype(np.float32)
        fields = {Field.COLUMNS: 4, Field.ROWS: 3}
        tokens = [one.tap(Tap.RESAMPLER, features, fields) for one in (client, arm64)]
        np.testing.assert_allclose(tokens[1], tokens[0], rtol=0, atol=5e-2)
        answer = arm64.chat(ask("?"), image=lines[1][Field.IMAGE], max_new_tokens=3)
        assert answer.stop in (Stop.EOS, Stop.LENGTH)
