"""RESTORE: github.com/cvlab-yonsei/RESTORE, distinctive_anchor_merging and what llava_arch_restore.py does with it.

The tokens that are compared are those in the middle of the groups, where the code puts the groups' positions; means and
sizes are asserted to be equal. The bias of the attention is compared with its formula in the tests.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of
from tops_engine import selection

FILE = "tokenreduction/tore/merge.py"


def features(seed: int) -> Tensor:
    return torch.randn(NUM_TOKENS, 8, generator=torch.Generator().manual_seed(seed))


def official(checkout: Path, seed: int, count: int) -> Sequence[int]:
    merge, _ = function_of(checkout, FILE, "distinctive_anchor_merging")(features(seed)[None], count)
    pattern = merge(torch.eye(NUM_TOKENS)[None], mode="amax")[0]
    sizes = pattern.sum(dim=1)
    means = merge(features(seed)[None], mode="sum")[0] / sizes[:, None]
    members = [row.nonzero().flatten().tolist() for row in pattern]
    middle = [group[(len(group) - 1) // 2] for group in members]
    groups = selection.distinctive_groups(features(seed), count)
    order = sorted(range(count), key=middle.__getitem__)
    torch.testing.assert_close(groups.sizes, sizes[order])
    torch.testing.assert_close(groups.features, means[order], atol=1e-5, rtol=1e-5)
    return middle


def ours(seed: int, count: int) -> Sequence[int]:
    places: list[int] = selection.distinctive_groups(features(seed), count).places.tolist()
    return places


if __name__ == "__main__":
    compare(__doc__, official, ours)
