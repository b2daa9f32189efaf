"""Random generators from seeds of 64 bits."""

import numpy as np

from tops_engine.device.lazy import torch

#: Where the state of the Mersenne Twister begins in torch's ``get_state`` of a CPU generator, bytes, and its words.
_STATE, _WORDS = 24, 624


def seeded(seed: int | None, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """Return a generator; different seeds give different generators.

    torch uses all 64 bits of a seed on a GPU but only the lower 32 bits on the CPU, where 1 and 2**32 + 1 would give
    the same numbers. On the CPU the upper bits therefore change the state that the lower bits give: the first of its
    624 words stays and identifies the lower bits, the second takes the upper bits, and the others are mixed with a
    stream that the upper bits seed. Seeds below 2**32 give the numbers of ``torch.manual_seed``.

    Parameters
    ----------
    seed : 0 to 2**64 - 1; None draws one from the operating system.
    """
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
        return generator
    lower, upper = seed % 2**32, seed >> 32
    if generator.device.type != "cpu" or upper == 0:
        return generator.manual_seed(seed)
    state = generator.manual_seed(lower).get_state()
    words = state.numpy()[_STATE : _STATE + 8 * _WORDS].view(np.uint64)
    words[1] ^= np.uint64(upper)
    words[2:] ^= np.random.PCG64(upper).random_raw(_WORDS - 2) >> np.uint64(32)
    return generator.set_state(state)
