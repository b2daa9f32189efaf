"""A pack for the tests: it says which models ComfyUI's memory manager holds, and asks for the room of a large one."""

import json
import sys

import psutil
import torch
from aiohttp import web
from comfy import model_management
from server import PromptServer


async def memory(_: web.Request) -> web.Response:
    held = [loaded for loaded in model_management.current_loaded_models if loaded.model is not None]
    ours = [module for name, module in list(sys.modules.items()) if name.endswith("tops-engine.nodes.models")]
    handles = [handle for module in ours for handle in module.living_handles()]
    state = {
        "held": [type(loaded.model.model).__name__ for loaded in held],
        "bytes": sum(loaded.model_loaded_memory() for loaded in held),
        "engines": sum(handle.engine.is_loaded for handle in handles),
        "rss": psutil.Process().memory_info().rss,
    }
    return web.json_response(text=json.dumps(state))


PromptServer.instance.routes.get("/test/memory")(memory)


class TakesAllMemory:
    """Makes room as loading a diffusion model does; on the CPU ComfyUI itself leaves that out."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "take", ("STRING",), True

    INPUT_TYPES = staticmethod(lambda: {"required": {"number": ("INT", {"default": 0})}})

    def take(self, number: int) -> tuple[str]:
        model_management.free_memory(1e30, torch.device("cpu"))
        return (str(number),)


NODE_CLASS_MAPPINGS = {"TestTakesAllMemory": TakesAllMemory}
