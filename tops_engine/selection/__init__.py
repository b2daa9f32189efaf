"""Choosing and merging tokens: pure functions on tensors, no model in sight."""

from tops_engine.selection.apportion import TileBudget, apportion, tile_budgets
from tops_engine.selection.coverage import saliency_coverage_select
from tops_engine.selection.dpp import dpp_select
from tops_engine.selection.greedy import Normalization, greedy_select, greedy_select_reference
from tops_engine.selection.max_min import max_min_select
from tops_engine.selection.merging import (
    merge_into_targets,
    merge_neighbours,
    others,
    pool_grid,
    pooled_rows,
    top_tokens,
)
from tops_engine.selection.similarity import cosine_similarity

__all__ = [
    "Normalization",
    "TileBudget",
    "apportion",
    "cosine_similarity",
    "dpp_select",
    "greedy_select",
    "greedy_select_reference",
    "max_min_select",
    "merge_into_targets",
    "merge_neighbours",
    "others",
    "pool_grid",
    "pooled_rows",
    "saliency_coverage_select",
    "tile_budgets",
    "top_tokens",
]
