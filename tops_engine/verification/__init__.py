"""`tops verify`: checks a model on the machine where it runs, and measures what pruning does to it there."""
