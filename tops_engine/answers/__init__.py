"""The answers of engines and what they report: text, token counts, times, FLOPs."""
