"""Prunings side by side on the user's own pictures: answers, tokens, times, and fidelity to the unpruned model.

``one_picture`` and ``data_set`` compare, ``tune`` finds the smallest budget, ``position_bias`` shows which places a
method prefers.
"""
