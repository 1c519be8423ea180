# SPDX-License-Identifier: Apache-2.0
"""How a plan is told: as tables for a person, as JSON for a program, and as a file for ``conf/slice``."""

from __future__ import annotations

import shlex
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.config import ModelConfig, TextConfig
from model.slicing.advice import told
from model.slicing.plan import Plan, StoredAs
from model.slicing.propose import Budget
from model.slicing.runtimes import Verdict
from model.slicing.spec import SliceSpec

WIDTHS_IN_A_LINE = 5  # a block of Gemma 3n
UNQUOTED = {*string.ascii_letters, *string.digits, *"_-./=,[]"}  # what a command line is shown with as it is


@dataclass(frozen=True, kw_only=True)
class Report:
    """A plan, what was asked for, and what is to be known before it is used."""

    plan: Plan
    parent: ModelConfig
    budget: Budget
    asked: SliceSpec  # before a runtime's needs were met
    verdicts: Sequence[Verdict]
    notes: Sequence[str]  # where the sub-model leaves what was trained
    checkpoint: str | None = None  # the parent's place, where it has one
    saved: Path | None = None  # the file that the sub-model is written to

    @property
    def num_bytes(self) -> int:
        """Of weights, and of keys and values, stored as the budget says."""
        plan, budget = self.plan, self.budget
        return plan.weight_bytes[budget.dtype] + plan.cache_bytes[budget.stored_cache]

    @property
    def name(self) -> str:
        """Of the sub-model's file, without its ending: also the sub-model's own name there."""
        return self.plan.sub.spec.name if self.saved is None else self.saved.stem

    @property
    def is_elsewhere(self) -> bool:
        """Whether the sub-model's file is not yet where files of slices are found."""
        return self.saved is None or self.saved.parent.name != "slice"

    @property
    def config_dir(self) -> str:
        """The directory in which Hydra is to look for it; ``DIR`` is for its user to say."""
        return "DIR" if self.saved is None or self.is_elsewhere else shlex.quote(str(self.saved.parent.parent))

    @property
    def changed(self) -> bool:
        """Whether the sub-model is another than was asked for, for a runtime's sake."""
        return self.asked != self.plan.sub.spec

    @property
    def fits(self) -> bool:
        """Whether the budget is kept, which a sub-model changed for a runtime may not do."""
        limits = (self.budget.max_effective, self.plan.published.effective), (self.budget.max_bytes, self.num_bytes)
        return all(limit is None or found <= limit for limit, found in limits)

    def as_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        plan, budget = self.plan, self.budget
        return {
            "slice": written(plan.sub.spec, self.parent.text),
            "modalities": [str(modality) for modality in plan.config.modalities],
            "context_tokens": plan.context_tokens,
            "parameters": {"used": asdict(plan.used), "published": asdict(plan.published)},
            "weight_bytes": plain(plan.weight_bytes),
            "per_layer_table_bytes": plain(plan.per_layer_table_bytes),
            "cache_bytes": plain(plan.cache_bytes),
            "whole_cache_bytes": plain(plan.whole_cache_bytes),
            "flops_per_token": asdict(plan.work_per_token) | {"total": plan.work_per_token.total},
            "budget": {
                "max_effective": budget.max_effective,
                "max_bytes": budget.max_bytes,
                "dtype": str(budget.dtype),
                "cache_dtype": str(budget.stored_cache),
                "bytes": self.num_bytes,
                "fits": self.fits,
            },
            "asked": written(self.asked, self.parent.text),
            "notes": list(self.notes),
            "runtimes": [asdict(verdict) for verdict in self.verdicts],
        }


def show(report: Report) -> None:
    """Print it for a person."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for part in parts(report):
        console.print(part)
    if report.budget.is_limited or report.changed:
        print(slice_file(report))  # never wrapped: it is to be a file


def parts(report: Report) -> Iterator[str | Table]:
    """What is said, from top to bottom."""
    plan, budget, work = report.plan, report.budget, report.plan.work_per_token
    spec, layers = plan.sub.spec, report.parent.text.num_hidden_layers
    widths = sorted(set(spec.ffn_widths))
    at = f"width {widths[0]}" if len(widths) == 1 else f"widths {widths[0]} to {widths[-1]}"
    yield (
        f"[bold]{escape(spec.name)}[/bold]: {told(spec.kept_layers)} of {layers}, {len(spec.kept_layers)} in all, at"
        f" {at}; {', '.join(plan.config.modalities)}"
    )
    yield parameters_table(plan)
    yield bytes_table(plan)
    yield (
        f"{budget.dtype} weights with {budget.stored_cache} keys and values: {readable(report.num_bytes)}"
        f" ({report.num_bytes:,} bytes)"
    )
    yield (
        f"work per token, {plan.context_tokens:,} tokens seen: {work.total / 1e9:.2f} GFLOP (layers"
        f" {work.linear / 1e9:.2f}, attention {work.attention / 1e9:.2f}, head {work.head / 1e9:.2f})"
    )
    yield runtimes_table(report.verdicts)
    for note in report.notes:
        yield f"note: {escape(note)}"
    if report.changed:
        over = "" if report.fits else "; it is over the budget"
        yield f"it is the nearest to {escape(report.asked.name)} that the runtime runs{over}"


def parameters_table(plan: Plan) -> Table:
    """Parameters in both conventions."""
    table = Table("parameters", title_justify="left")
    table.add_column("used\nours, transformers from 5.6 on", justify="right")
    table.add_column("published\nGoogle's files: also unread keys, values", justify="right")
    for name, meaning in (
        ("total", "total, with towers"), ("text", "text"), ("effective", "effective: text without token tables"),
    ):  # fmt: skip
        table.add_row(meaning, f"{getattr(plan.used, name):,}", f"{getattr(plan.published, name):,}")
    return table


def bytes_table(plan: Plan) -> Table:
    """Bytes, by how they are stored."""
    table = Table("stored as")
    for kind in StoredAs:
        table.add_column(kind.value, justify="right")
    rows: dict[str, Mapping[StoredAs, int]] = {
        "weights": plan.weight_bytes,
        "  of them per-layer embeddings": plan.per_layer_table_bytes,
        f"keys and values of {plan.context_tokens:,} tokens": plan.cache_bytes,
        "  where local layers keep all": plan.whole_cache_bytes,
    }
    for name, sizes in rows.items():
        table.add_row(name, *(readable(sizes[kind]) for kind in StoredAs))
    table.caption = (
        "int8, int4: the decoder's matrices, in groups of 32 with a 16-bit scale; norms, AltUp's coefficients and"
        " towers in bf16"
    )
    return table


def runtimes_table(verdicts: Sequence[Verdict]) -> Table:
    """What each runtime says to it."""
    table = Table("runtime", "runs", "why not, or on which condition")
    for verdict in verdicts:
        table.add_row(verdict.runtime, "yes" if verdict.runs else "no", escape("; ".join(verdict.reasons)))
    return table


def slice_file(report: Report) -> str:
    """The sub-model as a file of a directory ``slice``, whose name it bears, with the command that takes it."""
    spec, config, name = report.plan.sub.spec, report.parent.text, report.name
    fields = written(spec, config) | {"name": name}
    widths = fields["ffn_widths"]
    of_yours = ", in a directory DIR of yours" if report.is_elsewhere else ""
    lines = [
        f"# {len(spec.kept_layers)} of {config.num_hidden_layers} layers, as planned.",
        f"#   {command(report)}",
        f"# finds this as {report.config_dir}/slice/{name}.yaml{of_yours}.",
        f"name: {name}",
        f"skip_layers: {fields['skip_layers']}",
    ]
    if len(widths) == 1:
        return "\n".join([*lines, f"ffn_widths: {widths}", ""])
    rows = [widths[start : start + WIDTHS_IN_A_LINE] for start in range(0, len(widths), WIDTHS_IN_A_LINE)]
    return "\n".join([*lines, "ffn_widths: [", *(f"  {', '.join(map(str, row))}," for row in rows), "]", ""])


def command(report: Report) -> str:
    """How the sub-model is cut, all that was planned around its decoder included; ``FILE`` is for its user to say."""
    sub, parent = report.plan.sub, report.parent
    words = [f"checkpoint={report.checkpoint or 'weights/parent'}", f"slice={report.name}"]
    if (kept := report.plan.config.modalities) != parent.modalities:
        words.append(f"modalities=[{','.join(kept)}]")
    if sub.audio_layers is not None and parent.audio is not None:
        skipped = sorted(set(range(parent.audio.conf_num_hidden_layers)) - set(sub.audio_layers))
        words.append(f"skip_audio_layers=[{','.join(map(str, skipped))}]")
    if sub.vocabulary is not None:
        words += ["vocabulary.corpus=[FILE]", f"vocabulary.max_tokens={len(sub.vocabulary)}"]
    words.append(f"output=weights/{report.name}")
    # Brackets are only quoted where something else must be: shells that look for files leave them alone else.
    told = " ".join(word if set(word) <= UNQUOTED else shlex.quote(word) for word in words)
    return f"matslice slice --config-dir {report.config_dir} {told}"


def written(spec: SliceSpec, config: TextConfig) -> dict[str, Any]:
    """The sub-model as a person would write it; one width that all layers have stands once."""
    kept, widths = set(spec.kept_layers), list(spec.ffn_widths)
    return {
        "name": spec.name,
        "skip_layers": [layer for layer in range(config.num_hidden_layers) if layer not in kept],
        "ffn_widths": widths[:1] if len(set(widths)) == 1 else widths,
    }


def plain(sizes: Mapping[StoredAs, int]) -> dict[str, int]:
    """Sizes by the names of how they are stored."""
    return {str(kind): size for kind, size in sizes.items()}


def readable(num_bytes: int) -> str:
    """Bytes in the largest decimal unit, as budgets are written."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name}"
    return f"{num_bytes} B"
