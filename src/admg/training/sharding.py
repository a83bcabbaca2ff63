"""Networks whose weights, gradients and optimiser state are divided among the processes: PyTorch's FSDP2.

States have the keys of a network in one process, so a run can be resumed with another number of processes, sharded or
not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.device import Processes

# FSDP2 is imported where it is used: its import is slow, and few runs are sharded.


def shard(network: nn.Module, device: torch.device, processes: Processes) -> None:
    """Divide the weights of a network among all processes, block by block; its forward pass gathers each block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.count,))
    for name in ("input_blocks", "middle_block", "output_blocks"):
        part = getattr(network, name, None)
        for block in part if isinstance(part, nn.ModuleList) else [part]:
            if isinstance(block, nn.Module):
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Whether `shard` has divided the network."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it, nothing is sharded
    return fsdp is not None and isinstance(network, fsdp.FSDPModule)


def is_part(value: Any) -> bool:
    """Whether a value is a sharded tensor, a DTensor."""
    sharded = sys.modules.get("torch.distributed.tensor")
    return sharded is not None and isinstance(value, sharded.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: all of it unless it is sharded."""
    part: Tensor = tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor. If it is sharded, all processes must call this."""
    full: Tensor = tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return full


def has_parts(state: Any) -> bool:
    """Whether nested dictionaries hold a sharded tensor."""
    if isinstance(state, Mapping):
        return any(map(has_parts, state.values()))
    return is_part(state)


def network_state(network: nn.Module, whole: bool = True) -> dict[str, Any]:
    """Return the state dict of a network.

    whole: gather a sharded one in the first process, which requires all to call this; otherwise return their parts
    """
    if not whole or not is_sharded(network):
        return network.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_network(network: nn.Module, state: dict[str, Any]) -> None:
    """Load a state dict into the network: a whole one (also into a sharded network), or the parts of a sharded one."""
    if is_sharded(network) and not has_parts(state):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(network, state, options=StateDictOptions(full_state_dict=True, strict=True))
    else:
        network.load_state_dict(state)


def load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state with the keys of torch.optim into the optimiser of a network; see load_network().

    Only the moments are loaded: the options of the optimiser, such as the weight decay, stay those of this run.

    Raises ValueError if it is that of other parameters.
    """
    own = [tuple(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]
    saved = [number for group in state["param_groups"] for number in group["params"]]
    moments = {number: tuple(values["exp_avg"].shape) for number, values in state["state"].items()}
    if len(saved) != len(own) or any(moments.get(number, shape) != shape for number, shape in zip(saved, own)):
        raise ValueError(f"the {len(saved)} trained tensors differ from the {len(own)} of this run (see freeze)")
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    if not is_sharded(network) or has_parts(state):
        optimizer.load_state_dict(state)
    else:
        _load_sharded(network, optimizer, state)
    for group, own_options in zip(optimizer.param_groups, options, strict=True):
        group.update(own_options)


def _load_sharded(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser that is not sharded into that of a sharded network."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    names = trained_names(network)
    named = {names[number]: values for number, values in state["state"].items()}
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    set_optimizer_state_dict(
        network, optimizer, {"state": named, "param_groups": groups}, options=StateDictOptions(full_state_dict=True)
    )


def trained_names(network: nn.Module) -> list[str]:
    """Return the names of the parameters that the optimiser has, in its order."""
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]
