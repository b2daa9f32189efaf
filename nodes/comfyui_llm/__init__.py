"""ComfyUI's own language models: how a CLIP that holds one reads pruned pictures, and how our nodes run on its weights.

ComfyUI calls a loaded text encoder CLIP; some of them are vision-language models that its node Generate Text runs.
``language_model`` finds the model in a CLIP, ``towers`` and ``decoder`` read it as the engine reads its own families,
``prompt_run`` prunes one prompt with the engine's own code, and ``patches`` puts that into a clone of the CLIP.
"""
