"""The prediction and the goal for each figure on an H100; ``benchmarks/NOTES.md`` has the reasons."""

#: By figure: prediction, goal.
EXPECTED = {
    "selection 2880 -> 640": ("Triton 5 to 7 ms, cluster 2.2 ms", "1.5 ms"),
    "selection 576 -> 128": ("Triton 0.5 to 0.8 ms, cluster 0.35 ms", "0.3 ms"),
    "first token, 0.111": ("3.0 to 3.3 times", "5 times"),
    "first token, 0.111, prefill recorded": ("3.2 to 3.7 times, 4.0 with the cluster", "5 times"),
    "unpruned against generate": ("faster", "never slower"),
    "further token, share of the floor": ("76 % compiled", "60 %"),
    "vision in parts of 20 tiles": ("as long, 0.6 of the memory", "as long"),
    "scaling on the GPU": ("half as long as the CPU", "shorter"),
    "second question": ("under 30 %", "40 %"),
    "captions a second, 0.111": ("3 times", "3 times"),
}


def line(figure: str, measured: str) -> str:
    """Return a measured figure beside its prediction and goal."""
    predicted, goal = EXPECTED[figure]
    return f"{figure}: {measured} (predicted {predicted}, goal {goal})"
