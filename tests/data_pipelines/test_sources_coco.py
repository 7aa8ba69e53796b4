"""COCO captions and VQAv2 folders in the official layout are read whole, and what is wrong with a row is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.documents import Document, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.shards import read_all
from data_pipelines.sources import open_source
from tests.oracles.coco_folders import captions_of, coco_folder, vqav2_folder, write_captions, write_vqav2
from tests.oracles.pictures import sharp_tokenizer
from tests.oracles.tiny import tiny_bundle
from tests.oracles.tiny_training import fit_arguments
from unimodal.cli import main
from unimodal.training.cli import main as train

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


def read(name: str, folder: Path, split: str) -> tuple[list[Document], list[tuple[str, str]]]:
    failures = FailureLog(limit=1)
    source = open_source(name, path=folder, split=split, failures=failures)
    documents = list(source.documents())
    assert failures.good == len(documents)
    return documents, failures.bad


def texts(document: Document, role: str) -> list[str]:
    return [part.text for part in document.segments if isinstance(part, TextSegment) and part.role == role]


@pytest.mark.parametrize(("split", "year"), [("train", "2017"), ("val", "2014")])
def test_coco_gives_every_picture_with_its_captions_in_order(split: str, year: str, tmp_path: Path) -> None:
    folder = coco_folder(tmp_path, split=split, year=year)
    documents, bad = read("coco", folder, split)
    assert not bad and [document.meta["image_id"] for document in documents] == [1, 2, 3, 4]
    assert [document.key for document in documents] == [f"{split}-{i:012d}" for i in (1, 2, 3, 4)]
    for index, document in enumerate(documents):
        assert texts(document, "caption") == [f"view 1 of {index}", f"view 2 of {index}"]
        assert document.segments[0].open().size == (40 + index, 30)  # type: ignore[union-attr]


def without(name: str, index: int) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[name].pop(index)


def changed(name: str, index: int, field: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[name][index].update({field: value})


COCO_DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str, str, int]] = {
    "an empty caption": (changed("annotations", 0, "caption", " "), "annotations[0]", "empty caption", 4),
    "a caption that is no text": (changed("annotations", 1, "caption", 7), "annotations[1]", "is not text", 4),
    "half a character": (changed("annotations", 1, "caption", "\ud800"), "annotations[1]", "lone surrogate", 4),
    "a row that is a list": (lambda c: c["annotations"].append([1]), "annotations[8]", "not a JSON object", 4),
    "a caption of no picture": (without("images", 3), "caption", "image 1 is not in the list", 3),
    "a way out of the folder": (changed("images", 0, "file_name", "../../x.jpg"), "image 4", "leads out", 3),
    "a missing picture": (changed("images", 0, "file_name", "none.jpg"), "image 4", "missing file", 3),
    "an id in words": (changed("images", 0, "id", "four"), "image 'four'", "id is not a whole number", 3),
    "a picture that is no row": (lambda c: c["images"].append("five"), "image 'five'", "not a JSON object", 4),
}


@pytest.mark.parametrize(("damage", "name", "reason", "left"), COCO_DAMAGES.values(), ids=COCO_DAMAGES.keys())
def test_a_damaged_coco_row_is_named_and_the_rest_goes_on(
    damage: Callable[[dict[str, Any]], object], name: str, reason: str, left: int, tmp_path: Path
) -> None:
    folder = coco_folder(tmp_path)
    content = captions_of(folder)
    damage(content)
    write_captions(folder, content)
    documents, bad = read("coco", folder, "train")
    assert len(documents) == left and bad
    assert name in bad[0][0] and reason in bad[0][1]


def test_a_coco_picture_without_captions_is_counted(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
    content = captions_of(folder)
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 2]
    write_captions(folder, content)
    documents, bad = read("coco", folder, "train")
    assert len(documents) == 3 and bad == [("coco train image 2", "no caption")]


def test_vqav2_gives_the_common_answer_to_learn_and_all_ten_to_score_with(tmp_path: Path) -> None:
    documents, bad = read("vqav2", vqav2_folder(tmp_path), "val")
    assert not bad and [document.meta["image_id"] for document in documents] == [1, 2, 3]
    for document in documents:
        assert texts(document, "question") == ["what is it, 0?", "what is it, 1?"]
        assert texts(document, "answer") == ["thing 0", "thing 1"]
        assert document.meta["answers"] == [[f"thing {k}"] * 7 + ["the thing", "2", "two"] for k in (0, 1)]
        assert document.meta["question_ids"] == [document.meta["image_id"] * 1000 + k for k in (0, 1)]


def _rows(folder: Path) -> tuple[list[Any], list[Any]]:
    questions = json.loads((folder / QUESTIONS).read_text())["questions"]
    return questions, json.loads((folder / ANNOTATIONS).read_text())["annotations"]


VQA_DAMAGES: dict[str, tuple[Callable[[list[Any], list[Any]], object], str]] = {
    "a question without annotation": (lambda q, a: a.pop(0), "no annotation with its question_id"),
    "an annotation without answers": (lambda q, a: a[0].update(answers=[]), "holds no answers"),
    "answers that are words": (lambda q, a: a[0].update(answers=["yes"]), "holds no answers"),
    "an answer without text": (lambda q, a: a[0]["answers"][3].pop("answer"), "no answer"),
    "an empty question": (lambda q, a: q[0].update(question=""), "empty question"),
    "a question id that is a list": (lambda q, a: q[0].update(question_id=[1]), "question_id is not a whole number"),
    "an image id that is missing": (lambda q, a: q[0].pop("image_id"), "image_id is not a whole number"),
    "an annotation id that is a list": (lambda q, a: a[0].update(question_id=[1]), "no annotation with its"),
}


@pytest.mark.parametrize(("damage", "reason"), VQA_DAMAGES.values(), ids=VQA_DAMAGES.keys())
def test_a_damaged_vqav2_row_is_named_and_the_rest_goes_on(
    damage: Callable[[list[Any], list[Any]], object], reason: str, tmp_path: Path
) -> None:
    folder = vqav2_folder(tmp_path)
    questions, annotations = _rows(folder)
    damage(questions, annotations)
    write_vqav2(folder, questions, annotations)
    documents, bad = read("vqav2", folder, "val")
    assert [len(texts(document, "question")) for document in documents] == [1, 2, 2]
    assert len(bad) == 1 and bad[0][0] == "vqav2 val questions[0]" and reason in bad[0][1]


def test_a_missing_vqav2_picture_is_counted(tmp_path: Path) -> None:
    folder = vqav2_folder(tmp_path)
    (folder / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    documents, bad = read("vqav2", folder, "val")
    assert len(documents) == 2 and bad == [("COCO_val2014_000000000002.jpg", "missing file")]


@pytest.mark.parametrize("name", ["coco", "vqav2"])
def test_a_folder_that_lacks_what_the_layout_needs_is_one_line(name: str, tmp_path: Path) -> None:
    for path in (None, tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match=rf"{name}.*(needs a path|holds no split|is not there)") as refused:
            open_source(name, path=path, split="train")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"images": 3}', b"\xff\xfe"])
def test_a_file_that_is_not_cocos_is_one_line_that_names_it(content: bytes, tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
    (folder / "annotations" / "captions_train2017.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"coco: .*captions_train2017.json"):
        open_source("coco", path=folder, split="train")


@pytest.mark.parametrize("name", ["coco", "vqav2"])
def test_the_fingerprint_follows_the_data(name: str, tmp_path: Path) -> None:
    make, split = (coco_folder, "train") if name == "coco" else (vqav2_folder, "val")
    first, second = (open_source(name, path=make(tmp_path / x), split=split).fingerprint() for x in "ab")
    assert first == second
    picture = next((tmp_path / "b").glob("*/*.jpg"))
    picture.write_bytes(picture.read_bytes() + b"x")
    assert open_source(name, path=tmp_path / "b", split=split).fingerprint() != first


def test_a_picture_that_cannot_be_decoded_is_found_when_it_is_tokenized(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "coco", images=20)
    (folder / "train2017" / "000000000003.jpg").write_bytes(b"a line of text")
    sharp_tokenizer().save(tmp_path / "codes")
    arguments = ["tokenize", "--source", "coco", "--path", folder, "--image-tokenizer", tmp_path / "codes"]
    assert main([str(part) for part in [*arguments, "--out", tmp_path / "shards"]]) == 0
    assert len(read_all(tmp_path / "shards")[1]) == 19


def test_vqav2_is_scored_by_what_all_ten_said(tmp_path: Path) -> None:
    """The untrained model answers at random; an answer that three of ten gave scores 1 in the task itself."""
    from unimodal.evaluation.metrics.vqa import vqa_score
    from unimodal.evaluation.samples import read_samples
    from unimodal.generation.pipeline import load

    folder, bundle = vqav2_folder(tmp_path / "vqa"), tiny_bundle(tmp_path / "model")
    source = open_source("vqav2", path=folder, split="val")
    (first, *_) = read_samples(source, load(bundle))
    assert [question.text for question in first.questions] == ["what is it, 0?", "what is it, 1?"]
    answers = first.questions[0].answers
    assert len(answers) == 10 and vqa_score("thing 0", answers) == 1
    assert 0.5 < vqa_score("2", answers) < 0.7, "two of ten, as '2' and 'two' are one answer"
    out = tmp_path / "vqa.json"
    named = {"--model": bundle, "--task": "vqa", "--source": "vqav2", "--path": folder, "--split": "val", "--out": out}
    assert main(["evaluate", *(str(part) for pair in named.items() for part in pair)]) == 0
    assert json.loads(out.read_text())["n"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task", "metric"), [("coco", "caption", "cider"), ("vqav2", "vqa", "accuracy")])
def test_a_folder_goes_through_tokenize_fit_and_evaluate(name: str, task: str, metric: str, tmp_path: Path) -> None:
    folder = coco_folder(tmp_path / "data") if name == "coco" else vqav2_folder(tmp_path / "data", split="train")
    shards = tmp_path / "shards"
    sharp_tokenizer().save(tmp_path / "codes")
    source = ["--source", name, "--path", str(folder), "--split", "train"]
    assert main(["tokenize", *source, "--image-tokenizer", str(tmp_path / "codes"), "--out", str(shards)]) == 0
    train(fit_arguments(shards, tmp_path / "run", trainer__max_steps=2, data__validation_share=0))
    out = tmp_path / "result.json"
    named = ["--model", str(tmp_path / "run" / "model"), "--task", task, "--out", str(out)]
    assert main(["evaluate", *named, *source]) == 0
    result = json.loads(out.read_text())
    assert metric in result["metrics"] and result["n"] == (4 if name == "coco" else 6)
