"""Pictures of several shapes, from their files to a step of training, each in the size that is like it."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.documents import ImageSegment
from data_pipelines.encoding import image_bodies
from data_pipelines.failures import FailureLog
from data_pipelines.images import ImagePolicy, to_image, to_tensor
from data_pipelines.planning import StreamConfig
from data_pipelines.raw import RawDataModule
from data_pipelines.shards import open_manifest, read_all
from data_pipelines.tokenize import TokenizeConfig, TokenizeHooks, layout_of, make_token_space, tokenize
from tests.data_pipelines.test_stream import all_equal
from tests.data_pipelines.test_tokenize_resume import Interrupted
from tests.kill.tokenization import contents
from tests.oracles.pictures import ListSource, captioned, noise, sharp_tokenizer, tiny_tokenizer
from tests.oracles.tiny_training import fit_arguments, logged
from tokenizers_vq.layout import FixedLayout, GridLayout, Size
from tokenizers_vq.text import TextTokenizer
from unimodal.cli import main
from unimodal.training.cli import run

IMAGE = sharp_tokenizer(32)
TEXT = TextTokenizer.train(["a picture of something", "what is it?"], 280)
SIDES: dict[tuple[int, int], Size] = {
    (40, 40): (4, 4),
    (64, 36): (3, 5),
    (33, 90): (5, 3),
    (41, 40): (4, 4),
    (900, 1): (3, 5),
    (1, 1): (4, 4),
    (30, 40): (5, 3),
    (24, 40): (5, 3),
}
"""Width and height in pixels -> rows and columns of codes, for an aspect ratio of 2."""
SPACE = make_token_space(TEXT, IMAGE, GridLayout(sizes=((3, 5), (4, 4), (5, 3))))
GRID = TokenizeConfig(aspect_ratio=2, copies=2, augmentations=("flip", "place"), documents_per_shard=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures`, and `shards`: what the command makes of them."""
    root = tmp_path_factory.mktemp("sizes")
    (root / "pictures").mkdir()
    rows = []
    for index, sides in enumerate(list(SIDES) * 3):
        noise(*sides, seed=index).save(root / "pictures" / f"{index:02d}.png")
        qa = [{"question": "what is it?", "answer": "something"}]
        rows.append({"file_name": f"{index:02d}.png", "text": "a picture of something", "qa": qa})
    (root / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    IMAGE.save(root / "tokenizer")
    assert command(root, "shards", "--aspect-ratio", "2") == 0
    return root


def command(root: Path, out: str, *options: str) -> int:
    named = {"source": "imagefolder", "path": root / "pictures", "image-tokenizer": root / "tokenizer"}
    return main(["tokenize", *(f"--{n}={v}" for n, v in named.items()), f"--out={root / out}", *options])


def test_each_picture_is_told_with_the_size_of_its_shape_and_the_codes_of_what_the_policy_makes_of_it(
    folder: Path,
) -> None:
    space, documents = read_all(folder / "shards")
    assert space.layout == SPACE.layout and len(documents) == 24
    policy = ImagePolicy.of(IMAGE, space.layout)
    for document, index in zip(documents, range(24), strict=True):
        size = list(SIDES.values())[index % len(SIDES)]
        body = document.segments[0].ids.tolist()
        assert body[:2] == [space.side(size[0]), space.side(size[1])]
        span = space.read_image([space.specials.boi, *body, space.specials.eoi], 0)
        assert span is not None and span.size == size
        picture = ImageSegment(source=folder / "pictures" / f"{index:02d}.png").open()
        codes = IMAGE.encode(to_tensor(policy.apply(picture, "image"))[None])
        assert torch.equal(space.to_codes(torch.tensor(span.ids)), codes[0])


def test_the_manifest_has_the_sizes_in_pixels_and_the_ratio(folder: Path) -> None:
    manifest = open_manifest(folder / "shards")
    assert ImagePolicy(**manifest.image_policy) == ImagePolicy(size=32, sizes=((24, 40), (32, 32), (40, 24)))
    assert manifest.source["tokenize"]["aspect_ratio"] == 2


def test_such_shards_are_whole_to_inspect_and_their_pictures_keep_their_shapes_on_its_page(folder: Path) -> None:
    page = folder / "page.html"
    assert main(["inspect", str(folder / "shards"), "--html", str(page), "--documents", "8"]) == 0
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())
    shown = [Image.open(io.BytesIO(base64.b64decode(image))) for image in images]
    expected = [SIDES[sides] for sides in itertools.islice(itertools.cycle(SIDES), 0, 24, 3)]
    assert [(picture.height // 8, picture.width // 8) for picture in shown] == expected


@pytest.mark.slow
def test_packed_batches_of_them_train_and_leave_a_model_that_inspect_describes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = {"model__trunk__max_length": 96, "data__stream__length": 96}
    run(fit_arguments(folder / "shards", tmp_path, trainer__max_steps=2, **lengths))
    losses = [float(loss) for loss in logged(tmp_path, "train/loss_image").values()]
    assert len(losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert "4096, 3 sizes of image, 3x5 to 5x3" in capsys.readouterr().out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tokenizing_while_loading_gives_the_batches_of_a_shard(folder: Path, num_workers: int) -> None:
    stream = StreamConfig(length=96, rows=3, window=16)
    shards = TokenDataModule([str(folder / "shards")], stream)
    options = {"stream": stream, "num_workers": num_workers, "aspect_ratio": 2}
    raw = RawDataModule("imagefolder", folder / "shards", folder / "pictures", **options)
    for data in (shards, raw):
        data.setup("fit")
    assert raw.spec.space == shards.spec.space
    assert all_equal(*[list(itertools.islice(data.train_dataloader(), 12)) for data in (shards, raw)])
    assert all_equal(*[list(data.val_dataloader()) for data in (shards, raw)])


def make(out: Path, progress: Callable[[int], None] = lambda done: None) -> bool:
    pictures = [noise(*sides, seed=index) for index, sides in enumerate(SIDES)]
    documents = [captioned(f"k{index}", picture) for index, picture in enumerate(pictures)]
    return tokenize(ListSource(documents), TEXT, IMAGE, out, FailureLog(), GRID, hooks=TokenizeHooks(progress=progress))


def test_an_interrupted_job_that_is_started_again_writes_the_same_bytes(tmp_path: Path) -> None:
    assert make(tmp_path / "unbroken")

    def stop(done: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        make(tmp_path / "again", stop)
    assert make(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "unbroken")
    sizes = {document.segments[0].ids[:2].tobytes() for document in read_all(tmp_path / "again")[1]}
    assert len(sizes) == 3


def test_augmented_copies_have_other_codes_and_the_size_of_the_first(tmp_path: Path) -> None:
    make(tmp_path)
    bodies = [document.segments[0].ids.tolist() for document in read_all(tmp_path)[1]]
    for first, copy in zip(bodies[::2], bodies[1::2], strict=True):
        assert first[:2] == copy[:2] and len(first) == len(copy)
    assert sum(first != copy for first, copy in zip(bodies[::2], bodies[1::2], strict=True)) >= 6


@pytest.mark.parametrize("at_once", [1, 2, 256])
def test_pictures_of_several_sizes_are_encoded_together_as_alone(at_once: int) -> None:
    policy = ImagePolicy.of(IMAGE, SPACE.layout)
    pictures = [to_tensor(policy.apply(noise(*sides, seed=i), "image")) for i, sides in enumerate(SIDES)]
    alone = [image_bodies([picture], IMAGE, SPACE)[0] for picture in pictures]
    together = image_bodies(pictures, IMAGE, SPACE, at_once)
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert len({body.tobytes() for body in together}) == len(pictures)


def test_a_body_is_decoded_to_a_picture_of_its_shape() -> None:
    tokenizer = tiny_tokenizer("patch", "fine", 32)
    (body,) = image_bodies([torch.zeros(3, 24, 40)], tokenizer, SPACE)
    span = SPACE.read_image([SPACE.specials.boi, *body.tolist(), SPACE.specials.eoi], 0)
    assert span is not None
    codes = SPACE.to_codes(torch.tensor([span.ids]))
    assert to_image(tokenizer.decode(codes, span.size)[0]).size == (40, 24)


def test_a_ratio_of_one_is_the_square_and_more_is_a_grid_around_it() -> None:
    assert layout_of(IMAGE, 1) == FixedLayout(rows=4, columns=4)
    assert layout_of(IMAGE, 2) == SPACE.layout


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ("0.5", "an aspect ratio is longer to shorter side, at least 1, got 0.5"),
        ("inf", "at least 1, got inf"),
        ("nan", "at least 1, got nan"),
        ("1.2", "of about 4 x 4 codes, only the square has sides in a ratio up to 1.2"),
    ],
)
def test_a_ratio_that_makes_no_sizes_is_one_line(
    folder: Path, ratio: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(folder, "none", "--aspect-ratio", ratio) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (folder / "none").exists()
