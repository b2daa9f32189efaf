"""The colours of what the engine draws."""

INK, PAPER = (30, 34, 42), (250, 250, 248)
BAR = (221, 122, 47)
