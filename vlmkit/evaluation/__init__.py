"""What a checkpoint knows."""
