"""Prompts: every one once before any comes again, kinds in their shares, from sources and from files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.documents import DamagedSample
from tests.oracles.tiny_rl import tiny_prompts
from unimodal.training.rl.data import PromptStream
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.prompts.captions import Captions
from unimodal.training.rl.prompts.drawings import Drawings
from unimodal.training.rl.prompts.edits import Edits
from unimodal.training.rl.prompts.file import FilePrompts
from unimodal.training.rl.prompts.mixed_requests import MixedRequests
from unimodal.training.rl.prompts.questions import Questions

SIZES = {"a": 7, "b": 5}
KINDS = [[RLPrompt(name=f"{kind}{number}", prompt="x") for number in range(size)] for kind, size in SIZES.items()]


def drawn_names(stream: PromptStream, count: int) -> list[str]:
    return [each.prompt.name for each in stream.draw(count)]


def test_no_prompt_comes_again_before_all_of_its_kind_have_come() -> None:
    names = drawn_names(PromptStream.of(KINDS, [3, 1], seed=0), 140)
    for kind, size in SIZES.items():
        of_kind = [name for name in names if name.startswith(kind)]
        for first in range(0, len(of_kind) - size + 1, size):
            assert len(set(of_kind[first : first + size])) == size
    assert Counter(name[0] for name in names) == {"a": 105, "b": 35}
    of_b = [sum(name.startswith("b") for name in names[:end]) for end in range(1, 141)]
    assert all(abs(count - end / 4) <= 1 for end, count in enumerate(of_b, start=1))


def test_counts_are_all_that_a_resumed_stream_needs() -> None:
    whole = drawn_names(PromptStream.of(KINDS, [2, 1], seed=3), 60)
    first = PromptStream.of(KINDS, [2, 1], seed=3)
    begun_names = drawn_names(first, 17)
    second = PromptStream.of(KINDS, [2, 1], seed=3)
    second.counts = list(first.counts)
    assert begun_names + drawn_names(second, 43) == whole
    assert drawn_names(PromptStream.of(KINDS, [2, 1], seed=4), 60) != whole


def test_sources_make_prompts_with_the_facts_that_rewards_read() -> None:
    question = Questions(rewards={"r": 1.0}, limit=3, only=("yes", "no")).open()[0]
    assert question.facts["answers"][0] in ("yes", "no")
    assert len(question.pictures) == 1
    assert question.words.endswith("?")
    caption = Captions(rewards={"r": 1.0}, limit=2).open()[0]
    assert caption.facts["captions"][0].startswith("a ")
    drawings = Drawings(rewards={"r": 1.0}).open()
    assert len({prompt.words for prompt in drawings}) == len(drawings) == 24
    assert {"colour", "shape"} <= drawings[0].facts.keys()
    edit = Edits(rewards={"r": 1.0}, limit=1).open()[0]
    assert edit.facts["shown"].size == edit.facts["known"].size
    request = MixedRequests(rewards={"r": 1.0}, limit=4).open()[3]
    assert request.facts["captions"][0] in request.words
    assert request.words.startswith(("draw",))


def test_a_file_of_prompts_is_read_with_its_pictures(tmp_path: Path) -> None:
    prompts = FilePrompts(path=tiny_prompts(tmp_path / "prompts.jsonl"), rewards={"r": 1.0}).open()
    assert len(prompts) == 5
    assert prompts[4].pictures[0].size == (16, 16)
    assert prompts[4].words == "what color is it?"


@pytest.mark.parametrize(
    "line", ['{"prompt": 3}', "no json", '{"facts": {}}', '{"prompt": []}', '{"prompt": "a", "facts": 3}', '["a"]']
)
def test_a_bad_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl line 2 is not"):
        FilePrompts(path=path, rewards={"r": 1.0}).open()


def test_prompts_without_a_reward_or_a_temperature_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one reward"):
        Drawings(rewards={})
    with pytest.raises(ValueError, match="a temperature of 0 leaves nothing to learn"):
        Drawings(rewards={"r": 1.0}, decode={"temperature": 0.0})
    with pytest.raises(ValueError, match=r"decode: .*heat"):
        Drawings(rewards={"r": 1.0}, decode={"heat": 1.0})


class Damaged(Sequence[RLPrompt]):
    """Thirty prompts, of which every tenth cannot be opened."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: Any) -> Any:
        if index % 10 == 3:
            raise DamagedSample(f"{index}.png: cannot be read as an image")
        return RLPrompt(name=str(index), prompt="x")


def test_a_prompt_whose_picture_is_damaged_is_skipped_counted_and_named() -> None:
    stream = PromptStream.of([Damaged()], [1], seed=0)
    names = drawn_names(stream, 27)
    assert len(set(names)) == 27 and not {"3", "13", "23"} & set(names)
    assert sorted(reason for _, reason in stream.failures.bad) == [
        f"{index}.png: cannot be read as an image" for index in (13, 23, 3)
    ]


def test_a_file_names_a_picture_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": [{"image": "gone.png"}, "what is it?"]}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl line 1: there is no picture gone\.png"):
        FilePrompts(path=path, rewards={"r": 1.0}).open()
