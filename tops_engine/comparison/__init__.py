"""Compare prunings on the user's own pictures: answers, tokens, times, and fidelity to the unpruned model.

``one_picture`` and ``folder`` compare, ``tune`` finds the smallest budget, and ``position_bias`` measures which places
of a picture a method keeps.
"""
