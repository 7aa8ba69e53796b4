"""Forms of pictures: one contract for all that are registered, and each combination written out by hand."""

from __future__ import annotations

import dataclasses
import itertools
from random import Random
from typing import Any

import numpy as np
import pytest

from data_pipelines.batch import collate
from data_pipelines.forms import LatentTemplateConfig, PictureForm
from data_pipelines.forms.form import REMEDIES
from data_pipelines.forms.registry import DRAWN, SEEN, picture_form
from data_pipelines.outline import Run
from data_pipelines.shards.format import TokenDocument, TokenSegment
from data_pipelines.templates import TemplateConfig, render
from tests.oracles import token_documents
from tests.oracles.token_documents import BOI, BOS, CODES, EOI, EOS, NULL, PAD, SEP, SPACE, document, text

LATENTS = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float16)
PATCHES = np.random.default_rng(1).integers(0, 256, size=(1, 2, 12), dtype=np.uint8)
HALF = LatentTemplateConfig(drop_clean=0.5, drop_codes=0.5, whole=0.5)
COMBINATIONS = list(itertools.product(SEEN, DRAWN))


def image(role: str = "image") -> TokenSegment:
    return token_documents.image(role, latents=LATENTS, patches=PATCHES)


REGISTERED = {f"{seen}-{drawn}": picture_form(SPACE, seen, drawn, HALF) for seen, drawn in COMBINATIONS}
FORMS = pytest.mark.parametrize("form", REGISTERED.values(), ids=list(REGISTERED))


def plain(runs: tuple[Run, ...]) -> list[Any]:
    """Runs as values that compare."""
    return [
        (
            run.ids.tolist(),
            run.weight,
            run.media and (run.media.name, run.media.state, np.array(run.media.values).tolist()),
        )
        for run in runs
    ]


def untouched(random: Random) -> bool:
    return random.getstate() == Random(0).getstate()


@FORMS
def test_what_is_shown_is_never_noised_and_what_is_drawn_is_learnt(form: PictureForm) -> None:
    for followed in (False, True):
        shown = form.shown(image(), 0.25, followed=followed)
        assert shown and not any(run.is_noised for run in shown)
        drawn = form.drawn(image("answer"), 2.0, followed=followed)
        assert drawn[0].weight == 2.0 and all(run.ids[0] == BOI or run.weight == drawn[0].weight for run in drawn[:3])


@FORMS
def test_what_follows_a_drawing_adds_to_it_and_can_attend_to_it(form: PictureForm) -> None:
    alone, followed = (plain(form.drawn(image("answer"), 1.0, followed=later)) for later in (False, True))
    assert followed[: len(alone)] == alone
    assert not form.drawn(image("answer"), 1.0, followed=True)[-1].is_noised


@FORMS
def test_a_picture_stands_between_boi_and_eoi_in_every_representation(form: PictureForm) -> None:
    for runs in (form.shown(image(), 1.0, followed=True), form.drawn(image("answer"), 1.0, followed=True)):
        ids = [token for run in runs for token in run.ids.tolist()]
        assert ids[0] == BOI and ids[-1] == EOI and ids.count(BOI) == ids.count(EOI)
        for run in (run for run in runs if run.media):
            assert run.media is not None
            assert len(run.ids) == run.media.values.shape[0] * run.media.values.shape[1] + 2


@FORMS
@pytest.mark.parametrize("seed", range(12))
def test_an_edit_shows_some_of_the_representations_and_at_least_one(form: PictureForm, seed: int) -> None:
    source = form.source(Random(seed))
    whole, left = (plain(one.shown(image(), 0.5, followed=True)) for one in (form, source))
    kept = iter(whole)
    assert left and all(run in kept for run in left), "in order"


@FORMS
def test_no_random_number_is_drawn_where_there_is_no_choice(form: PictureForm) -> None:
    alone, followed = (plain(form.drawn(image("answer"), 1.0, followed=later)) for later in (False, True))
    random = Random(0)
    whole = form.whole(random)
    assert untouched(random) == (alone == followed) and (alone != followed or not whole)
    random = Random(0)
    form.source(random)
    assert untouched(random) == (len(plain(form.shown(image(), 1.0, followed=True))) in (1, 3))


@pytest.mark.parametrize(("seen", "drawn"), COMBINATIONS)
def test_templates_name_the_media_they_need_and_missing_ones_are_refused_with_the_command(
    seen: Any, drawn: Any
) -> None:
    config = TemplateConfig(seen=seen, drawn=drawn)
    form = picture_form(SPACE, seen, drawn, config.latents)
    runs = (*form.shown(image(), 1.0, followed=True), *form.drawn(image("answer"), 1.0, followed=True))
    assert {run.media.name for run in runs if run.media} == set(config.media)
    for name in config.media:
        lacking = dataclasses.replace(image(), media={n: v for n, v in image().media.items() if n != name})
        with pytest.raises(ValueError, match=f"{name}, and these shards hold none: {REMEDIES[name]}"):
            _ = (*form.shown(lacking, 1.0, followed=True), *form.drawn(lacking, 1.0, followed=True))


PICTURE = [BOI, *CODES, EOI]
LATENT_RUN, PATCH_RUN = [BOI, *[PAD] * 6, EOI], [BOI, *[PAD] * 2, EOI]
PLAIN = TemplateConfig(
    image_first=0.0,
    drop_prompt=0.0,
    drop_image=0.0,
    shown_image_weight=0.25,
    drawn_image_weight=2.0,
    latents=LatentTemplateConfig(drop_clean=0.0, drop_codes=0.0, whole=0.0),
)
EDIT = document(image(), text("request", 8), image("answer"), layout="dialogue", task="edit")
QUESTION = document(image(), text("question", 8), text("answer", 9))
DIALOGUE = document(text("request", 8), image("answer"), text("request", 9), text("answer", 10), layout="dialogue")
PAGE = document(text("text", 8), image(), text("text", 9), layout="interleaved")
EXPECTED: dict[tuple[str, str], dict[str, list[int]]] = {
    ("codes", "codes"): {
        "edit": [BOS, *PICTURE, 8, SEP, *PICTURE, EOS],
        "question": [BOS, *PICTURE, 8, SEP, 9, EOS],
        "drawing": [BOS, NULL, SEP, *PICTURE, EOS],
        "dialogue": [BOS, 8, SEP, *PICTURE, EOS, 9, SEP, 10, EOS],
        "page": [BOS, 8, *PICTURE, 9, EOS],
    },
    ("codes", "latents"): {
        "edit": [BOS, *LATENT_RUN, *PICTURE, 8, SEP, *LATENT_RUN],
        "question": [BOS, *PICTURE, 8, SEP, 9, EOS],
        "drawing": [BOS, NULL, SEP, *LATENT_RUN],
        "dialogue": [BOS, 8, SEP, *LATENT_RUN, *LATENT_RUN, *PICTURE, EOS, 9, SEP, 10, EOS],
        "page": [BOS, 8, *LATENT_RUN, *LATENT_RUN, *PICTURE, 9, EOS],
    },
    ("patches", "latents"): {
        "edit": [BOS, *LATENT_RUN, *PATCH_RUN, 8, SEP, *LATENT_RUN],
        "question": [BOS, *PATCH_RUN, 8, SEP, 9, EOS],
        "drawing": [BOS, NULL, SEP, *LATENT_RUN],
        "dialogue": [BOS, 8, SEP, *LATENT_RUN, *LATENT_RUN, *PATCH_RUN, EOS, 9, SEP, 10, EOS],
        "page": [BOS, 8, *LATENT_RUN, *LATENT_RUN, *PATCH_RUN, 9, EOS],
    },
    ("patches", "codes"): {
        "edit": [BOS, *PATCH_RUN, 8, SEP, *PICTURE, EOS],
        "question": [BOS, *PATCH_RUN, 8, SEP, 9, EOS],
        "drawing": [BOS, NULL, SEP, *PICTURE, EOS],
        "dialogue": [BOS, 8, SEP, *PICTURE, EOS, 9, SEP, 10, EOS],
        "page": [BOS, 8, *PICTURE, 9, EOS],
    },
}


def documents() -> dict[str, tuple[TokenDocument, dict[str, float]]]:
    return {
        "edit": (EDIT, {}),
        "question": (QUESTION, {"image_first": 1.0}),
        "drawing": (QUESTION, {}),
        "dialogue": (DIALOGUE, {}),
        "page": (PAGE, {}),
    }


@pytest.mark.parametrize(("seen", "drawn"), COMBINATIONS)
def test_every_combination_formats_and_packs_every_kind_of_document(seen: Any, drawn: Any) -> None:
    config = dataclasses.replace(PLAIN, seen=seen, drawn=drawn)
    row = []
    for name, (one, changes) in documents().items():
        rendered = render(one, SPACE, dataclasses.replace(config, **changes), Random(0))
        assert rendered.ids.tolist() == EXPECTED[seen, drawn][name], name
        row.append(rendered)
    batch = collate([row, []], sum(map(len, row)) + 2, SPACE)
    assert set(batch.media) == set(config.media)
    for packed in batch.media.values():
        assert batch.spans is not None and (batch.tokens.flatten()[packed.index] == PAD).all()
        assert (packed.spans == batch.spans.flatten()[packed.index]).all()
    noised = {name for name, packed in batch.media.items() if (packed.weights > 0).any()}
    assert noised == ({"latents"} if drawn == "latents" else set())


def test_patches_are_not_predicted_and_the_codes_of_a_drawing_are() -> None:
    config = dataclasses.replace(PLAIN, seen="patches", drawn="codes")
    rendered = render(EDIT, SPACE, config, Random(0))
    assert rendered.weights.tolist() == [0, *[0] * 4, 0, 0, *[2.0] * 6, 1]
    assert rendered.spans is not None and rendered.spans.tolist() == [0, *[1] * 4, *[0] * 9]
    assert rendered.positions.tolist() == [0, *[1] * 4, *range(2, 11)]
    assert [(start, media.name, media.state) for start, media in rendered.media] == [(2, "patches", "clean")]
    assert np.array_equal(rendered.media[0].media.values, PATCHES)


@pytest.mark.parametrize("wrong", [{"seen": "latents"}, {"drawn": "patches"}, {"drawn": "pixels"}])
def test_a_form_that_does_not_exist_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="seen as codes or patches and drawn as codes or latents"):
        TemplateConfig(**wrong)
