"""The processes of a run: the only use of accelerate."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vlmkit.config import Precision, Sharding, TrainerConfig
from vlmkit.errors import ConfigError
from vlmkit.launched import started_processes

T = TypeVar("T")

# NCCL's 10 minutes are less than what one process may wait for another: until the main one has scored a task, hashed a
# checkpoint or got a lock. A process that fails ends the others through torchrun or srun; what hangs, the job's limit
# ends.
LONGEST_WAIT = timedelta(hours=12)


class Ranks:
    """This process among all processes of the run; one process is the usual case and costs nothing."""

    def __init__(self, config: TrainerConfig, seed: int) -> None:
        """Meet the other processes.

        Raises:
            ConfigError: There are not as many as were asked for.
        """
        bf16 = config.precision is Precision.bf16 or (config.precision is Precision.auto and torch.cuda.is_available())
        # Accumulation is the loop's: an accelerate config that names another number would divide the loss twice.
        self._accelerator = Accelerator(
            cpu=_meet_on_cpu(),
            mixed_precision="bf16" if bf16 else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
        )
        self.precision = "bf16" if bf16 else "fp32"
        self.sharding = config.sharding if self.world_size > 1 else Sharding.ddp
        _check_world_size(config.num_processes, self.world_size)
        torch.manual_seed(seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:  # on a GPU the processes part together: one that fails alone would wait for the others
            self._accelerator.end_training()

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._accelerator.device
        return device

    def spread(self, model: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:
        """The model over all processes: a copy on each (DDP), or each with a part of every weight (FSDP2).

        Gradients are averaged over the processes. Parameters that FSDP2 shards are new objects: an optimizer is built
        after this.

        Args:
            model: With its final weights, the same on every process, on any device.
            blocks: Its layers, in order; FSDP2 gathers the weights of one at a time.
        """
        model.to(self.device)
        if self.sharding is Sharding.fsdp2:
            for block in (*blocks, model):
                # Weights travel in fp32 and autocast does the rest, as with DDP. The outermost part is let go after a
                # forward pass too, which PyTorch leaves out: after a validation gathered weights would be saved.
                fully_shard(block, reshard_after_forward=True)
            return model
        wrapped: nn.Module = self._accelerator.prepare(model)
        return wrapped

    def autocast(self) -> AbstractContextManager[None]:
        """The forward pass inside computes in the run's precision."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    @contextmanager
    def without_gradient_sync(self, model: nn.Module) -> Iterator[None]:
        """Backward passes inside add to each process's own gradients; the next one outside averages them."""
        if self.sharding is Sharding.fsdp2:
            model.set_requires_gradient_sync(False)  # type: ignore[operator]
            try:
                yield
            finally:
                model.set_requires_gradient_sync(True)  # type: ignore[operator]
        else:
            with self._accelerator.no_sync(model):
                yield

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64."""
        return [sum(each) for each in zip(*self.collect(*values), strict=True)]

    def collect(self, *values: float) -> list[list[float]]:
        """The values of every process, in the order of the processes, in float64."""
        if self.world_size == 1:
            return [list(values)]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        received = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(received, tensor)
        return [list(each.tolist()) for each in received]

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all processes, one after the other."""
        return list(gather_object(items)) if self.world_size > 1 else items

    @contextmanager
    def on_main(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """Enter a context on the main process alone; if that fails, no process goes on.

        Raises:
            Exception: The main process's own, on every process: the others would wait for it without end.
        """
        with ExitStack() as stack:
            self.run_on_main(lambda: stack.enter_context(context))
            yield

    def run_on_main(self, act: Callable[[], T]) -> T:
        """Call a function on the main process alone; what it returns, every process gets.

        Raises:
            Exception: The main process's own, on every process: the others would wait for it without end.
        """
        result: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = act()
            except Exception as caught:
                error = caught
        if self.world_size > 1:
            result, error = broadcast_object_list([result, error])
        if error:
            raise error
        return result  # type: ignore[return-value]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts that other processes hold; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(whole_tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that every process has whole, cut as another one is."""
    if isinstance(like, DTensor):
        mesh, placements = like.device_mesh, like.placements
        return distribute_tensor(whole_tensor.to(like.device), mesh, placements, src_data_rank=None)
    return whole_tensor


def _meet_on_cpu() -> bool:
    """Whether accelerate must be told to use the CPU: without GPUs it leaves torchrun's processes alone otherwise."""
    return not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE") or 1) > 1


def _check_world_size(asked: int | None, got: int) -> None:
    """Refuse to train alone what was meant for several processes."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ConfigError(f"trainer.sharding: accelerate is told to shard; use trainer.sharding={Sharding.fsdp2.value}")
    started = started_processes()
    if started > 1 and started != got:
        raise ConfigError(
            f"{started} processes were started, but each trains alone: srun must set RANK, WORLD_SIZE, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT for them, or start one torchrun on each node"
        )
    if asked is not None and asked != got:
        raise ConfigError(
            f"trainer.num_processes={asked}: there are {got}; start them with torchrun --nproc-per-node={asked} "
            "(accelerate launch --cpu starts one process whatever -n says)"
        )
