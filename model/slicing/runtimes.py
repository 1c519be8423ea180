# SPDX-License-Identifier: Apache-2.0
"""Which runtime loads a sub-model, and why not: rules read from the loaders' sources, kept as data.

A runtime sees the sliced config and files, not the spec, so its needs are asked of these. "Runs" is
said of what a loader builds and computes, not of speed or memory. Sources change: each rule names the
file, the version and the day it was read, and whether it was also run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from model.config import ModelConfig
from model.errors import SliceError
from model.slicing import runtime_needs as needs
from model.slicing.config import slice_config
from model.slicing.nearby import candidates, change
from model.slicing.runtime_needs import Need, Shipped
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality

Checked = Literal["read", "run"]  # from its source, or by loading random slices


class Runtime(StrEnum):
    """A program that may be given a sliced checkpoint."""

    transformers = "transformers"
    vllm = "vLLM"
    llama_cpp = "llama.cpp"
    ollama = "Ollama"
    mlx_lm = "mlx-lm"
    mlx_vlm = "mlx-vlm"
    mistral_rs = "mistral.rs"
    litert = "LiteRT"

    @classmethod
    def named(cls, name: str) -> Runtime:
        """The runtime of this name, however it is capitalised.

        Raises:
            SliceError: There is none.
        """
        for runtime in cls:
            if name.lower() in (runtime.name, runtime.value.lower()):
                return runtime
        raise SliceError(f"runtime {name!r} is not known; choose one of {', '.join(cls)}")


@dataclass(frozen=True)
class Rule:
    """What one runtime needs; ``remarks`` are what to know where it runs."""

    runtime: Runtime
    needs: tuple[Need, ...]
    source: str
    remarks: tuple[Need, ...] = ()
    checked: Checked = "read"
    read_on: str = "2026-11-22"


@dataclass(frozen=True)
class Verdict:
    """Whether a runtime loads a sub-model. ``reasons`` are why not; where it runs, under which conditions."""

    runtime: Runtime
    runs: bool
    reasons: tuple[str, ...]
    source: str
    read_on: str
    checked: Checked


ONE_WIDTH = Need("one width for all layers", needs.differing_widths)
TWENTY_PRODUCERS = Need("20 layers with keys and values of their own", needs.other_count_of_producers)
EVERY_FIFTH = Need("every fifth layer global, the others local", needs.other_pattern)
TEN_SPARSE = Need("the first 10 layers sparse by 0.95, the others dense", needs.other_sparsity)
LAST_TWO = Need("producers last before the readers: local, then global", needs.producers_elsewhere)
BOTH_KINDS = Need("a local and a global layer among the producers", needs.missing_kind)
DEAD_KV = Need("keys and values in every layer's file, also of readers", needs.missing_dead_kv)
NO_SINGLE_TOWER = Need("both towers or none", needs.one_tower)
BOTH_TOWERS = Need("both towers", needs.missing_tower)
VISION_TOWER = Need("the vision tower", needs.missing_vision)
MULTIMODAL = Need("a multimodal config", needs.text_only)
OLD_ROPE = Need("rope_theta and rope_local_base_freq in the config", needs.no_old_rope)
ALL_TOKENS = Need("the published tokenizer", needs.trimmed_vocabulary)
FIXED_IDS = Need("the published ids of images and sound", needs.moved_placeholders)
BUNDLE = Need("the shape of E4B or E2B, with both towers", needs.not_a_bundle)

IF_DEAD_KV = Need("dead_kv", needs.unknown_dead_kv)
SINCE = Need("version", needs.without_dead_kv)
AT_LOAD = Need("at load", needs.cut_at_load)
OF_GOOGLE = Need("weights", needs.bundle_weights)

LLAMA_CPP = (ONE_WIDTH, TWENTY_PRODUCERS, EVERY_FIFTH, TEN_SPARSE, DEAD_KV, ALL_TOKENS)

RULES = (
    Rule(
        Runtime.transformers,
        (NO_SINGLE_TOWER,),
        "transformers 5.23.0: models/gemma3n/configuration_gemma3n.py, modeling_gemma3n.py",
        checked="run",
    ),
    Rule(
        Runtime.vllm,
        (LAST_TWO, NO_SINGLE_TOWER),
        "vllm-project/vllm 7bbfbc7f: vllm/model_executor/models/gemma3n.py; pull request 54917",
        (SINCE,),
    ),
    Rule(
        Runtime.llama_cpp,
        (*LLAMA_CPP, NO_SINGLE_TOWER),
        "ggml-org/llama.cpp 3688fa86: src/models/gemma3n.cpp, models.h; 061b8c5f: conversion/gemma.py",
        (IF_DEAD_KV,),
    ),
    Rule(
        Runtime.ollama,
        (*LLAMA_CPP, VISION_TOWER, OLD_ROPE),
        "ollama/ollama: convert/convert_gemma3n.go, convert.go; what it writes, llama.cpp runs",
        (IF_DEAD_KV,),
    ),
    Rule(
        Runtime.mlx_lm,
        (BOTH_KINDS, DEAD_KV, MULTIMODAL, OLD_ROPE),
        "ml-explore/mlx-lm 568179d3: mlx_lm/models/gemma3n.py",
        (IF_DEAD_KV,),
    ),
    Rule(
        Runtime.mlx_vlm,
        (ONE_WIDTH, BOTH_KINDS, DEAD_KV, BOTH_TOWERS),
        "Blaizzy/mlx-vlm 14ed943d: mlx_vlm/models/gemma3n/language.py, gemma3n.py, config.py",
        (IF_DEAD_KV,),
    ),
    Rule(
        Runtime.mistral_rs,
        (DEAD_KV, BOTH_TOWERS, FIXED_IDS),
        "EricLBuehler/mistral.rs: mistralrs-core/src/vision_models/gemma3n/text.rs, config.rs, inputs_processor.rs;"
        " 70c7f866: src/matformer.rs",
        (IF_DEAD_KV, AT_LOAD),
    ),
    Rule(
        Runtime.litert,
        (BUNDLE,),
        "google-ai-edge: LiteRT-LM issue 547, litert-torch issues 750 and 864",
        (OF_GOOGLE,),
    ),
)


def preflight(
    spec: SliceSpec,
    config: ModelConfig,
    *,
    modalities: Iterable[Modality] | None = None,
    has_dead_kv: bool | None = None,
    vocabulary_trimmed: bool = False,
    audio_trimmed: bool = False,
) -> tuple[Verdict, ...]:
    """What each runtime says to the sub-model ``spec`` of a model of this config, in the order of ``RULES``.

    Args:
        spec: The part of the parent's text decoder.
        config: The parent's.
        modalities: What is kept of the parent's towers; None: all.
        has_dead_kv: Whether the sub-model's file holds keys and values of layers that read another's; None:
            not known.
        vocabulary_trimmed: Whether tokens are left out.
        audio_trimmed: Whether layers of the audio tower are left out.

    Raises:
        ConfigError: The parent has no tower for one of the modalities.
        SliceError: The spec does not fit the config.
    """
    kept = None if modalities is None else tuple(modalities)
    sliced = slice_config(config, SubModel(spec, kept))
    shipped = Shipped(sliced, spec, config, has_dead_kv, vocabulary_trimmed, audio_trimmed)
    return tuple(judge(rule, shipped) for rule in RULES)


def judge(rule: Rule, shipped: Shipped) -> Verdict:
    """What one runtime says to one checkpoint."""
    missing = said(rule.needs, shipped)
    reasons = missing or said(rule.remarks, shipped)
    return Verdict(rule.runtime, not missing, reasons, rule.source, rule.read_on, rule.checked)


def said(asked: Sequence[Need], shipped: Shipped) -> tuple[str, ...]:
    """What there is to say of each, without repeats."""
    return tuple(dict.fromkeys(text for need in asked if (text := need.missing(shipped))))


def nearest(spec: SliceSpec, config: ModelConfig, runtime: str) -> SliceSpec | None:
    """The sub-model that ``runtime`` runs and that differs from ``spec`` in the fewest parameters.

    Parameters differ that one of the two has and the other has not; among equals, fewer layers added or
    left out, then fewer parameters in all. Widths are those that ``spec`` has somewhere, and the parent's
    and half of it. The spec itself if it runs; None if nothing does, as for a parent without towers where
    a runtime needs them. Whether the files hold dead keys and values is not asked.

    Raises:
        SliceError: The spec does not fit the config, or there is no such runtime.
    """
    rule = rule_of(runtime)
    if answer(rule, spec, config).runs:
        return spec
    others = sorted(candidates(spec, config.text), key=lambda other: change(spec, other, config.text))
    found = next((other for other in others if answer(rule, other, config).runs), None)
    return found and replace(found, name=f"{spec.name} for {rule.runtime}")


def never_met(spec: SliceSpec, config: ModelConfig, runtime: str) -> tuple[str, ...]:
    """Why ``nearest`` finds nothing: what ``runtime`` lacks in ``spec`` and in every sub-model like it.

    Where each need is met by some of them, though no sub-model meets them all: what it lacks in ``spec``.

    Raises:
        SliceError: As ``nearest``.
    """
    rule, asked = rule_of(runtime), shipped_as(spec, config)
    others = [shipped_as(other, config) for other in candidates(spec, config.text)]
    never = [need for need in rule.needs if all(need.missing(other) for other in (asked, *others))]
    return said(never or rule.needs, asked)


def rule_of(runtime: str) -> Rule:
    """The rule of a runtime by its name; SliceError if there is none."""
    return next(rule for rule in RULES if rule.runtime is Runtime.named(runtime))


def shipped_as(spec: SliceSpec, config: ModelConfig) -> Shipped:
    """The part ``spec`` of a model as a runtime is given it, if nothing is known of its files."""
    return Shipped(slice_config(config, SubModel(spec)), spec, config)


def answer(rule: Rule, spec: SliceSpec, config: ModelConfig) -> Verdict:
    """What one runtime says to the part ``spec`` of a model."""
    return judge(rule, shipped_as(spec, config))


def markdown(specs: Mapping[str, SliceSpec], config: ModelConfig) -> list[str]:
    """The lines of a page: which runtime runs which of these sub-models of one parent, and what each needs."""
    answers = {name: preflight(spec, config) for name, spec in specs.items()}
    counts = [sum(verdicts[i].runs for verdicts in answers.values()) for i in range(len(RULES))]
    return [
        row("slice", *(rule.runtime for rule in RULES)),
        row(*["---"] * (len(RULES) + 1)),
        *(row(name, *("yes" if one.runs else "–" for one in verdicts)) for name, verdicts in answers.items()),
        row(f"**of {len(answers)}**", *(f"**{count}**" for count in counts)),
        "",
        row("runtime", "needs", "source", "read on", "checked"),
        row(*["---"] * 5),
        *(
            row(rule.runtime, "; ".join(need.text for need in rule.needs), rule.source, rule.read_on, rule.checked)
            for rule in RULES
        ),
    ]


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
