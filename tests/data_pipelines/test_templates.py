"""Templates: every sequence written out by hand, prompts weigh nothing, answers weigh one."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np
import pytest

from data_pipelines.outline import Rendered
from data_pipelines.shards import TokenDocument, TokenSegment
from data_pipelines.templates import TemplateConfig, outline, render
from tests.oracles.pictures import SPACE, image, text
from tokenizers_vq.text import TextTokenizer

PAD, BOS, EOS, BOI, EOI, SEP, NULL = range(7)
CODES = [100, 101, 102, 103]
IMAGE = [BOI, *CODES, EOI]
PICTURE, CAPTION = image(0, 1, 2, 3), text("caption", 10, 11)
PAIRS = (text("question", 20), text("answer", 30), text("question", 21, 22), text("answer", 31))

SHOW = TemplateConfig(image_first=1.0)
DRAW = TemplateConfig(image_first=0.0, drop_prompt=0.0)


def told(config: TemplateConfig, *segments: TokenSegment, layout: str = "sample", seed: int = 0) -> Rendered:
    return render(TokenDocument(key="d", segments=segments, meta={"layout": layout}), SPACE, config, Random(seed))


def check(rendered: Rendered, ids: list[int], weights: list[float], branches: list[int], positions: list[int]) -> None:
    assert rendered.ids.tolist() == ids
    assert rendered.weights.tolist() == pytest.approx(weights)
    assert rendered.branches.tolist() == branches
    assert rendered.positions.tolist() == positions
    assert len(rendered) == len(ids)


def test_a_picture_is_shown_and_every_caption_and_question_is_a_branch_of_its_own() -> None:
    check(
        told(SHOW, PICTURE, CAPTION, *PAIRS),
        [BOS, *IMAGE, SEP, 10, 11, EOS, 20, SEP, 30, EOS, 21, 22, SEP, 31, EOS],
        [0, *[0.1] * 6, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1],
        [0, *[0] * 6, *[1] * 4, *[2] * 4, *[3] * 5],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7, 8, 9, 10, 7, 8, 9, 10, 11],
    )


def test_a_picture_is_drawn_from_its_caption() -> None:
    check(
        told(DRAW, PICTURE, CAPTION, *PAIRS),
        [BOS, 10, 11, SEP, *IMAGE, EOS],
        [0, 0, 0, 0, *[1] * 6, 1],
        [0] * 11,
        list(range(11)),
    )


@pytest.mark.parametrize("segments", [(PICTURE, CAPTION), (PICTURE, *PAIRS)])
def test_a_dropped_or_missing_caption_is_null(segments: tuple[TokenSegment, ...]) -> None:
    config = dataclasses.replace(DRAW, drop_prompt=1.0 if CAPTION in segments else 0.0)
    check(
        told(config, *segments),
        [BOS, NULL, SEP, *IMAGE, EOS],
        [0, 0, 0, *[1] * 6, 1],
        [0] * 10,
        list(range(10)),
    )


def test_a_dialogue_keeps_its_order_and_only_answers_weigh() -> None:
    check(
        told(
            SHOW,
            text("request", 40),
            image(0, 1, 2, 3, role="answer"),
            text("answer", 41),
            text("question", 42),
            text("answer", 43),
            layout="dialogue",
        ),
        [BOS, 40, SEP, *IMAGE, 41, EOS, 42, SEP, 43, EOS],
        [0, 0, 0, *[1] * 6, 1, 1, 0, 0, 1, 1],
        [0] * 15,
        list(range(15)),
    )


def test_a_picture_shown_in_a_dialogue_weighs_little() -> None:
    check(
        told(DRAW, PICTURE, text("question", 42), text("answer", 43), layout="dialogue"),
        [BOS, *IMAGE, 42, SEP, 43, EOS],
        [0, *[0.1] * 6, 0, 0, 1, 1],
        [0] * 11,
        list(range(11)),
    )


EDIT = (PICTURE, text("request", 50, 51), image(4, 5, 6, 7, role="answer"))
SHOWN, ANSWER = [BOI, 100, 101, 102, 103, EOI], [BOI, 104, 105, 106, 107, EOI]
EDIT_FORMS = {
    (0.0, 0.0): ([BOS, *SHOWN, 50, 51, SEP, *ANSWER, EOS], [0, *[0.1] * 6, 0, 0, 0, *[1] * 7]),
    (1.0, 0.0): ([BOS, NULL, *SHOWN, SEP, *ANSWER, EOS], [0, 0, *[0.1] * 6, 0, *[1] * 7]),
    (0.0, 1.0): ([BOS, NULL, SEP, *ANSWER, EOS], [0, 0, 0, *[1] * 7]),
    (1.0, 1.0): ([BOS, NULL, SEP, *ANSWER, EOS], [0, 0, 0, *[1] * 7]),
}


def edited(config: TemplateConfig, seed: int = 0) -> Rendered:
    meta = {"layout": "dialogue", "task": "edit"}
    return render(TokenDocument(key="d", segments=EDIT, meta=meta), SPACE, config, Random(seed))


@pytest.mark.parametrize(("drop_prompt", "drop_image"), EDIT_FORMS)
def test_an_edit_is_a_dialogue_or_drops_its_request_or_both(drop_prompt: float, drop_image: float) -> None:
    ids, weights = EDIT_FORMS[drop_prompt, drop_image]
    config = TemplateConfig(drop_prompt=drop_prompt, drop_image=drop_image)
    check(edited(config), ids, weights, [0] * len(ids), list(range(len(ids))))
    assert (
        edited(TemplateConfig(drop_prompt=0, drop_image=0)).ids.tolist()
        == told(SHOW, *EDIT, layout="dialogue").ids.tolist()
    )


def test_edits_drop_as_often_as_the_config_says_and_only_in_these_forms() -> None:
    config = TemplateConfig(drop_prompt=0.25, drop_image=0.4)
    forms = [edited(config, seed).ids.tolist() for seed in range(2000)]
    whole, request, both = (EDIT_FORMS[key][0] for key in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    shares = [forms.count(form) / 2000 for form in (whole, request, both)]
    assert shares == pytest.approx([0.6 * 0.75, 0.6 * 0.25, 0.4], abs=0.03) and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("layout", ["sample", "dialogue", "interleaved"])
def test_other_documents_take_no_random_number_for_dropped_pictures(layout: str) -> None:
    segments = EDIT if layout == "dialogue" else (PICTURE, CAPTION, *PAIRS)
    document = TokenDocument(key="d", segments=segments, meta={"layout": layout})
    taken = {"sample": 2, "dialogue": 0, "interleaved": 0}[layout]
    for share in (0.0, 1.0):
        rng, same = Random(7), Random(7)
        render(document, SPACE, TemplateConfig(image_first=0, drop_prompt=1, drop_image=share), rng)
        for _ in range(taken):
            same.random()
        assert rng.getstate() == same.getstate()


def test_text_alone_is_all_learned() -> None:
    check(told(SHOW, text("text", 10, 11)), [BOS, 10, 11, EOS], [0, 1, 1, 1], [0] * 4, [0, 1, 2, 3])


@pytest.mark.parametrize("config", [SHOW, DRAW])
def test_interleaved_text_and_pictures_keep_their_order_and_all_is_learned(config: TemplateConfig) -> None:
    config = dataclasses.replace(config, drawn_image_weight=0.5)
    check(
        told(config, text("text", 10), PICTURE, PICTURE, text("text", 11, 12), layout="interleaved"),
        [BOS, 10, *IMAGE, *IMAGE, 11, 12, EOS],
        [0, 1, *[0.5] * 12, 1, 1, 1],
        [0] * 17,
        list(range(17)),
    )


def test_every_weight_of_the_config_is_used() -> None:
    config = TemplateConfig(prompt_weight=0.5, shown_image_weight=0.25, drawn_image_weight=2.0, drop_prompt=0.0)
    shown = told(dataclasses.replace(config, image_first=1.0), PICTURE, *PAIRS[:2])
    assert shown.weights.tolist() == [0, *[0.25] * 6, 0.5, 0, 1, 1]
    drawn = told(dataclasses.replace(config, image_first=0.0), PICTURE, CAPTION)
    assert drawn.weights.tolist() == [0, 0.5, 0.5, 0, *[2] * 6, 1]
    talk = told(config, PICTURE, text("request", 9), image(4, 5, 6, 7, role="answer"), layout="dialogue")
    assert talk.weights.tolist() == [0, *[0.25] * 6, 0.5, 0, *[2] * 6, 1]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_prompts_are_dropped_as_often_as_the_config_says(share: float) -> None:
    config = dataclasses.replace(DRAW, drop_prompt=share)
    dropped = [NULL in told(config, PICTURE, CAPTION, seed=seed).ids for seed in range(1000)]
    assert np.mean(dropped) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pictures_come_first_as_often_as_the_config_says(share: float) -> None:
    config = TemplateConfig(image_first=share)
    first = [told(config, PICTURE, CAPTION, seed=seed).ids[1] == BOI for seed in range(1000)]
    assert np.mean(first) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("most", [1, 5, 12, 50])
def test_there_are_never_more_branches_than_the_most_and_all_are_asked_at_some_time(most: int) -> None:
    pairs = [text(role, i) for i in range(20, 32) for role in ("question", "answer")]
    config = dataclasses.replace(SHOW, max_branches=most)
    asked: set[int] = set()
    for seed in range(60):
        rendered = told(config, PICTURE, *pairs, seed=seed)
        now = rendered.ids[(rendered.ids >= 20) & (rendered.ids < 100)].reshape(-1, 2)
        assert len(now) == min(most, 12) == rendered.branches.max()
        assert (now[:, 0] == now[:, 1]).all() and len(set(now[:, 0])) == len(now), "each with its answer, none twice"
        asked |= set(now[:, 0])
    assert asked == set(range(20, 32))


def test_any_of_several_captions_is_drawn() -> None:
    captions = [text("caption", i) for i in (10, 11, 12)]
    assert {told(DRAW, PICTURE, *captions, seed=seed).ids[1] for seed in range(40)} == {10, 11, 12}


def test_special_strings_that_a_user_typed_add_no_special_ids() -> None:
    tokenizer = TextTokenizer.train(["draw a picture"], 263)
    space = dataclasses.replace(SPACE, text_size=tokenizer.size)
    typed = np.asarray(tokenizer.encode("<boi> 5 <eoi><sep><eos> <null>"), dtype=np.int64)
    segments = (image(0, 1, 2, 3, space=space), TokenSegment(kind="text", role="caption", ids=typed))
    document = TokenDocument(key="d", segments=segments)
    for config, specials in ((SHOW, [BOS, BOI, EOI, SEP, EOS]), (DRAW, [BOS, SEP, BOI, EOI, EOS])):
        ids = render(document, space, config, Random(0)).ids
        assert [i for i in ids if i < 7] == specials
        assert tokenizer.decode(ids[ids < space.text_size].tolist()) == "<boi> 5 <eoi><sep><eos> <null>"


@pytest.mark.parametrize("wrong", [{"image_first": 1.1}, {"drop_prompt": -0.1}, {"drop_image": 2}, {"max_branches": 0}])
def test_a_config_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"shares lie between 0 and 1|at least one branch"):
        TemplateConfig(**wrong)


def test_questions_that_do_not_fit_one_row_show_the_picture_again() -> None:
    pairs = [s for n in range(5) for s in (text("question", 20 + n, 30 + n), text("answer", 40 + n))]
    document = TokenDocument(key="k", segments=(image(1, 2, 3, 4), *pairs), meta={})
    whole = outline(document, SPACE, TemplateConfig(image_first=1.0), Random(0))
    trunk = 1 + 6
    parts = whole.cut(trunk + 2 * 5)
    assert [len(part) for part in parts] == [trunk + 10, trunk + 10, trunk + 5]
    built = [part.build() for part in parts]
    for part in built:
        assert part.ids[:trunk].tolist() == whole.build().ids[:trunk].tolist()
        assert part.branches.tolist() == [0] * trunk + [b for b in (1, 2) for _ in range(5)][: len(part) - trunk]
        assert part.positions.tolist() == [*range(trunk), *([*range(trunk, trunk + 5)] * 2)][: len(part)]
    branches = np.concatenate([part.ids[trunk:] for part in built])
    assert branches.tolist() == whole.build().ids[trunk:].tolist(), "every question once, in order"
    assert whole.cut(trunk + 4) == [], "one question does not fit"


def test_a_dialogue_is_cut_between_exchanges() -> None:
    exchange = (text("request", 20, 21), text("answer", 30), image(1, 2, 3, 4, role="answer"))
    document = TokenDocument(key="k", segments=exchange * 3, meta={"layout": "dialogue"})
    whole = outline(document, SPACE, TemplateConfig(), Random(0))
    length = 2 + 1 + 1 + 6 + 1
    assert len(whole) == 1 + 3 * length
    parts = [part.build() for part in whole.cut(1 + 2 * length)]
    assert [len(part) for part in parts] == [1 + 2 * length, 1 + length]
    assert all(part.ids[0] == SPACE.specials.bos and part.ids[-1] == SPACE.specials.eos for part in parts)
    assert np.concatenate([part.ids[1:] for part in parts]).tolist() == whole.build().ids[1:].tolist()


def test_a_drawing_is_never_cut_from_its_caption() -> None:
    document = TokenDocument(key="k", segments=(image(1, 2, 3, 4), text("caption", 20, 21)), meta={})
    whole = outline(document, SPACE, TemplateConfig(image_first=0.0, drop_prompt=0.0), Random(0))
    assert [len(part) for part in whole.cut(len(whole))] == [len(whole)]
    assert whole.cut(len(whole) - 1) == []


def test_long_text_is_cut_anywhere_and_ends_once() -> None:
    document = TokenDocument(key="k", segments=(text("text", *range(20, 45)),), meta={})
    parts = [part.build() for part in outline(document, SPACE, TemplateConfig(), Random(0)).cut(11)]
    assert [part.ids[0] for part in parts] == [SPACE.specials.bos] * 3
    expected = [*range(20, 45), SPACE.specials.eos]
    assert np.concatenate([part.ids[1:] for part in parts]).tolist() == expected
