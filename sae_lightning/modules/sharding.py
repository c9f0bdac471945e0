"""Sharding of SAEs under Lightning's ModelParallelStrategy and FSDPStrategy."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from sae_lightning.modules.member import Member
from sae_lightning.nn.parts import Part
from sae_lightning.nn.rows import is_dtensor

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch.distributed.device_mesh import DeviceMesh

_DATA, _LATENTS = "data_parallel", "tensor_parallel"  # Lightning's names
_FORWARD = ("learn", "evaluate", "encode", "decode", "_calibrate")
"""Methods of an SAE that need whole weights."""


def shard(module: nn.Module, saes: Mapping[str, Member], trainer: "pl.Trainer") -> None:
    """Shard the parameters of a module's SAEs if the trainer's strategy is ModelParallelStrategy; check FSDPStrategy.

    With ModelParallelStrategy the weights become DTensors. Where `tensor_parallel_size` is above 1, each process of a
    group holds the rows of its own latents, and groups are replicas whose gradients are averaged; else they are sharded
    over all processes by FSDP (`fully_shard`).

    Raises:
        ValueError: If the strategy's arguments, or what the SAEs are made of, cannot work together.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        _check_fsdp(module, strategy)
    if not isinstance(strategy, ModelParallelStrategy):
        if any(is_dtensor(p) for p in module.parameters()):
            raise ValueError(
                "the strategy must be ModelParallelStrategy for an SAE that was sharded by it before, but is "
                f"{type(strategy).__name__}: load its checkpoint instead (load_sae)"
            )
        return
    if strategy._save_distributed_checkpoint:
        raise ValueError(
            "ModelParallelStrategy's save_distributed_checkpoint must be False, since load_sae and resumed runs read "
            "one file, but is True"
        )
    mesh = strategy.device_mesh
    for sae in saes.values():
        meshes = [p.device_mesh for p in sae.parameters() if is_dtensor(p)]
        if not meshes and mesh[_LATENTS].size() == 1 and mesh[_DATA].size() > 1:
            _shard_parameters(sae, mesh[_DATA], strategy.root_device)
        elif not meshes:
            _shard_latents(sae, mesh, strategy.root_device)
        elif meshes[0] not in (mesh, mesh[_DATA]):
            raise ValueError(
                f"an SAE that was sharded over {meshes[0]} cannot be trained on {mesh}: load its checkpoint"
            )


def _parts(sae: Member) -> Iterator[Part]:
    yield from (sae.sae.encoder, sae.sae.projection, sae.sae.decoder)
    if sae.regularizer is not None:
        yield sae.regularizer


def _shard_latents(sae: Member, mesh: "DeviceMesh", device: torch.device) -> None:
    """Give each process of a tensor-parallel group the rows of its own latents."""
    from torch.distributed.tensor import Replicate, Shard

    from sae_lightning.backends.sharded import Sharded, Sharding

    missing = Sharded.without_rule(sae.sae, sae.regularizer)
    if missing:
        raise ValueError(
            f"latents can be sharded only where there is a rule for every part, but there is none for "
            f"{', '.join(missing)}: train with another strategy, or with tensor_parallel_size = 1"
        )
    if sae.chunk_size is not None:
        raise ValueError(f"chunk_size must be None where latents are sharded, but is {sae.chunk_size}")
    if sae.backend not in ("auto", "sharded"):
        raise ValueError(f"backend must be auto or sharded where latents are sharded, but is {sae.backend}")
    sharding = Sharding(mesh[_LATENTS].get_group(), sae.d_sae)
    sae.run_by(Sharded(sae.sae, sae.regularizer, sharding), device.type)
    for part in _parts(sae):
        assert isinstance(part, nn.Module)
        for name, parameter in list(part.named_parameters()):
            by_latent = name in (part.rows_of_latents or ())
            rows = parameter.detach()[sharding.own].clone() if by_latent else parameter.detach()
            placements = [Replicate(), Shard(0) if by_latent else Replicate()]
            _replace(part, name, rows.to(device), mesh, placements)


def _shard_parameters(sae: Member, mesh: "DeviceMesh", device: torch.device) -> None:
    """Shard every parameter by FSDP, which gathers them where they are used."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import Replicate

    scalars = set()  # which FSDP does not take: they stay whole
    for part in _parts(sae):
        assert isinstance(part, nn.Module)
        for name, parameter in list(part.named_parameters()):
            if parameter.ndim == 0:
                whole = parameter.detach().to(device)
                scalars.add(_replace(part, name, whole, mesh, [Replicate()]))
    fully_shard(sae, mesh=mesh, ignored_params=scalars)
    for method in _FORWARD:
        register_fsdp_forward_method(sae, method)


def _replace(part: nn.Module, name: str, held: Tensor, mesh: "DeviceMesh", placements: list[Any]) -> nn.Parameter:
    """Replace a parameter by a DTensor whose local part is `held`."""
    from torch.distributed.tensor import DTensor

    parameter = nn.Parameter(DTensor.from_local(held, mesh, placements, run_check=False))
    setattr(part, name, parameter)
    return parameter


def reshard(sae: Member) -> None:
    """Shard the parameters again: after a forward pass FSDP keeps them whole, and the optimizer knows the shards."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(sae, FSDPModule):
        sae.reshard()


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Average gradients over the processes that read different data, if neither DDP nor FSDP does.

    After each backward pass: what was accumulated before is the same on all of them, and stays. (A hook of the
    parameter would not do: it is lost when a module with DTensors moves or changes its precision.)
    """
    for parameter in module.parameters():
        grad = parameter.grad
        if grad is None or not is_dtensor(grad):
            continue
        mesh = grad.device_mesh
        for name, placement in zip(mesh.mesh_dim_names or (), grad.placements, strict=True):
            if name == _DATA and placement.is_replicate() and mesh[_DATA].size() > 1:
                held = grad.to_local()
                dist.all_reduce(held, group=mesh[_DATA].get_group())
                held /= mesh[_DATA].size()


# ---------------------------------------------------------------------- FSDPStrategy


def _check_fsdp(module: nn.Module, strategy: FSDPStrategy) -> None:
    scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ValueError(
            f"FSDPStrategy holds no parameters that are scalars, as {scalars[0]} is: use ModelParallelStrategy with "
            "tensor_parallel_size = 1, which shards by FSDP too"
        )
    if strategy._state_dict_type != "full":
        raise ValueError(
            "FSDPStrategy's state_dict_type must be 'full', since load_sae and resumed runs read one file, but is "
            f"{strategy._state_dict_type!r}"
        )


def with_full_parameters(trainer: "pl.Trainer", writeback: bool) -> AbstractContextManager[None]:
    """Context in which parameters that FSDPStrategy has sharded are whole; no effect under other strategies.

    Args:
        trainer: The trainer; all of its processes must call this.
        writeback: Whether changes of the parameters are kept.
    """
    if not isinstance(trainer.strategy, FSDPStrategy):
        return nullcontext()
    from torch.distributed.fsdp import FullyShardedDataParallel

    assert isinstance(trainer.strategy.model, nn.Module)
    context: AbstractContextManager[None] = FullyShardedDataParallel.summon_full_params(
        trainer.strategy.model, writeback=writeback
    )
    return context


def shard_group(grad: Tensor, trainer: "pl.Trainer | None" = None) -> dist.ProcessGroup | None:
    """Return the processes over which a gradient is sharded; None if each holds all of it."""
    if trainer is not None and isinstance(trainer.strategy, FSDPStrategy):
        return dist.group.WORLD
    if not is_dtensor(grad):
        return None
    split = [i for i, placement in enumerate(grad.placements) if placement.is_shard()]
    return grad.device_mesh.get_group(split[0]) if split else None
