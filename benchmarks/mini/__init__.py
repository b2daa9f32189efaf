"""The stages of training mini; see benchmarks/train_mini.py."""
