"""How much of the hardware a run uses: operations a second, by the count of ``model/flops.py``."""

import torch
from transformers import Idefics3Config

from vlmkit.distributed import Ranks
from vlmkit.model.flops import Work, count_training_flops, find_peak_flops
from vlmkit.training.totals import Sums


class Throughput:
    """Operations a second of each process; MFU where the peak of its GPU is known."""

    def __init__(self, config: Idefics3Config, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        self._config = config
        self._trained = [group["name"] for group in optimizer.param_groups]
        self._world_size = ranks.world_size
        on_gpu = ranks.device.type == "cuda"
        self._peak = find_peak_flops(torch.cuda.get_device_name(ranks.device)) if on_gpu else None

    def of(self, sums: Sums) -> dict[str, float]:
        """Figures over some steps, waiting for the loader included."""
        work = Work(tokens=sums.tokens, pairs=sums.pairs, tiles=sums.tiles, labelled=sums.labelled)
        operations = count_training_flops(self._config, work, self._trained)
        rate = operations / max(sums.seconds, 1e-9) / self._world_size
        mfu = {"mfu": rate / self._peak} if self._peak else {}
        return {"tflops_per_second": rate / 1e12, **mfu}
