"""Small V1 nodes that show how a runner treats them."""

from typing import Any, ClassVar


class Number:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    CATEGORY = "toy"
    runs: ClassVar[int] = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"default": 1, "min": 0, "max": 10}), "seed": ("INT", {"default": 0})}}

    def run(self, value: int, seed: int) -> tuple[int]:
        Number.runs += 1
        return (value,)


class Many:
    """Gives a list."""

    RETURN_TYPES = ("INT", "STRING")
    OUTPUT_IS_LIST = (True, False)
    FUNCTION = "run"
    CATEGORY = "toy"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"count": ("INT", {"default": 3, "min": 0, "max": 1000})}}

    def run(self, count: int) -> tuple[list[int], str]:
        return list(range(count)), "one"


class Add:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    CATEGORY = "toy"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"a": ("INT", {"default": 0}), "b": ("INT", {"default": 0, "forceInput": True})}}

    def run(self, a: int, b: int) -> tuple[int]:
        return (a + b,)


class Collect:
    """Takes lists as they are."""

    INPUT_IS_LIST = True
    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "toy"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"values": ("INT", {"forceInput": True}), "mark": ("STRING", {"default": ","})}}

    def run(self, values: list[int], mark: list[str]) -> tuple[str]:
        return (mark[0].join(map(str, values)),)


class Show:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"
    CATEGORY = "toy"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {})}, "optional": {"note": ("STRING", {"default": ""})}}

    def run(self, value: Any, note: str = "") -> dict[str, Any]:
        return {"ui": {"text": [f"{note}{value}"]}}


class Choosy:
    """Says itself whether its choice is good, and when it has to run again."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "toy"
    state: ClassVar[Any] = 0
    runs: ClassVar[int] = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"choice": (["a", "b"], {}), "other": (["x", "y"], {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, choice: str) -> bool | str:
        return True if choice != "bad" else "bad is not allowed"

    @classmethod
    def IS_CHANGED(cls, choice: str, other: str) -> Any:
        if isinstance(cls.state, Exception):
            raise cls.state
        return cls.state

    def run(self, choice: str, other: str) -> tuple[str]:
        Choosy.runs += 1
        return (choice + other,)


class Own:
    """Knows its id and the graph, and remembers."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "toy"

    def __init__(self) -> None:
        self.calls = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"value": ("INT", {"default": 0})},
            "hidden": {"me": "UNIQUE_ID", "prompt": "PROMPT", "extra": "EXTRA_PNGINFO"},
        }

    async def run(self, value: int, me: str, prompt: Any, extra: Any) -> tuple[str]:
        self.calls += 1
        return (f"{me} {len(prompt)} {sorted(extra)} call {self.calls}",)


class Break:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    CATEGORY = "toy"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"default": 0, "forceInput": True})}}

    def run(self, value: int) -> tuple[int]:
        raise ValueError(f"cannot take {value}")


TOYS: dict[str, Any] = {cls.__name__: cls for cls in (Number, Many, Add, Collect, Show, Choosy, Own, Break)}
