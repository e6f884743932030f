"""Pretrained models and tokenizers before their weights are read: where their files are, what their json files say."""
