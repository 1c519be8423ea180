# SPDX-License-Identifier: Apache-2.0
"""Requests that cannot be met for what stands around a slice: adapters, places, towers, tokens, plans and checks."""

from __future__ import annotations

from model.slicing.adapter import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from tests.recipes.broken_slices import INDEX, SHARD, UNIGRAM, SlicePlaces
from tests.recipes.wrong_slices import (
    READ_BY_5,
    Requests,
    from_,
    media,
    planned,
    sliced,
    verified,
    with_adapter,
    worded,
)

ADAPTERS: Requests = {
    "no adapter": (
        with_adapter(lambda at: at.room / "nowhere"), "no adapter_config.json there; give the directory of a LoRA",
    ),
    "no adapter weights": (
        with_adapter(lambda at: at.lora_with(ADAPTER_WEIGHTS_FILE, None)),
        f"no {ADAPTER_WEIGHTS_FILE} there; give the directory",
    ),
    "a checkpoint for an adapter": (with_adapter(lambda at: at.weights), f"no {ADAPTER_CONFIG_FILE} there"),
    "an adapter of another base": (
        with_adapter(lambda at: at.adapter_of_another()),
        "down_proj.weight' has 48; give the adapter of this checkpoint, or",
    ),
    "an adapter of another base, merged": (
        with_adapter(lambda at: at.adapter_of_another(), "merge=true"), "give the adapter of this checkpoint, or the",
    ),
    "an adapter of another rank": (
        with_adapter(lambda at: at.lora(r=8)), "are of rank 4, but adapter_config.json says 8",
    ),
    "an adapter of a skipped layer": (
        with_adapter(lambda at: at.lora_of(4), "slice.skip_layers=[3,4,5]"),
        "adapts none of the kept layers and towers",
    ),
    "an adapter of a layer there is not": (
        with_adapter(lambda at: at.lora_renamed(".layers.8.", ".layers.20.")),
        "weight', which the parent does not have; give the adapter of this checkpoint, or the checkpoint it was",
    ),
    "an adapter of a module there is not": (
        with_adapter(lambda at: at.lora_renamed(".mlp.up_proj.", ".mlp.out_proj.")),
        "belongs to 'model.language_model.layers.0.mlp.out_proj.weight', which the parent does not have",
    ),
    "an adapter with magnitudes": (with_adapter(lambda at: at.dora()), "is a DoRA magnitude"),
    "an adapter that says it has magnitudes": (
        with_adapter(lambda at: at.lora(use_dora=True)), "has use_dora, which cannot",
    ),
    "an adapter of another kind": (
        with_adapter(lambda at: at.lora(peft_type="IA3")),
        "its peft_type is 'IA3', and only 'LORA' can be sliced; merge it",
    ),
    "an adapter of no kind": (
        with_adapter(lambda at: at.lora(peft_type=None)), "its peft_type is None, and only 'LORA'",
    ),
    "an adapter that repeats layers": (
        with_adapter(lambda at: at.lora(layer_replication=[[0, 4]])),
        "has layer_replication, which cannot be sliced; merge",
    ),
    "an adapter that changed its base": (
        with_adapter(lambda at: at.lora(init_lora_weights="pissa_niter_4")),
        "its init_lora_weights is 'pissa_niter_4', by which PEFT changes the base",
    ),
    "an adapter of parameters": (
        with_adapter(lambda at: at.lora(target_parameters=["x"])), "has target_parameters, which",
    ),
    "an adapter whose config is damaged": (
        with_adapter(lambda at: at.lora_with(ADAPTER_CONFIG_FILE, b"{")), "cannot be read as a PEFT adapter",
    ),
    "an adapter whose weights are cut short": (
        with_adapter(lambda at: at.lora_with(ADAPTER_WEIGHTS_FILE, b'half')), "cut short or not a safetensors file",
    ),
    "merging nothing": (sliced("merge=true"), "merge=true needs an adapter to merge; give adapter_path=DIRECTORY"),
    "merging in float16": (
        with_adapter(
            lambda at: at.adapter, "merge=true",
            lambda at: f"checkpoint={at.tensors(lambda t: t.update({name: one.half() for name, one in t.items()}))}",
        ), "broken: stored in float16, in which Gemma 3n's hidden states overflow, so nothing is merged in it; cut the",
    ),
    "merging what does not merge": (
        with_adapter(lambda at: at.lora(modules_to_save=["norm"]), "merge=true"), "does not fit this model: 77 missing",
    ),
}  # fmt: skip

PLACES: Requests = {
    "no name": (sliced("output="), "output is empty, or the working directory; give a name of its own"),
    "a file": (
        sliced(lambda at: f"output={at.file('notes', 'mine')}"), "is already there; choose another name, or remove it",
    ),
    "below a file": (sliced(lambda at: f"output={at.file('notes', 'mine')}/a"), "being a file; choose another place"),
    "a file to be replaced": (
        sliced(lambda at: f"output={at.file('notes', 'mine')}", "overwrite=true"), "is a file; give a directory",
    ),
    "a directory with something in it": (
        sliced(lambda at: f"output={at.full()}"), "or set overwrite=true to replace it",
    ),
    "a checkpoint, not to be replaced": (
        sliced(lambda at: f"output={at.copy()}"), "or set overwrite=true to replace it",
    ),
    "something that is no checkpoint": (
        sliced(lambda at: f"output={at.full()}", "overwrite=true"),
        "holds other things than what would be written (no config",
    ),
    "an adapter to be replaced": (
        sliced(lambda at: f"output={at.copy_of(at.adapter)}", "overwrite=true"),
        "holds other things than what would be written",
    ),
    "the parent itself": (
        lambda at: ["slice", f"checkpoint={(own := at.copy())}", "slice=full", f"output={own}", "overwrite=true"],
        "is the parent's own directory",
    ),
    "the parent by another name": (
        lambda at: [
            "slice", f"checkpoint={at.link(own := at.copy())}", "slice=full", f"output={own}", "overwrite=true",
        ],
        "is the parent's own directory",
    ),
    "inside the parent": (
        lambda at: ["slice", f"checkpoint={(own := at.copy())}", "slice=full", f"output={own}/small"],
        "lies in it, or holds it",
    ),
    "deep inside the parent": (
        lambda at: ["slice", f"checkpoint={(own := at.copy())}", "slice=full", f"output={own}/a/b"],
        "choose another place",
    ),
    "around the parent": (
        lambda at: [
            "slice", f"checkpoint={at.copy_of(at.weights, f'{at.copy().name}/inside')}", "slice=full",
            f"output={at.room}/broken", "overwrite=true",
        ], "lies in it, or holds it; choose another place",
    ),
    "around the adapter": (
        sliced(lambda at: f"output={at.with_adapter_inside()}", lambda at: f"adapter_path={at.room}/broken/adapter",
               "overwrite=true"), "is the adapter's own directory",
    ),
    "where nobody can write": (sliced("output=/proc/nothing/here"), "/proc: 0.00 GB are to be written, but"),
}  # fmt: skip

PARTS: Requests = {
    "files of no size": (sliced("max_shard_bytes=0"), "max_shard_bytes is 0; it must be at least 1, and is in bytes"),
    "files of less than nothing": (sliced("max_shard_bytes=-5"), "max_shard_bytes is -5; it must be at least 1"),
    "files of some size": (sliced("max_shard_bytes=5GB"), "max_shard_bytes is '5GB'; it must be a number"),
    "files of half a byte": (
        sliced("max_shard_bytes=1.5"), "max_shard_bytes is 1.5; it must be a whole number of bytes, as in",
    ),
    "files of no end": (sliced("max_shard_bytes=inf"), "max_shard_bytes is inf; it must be a whole number of bytes"),
    "unread keys and values in words": (sliced("dead_kv=maybe"), "dead_kv is 'maybe'; allowed are keep, drop, zeros"),
    "a tower of no kind": (
        media("modalities=[text,smell]"), "modalities[1] is 'smell'; allowed are text, vision, audio",
    ),
    "towers in one word": (media("modalities=text"), "modalities is a single value; it must be a list, as in"),
    "a tower that the parent does not have": (
        sliced("modalities=[vision]"), "vision asked for, but this model has text;",
    ),
    "one tower of a parent that has the other": (
        from_(lambda at: at.media_without("vision"), "modalities=[vision]"),
        "vision asked for, but this model has text, audio",
    ),
    "a tower of the first release": (
        from_(SlicePlaces.of_the_first_release), "the vision tower is of the older layout",
    ),
    "audio layers of a parent without": (sliced("skip_audio_layers=[0]"), "the sub-model has no audio tower; leave"),
    "audio layers of a tower that is left out": (
        media("modalities=[text,vision]", "skip_audio_layers=[0]"), "or keep audio among the modalities",
    ),
    "an audio layer behind the last": (
        media("skip_audio_layers=[3]"), "has layers 0 to 2, of which each can be skipped once",
    ),
    "an audio layer from the end": (
        media("skip_audio_layers=[-1]"), "skip_audio_layers is [-1]; the audio tower has layers",
    ),
    "an audio layer twice": (media("skip_audio_layers=[1,1]"), "each can be skipped once"),
    "every audio layer": (media("skip_audio_layers=[0,1,2]"), "but one must stay"),
    "an audio layer in words": (
        media("skip_audio_layers=[first]"), "skip_audio_layers[0] is 'first'; it must be a whole",
    ),
}  # fmt: skip

VOCABULARIES: Requests = {
    "no tokenizer": (
        from_(lambda at: at.without("tokenizer.json"), "vocabulary.tokens=x"),
        "trimmed by its tokenizer.json, and there is none",
    ),
    "a tokenizer of another kind": (
        sliced(lambda at: f"vocabulary.tokens={at.file('tokens', 'a')}"),
        "only the vocabulary of a BPE model can be trimmed",
    ),
    "a tokenizer of probabilities": (
        from_(lambda at: at.with_file("tokenizer.json", UNIGRAM), "vocabulary.tokens=x"), "its model is Unigram; only",
    ),
    "a damaged tokenizer": (
        from_(lambda at: at.with_file("tokenizer.json", "{", at.worded), "vocabulary.tokens=x"),
        "tokenizer.json: not JSON",
    ),
    "no list of tokens": (worded("vocabulary.tokens=nowhere"), "no file 'nowhere'"),
    "a token that is none": (
        worded(lambda at: f"vocabulary.tokens={at.file('tokens', 'klass')}"), "write them as in its vocabulary",
    ),
    "half a JSON string": (
        worded(lambda at: f"vocabulary.tokens={at.file('tokens', chr(34) + chr(92) + chr(34))}"), "tokens:1: found",
    ),
    "no corpus": (worded("vocabulary.corpus=[nowhere]"), "no file 'nowhere'"),
    "a corpus without text": (
        worded(lambda at: f"vocabulary.corpus=[{at.file('corpus', '')}]"), "has no text; name files",
    ),
    "a corpus of damaged rows": (worded(lambda at: f"vocabulary.corpus=[{at.file('c.jsonl', '{')}]"), "c.jsonl:1"),
    "too few tokens": (
        worded(lambda at: f"vocabulary.corpus=[{at.file('corpus', 'class')}]", "vocabulary.max_tokens=5"),
        "max_tokens is 5, but 280 must stay",
    ),
    "no tokens": (worded("vocabulary.corpus=[x]", "vocabulary.max_tokens=0"), "max_tokens 0; both are at least 1"),
    "tokens that are never seen": (worded("vocabulary.corpus=[x]", "vocabulary.min_count=0"), "min_count is 0"),
    "a limit and nothing to choose among": (worded("vocabulary.max_tokens=400"), "give vocabulary.corpus=[FILE]"),
}  # fmt: skip

PLANS: Requests = {
    "no parent": (planned("checkpoint=null"), "the parent is one model or one checkpoint, but neither is given"),
    "two parents": (planned("model=tiny"), "but both are given"),
    "a parent that is not there": (planned("checkpoint=nowhere"), "checkpoint: no directory 'nowhere'"),
    "a parent of another model": (
        planned(lambda at: f"checkpoint={at.config(model_type='gemma3')}"), "model_type is 'gemma3'; matslice reads",
    ),
    "a layer that others read": (planned("slice.skip_layers=[2]"), READ_BY_5),
    "a plan of another parent": (
        planned("slice=e2b"), "skip_layers has [20, 21, 22, 23, 24], but the parent has layers",
    ),
    "a budget that nothing fits": (planned("max_effective=10"), "the smallest keeps layers 0-2, each at width 24"),
    "a budget below nothing": (planned("max_bytes=-1"), "max_bytes is -1.0; it must be a positive number"),
    "a budget in words": (planned("max_bytes=4GB"), "max_bytes is '4GB'; it must be a number"),
    "a context that is too long": (planned("context=513"), "context is 513 tokens; it must be 1 to 512"),
    "no context": (planned("context=0"), "context is 0 tokens; it must be 1 to 512"),
    "a runtime nobody knows": (planned("runtime=vlm"), "runtime 'vlm' is not known; choose one of transformers, vLLM"),
    "more tokens than there are": (planned("vocabulary_tokens=81"), "vocabulary_tokens is 81; it must be"),
    "fewer tokens than must be": (planned("vocabulary_tokens=1"), "vocabulary_tokens is 1; it must be"),
    "a dtype nobody knows": (planned("dtype=fp8"), "dtype is 'fp8'; allowed are"),
    "audio layers that are not there": (planned("skip_audio_layers=[0]"), "the sub-model has no audio tower"),
    "a file that is there": (
        planned(lambda at: f"save={at.file('mine.yaml', '')}"), "mine.yaml' is already there; choose another name",
    ),
    "a table below a file": (
        planned(lambda at: f"csv={at.file('notes', '')}/a.csv"), "being a file; choose another place",
    ),
}  # fmt: skip

CHECKS: Requests = {
    "nothing": (verified(lambda _: "nowhere"), "checkpoint: no directory 'nowhere'"),
    "an empty place": (verified(lambda at: at.empty("none")), "no config.json there"),
    "an incomplete checkpoint": (verified(lambda at: at.shard(None)), f"{INDEX} names {SHARD}, which is not there"),
    "a parent that is nowhere": (
        verified(SlicePlaces.short, "parent=nowhere"), "nowhere: no such directory; give the directory of a checkpoint",
    ),
    "a parent of another shape": (
        verified(SlicePlaces.short, lambda at: f"parent={at.worded}"), "is another parent than slice.json says",
    ),
    "lineage that is no lineage": (
        verified(lambda at: at.with_file("slice.json", '{"checksums": {}}')), "does not say which part of its parent",
    ),
    "a changed file": (verified(lambda at: at.altered(at.short())), "config.json changed since the slice was written"),
}  # fmt: skip
