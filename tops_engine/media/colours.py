"""The colours of what the engine draws: light on dark, as the canvas of ComfyUI."""

PAPER, INK, GREY = (24, 26, 31), (236, 238, 242), (160, 168, 180)
BAR = (236, 142, 64)
GOOD, BAD = (104, 208, 136), (244, 128, 116)

#: In the place of pixels that were pruned away.
SHADE = (12, 14, 20)
