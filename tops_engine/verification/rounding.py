"""How far results may differ because of the precision of the weights."""

import torch
from torch import Tensor

#: Rounding errors of a logit that two exact programs may differ by, as a fraction of the largest logit: about two units
#: in the last place of the precision; float32 sums of many terms lose more.
LOGIT_ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

#: A pruned run and its reference multiply matrices of other sizes in every layer, so their errors add up.
RUN_FACTOR = 4

#: Largest shortfall of a selection in float32.
SELECTION_ROUNDING = 1e-4


def logit_rounding(logits: Tensor, dtype: torch.dtype) -> float:
    """Return the rounding error that logits have where the weights are of ``dtype``."""
    return LOGIT_ROUNDING[dtype] * float(logits.abs().max())
