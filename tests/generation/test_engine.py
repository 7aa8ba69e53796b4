"""The engine: batched, cached decoding gives what one slow row at a time gives."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch

from tests.oracles.slow_generation import decode_slowly
from tests.oracles.tiny import tiny_config, tiny_model, tiny_space
from tokenizers_vq.layout import GridLayout
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.drafts.usual import usual_drafting
from unimodal.generation.engine import Engine
from unimodal.generation.forward import EagerForward, MatvecForward, StaticForward
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.modality import check_spans
from unimodal.generation.requests import DecodeConfig, Decoded, Request
from unimodal.generation.sampling import SamplingConfig
from unimodal.generation.stepping import compiled_stepping
from unimodal.model.cache import KVCache
from unimodal.model.config import MultiTokenConfig
from unimodal.model.inference.compiling import can_build_for_cpu
from unimodal.model.model import UnifiedModel

SPACE = tiny_space()
GRID = TokenSpace(
    text_size=16,
    text_hash="t",
    codebook_size=8,
    image_hash="i",
    layout=GridLayout(sizes=((1, 3), (2, 2), (3, 1), (2, 3))),
)
SPACES = {"fixed": SPACE, "grid": GRID}
CONTEXT = 64
WORDS = [[1, 9, 5], [1, 8, 12, 5], [1, 6, 5], [1, 7, 8, 9, 10, 11, 5], [1, 15, 14, 5]]
SEEDS = [21, 22, 23, 24, 25]
HOT = SamplingConfig(temperature=1.5)
CONFIGS: dict[str, dict[str, Any]] = {
    "text": {"mode": "text"},
    "image": {"mode": "image"},
    "mixed": {"mode": "mixed"},
    "guided image": {"mode": "image", "guidance": GuidanceConfig(scale=3.0)},
    "guided mixed": {"mode": "mixed", "guidance": GuidanceConfig(scale=0.5), "sampling": HOT},
    "three-way": {"mode": "mixed", "guidance": GuidanceConfig(scale=2.0, image_scale=1.3), "sampling": HOT},
    "linear": {"mode": "mixed", "guidance": GuidanceConfig(scale=3.0, schedule="linear"), "sampling": HOT},
    "cosine": {"mode": "image", "guidance": GuidanceConfig(scale=3.0, image_scale=2.0, schedule="cosine")},
    "greedy": {"mode": "mixed", "sampling": SamplingConfig(temperature=0)},
    "cut": {
        "mode": "mixed",
        "guidance": GuidanceConfig(scale=2.0),
        "sampling": SamplingConfig(temperature=1.5, top_k=6, top_p=0.9),
    },
}
NAMES = list(CONFIGS)


def prompts(space: TokenSpace = SPACE) -> list[list[int]]:
    """Words alone, and words with a picture."""
    first = space.image_offset
    size = space.layout.sizes[0]
    body = space.image_body([first + index for index in range(size[0] * size[1])], size)
    return [*WORDS[:1], [1, 3, *body, 4, 8, 12, 5], *WORDS[2:]]


def engine(dtype: torch.dtype = torch.float64, space: TokenSpace = SPACE, **changes: Any) -> Engine:
    return Engine(tiny_model(space.vocab_size, dtype=dtype, max_length=CONTEXT, **changes), space)


def requests(config: DecodeConfig, space: TokenSpace = SPACE) -> list[Request]:
    return [Request(prompt=p, config=config, seed=s) for p, s in zip(prompts(space), SEEDS, strict=True)]


def mixed_requests(space: TokenSpace, count: int, seed: int = 0) -> list[Request]:
    """Requests of all kinds, with limits and settings of their own."""
    random, offered = Random(seed), prompts(space)
    return [
        Request(
            prompt=random.choice(offered),
            config=DecodeConfig(max_new_tokens=random.randint(16, 40), **CONFIGS[random.choice(NAMES)]),
            seed=index,
        )
        for index in range(count)
    ]


def ids(answers: Sequence[Decoded]) -> list[list[int]]:
    return [answer.ids for answer in answers]


class Spy:
    """Notes the shape of the tokens of every forward pass."""

    def __init__(self, model: UnifiedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        original = model.forward

        def forward(tokens: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            self.shapes.append(tuple(tokens.shape))
            return original(tokens, *arguments, **named)

        monkeypatch.setattr(model, "forward", forward)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("settings", CONFIGS.values(), ids=NAMES)
def test_cached_batches_decode_as_rows_without_a_cache(settings: dict[str, Any], space: TokenSpace) -> None:
    config, decoder = DecodeConfig(max_new_tokens=34, **settings), engine(space=space)
    found = decoder.decode(requests(config, space))
    for request, answer in zip(requests(config, space), found, strict=True):
        slow, log_probs = decode_slowly(decoder.model, space, request.prompt, request.seed, config)
        assert answer.ids == slow
        assert answer.log_probs == pytest.approx(log_probs, abs=1e-4)
    if config.mode != "text":
        spans = [check_spans(answer.ids, space) for answer in found]
        assert sum(count for count, _ in spans) > 1 and sum(bad for _, bad in spans) == 0


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize(("rows", "sync_every"), [(1, 1), (3, 1), (8, 4), (64, 7)])
def test_a_queue_of_mixed_requests_gives_what_each_gives_alone(space: TokenSpace, rows: int, sync_every: int) -> None:
    decoder, asked = engine(torch.float32, space), mixed_requests(space, 24)
    together = decoder.decode(asked, rows=rows, sync_every=sync_every)
    assert ids(together) == [decoder.decode([request])[0].ids for request in asked]
    assert len({tuple(answer.ids) for answer in together}) > 12
    assert {len(answer.ids) for answer in together} != {1}


def test_the_order_of_the_queue_changes_no_answer() -> None:
    decoder, asked = engine(torch.float32), mixed_requests(SPACE, 20, seed=1)
    shuffled = Random(0).sample(range(20), 20)
    answers = decoder.decode([asked[index] for index in shuffled], rows=5)
    assert [answers[shuffled.index(index)].ids for index in range(20)] == ids(decoder.decode(asked, rows=7))


@pytest.mark.parametrize("wanted", GRID.layout.sizes, ids=str)
def test_an_image_has_the_size_that_was_asked_for(wanted: tuple[int, int]) -> None:
    config = DecodeConfig(mode="image", max_new_tokens=20, image_size=wanted)
    for answer in engine(space=GRID).decode(requests(config, GRID)):
        image = GRID.read_image(answer.ids, 0)
        assert image is not None and image.size == wanted


def test_the_model_itself_chooses_among_all_sizes_that_fit() -> None:
    def drawn(room: int) -> set[tuple[int, int]]:
        config = DecodeConfig(mode="image", max_new_tokens=room, sampling=SamplingConfig(temperature=5.0))
        asked = [Request(prompt=[1, 9, 5], config=config, seed=seed) for seed in range(60)]
        images = [GRID.read_image(answer.ids, 0) for answer in engine(space=GRID).decode(asked)]
        return {image.size for image in images if image}

    assert drawn(20) == set(GRID.layout.sizes)
    assert drawn(GRID.layout.span_of((2, 2)) + 1) == {(1, 3), (2, 2), (3, 1)}
    assert drawn(GRID.layout.span_of((1, 3)) + 1) == {(1, 3)}


@pytest.mark.parametrize("mode", ["image", "mixed"])
def test_guidance_of_scale_one_runs_no_second_context_and_other_scales_change_pictures(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = engine()
    plain = ids(decoder.decode(requests(DecodeConfig(mode=mode))))
    guided = ids(decoder.decode(requests(DecodeConfig(mode=mode, guidance=GuidanceConfig(scale=4.0)))))
    spy = Spy(decoder.model, monkeypatch)
    config = DecodeConfig(mode=mode, guidance=GuidanceConfig(scale=1.0))
    assert ids(decoder.decode(requests(config))) == plain != guided
    assert max(rows for rows, _ in spy.shapes) == len(SEEDS)


def test_contexts_of_guidance_are_rows_only_while_an_image_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = engine()
    spy = Spy(decoder.model, monkeypatch)
    guidance = GuidanceConfig(scale=2.0, image_scale=1.5)
    config = DecodeConfig(mode="mixed", max_new_tokens=40, guidance=guidance, sampling=HOT)
    answers = [decoder.decode([Request(prompt=prompts()[1], config=config, seed=seed)])[0] for seed in range(12)]
    fed = [token for answer in answers for token in answer.ids[:-1]]
    inside = sum(token == SPACE.specials.boi or token >= SPACE.image_offset for token in fed)
    rows = [shape[0] for shape in spy.shapes if shape[1] == 1]
    assert 0 < inside < len(fed)
    assert rows.count(3) == inside and rows.count(1) >= len(fed) - inside and set(rows) == {1, 3}


def test_guidance_acts_inside_images_alone() -> None:
    decoder, config = engine(), {"mode": "text", "max_new_tokens": 20}
    guided = decoder.decode(requests(DecodeConfig(guidance=GuidanceConfig(scale=5.0), **config)))
    assert guided == decoder.decode(requests(DecodeConfig(**config)))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_prompt_is_prefilled_once_even_when_the_answer_holds_three_images(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = engine()
    spy = Spy(decoder.model, monkeypatch)
    config = DecodeConfig(max_new_tokens=50, guidance=GuidanceConfig(scale=scale), sampling=HOT)
    asked = [Request(prompt=WORDS[3], config=config, seed=seed) for seed in range(40)]
    answers = [decoder.decode([request]) for request in asked]
    assert max(check_spans(answer[0].ids, SPACE)[0] for answer in answers) >= 3
    longest = len(WORDS[3]) - 1
    assert [shape for shape in spy.shapes if shape[1] > 3] == [(1, longest)] * len(asked)
    assert all(shape == (1, 3) for shape in spy.shapes if 1 < shape[1] <= 3)


@pytest.mark.parametrize("limit", [1, 2, 7, 12])
def test_rows_end_at_max_new_tokens(limit: int) -> None:
    for mode in ("text", "mixed"):
        answers = engine().decode(requests(DecodeConfig(mode=mode, max_new_tokens=limit)))
        assert all(1 <= len(answer.ids) <= limit for answer in answers)
        assert all(check_spans(answer.ids, SPACE)[1] == 0 for answer in answers)
        for answer in answers:
            assert answer.finish == ("end" if answer.ids[-1] == SPACE.specials.eos else "length")


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("missing", [0, 1])
def test_a_drawing_that_cannot_fit_is_refused_and_one_that_can_is_whole(missing: int, space: TokenSpace) -> None:
    least = min(space.layout.span_of(size) for size in space.layout.sizes)
    config = DecodeConfig(mode="image", max_new_tokens=least + 1 - missing)
    if missing:
        with pytest.raises(ValueError, match="an image and its end take"):
            engine(space=space).decode(requests(config, space))
        return
    answers = engine(space=space).decode(requests(config, space))
    assert all(check_spans(answer.ids, space) == (1, 0) and answer.finish == "end" for answer in answers)


def test_a_prompt_that_leaves_no_room_for_an_image_ends_before_it_and_says_so() -> None:
    config = DecodeConfig(mode="image", max_new_tokens=20)
    asked = [Request(prompt=prompt, config=config) for prompt in ([1] + [9] * (CONTEXT - 4), [1, 9, 5])]
    full, empty = engine().decode(asked)
    assert full.ids == [SPACE.specials.eos] and full.finish == "no room for an image"
    assert check_spans(empty.ids, SPACE) == (1, 0) and empty.finish == "end"


def test_rows_end_where_the_context_ends_each_for_itself() -> None:
    offered = [[1] + [9] * (CONTEXT - 4), [1] + [9] * (CONTEXT - 2), [1, 9, 5]]
    config = DecodeConfig(mode="mixed", max_new_tokens=500)
    for prompt, answer in zip(
        offered, engine().decode([Request(prompt=p, config=config, seed=s) for s, p in enumerate(offered)]), strict=True
    ):
        assert len(prompt) + len(answer.ids) == CONTEXT or answer.ids[-1] == SPACE.specials.eos
        assert check_spans(answer.ids, SPACE)[1] == 0


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_without_rules_a_model_that_never_learned_makes_malformed_images(space: TokenSpace) -> None:
    config = DecodeConfig(mode="image", max_new_tokens=40, constrained=False, guidance=GuidanceConfig(scale=2.0))
    answers = engine(space=space).decode(requests(config, space) * 4)
    assert sum(check_spans(answer.ids, space)[1] for answer in answers) > 0
    assert not any(space.specials.pad in answer.ids for answer in answers)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "empty"),
        ([1] * CONTEXT, f"{CONTEXT} tokens does not fit a context"),
        ([1, 24], "ids lie in 0 to 23, a prompt holds 1 to 24"),
        ([-1], "holds -1"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(prompt: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        engine().decode([Request(prompt=p, config=DecodeConfig()) for p in ([1, 9, 5], prompt)])


@pytest.mark.parametrize("seed", [2**63, 1.5, True])
def test_seeds_that_are_none_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="a seed is a whole number"):
        engine().decode([Request(prompt=[1, 9], config=DecodeConfig(), seed=seed)])


def test_the_size_that_is_asked_for_has_to_fit_into_max_new_tokens() -> None:
    room = GRID.layout.span_of((1, 3)) + 1
    config = DecodeConfig(mode="image", max_new_tokens=room, image_size=(2, 3))
    with pytest.raises(ValueError, match="an image and its end take 12 tokens"):
        engine(space=GRID).decode(requests(config, GRID))


def test_a_size_that_the_layout_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(ValueError, match=r"no images of 5x5 codes, but 1x3, 2x2, 2x3, 3x1"):
        engine(space=GRID).decode(requests(DecodeConfig(image_size=(5, 5)), GRID))


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (DecodeConfig, {"max_new_tokens": 0}, "max_new_tokens"),
        (DecodeConfig, {"mode": "video"}, "text, image, mixed"),
        (GuidanceConfig, {"scale": -1.0}, "guidance"),
        (GuidanceConfig, {"scale": float("nan")}, "guidance"),
        (GuidanceConfig, {"image_scale": float("inf")}, "guidance"),
        (DecodeConfig, {"max_new_tokens": 2.5}, "max_new_tokens is a whole number from 1 to 2147483648, got 2.5"),
        (DecodeConfig, {"constrained": "no"}, "constrained is true or false, got 'no'"),
        (GuidanceConfig, {"scale": 10**400}, "the guidance scale is a number from 0 to 1000"),
        (GuidanceConfig, {"schedule": "square"}, "constant, linear, cosine"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind: Any, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        kind(**settings)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"sync_every": 0}, {"rows": 2.5}])
def test_a_batch_without_rows_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is a whole number from 1 to"):
        engine().decode(requests(DecodeConfig()), **wrong)


PICTURES = [[1, 3, 16 + code, 17, 18, 19, 4, 7, 7] for code in range(2)]
ASKED = [[*picture, 7 + question, *[9] * (question % 3), 5] for question in range(4) for picture in PICTURES]


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=NAMES)
@pytest.mark.parametrize("rows", [3, 64])
def test_a_shared_prefix_changes_no_answer(settings: dict[str, Any], rows: int) -> None:
    config, decoder = DecodeConfig(max_new_tokens=20, **settings), engine()
    asked = [Request(prompt=prompt, config=config, seed=seed) for seed, prompt in enumerate(ASKED)]
    found = ids(decoder.decode(asked, rows=rows))
    assert found == [decode_slowly(decoder.model, SPACE, r.prompt, r.seed, config)[0] for r in asked]
    assert len({tuple(answer) for answer in found}) > 1


@pytest.mark.parametrize("rows", [2, 8])
def test_a_shared_prefix_runs_through_the_model_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = engine()
    spy = Spy(decoder.model, monkeypatch)
    config = DecodeConfig(mode="text", max_new_tokens=2)
    decoder.decode([Request(prompt=prompt, config=config) for prompt in ASKED], rows=rows)
    assert [shape for shape in spy.shapes if shape[1] > 3] == [(1, 9)] * 2


def test_many_samples_of_one_prompt_prefill_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = engine()
    spy = Spy(decoder.model, monkeypatch)
    config = DecodeConfig(mode="text", max_new_tokens=3)
    decoder.decode([Request(prompt=ASKED[0], config=config, seed=seed) for seed in range(9)], rows=4)
    assert [shape for shape in spy.shapes if shape[1] > 1] == [(1, len(ASKED[0]) - 1)]


def test_updates_piece_by_piece_make_up_the_answers() -> None:
    decoder, asked = engine(torch.float32), mixed_requests(SPACE, 12)
    pieces: dict[int, list[int]] = {number: [] for number in range(12)}
    ended: dict[int, Decoded] = {}
    for update in decoder.stream(asked, rows=5):
        assert update.request not in ended
        pieces[update.request] += update.ids
        if update.decoded:
            ended[update.request] = update.decoded
    assert [pieces[number] for number in range(12)] == ids(decoder.decode(asked))
    assert [ended[number] for number in range(12)] == decoder.decode(asked, rows=5)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_steps_at_fixed_shapes_are_one_graph_and_change_no_answer(space: TokenSpace) -> None:
    """Traced whole, as for CUDA graphs, but run as it is: a compiler would take minutes here."""
    decoder, asked = engine(space=space), mixed_requests(space, 12)
    static = Engine(decoder.model, space, StaticForward(decoder.model, backend="eager"))
    assert ids(static.decode(asked, rows=5)) == ids(decoder.decode(asked, rows=5))


@pytest.mark.slow
@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_streamed_steps_are_one_graph_and_change_no_answer(space: TokenSpace, num_kv_heads: int) -> None:
    """Traced whole, but run as it is; one or two rows are streamed, more are packed."""
    decoder, asked = engine(torch.float32, space=space, num_kv_heads=num_kv_heads), mixed_requests(space, 12)
    steps = MatvecForward(decoder.model, decoder.model, backend="eager")
    widths: list[int] = []
    function = steps.function
    steps.function = lambda few, tokens, *rest: (widths.append(len(tokens)), function(few, tokens, *rest))[1]
    few = Engine(decoder.model, space, steps)
    wanted = ids(decoder.decode(asked, rows=5))
    assert ids(few.decode(asked, rows=1)) == wanted
    assert set(widths) == {1, 2}, "an answer alone, and one with the row it is guided by"
    assert ids(few.decode(asked, rows=5)) == wanted


@pytest.mark.slow
def test_a_cache_that_is_done_with_is_let_go() -> None:
    model = tiny_model(max_length=CONTEXT, num_layers=1)
    steps = EagerForward(model)
    cache = KVCache(model.config.trunk, 1, CONTEXT, torch.float64)
    with torch.inference_mode():
        steps(torch.tensor([[5]]), torch.tensor([[0]]), torch.tensor([[0]]), cache, 1)
    memory = weakref.ref(cache.layers[0].keys.untyped_storage())
    del cache
    gc.collect()
    assert memory() is None


@pytest.mark.slow
def test_streamed_steps_when_compiled_are_the_same_function() -> None:
    """Traced only where there is no compiler."""
    how = {} if can_build_for_cpu() else {"backend": "eager"}
    model = tiny_model(max_length=CONTEXT, num_layers=1).requires_grad_(False)
    steps, eager = MatvecForward(model, model, **how), EagerForward(model)
    for rows in (1, 2):
        caches = [KVCache(model.config.trunk, rows, CONTEXT, torch.float32) for _ in range(2)]
        for position in range(6):
            tokens = torch.arange(rows)[:, None] + position + 5
            places = torch.full((rows, 1), position)
            with torch.inference_mode():
                found, wanted = (
                    step(tokens, places, places, cache, position + 1)
                    for step, cache in zip((steps, eager), caches, strict=True)
                )
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "backend"), [("fixed", "eager"), ("grid", "eager"), ("fixed", "inductor")])
def test_compiled_stepping_changes_no_answer(space: str, backend: str) -> None:
    """What stands around the model is the same program; "eager" is what torch.compile read of it."""
    plain = engine(torch.float64, SPACES[space])
    asked = mixed_requests(SPACES[space], 12)
    forward = EagerForward(plain.model)
    forward.stepping = compiled_stepping(backend=backend)
    compiled = Engine(plain.model, SPACES[space], forward)
    torch._dynamo.reset()
    wanted, found = plain.decode(asked, rows=1), compiled.decode(asked, rows=1)
    assert ids(found) == ids(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
    assert ids(compiled.decode(asked, rows=5)) == ids(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [0, 3])
def test_the_decode_path_never_asks_what_is_in_a_tensor(drafts: int) -> None:
    """Under fake tensors, which hold no values, any look at one from the host is an error."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    from unimodal.generation.batch import Batch, BatchLimits
    from unimodal.generation.context import Context
    from unimodal.generation.prefill import NewAnswer

    config = DecodeConfig(guidance=GuidanceConfig(scale=2.0), sampling=SamplingConfig(top_p=0.9, top_k=3))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = UnifiedModel(tiny_config(GRID.vocab_size, max_length=CONTEXT, multi_token=MultiTokenConfig())).eval()
        batch = Batch(model, GRID, BatchLimits(CONTEXT, 20), drafting=usual_drafting(model, drafts))
        batch.sync = list  # the host's sync is what is left out here
        pieces = []
        for number in range(3):
            context = Context()
            context.say(WORDS[number])
            pieces.append(context.piece())
        requests = [Request(prompt=WORDS[n], config=config, seed=n) for n in range(3)]
        batch.add([NewAnswer(n, requests[n], pieces[n]) for n in range(3)])
        for _ in range(5):
            batch.step()
        with pytest.raises(DataDependentOutputException):
            bool(batch.state.done.all())
