"""What an answer reports: text, token counts, times, FLOPs."""
