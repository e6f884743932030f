"""Stands in for ``vlmkit_launchers.submit_cells`` where SLURM does not matter: ``python -m`` this, with a request.

What it does its cells' tasks say: ``hang``, ``refuse`` (until there is a file ``open`` in the run), ``under_way``; else
they are taken. What it was asked, and in which environment, is appended to the run's ``asked.jsonl``.
"""

import json
import os
import signal
import sys
from pathlib import Path

request = json.load(sys.stdin)
run = Path(request["run"])
with (run / "asked.jsonl").open("a") as file:
    file.write(json.dumps({"request": request, "environment": dict(os.environ)}) + "\n")
tasks = {Path(cell).name: cell for cell in request["cells"]}
if "hang" in tasks:
    signal.pause()
if "refuse" in tasks and not (run / "open").exists():
    sys.exit("error: sbatch: error: invalid partition specified: nowhere")
under_way = [cell for task, cell in tasks.items() if task == "under_way"]
job = "7" if len(under_way) < len(tasks) else None
print(json.dumps({"job": job, "merge": job and "8", "done": [], "under_way": under_way, "left": [], "warning": ""}))
