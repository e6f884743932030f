"""Where a run writes what happens: metrics.jsonl, wandb, the terminal, provenance."""
