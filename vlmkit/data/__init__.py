"""From a dataset to batches: sources, rating filter, index, packing, plan, workers."""
