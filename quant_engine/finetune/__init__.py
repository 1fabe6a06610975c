"""Low-rank fine-tuning on frozen low-bit weights: adapters, examples, the training loop, merging."""
