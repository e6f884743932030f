"""Text and pictures to token ids and tiles; shared by training, evaluation and generation, so they cannot disagree."""
