"""Choosing tokens: pure functions on tensors, no model in sight."""

from tops_engine.selection.coverage import saliency_coverage_select
from tops_engine.selection.greedy import Normalization, greedy_select, greedy_select_reference
from tops_engine.selection.max_min import max_min_select
from tops_engine.selection.similarity import cosine_similarity

__all__ = [
    "Normalization",
    "cosine_similarity",
    "greedy_select",
    "greedy_select_reference",
    "max_min_select",
    "saliency_coverage_select",
]
