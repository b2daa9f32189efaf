"""Select and merge tokens: pure functions on tensors that need no model.

The functions are imported when they are first used, so that reading a method's options does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tops_engine.selection.affinity import local_affinity
    from tops_engine.selection.allocation import CURVES, allocate, with_least
    from tops_engine.selection.clusters import cluster_means, density_peaks
    from tops_engine.selection.coverage import max_coverage_select, saliency_coverage_select
    from tops_engine.selection.distinctive import Groups, distinctive_groups
    from tops_engine.selection.dpp import dpp_select, kernel_dpp_select
    from tops_engine.selection.duplicates import distinct_tokens
    from tops_engine.selection.frames import clustered_segments, lowest_of_each, spread_evenly, unlike_segments
    from tops_engine.selection.greedy import greedy_select, greedy_select_reference, selection_shortfall
    from tops_engine.selection.hierarchy import anchor_select
    from tops_engine.selection.holistic import holistic_select
    from tops_engine.selection.max_min import max_min_select
    from tops_engine.selection.merging import (
        fold_dropped,
        merge_into_targets,
        merge_neighbours,
        others,
        pool_grid,
        pooled_rows,
        top_tokens,
    )
    from tops_engine.selection.objective import Normalization
    from tops_engine.selection.semantic_groups import grouped_select
    from tops_engine.selection.shares import TileBudget, apportion, tile_budgets
    from tops_engine.selection.similarity import cosine_similarity
    from tops_engine.selection.static_parts import Window, lowest_threshold, num_left, static_windows
    from tops_engine.selection.windows import window_select

__all__ = [
    "CURVES",
    "Groups",
    "Normalization",
    "TileBudget",
    "Window",
    "allocate",
    "anchor_select",
    "apportion",
    "cluster_means",
    "clustered_segments",
    "cosine_similarity",
    "density_peaks",
    "distinct_tokens",
    "distinctive_groups",
    "dpp_select",
    "fold_dropped",
    "greedy_select",
    "greedy_select_reference",
    "grouped_select",
    "holistic_select",
    "kernel_dpp_select",
    "local_affinity",
    "lowest_of_each",
    "lowest_threshold",
    "max_coverage_select",
    "max_min_select",
    "merge_into_targets",
    "merge_neighbours",
    "num_left",
    "others",
    "pool_grid",
    "pooled_rows",
    "saliency_coverage_select",
    "selection_shortfall",
    "spread_evenly",
    "static_windows",
    "tile_budgets",
    "top_tokens",
    "unlike_segments",
    "window_select",
    "with_least",
]

_MODULES = {
    "CURVES": "allocation",
    "Groups": "distinctive",
    "Normalization": "objective",
    "TileBudget": "shares",
    "Window": "static_parts",
    "allocate": "allocation",
    "anchor_select": "hierarchy",
    "apportion": "shares",
    "cluster_means": "clusters",
    "clustered_segments": "frames",
    "cosine_similarity": "similarity",
    "density_peaks": "clusters",
    "distinct_tokens": "duplicates",
    "distinctive_groups": "distinctive",
    "dpp_select": "dpp",
    "fold_dropped": "merging",
    "greedy_select": "greedy",
    "greedy_select_reference": "greedy",
    "grouped_select": "semantic_groups",
    "holistic_select": "holistic",
    "kernel_dpp_select": "dpp",
    "local_affinity": "affinity",
    "lowest_of_each": "frames",
    "lowest_threshold": "static_parts",
    "max_coverage_select": "coverage",
    "max_min_select": "max_min",
    "merge_into_targets": "merging",
    "merge_neighbours": "merging",
    "num_left": "static_parts",
    "others": "merging",
    "pool_grid": "merging",
    "pooled_rows": "merging",
    "saliency_coverage_select": "coverage",
    "selection_shortfall": "greedy",
    "spread_evenly": "frames",
    "static_windows": "static_parts",
    "tile_budgets": "shares",
    "top_tokens": "merging",
    "unlike_segments": "frames",
    "window_select": "windows",
    "with_least": "allocation",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
