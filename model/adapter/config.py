# SPDX-License-Identifier: Apache-2.0
"""What an adapter to train is: where it sits, how large and strong it is, what it begins as."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from model.adapter.targets import TargetSet
from model.errors import ConfigError

# Starts by their names in PEFT (init_lora_weights); "default" is PEFT's True.
PLAIN, ORTHOGONAL, OLORA, PISSA = ("default", "gaussian"), "orthogonal", "olora", "pissa"
QUICK_PISSA = re.compile(r"pissa_niter_[1-9]\d*")  # so many rounds of an approximate decomposition


@dataclass(kw_only=True, slots=True)
class AdapterConfig:
    """A LoRA adapter to train: where it sits, and how large and strong it is (``alpha / rank``).

    Raises:
        ConfigError: A value is out of its range, or two of them exclude each other.
    """

    targets: list[TargetSet] = field(default_factory=lambda: [TargetSet.all_linear])
    # Modules beside those of the sets, and modules to leave out after all: expressions for full paths, such as
    # '.*\.layers\.(0|1)\.mlp\..*'. Each must match something.
    targets_matching: list[str] = field(default_factory=list)
    exclude_matching: list[str] = field(default_factory=list)
    rank: int = 16
    alpha: int = 32
    # Other ranks and alphas for some modules: an expression for the end of a path, and the value; the first that
    # matches counts. On the command line: '+adapter.rank_pattern={q_proj:8}'.
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    dropout: float = 0.0  # share of an adapted module's inputs that its adapter does not see in a step
    rslora: bool = False  # strength is alpha / √rank, so that large ranks learn as fast as small ones
    dora: bool = False  # a magnitude for each output beside the direction; cannot be sliced before it is merged
    init: str = "default"  # or gaussian, orthogonal, olora, pissa, pissa_niter_16: how PEFT begins

    def __post_init__(self) -> None:
        if self.rank <= 0 or self.alpha <= 0:
            raise ConfigError(f"adapter: rank is {self.rank} and alpha {self.alpha}; both must be positive")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter: dropout is {self.dropout}; it must be a share in [0, 1)")
        for key, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for expression, value in pattern.items():
                if value <= 0:
                    raise ConfigError(f"adapter.{key}: '{expression}' is {value}; it must be positive")
        keys = ("targets_matching", "exclude_matching", "rank_pattern", "alpha_pattern")
        for key in keys:
            for expression in getattr(self, key):
                check_expression(f"adapter.{key}", expression)
        self.check_init()

    def check_init(self) -> None:
        """Raise ConfigError for a start that is unknown, or that does not go with the other settings."""
        if self.init == "loftq":
            raise ConfigError(
                "adapter.init is 'loftq', which makes up for what quantising the base lost, but bases are not"
                " quantised here; leave it out"
            )
        if self.init not in (*PLAIN, ORTHOGONAL, OLORA, PISSA) and not QUICK_PISSA.fullmatch(self.init):
            raise ConfigError(
                f"adapter.init is '{self.init}'; choose default, gaussian, orthogonal, olora, pissa, or"
                " pissa_niter_N with a number of rounds, such as pissa_niter_16"
            )
        if self.init == ORTHOGONAL and (odd := [rank for rank in self.ranks if rank % 2]):
            raise ConfigError(f"adapter.init is 'orthogonal', which needs even ranks, but one is {odd[0]}; change it")
        if self.dora and self.takes_away:
            raise ConfigError(
                f"adapter.dora and adapter.init={self.init} exclude each other: what the start takes away of a weight"
                " has no place in DoRA's magnitudes; leave one out"
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank and all others that some modules have."""
        return (self.rank, *self.rank_pattern.values())

    def rank_of(self, path: str) -> int:
        """The rank of the adapter of one module, by its full path."""
        ranks = (rank for expression, rank in self.rank_pattern.items() if re.match(rf"(.*\.)?({expression})$", path))
        return next(ranks, self.rank)

    @property
    def takes_away(self) -> bool:
        """Whether the adapter begins as a part of the weight, which is taken away of it at the same time."""
        return self.init == OLORA or self.init.startswith(PISSA)

    @property
    def needs_matrices(self) -> bool:
        """Whether the start is made for linear maps alone, not for convolutions."""
        return self.takes_away or self.init == ORTHOGONAL


def check_expression(where: str, expression: str) -> None:
    """Raise ConfigError for what is no regular expression."""
    try:
        re.compile(expression)
    except re.error as error:
        raise ConfigError(f"{where}: '{expression}' is no regular expression ({error}); correct it") from None
