"""Tokenize: a folder of pictures of any kind becomes shards; what is broken is named and counted."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.failures import FailureLog
from data_pipelines.images import ImagePolicy, to_image, to_tensor
from data_pipelines.shards import TokenDocument, open_manifest, read_all
from data_pipelines.sources import open_source
from data_pipelines.tokenize import TokenizeConfig, TokenizeHooks, make_token_space, tokenize, train_text_tokenizer
from tests.oracles.pictures import ListSource, captioned, noise, random_images, sharp_tokenizer
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TextTokenizer
from unimodal.cli import main

PICTURES = {
    "rgb.png": ("RGB", (16, 16)),
    "rgba.png": ("RGBA", (40, 9)),
    "grey.png": ("L", (7, 31)),
    "grey_alpha.png": ("LA", (20, 20)),
    "palette.gif": ("P", (33, 33)),
    "print.jpg": ("CMYK", (50, 20)),
    "fax.png": ("1", (64, 48)),
    "deep.png": ("I;16", (12, 12)),
    "pixel.png": ("RGB", (1, 1)),
    "line.png": ("RGB", (900, 1)),
    "photo.webp": ("RGB", (123, 77)),
}
IMAGE = sharp_tokenizer()
TEXT = TextTokenizer.train(["a picture of something", "what is it?"], 280)


def make_folder(folder: Path, broken: int = 0, copies: int = 1) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for copy in range(copies):
        for name, (mode, size) in PICTURES.items():
            file = folder / f"{copy}_{name}"
            noise(*size, seed=copy).convert("L" if mode == "I;16" else mode).convert(mode).save(file)
            rows.append({"file_name": file.name, "text": f"a picture of {name}"})
    for index in range(broken):
        (folder / f"broken{index}.png").write_bytes(b"\x89PNG but nothing more")
        rows.append({"file_name": f"broken{index}.png", "text": "never seen"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(source: ListSource, out: Path, config: TokenizeConfig | None = None) -> list[TokenDocument]:
    tokenize(source, TEXT, IMAGE, out, FailureLog(), config or TokenizeConfig())
    return read_all(out)[1]


def ids(document: TokenDocument, kind: str) -> list[list[int]]:
    return [segment.ids.tolist() for segment in document.segments if segment.kind == kind]


def command(folder: Path, out: Path, *options: str) -> int:
    IMAGE.save(out.parent / "tok")
    tokenizer = str(out.parent / "tok")
    named = {"--source": "imagefolder", "--path": folder, "--image-tokenizer": tokenizer, "--out": out}
    return main(["tokenize", *(str(part) for pair in named.items() for part in pair), *options])


def test_pictures_of_any_size_and_mode_become_shards(tmp_path: Path) -> None:
    assert command(make_folder(tmp_path / "data"), tmp_path / "shards") == 0
    space, documents = read_all(tmp_path / "shards")
    assert len(documents) == len(PICTURES)
    text = TextTokenizer.open(tmp_path / "shards" / "text_tokenizer")
    image = ImageTokenizer.open(tmp_path / "shards" / "image_tokenizer")
    assert make_token_space(text, image) == space
    for document, name in zip(documents, PICTURES, strict=True):
        assert text.decode(ids(document, "text")[0]) == f"a picture of {name}"
        assert len(ids(document, "image")[0]) == space.layout.span - 2


def test_image_ids_are_the_codes_of_the_picture_as_the_policy_cuts_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    source = open_source("imagefolder", path=folder, failures=FailureLog())
    tokenize(source, TEXT, IMAGE, tmp_path / "shards", FailureLog(), TokenizeConfig())
    space, documents = read_all(tmp_path / "shards")
    for document, name in zip(documents, PICTURES, strict=True):
        if PICTURES[name][0] == "RGB":
            picture = ImagePolicy(size=16).apply(Image.open(folder / f"0_{name}").convert("RGB"), "image")
            codes = IMAGE.encode(to_tensor(picture)[None])[0]
            assert space.to_codes(torch.tensor(ids(document, "image")[0])).tolist() == codes.tolist()


def test_a_broken_picture_is_named_and_counted_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert command(make_folder(tmp_path / "data", broken=1), tmp_path / "shards") == 0
    assert "broken0.png" in caplog.text
    manifest = open_manifest(tmp_path / "shards")
    assert sum(manifest.skipped.values()) == 1
    assert sum(entry.documents for entry in manifest.shards) == len(PICTURES)


def test_over_ten_percent_broken_it_stops_with_one_line_and_leaves_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    folder = make_folder(tmp_path / "data", broken=2)
    capsys.readouterr()
    assert command(folder, tmp_path / "shards") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unimodal tokenize:")]
    assert len(lines) == 1 and "2 of 13 samples cannot be used, over the limit of 10%" in lines[0]
    assert "broken1.png" in lines[0] and "--max-bad" in lines[0]
    assert not (tmp_path / "shards" / "manifest.json").exists()
    assert command(folder, tmp_path / "again", "--max-bad", "0.5") == 0


def test_a_folder_that_holds_shards_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "data")
    assert command(folder, tmp_path / "shards") == 0
    before = (tmp_path / "shards" / "000000.tar").read_bytes()
    capsys.readouterr()
    assert command(folder, tmp_path / "shards") == 2
    assert "already holds shards" in capsys.readouterr().err
    assert (tmp_path / "shards" / "000000.tar").read_bytes() == before


def test_an_unknown_augmentation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(make_folder(tmp_path / "data"), tmp_path / "shards", "--augment", "flip,twirl") == 2
    assert "unknown augmentation 'twirl'; choose from flip, place" in capsys.readouterr().err


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", broken=1)
    options = ("--copies", "2", "--augment", "flip,place", "--seed", "3")
    for name in ("a", "b"):
        assert command(folder, tmp_path / name, *options) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_augmented_copies_have_other_image_ids_and_the_same_text(tmp_path: Path) -> None:
    source = ListSource([captioned(f"k{i}", to_image(image)) for i, image in enumerate(random_images(6))])
    documents = run(source, tmp_path, TokenizeConfig(copies=3, augmentations=("place",)))
    assert [document.key for document in documents[:3]] == ["k0", "k0+1", "k0+2"]
    assert [document.meta["copy"] for document in documents[:3]] == [0, 1, 2]
    different = 0
    for start in range(0, 18, 3):
        original, *copies = documents[start : start + 3]
        assert all(ids(copy, "text") == ids(original, "text") for copy in copies)
        different += len({str(ids(document, "image")) for document in (original, *copies)})
    assert different >= 15, "of 18; a tenth of the places are the whole square"


def test_the_first_copy_is_the_document_without_augmentation(tmp_path: Path) -> None:
    source = ListSource([captioned(f"k{i}", noise(30, 20, seed=i)) for i in range(4)])
    alone = run(source, tmp_path / "alone")
    first = run(source, tmp_path / "copies", TokenizeConfig(copies=2, augmentations=("flip", "place")))[::2]
    assert [ids(a, "image") for a in alone] == [ids(b, "image") for b in first]


def test_copies_without_augmentation_are_refused() -> None:
    with pytest.raises(ValueError, match="more than one copy needs an augmentation"):
        TokenizeConfig(copies=2)


def test_batches_of_pictures_do_not_mix_documents_up(tmp_path: Path) -> None:
    source = ListSource([captioned(f"k{i}", noise(16, 16, seed=i), f"number {i}") for i in range(11)])
    together = run(source, tmp_path / "together")
    apart = run(source, tmp_path / "apart", TokenizeConfig(images_at_once=3))
    assert files(tmp_path / "apart") == files(tmp_path / "together")
    assert [d.key for d in apart] == [f"k{i}" for i in range(11)]
    for a, b in zip(together, apart, strict=True):
        assert ids(a, "image") == ids(b, "image") and ids(a, "text") == ids(b, "text")
    assert len({tuple(ids(d, "image")[0]) for d in apart}) == 11


def test_what_a_damaged_picture_would_have_taken_is_not_given_to_its_neighbour(tmp_path: Path) -> None:
    good = [captioned(f"k{i}", noise(16, 16, seed=i)) for i in range(12)]
    lazy = Image.open(io.BytesIO(_half_a_picture()))
    failures = FailureLog(limit=1.0)
    source = ListSource([*good[:2], captioned("bad", lazy), *good[2:]])
    tokenize(source, TEXT, IMAGE, tmp_path / "with", failures, TokenizeConfig())
    expected = run(ListSource(good), tmp_path / "without")
    assert [ids(d, "image") for d in read_all(tmp_path / "with")[1]] == [ids(d, "image") for d in expected]
    assert failures.bad[0][0] == "bad"


def _half_a_picture() -> bytes:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "PNG")
    return buffer.getvalue()[:2000]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path, workers: int) -> None:
    source = ListSource([captioned(f"k{i}", noise(30, 20, seed=i)) for i in range(20)])
    for name, number in (("none", 0), ("some", workers)):
        run(source, tmp_path / name, TokenizeConfig(copies=2, augmentations=("flip", "place"), workers=number))
    for path in (tmp_path / "none").iterdir():
        assert path.read_bytes() == (tmp_path / "some" / path.name).read_bytes()


def test_progress_is_told_every_document(tmp_path: Path) -> None:
    told: list[int] = []
    source = ListSource([captioned(f"k{i}", noise(16, 16)) for i in range(7)])
    tokenize(source, TEXT, IMAGE, tmp_path, FailureLog(), TokenizeConfig(), hooks=TokenizeHooks(progress=told.append))
    assert sum(told) == 7


def test_the_manifest_tells_the_source_the_policy_and_the_settings(tmp_path: Path) -> None:
    run(ListSource([captioned("k", noise(16, 16))], notes={"left aside": 3}), tmp_path)
    manifest = open_manifest(tmp_path)
    assert manifest.image_policy == {"size": 16, "shown": "pad", "drawn": "crop", "sizes": []}
    assert manifest.source["fingerprint"] == "d" * 64 and manifest.source["notes"] == {"left aside": 3}
    assert manifest.source["tokenize"]["copies"] == 1


def test_a_text_tokenizer_is_trained_on_all_texts_of_the_source() -> None:
    source = ListSource([captioned("k", noise(4, 4), "zebra " * 50), captioned("l", noise(4, 4), "quokka " * 50)])
    text = train_text_tokenizer(source, 300)
    assert len(text.encode(" zebra")) == len(text.encode(" quokka")) == 1
    assert np.max(text.encode("zebra quokka")) < text.size
