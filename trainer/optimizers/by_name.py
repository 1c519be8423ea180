# SPDX-License-Identifier: Apache-2.0
"""An optimizer's state goes to the parameters by their names.

An optimizer numbers parameters in the order of its groups, and in which group one is depends on the config, and for
the run of a sub-model on which others are left. So numbers are written anew, and a group's constants are those of
the config, never those of the file.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from model.errors import CheckpointError
from trainer.optimizers.groups import published_name, shown


def follow_names(optimizer: Optimizer) -> None:
    """Let ``load_state_dict`` find each parameter's state by its name, whatever group it was in.

    A state without names, such as torch's distributed checkpoints make, is taken to be in this optimizer's order.
    """
    optimizer.register_load_state_dict_pre_hook(reordered, prepend=True)


def reordered(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state in the order of an optimizer, with its constants.

    Raises:
        CheckpointError: It is the state of other parameters.
    """
    own = [published_name(name) for group in optimizer.param_groups for name in group["param_names"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    names = [published_name(name) for group in state["param_groups"] for name in group.get("param_names", ())] or own
    if differing := sorted(set(names) ^ set(own)) or (["…"] if len(names) != len(numbers) else []):
        raise CheckpointError(
            f"the optimizer's state is of {len(numbers)} parameters, the run trains {len(own)}; in one of them alone:"
            f" {shown(differing)}; go on with the run that wrote it"
        )
    number_of = dict(zip(names, numbers, strict=True))
    remembered = {
        new: state["state"][number_of[name]] for new, name in enumerate(own) if number_of[name] in state["state"]
    }
    return {**state, "state": remembered, "param_groups": optimizer.state_dict()["param_groups"]}
