"""Parts that model families hold: vision towers, tile layouts, frames of videos, newline tokens, weight names."""
