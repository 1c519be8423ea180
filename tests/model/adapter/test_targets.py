# SPDX-License-Identifier: Apache-2.0
"""Sets of modules to adapt."""

from __future__ import annotations

import re

import pytest
from torch import nn

from model.adapter.naming import travelling_name
from model.adapter.targets import TargetSet, check_patterns, matches, resolve_targets
from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.tower_config import Modality
from tests.tiny import TINY_AUDIO, TINY_TEXT, tiny_config, tiny_multimodal_config

LAYERS = TINY_TEXT.num_hidden_layers
WHOLE = tiny_multimodal_config()
BESIDE_DECODER = (TargetSet.vision, TargetSet.audio, TargetSet.embedders)


def empty(*modalities: Modality) -> Gemma3n:
    return Gemma3n.build(WHOLE.only(modalities), device="meta")


def leaves(*sets: TargetSet) -> dict[str, int]:
    """How often each module name within a layer (or outside of them) is in these sets."""
    counts: dict[str, int] = {}
    for path in resolve_targets(empty(*Modality), sets):
        leaf = re.sub(r"^model\.(language_model\.(layers\.\d+\.)?)?", "", path)
        leaf = re.sub(r"(?<=conformer\.)\d+\.|(?<=blocks\.)\d+\.\d+\.", "", leaf)
        counts[leaf] = counts.get(leaf, 0) + 1
    return counts


def test_attention_is_four_projections_of_which_readers_have_two() -> None:
    producers = TINY_TEXT.first_shared_layer
    assert leaves(TargetSet.attention) == {
        "self_attn.q_proj": LAYERS,
        "self_attn.k_proj": producers,
        "self_attn.v_proj": producers,
        "self_attn.o_proj": LAYERS,
    }


def test_ffn_is_gate_up_and_down() -> None:
    assert leaves(TargetSet.ffn) == {"mlp.gate_proj": LAYERS, "mlp.up_proj": LAYERS, "mlp.down_proj": LAYERS}


def test_all_linear_is_attention_and_ffn_and_so_is_text() -> None:
    assert leaves(TargetSet.all_linear) == leaves(TargetSet.attention) | leaves(TargetSet.ffn)
    assert leaves(TargetSet.text) == leaves(TargetSet.all_linear)


def test_vision_is_every_convolution_of_one_place_that_is_not_depthwise() -> None:
    model = empty(Modality.vision)
    pointwise = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ]
    assert resolve_targets(model, [TargetSet.vision]) == pointwise
    timm = "vision_tower.timm_model"
    assert leaves(TargetSet.vision) == {
        f"{timm}.blocks.conv_pwl": 2,
        f"{timm}.blocks.pw_exp.conv": 5,
        f"{timm}.blocks.pw_proj.conv": 5,
        **{f"{timm}.blocks.attn.{role}.proj": 2 for role in ("query", "key", "value", "output")},
        f"{timm}.msfa.ffn.pw_exp.conv": 1,
        f"{timm}.msfa.ffn.pw_proj.conv": 1,
    }


def test_audio_is_every_linear_map_of_the_conformer_but_that_of_distances() -> None:
    linear = {
        name
        for name, module in empty(Modality.audio).named_modules()
        if isinstance(module, nn.Linear) and ".conformer." in name and not name.endswith("pos_proj")
    }
    assert set(resolve_targets(empty(Modality.audio), [TargetSet.audio])) == linear
    found = leaves(TargetSet.audio)
    assert len(found) == 10
    assert set(found.values()) == {TINY_AUDIO.conf_num_hidden_layers}


def test_embedders_are_the_two_projections_or_the_one_there_is() -> None:
    assert leaves(TargetSet.embedders) == {f"embed_{kind}.embedding_projection": 1 for kind in ("vision", "audio")}
    one = resolve_targets(empty(Modality.audio), [TargetSet.embedders])
    assert one == ["model.embed_audio.embedding_projection"]


@pytest.mark.parametrize("target_set", BESIDE_DECODER)
def test_a_set_of_a_tower_that_the_model_does_not_have_is_an_error(target_set: TargetSet) -> None:
    with pytest.raises(ConfigError, match=f"'{target_set}' matches no module of this Gemma3n.*one with its towers"):
        resolve_targets(Gemma3n.build(tiny_config(), device="meta"), [TargetSet.text, target_set])


def test_sets_of_the_decoder_touch_no_tower() -> None:
    decoder = [target_set for target_set in TargetSet if target_set not in BESIDE_DECODER]
    paths = resolve_targets(empty(*Modality), decoder)
    assert all(path.startswith("model.language_model.") for path in paths)


def test_per_layer_is_what_the_per_layer_embeddings_pass_through() -> None:
    assert leaves(TargetSet.per_layer) == {
        "per_layer_input_gate": LAYERS,
        "per_layer_projection": LAYERS,
        "per_layer_model_projection": 1,
    }


def test_sets_that_overlap_name_a_module_once() -> None:
    assert leaves(TargetSet.all_linear, TargetSet.ffn) == leaves(TargetSet.all_linear)


def test_altup_is_in_no_set() -> None:
    paths = resolve_targets(empty(*Modality), list(TargetSet))
    assert not [path for path in paths if "altup" in path or "laurel" in path]


def test_a_set_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'ffn' matches no module of this Linear"):
        resolve_targets(nn.Linear(2, 2), [TargetSet.ffn])


def test_no_set_at_all_is_an_error_that_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="attention, ffn, all_linear, text, per_layer, vision, audio, embedders"):
        resolve_targets(empty(), [])


@pytest.mark.parametrize("base", ["model.language_model.", "model."])
def test_a_travelling_name_is_the_end_of_the_path_in_every_layout(base: str) -> None:
    assert travelling_name(f"{base}layers.1.mlp.up_proj") == "layers.1.mlp.up_proj"


def test_travelling_names_of_towers_end_no_other_modules_path() -> None:
    model = empty(*Modality)
    paths = [name for name, _ in model.named_modules()]
    for path in resolve_targets(model, list(TargetSet)):
        name = travelling_name(path)
        assert [other for other in paths if other == name or other.endswith(f".{name}")] == [path]


MIDDLE = r".*\.layers\.[34]\.mlp\..*"


def test_expressions_add_modules_to_sets_and_take_some_away() -> None:
    model = empty(*Modality)
    found = resolve_targets(model, [TargetSet.attention], matching=[MIDDLE], excluded=[r".*\.o_proj"])
    expected = [
        path
        for path in resolve_targets(model, [TargetSet.all_linear])
        if not path.endswith("o_proj") and (".mlp." not in path or ".layers.3." in path or ".layers.4." in path)
    ]
    assert found == expected
    assert resolve_targets(model, [], matching=[MIDDLE]) == [path for path in expected if ".mlp." in path]


def test_what_was_asked_for_is_told_with_what_it_matches() -> None:
    found = matches(empty(), [TargetSet.ffn], [MIDDLE])
    assert {what: len(names) for what, names in found.items()} == {"ffn": 3 * LAYERS, MIDDLE: 6}
    assert found[MIDDLE][0] == "model.language_model.layers.3.mlp.gate_proj"


def test_expressions_match_what_a_low_rank_can_change_and_nothing_else() -> None:
    model = empty(*Modality)
    everything = resolve_targets(model, [], matching=[".*"])
    assert set(everything) >= set(resolve_targets(model, list(TargetSet)))
    assert not [name for name in everything if name.endswith(("_coefs", "embed_tokens", "embed_tokens_per_layer"))]
    kinds = {type(model.get_submodule(name)).__name__ for name in everything}
    assert kinds == {"Linear", "NarrowLinear", "Conv2d", "SameConv"}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            {"matching": ["up_proj"]},
            r"targets_matching: 'up_proj' matches none of the \d+ modules .*begin it with '\.\*'",
        ),
        ({"matching": [MIDDLE, r".*embed_tokens"]}, r"targets_matching: '\.\*embed_tokens' matches none"),
        ({"matching": [MIDDLE], "excluded": [r".*q_proj"]}, r"exclude_matching: '\.\*q_proj' matches none of the 6"),
        ({"matching": [MIDDLE], "excluded": [MIDDLE]}, "takes the last module"),
    ],
)
def test_an_expression_without_effect_is_an_error(how: dict[str, list[str]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve_targets(empty(), [], **how)


def test_a_pattern_of_ranks_for_no_adapted_module_is_an_error() -> None:
    paths = resolve_targets(empty(), [TargetSet.ffn])
    check_patterns(paths, {"rank_pattern": {"up_proj": 2, r"layers\.1\..*": 3}})
    with pytest.raises(ConfigError, match=r"adapter.alpha_pattern: 'q_proj' matches none of the 27 adapted modules"):
        check_patterns(paths, {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 3}})
