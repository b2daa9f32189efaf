"""A second instrument: mini's vision tower before a language model that was trained on real text, SmolLM2-135M."""
