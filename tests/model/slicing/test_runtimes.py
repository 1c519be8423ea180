# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import LayerType, ModelConfig
from model.errors import SliceError
from model.slicing.config import slice_config
from model.slicing.count import Layout, text_shapes
from model.slicing.nearby import change
from model.slicing.runtimes import RULES, Runtime, Verdict, nearest, never_met, preflight
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from tests.laws.drawn import specs
from tests.model.slicing.loaders import LOADERS, Built, LoadError
from tests.model.slicing.official import E4B, NARROW, WIDE, official_specs, page

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
OFFICIAL = official_specs()
E2B = OFFICIAL["Config for official E2B Model"]
MIXED = OFFICIAL["Config for E1.96B (layer-level)"]
TEXT, VISION, AUDIO = Modality
# E4B, and others of its layers and widths, with which only the constants of some loaders disagree.
PARENTS = tuple(
    dataclasses.replace(E4B, text=dataclasses.replace(E4B.text, activation_sparsity_pattern=pattern))
    for pattern in (E4B.text.activation_sparsity_pattern, (0.9,) * 10 + (0.0,) * 25, (0.95,) * 9 + (0.0,) * 26)
)


def verdict(runtime: str, spec: SliceSpec, config: ModelConfig = E4B, **given: Any) -> Verdict:
    (one,) = (one for one in preflight(spec, config, **given) if one.runtime == runtime)
    return one


def running(spec: SliceSpec, config: ModelConfig = E4B, **given: Any) -> set[str]:
    return {one.runtime.value for one in preflight(spec, config, **given) if one.runs}


def cut(skip: list[int], *widths: int) -> SliceSpec:
    return SliceSpec.resolve(SliceConfig(name="cut", skip_layers=skip, ffn_widths=list(widths)), E4B.text)


@st.composite
def usual_specs(draw: st.DrawFn) -> SliceSpec:
    """Slices of E4B as people make them: few widths, few layers left out, most of them readers."""
    skipped = draw(st.sets(st.sampled_from(range(20, 35))) | st.just(set(range(20, 25))) | st.just(set()))
    skipped |= draw(st.just(set()) | st.just(set()) | st.sets(st.sampled_from(range(20)), max_size=5))
    kept = set(range(35)) - skipped
    kept |= {E4B.text.kv_producer(layer) for layer in kept}
    chosen = draw(st.sampled_from([(NARROW,), (WIDE,), (NARROW, WIDE)]))
    widths = tuple(draw(st.sampled_from(chosen)) for _ in kept)
    return SliceSpec("usual", tuple(sorted(kept)), widths)


def test_the_published_slices_run_where_the_loaders_sources_say() -> None:
    counts = Counter(one.runtime.value for spec in OFFICIAL.values() for one in preflight(spec, E4B) if one.runs)
    assert counts == {
        "transformers": 16, "vLLM": 16, "mlx-lm": 16, "mistral.rs": 16,
        "llama.cpp": 2, "Ollama": 2, "mlx-vlm": 2, "LiteRT": 2,
    }  # fmt: skip
    assert running(OFFICIAL["Main model"]) == running(E2B) == {runtime.value for runtime in Runtime}


def loads(runtime: str, sliced: ModelConfig) -> bool:
    """Whether what a runtime builds from the written config is the sub-model, given all published tensors."""
    text = sliced.text
    layers = range(text.num_hidden_layers)
    expected = Built(
        text_shapes(text, Layout.used if runtime in ("transformers", "vLLM") else Layout.published),
        list(text.layer_types),
        list(text.activation_sparsity_pattern),
        [text.kv_producer(layer) for layer in layers],
    )
    try:
        return LOADERS[runtime](sliced.publish()) == expected
    except LoadError:
        return False


@given(spec=specs(E4B.text) | usual_specs() | usual_specs(), parent=st.sampled_from(PARENTS))
@settings(max_examples=80)
def test_verdicts_are_those_of_the_loaders_in_small(spec: SliceSpec, parent: ModelConfig) -> None:
    sliced = slice_config(parent, SubModel(spec))
    assert running(spec, parent) & set(LOADERS) == {runtime for runtime in LOADERS if loads(runtime, sliced)}


@given(spec=usual_specs())
@settings(max_examples=15)
def test_a_config_of_one_tower_or_none_is_refused_by_who_builds_both(spec: SliceSpec) -> None:
    for modalities in ([TEXT], [TEXT, VISION], [TEXT, AUDIO]):
        assert not {"mlx-vlm", "mistral.rs", "LiteRT"} & running(spec, modalities=modalities)
        assert "vLLM" not in running(spec, modalities=modalities) or modalities == [TEXT]
        assert ("transformers" in running(spec, modalities=modalities)) == (modalities == [TEXT])


@pytest.mark.parametrize(
    ("modalities", "runtimes"),
    [
        ([TEXT], {"transformers", "vLLM", "llama.cpp"}),
        ([TEXT, VISION], {"mlx-lm", "Ollama"}),
        ([TEXT, AUDIO], {"mlx-lm"}),
    ],
)
def test_e2b_without_towers_runs_in_fewer(modalities: list[Modality], runtimes: set[str]) -> None:
    assert running(E2B, modalities=modalities) == runtimes


def test_a_file_without_dead_keys_and_values_is_told_how_to_get_them() -> None:
    refusing = {"llama.cpp", "Ollama", "mlx-lm", "mlx-vlm", "mistral.rs"}
    assert {runtime.value for runtime in Runtime} - running(E2B, has_dead_kv=False) == refusing
    for runtime in refusing:
        assert "dead_kv=zeros" in " ".join(verdict(runtime, E2B, has_dead_kv=False).reasons)
        assert "dead_kv=zeros" in " ".join(verdict(runtime, E2B).reasons)  # not known: a condition
        assert "dead_kv" not in " ".join(verdict(runtime, E2B, has_dead_kv=True).reasons)
    assert "54917" in " ".join(verdict("vLLM", E2B, has_dead_kv=False).reasons)
    without_readers = cut(list(range(20, 35)))
    assert running(without_readers, has_dead_kv=False) == running(without_readers, has_dead_kv=True)


def test_trimmed_parts_are_held_against_what_runtimes_have_as_constants() -> None:
    assert running(E2B) - running(E2B, vocabulary_trimmed=True) == {"llama.cpp", "Ollama", "mistral.rs", "LiteRT"}
    assert running(E2B) - running(E2B, audio_trimmed=True) == {"LiteRT"}


@pytest.mark.parametrize(
    ("runtime", "spec", "reason"),
    [
        ("llama.cpp", MIXED, r"widths differ \(8,192 to 16,384\), only the first is read; make them one"),
        ("mlx-vlm", MIXED, r"widths differ \(8,192 to 16,384\)"),
        ("llama.cpp", cut([7]), r"19 layers make keys and values, 20 is a constant; skip layers behind those only"),
        ("llama.cpp", cut([20]), r"layer 23 is full_attention, every fifth counts as global; skip whole blocks of 5"),
        ("Ollama", cut([*range(5)]), r"layer 5 has sparsity 0, but the first 10 layers' being 0.95 is a constant"),
        ("vLLM", cut([18, *range(20, 24), *range(25, 29), *range(30, 34)]), None),
        ("vLLM", cut([19, 24, 29, 34]), r"layer 19 reads keys and values of layer 18, layer 17 is taken"),
        ("mlx-lm", cut([4, 9, 14, 19, 24, 29, 34]), r"no full_attention layer makes keys and values"),
        ("LiteRT", MIXED, r"neither E4B nor E2B"),
    ],
)
def test_reasons_name_the_layer_the_rule_and_what_to_do(runtime: str, spec: SliceSpec, reason: str | None) -> None:
    one = verdict(runtime, spec)
    assert one.runs is (reason is None)
    assert runtime not in LOADERS or one.runs is loads(runtime, slice_config(E4B, SubModel(spec)))
    if reason is not None:
        assert re.search(reason, " ".join(one.reasons)), one.reasons


def test_mistral_rs_cuts_e4b_at_load_unless_a_producer_is_skipped() -> None:
    assert "cut from its parent at load" in " ".join(verdict("mistral.rs", E2B).reasons)
    assert "at load" not in " ".join(verdict("mistral.rs", SliceSpec.full(E4B.text)).reasons)
    reserved = cut([19, 24, 29, 34])
    assert verdict("mistral.rs", reserved).runs
    assert "at load" not in " ".join(verdict("mistral.rs", reserved).reasons)
    narrow_parent = slice_config(E4B, SubModel(cut([7])))  # 19 producers: its constants would be wrong
    part = SliceSpec("part", tuple(range(30)), (NARROW,) * 30)
    assert "at load" not in " ".join(verdict("mistral.rs", part, narrow_parent).reasons)


def test_rules_name_what_was_read_and_when() -> None:
    assert [rule.runtime for rule in RULES] == list(Runtime)
    for rule in RULES:
        assert rule.source
        assert rule.read_on.startswith("20")
        assert rule.needs
    assert [rule.runtime for rule in RULES if rule.checked == "run"] == [Runtime.transformers]


@given(spec=specs(E4B.text) | usual_specs(), runtime=st.sampled_from(Runtime))
@settings(max_examples=15, deadline=None)
def test_the_nearest_spec_runs_and_is_the_spec_itself_where_that_runs(spec: SliceSpec, runtime: Runtime) -> None:
    found = nearest(spec, E4B, runtime)
    assert found is not None, "E4B itself runs everywhere"
    assert verdict(runtime.value, found).runs
    assert (found == spec) == verdict(runtime.value, spec).runs


@pytest.mark.parametrize(
    "tail", [(21, 22, 24, 29, 33), pytest.param((20, 21, 22, 23, 25, 29, 30, 31), marks=pytest.mark.slow)]
)
def test_no_spec_of_all_producers_is_nearer_in_exhaustive_search(tail: tuple[int, ...]) -> None:
    asked = SliceSpec("asked", (*range(20), *tail), (NARROW,) * (20 + len(tail)))
    found = nearest(asked, E4B, "llama.cpp")
    assert found is not None
    kind = [LayerType.sliding_attention] * 4 + [LayerType.full_attention]
    layouts = (
        kept
        for count in range(16)
        for kept in combinations(range(20, 35), count)
        if all(E4B.text.layer_types[layer] is kind[place % 5] for place, layer in enumerate(kept))
    )
    best = min(change(asked, SliceSpec("", (*range(20), *kept), (NARROW,) * (20 + len(kept))), E4B.text)
               for kept in layouts)  # fmt: skip
    assert change(asked, found, E4B.text) == best


def test_the_nearest_spec_keeps_the_layers_where_widths_alone_are_wrong() -> None:
    found = nearest(MIXED, E4B, "llama.cpp")
    assert found is not None
    assert (found.kept_layers, set(found.ffn_widths)) == (MIXED.kept_layers, {NARROW})
    assert found.name == "Config for E1.96B (layer-level) for llama.cpp"
    wide = OFFICIAL["Config for E3.79B (layer-level)"]
    assert nearest(wide, E4B, "mlx-vlm") == dataclasses.replace(
        SliceSpec.full(E4B.text), name=f"{wide.name} for mlx-vlm"
    )


def test_where_no_slice_runs_there_is_no_nearest() -> None:
    assert nearest(E2B, E4B.only([TEXT]), "mlx-vlm") is None


@pytest.mark.parametrize("runtime", Runtime)
@pytest.mark.parametrize("spec", [E2B, MIXED, cut([7])], ids=["e2b", "mixed", "fewer producers"])
def test_what_no_slice_meets_is_said_and_nothing_that_another_would(spec: SliceSpec, runtime: Runtime) -> None:
    text_only = E4B.only([TEXT])
    lacking = {
        Runtime.ollama: "has no tower for vision, one is always converted; keep it",
        Runtime.mlx_vlm: "has no tower for vision and audio, both are always built; keep both",
        Runtime.mistral_rs: "has no tower for vision and audio, both are always built; keep both",
        Runtime.mlx_lm: "is a text-only model, of which only the multimodal kind is known; keep a tower",
        Runtime.litert: verdict("LiteRT", MIXED).reasons[0],
    }
    assert (nearest(spec, text_only, runtime.name) is None) is (runtime in lacking)
    if runtime in lacking:
        assert never_met(spec, text_only, runtime.name) == (lacking[runtime],)


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(SliceError, match=r"runtime 'onnx' is not known; choose one of transformers, vLLM, llama\.cpp"):
        nearest(MIXED, E4B, "onnx")
    assert Runtime.named("LLAMA.CPP") is Runtime.named("llama_cpp") is Runtime.llama_cpp


def test_the_page_about_runtimes_is_what_the_rules_say() -> None:
    committed = (Path(__file__).parents[3] / "docs" / "runtimes.md").read_text(encoding="utf-8")
    assert committed == page(), "run: python -m tests.model.slicing.official > docs/runtimes.md"


def test_asking_needs_no_torch() -> None:
    code = "import sys, model.slicing.runtimes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
