"""transformers' Idefics3, its packed forward pass, its loss."""
