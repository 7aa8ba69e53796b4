"""Where weights come from and which are trained, without a run around it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.oracles.tiny import tiny_flow_pipeline, tiny_model, tiny_pipeline, tiny_space
from unimodal.model.config import RopeConfig
from unimodal.model.model import UnifiedModel
from unimodal.training.codebook_init import CodebookInitConfig
from unimodal.training.start import StartConfig, bundle_config, freeze, load_bundle, start


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "bundle"
    tiny_pipeline().save(folder)
    return folder


def names(model: UnifiedModel) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def frozen(*patterns: str) -> StartConfig:
    return StartConfig(bundle=Path(), freeze=patterns)


def test_a_bundle_gives_its_architecture_and_all_weights(bundle: Path) -> None:
    config = bundle_config(StartConfig(bundle=bundle))
    assert config is not None and bundle_config(StartConfig()) is None
    model, expected = UnifiedModel(config), tiny_pipeline()
    assert load_bundle(model, bundle, expected.token_space) >= names(model)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_mixture_takes_a_dense_bundle_for_both_experts_and_its_branch_stays_new(bundle: Path) -> None:
    space = tiny_pipeline().token_space
    model = tiny_flow_pipeline(max_length=64).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = load_bundle(model, bundle, space)
    own = {name for name in model.state_dict() if name.startswith(("branches.", "heads.velocity."))}
    assert own and loaded.isdisjoint(own)
    state = model.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in own)
    experts = [name for name in state if ".understanding." in name]
    assert experts
    for name in experts:
        assert torch.equal(state[name], state[name.replace(".understanding.", ".generation.")]), name


def test_what_does_not_fit_a_bundle_is_named(bundle: Path) -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(ValueError, match="its rope is"):
        other = tiny_model(pipeline.token_space.vocab_size, rope=RopeConfig(theta=5.0))
        load_bundle(other, bundle, pipeline.token_space)
    with pytest.raises(ValueError, match=r"its norm_eps is 1e-05, this run's 0\.001"):
        load_bundle(tiny_model(pipeline.token_space.vocab_size, norm_eps=1e-3), bundle, pipeline.token_space)
    with pytest.raises(ValueError, match="its hidden_dim is 24, this run's 32"):
        load_bundle(tiny_model(pipeline.token_space.vocab_size, hidden_dim=32), bundle, pipeline.token_space)
    with pytest.raises(ValueError, match="the data"):
        load_bundle(pipeline.model, bundle, tiny_space())


def test_a_dense_run_does_not_start_from_a_mixture(tmp_path: Path) -> None:
    mixture = tiny_flow_pipeline(max_length=64)
    mixture.save(tmp_path / "mixture")
    dense = tiny_pipeline()
    with pytest.raises(ValueError, match="is a mixture of transformers, and this run trains a dense model"):
        load_bundle(dense.model, tmp_path / "mixture", dense.token_space)


def test_frozen_weights_are_those_that_match_and_were_trained() -> None:
    model = tiny_model()
    freeze(model, frozen("trunk.blocks.0.*", "*.embedding.weight"), names(model))
    kept = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert kept == {name for name in names(model) if name.startswith("trunk.blocks.0.") or "embedding" in name}


def test_what_a_bundle_set_may_be_frozen(bundle: Path) -> None:
    pipeline = tiny_pipeline()
    start(pipeline.model, StartConfig(bundle=bundle, freeze=("trunk.blocks.*",)), pipeline.token_space, None)
    taken = {name for name, parameter in pipeline.model.named_parameters() if parameter.requires_grad}
    assert taken == {name for name in names(pipeline.model) if not name.startswith("trunk.blocks.")}


@pytest.mark.parametrize(
    ("patterns", "loaded", "reason"),
    [
        (["trunk.layers.*"], True, "no parameter is called 'trunk.layers.*'; there is"),
        (["trunk.*"], False, "freezes trunk.embedding.weight, which nothing has trained"),
        (["*"], True, "leaves nothing to train"),
    ],
)
def test_a_wrong_pattern_is_one_line(patterns: list[str], loaded: bool, reason: str) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=reason.replace("*", r"\*")) as error:
        freeze(model, frozen(*patterns), names(model) if loaded else set())
    assert "\n" not in str(error.value)


def test_settings_that_contradict_each_other_are_refused(bundle: Path) -> None:
    with pytest.raises(ValueError, match="would keep random weights"):
        StartConfig(freeze=("trunk.*",))
    with pytest.raises(ValueError, match="would overwrite the bundle's embedding"):
        StartConfig(bundle=bundle, codebook=CodebookInitConfig())
    with pytest.raises(ValueError, match=r"the model has none: set model\.vision"):
        start(tiny_model(), StartConfig(vision=bundle), tiny_space(), None)
