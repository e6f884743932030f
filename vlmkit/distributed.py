"""The processes of a run: the only use of accelerate."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, gather_object

from vlmkit.config import Precision


class Ranks:
    """This process among all processes of the run; one process is the usual case and costs nothing."""

    def __init__(self, precision: Precision, seed: int) -> None:
        bf16 = precision is Precision.bf16 or (precision is Precision.auto and torch.cuda.is_available())
        # Accumulation is the loop's: an accelerate config that names another number would divide the loss twice.
        self.accelerator = Accelerator(
            mixed_precision="bf16" if bf16 else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        self.precision = "bf16" if bf16 else "fp32"
        torch.manual_seed(seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.accelerator.end_training()

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

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
        error: Exception | None = None
        with ExitStack() as stack:
            if self.is_main:
                try:
                    stack.enter_context(context)
                except Exception as caught:
                    error = caught
            if self.world_size > 1:
                [error] = broadcast_object_list([error])
            if error:
                raise error
            yield

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()
