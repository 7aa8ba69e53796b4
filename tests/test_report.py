"""The report page: complete, self-contained, safe with any text, and honest about what is missing."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines.sources.easy_vqa import COLOURS, SHAPES, caption
from unimodal.evaluation.contract import Example, TaskResult
from unimodal.evaluation.results import write_results
from unimodal.report import write_report
from unimodal.report.charts import line_chart, log_ticks, thin_out, ticks

VOID = {"img", "meta", "br", "circle", "line", "polyline"}


class Page(HTMLParser):
    """Collects what a browser would load and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.references += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "img":
            self.images.append(values["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.words += data


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def write_task(folder: Path, task: str, metrics: dict[str, float], examples: list[Example]) -> None:
    result = TaskResult(task=task, metrics=metrics, n=9, seconds=61.0, recipe={"seed": 3}, examples=examples)
    data = {"source": "easy_vqa", "split": "test", "sha256": "d"}
    out = folder / "results" / f"{task}.json"
    write_results(result, out, model={"path": "m", "sha256": "5"}, data=data, command=f"unimodal evaluate {task}")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that has everything."""
    question = Example(prompt="a <b> & c?", answer="yes", reference="no", right=False, images={"shown": picture()})
    write_task(tmp_path, "vqa", {"accuracy": 0.9312, "image_blind_accuracy": 0.4}, [question])
    said = Example(answer="a red circle", reference="a red circle", right=True, images={"shown": picture()})
    write_task(tmp_path, "caption", {"exact_match": 0.875, "cider": 6.12}, [said])
    grid = [
        Example(prompt=caption(*pair), answer=" ".join(pair), right=True, images={"drawn": picture()})
        for pair in product(COLOURS, SHAPES)
    ]
    write_task(tmp_path, "t2i", {"accuracy": 0.81, "malformed": 0.0}, grid)
    pair = Example(images={"original": picture(), "reconstruction": picture("blue")})
    write_task(tmp_path, "reconstruction", {"psnr": 31.234, "codebook_use": 0.5}, [pair])
    for name, rows in (
        ("tokenizer", "step,train/loss,val/loss,train/psnr\n0,1.0,,10\n5,,0.5,\n10,0.1,,20\n"),
        ("model", "step,train/loss_text,train/loss_image\n0,7.0,6.5\n50,0.5,\n100,0.2,2.5\n"),
    ):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "metrics.csv").write_text(rows)
    steps = [{"step": "tokenizer", "seconds": 130.0, "command": "python train.py fit"}, {"step": "x", "seconds": 2.0}]
    (tmp_path / "timings.json").write_text(json.dumps(steps))
    picture().save(tmp_path / "drawn.png")
    turns = [
        {"role": "user", "parts": [{"text": "draw <script>alert(1)</script>"}]},
        {"role": "model", "parts": [{"image": "drawn.png"}, {"text": "there"}]},
    ]
    (tmp_path / "dialogue.json").write_text(json.dumps(turns))
    return tmp_path


def page_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_every_tag_is_closed_and_nothing_is_loaded_from_elsewhere(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert page.open == []
    assert page.references and all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_the_page_holds_all_parts_pictures_and_scores(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert len(page.images) == 1 + 1 + 24 + 2 + 1
    assert page.tags.count("svg") == 4
    for text in (
        "93.12%",
        "40.00%",
        "87.50%",
        "6.12",
        "81.00%",
        "31.23 dB",
        "expected: no",
        "2 min 10 s",
        "2 min 12 s in all",
    ):
        assert text in page.words, text
    for task in ("vqa", "caption", "t2i", "reconstruction"):
        assert f"unimodal evaluate {task}" in page.words
    assert "Left out" not in page.words


def test_text_from_data_is_escaped(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert "draw <script>alert(1)</script>" in page.words and "a <b> & c?" in page.words


def test_an_empty_run_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert page.open == []
    for missing in ("logs/tokenizer/metrics.csv", "logs/model/metrics.csv", "timings.json", "dialogue.json"):
        assert f"{missing} is not there" in page.words
    assert page.words.count("Left out: the run holds nothing for this part.") >= 8


@pytest.mark.parametrize("name", ["results/vqa.json", "timings.json", "dialogue.json"])
@pytest.mark.parametrize("content", ["{", "3", '"x"'])
def test_a_broken_file_is_named_and_the_rest_stays(run_dir: Path, name: str, content: str) -> None:
    (run_dir / name).write_text(content)
    page = page_of(run_dir)
    assert name in page.words and "87.50%" in page.words


def test_a_missing_picture_is_named(run_dir: Path) -> None:
    (run_dir / "drawn.png").unlink()
    assert "picture drawn.png is not there" in page_of(run_dir).words


def test_pictures_outside_the_run_are_not_read(run_dir: Path) -> None:
    picture().save(run_dir.parent / "secret.png")
    turns = [{"role": "model", "parts": [{"image": "../secret.png"}]}]
    (run_dir / "dialogue.json").write_text(json.dumps(turns))
    assert "picture ../secret.png is not there" in page_of(run_dir).words


def test_prompts_beyond_easy_vqa_become_cards(run_dir: Path) -> None:
    write_task(run_dir, "t2i", {"malformed": 0.0}, [Example(prompt="a big dog", images={"drawn": picture()})])
    assert "a big dog" in page_of(run_dir).words


def test_edits_are_shown_beside_what_was_asked_and_the_known_answer(run_dir: Path) -> None:
    assert "Edits" not in page_of(run_dir).words
    images = {name: picture() for name in ("shown", "drawn", "known")}
    right = Example(prompt="make <it> red", answer="red circle", reference="red circle", right=True, images=images)
    wrong = Example(prompt="paint it", answer="", reference="blue circle", right=False, images={"shown": picture()})
    metrics = {"accuracy": 0.625, "psnr_rest": 33.333, "ceiling_psnr": 30.5, "copied": 0.125}
    before = len(page_of(run_dir).images)
    write_task(run_dir, "edit", metrics, [right, wrong])
    page = page_of(run_dir)
    assert len(page.images) == before + 4 and page.open == []
    for words in ("make <it> red", "62.50%", "33.33 dB", "30.50 dB", "12.50%", "expected: blue circle", "Edits"):
        assert words in page.words, words
    assert "picture drawn is not there" in page.words


def test_a_folder_that_is_not_there_is_one_readable_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        write_report(tmp_path / "nowhere")


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    drawn = [part.split('"')[0] for part in svg.split('points="')[1:]]
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in drawn]  # type: ignore[misc]


def test_a_chart_keeps_the_order_of_its_values() -> None:
    (line,) = polylines(line_chart("loss", {"train": [(0, 3.0), (1, 2.0), (2, 1.0)]}))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert line[0][1] < line[1][1] < line[2][1]


def test_wide_ranges_are_drawn_on_a_logarithmic_scale() -> None:
    (line,) = polylines(line_chart("loss", {"train": [(0, 100.0), (1, 10.0), (2, 1.0)]}))
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
    (flat,) = polylines(line_chart("psnr", {"train": [(0, 0.0), (1, 10.0), (2, 100.0)]}))
    assert flat[0][1] - flat[1][1] == pytest.approx((flat[1][1] - flat[2][1]) / 9, abs=0.2)


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 0.0), (1, 0.0)], [(5, -2.0), (5, 3.0)]])
def test_degenerate_curves_are_drawn_too(points: list[tuple[float, float]]) -> None:
    assert all(
        math.isfinite(value) for line in polylines(line_chart("x", {"a": points})) for xy in line for value in xy
    )


def test_a_chart_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        line_chart("loss", {"train": []})


def test_thinning_keeps_mean_and_last_point() -> None:
    points: Any = [(float(x), float(x % 2)) for x in range(1001)]
    thin = thin_out(points, 100)
    assert len(thin) <= 100 and thin[-1] == points[-1]
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(0.5, abs=0.05)
    assert thin_out(points[:50], 100) == points[:50]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(13, 87) == pytest.approx([20, 40, 60, 80])
    assert log_ticks(0.3, 7) == pytest.approx([0.5, 1, 2, 5])
    assert ticks(2, 2) == [2]


def test_a_training_of_a_user_is_reported_from_where_its_commands_leave_things(tmp_path: Path) -> None:
    """RUN/logs and RUN/samples of the decoder, RUN/tokenizer of the image tokenizer, RUN/caption.json."""
    for folder, columns in (("logs", "train/loss_text,train/loss_image"), ("tokenizer/logs", "train/psnr,val/psnr")):
        place = tmp_path / folder / "version_0"
        place.mkdir(parents=True)
        (place / "metrics.csv").write_text(f"step,{columns}\n1,2.0,3.0\n2,1.0,2.5\n")
    for name in (
        "samples/drawn-000500.png",
        "samples/drawn-001000.png",
        "tokenizer/samples/reconstructions-000400.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name)
    result = TaskResult(task="reconstruction", metrics={"psnr": 30.1, "drawn_psnr": 7.44}, n=1, seconds=1, recipe={})
    write_results(result, tmp_path / "r.json", model={}, data={})
    (tmp_path / "other.json").write_text("[1]")
    page = Page(write_report(tmp_path).read_text())
    assert "Model: text loss" in page.words and "Image tokenizer: PSNR in dB" in page.words
    assert "drawn, step 1,000" in page.words and "reconstructions, step 400" in page.words
    assert "7.44 dB" in page.words and "744" not in page.words and "step 500" not in page.words


def test_the_run_of_a_tokenizer_alone_is_reported_too(tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("step,train/psnr\n1,20\n2,21\n")
    page = Page(write_report(tmp_path).read_text())
    assert "Image tokenizer: PSNR in dB" in page.words and "Model: text loss" not in page.words


def test_a_run_of_reinforcement_learning_shows_answers_before_during_and_after(tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text(
        "step,train/reward,train/reward_drawn,train/entropy_image,val/reward\n1,0.2,0.2,2.0,\n2,0.4,0.4,1.9,0.3\n"
    )
    (tmp_path / "samples").mkdir()
    for step in (1, 10, 20, 30):
        picture().save(tmp_path / "samples" / f"rollout-{step:06d}.png")
    for name, accuracy in (("before", 0.5), ("after", 0.75)):
        write_task(tmp_path, "t2i", {"accuracy": accuracy, "diversity": 0.2}, [])
        (tmp_path / "results" / "t2i.json").rename(tmp_path / "results" / f"{name}_t2i.json")
    page = Page(write_report(tmp_path).read_text())
    for text in ("Reward, in training and held out", "Each reward, and by kind of prompt", "Entropy, nats a token"):
        assert text in page.words
    assert "before, step 1" in page.words and "during, step 20" in page.words and "after, step 30" in page.words
    assert "Drawing from text, before" in page.words and "Drawing from text, after" in page.words
    assert "50.00%" in page.words and "75.00%" in page.words and "rollout, step" not in page.words
