"""Run an agent that takes a screenshot at each step, with and without a visual budget, and compare the steps.

python docs/examples/langchain/screen_agent.py --plot steps.png
python docs/examples/langchain/screen_agent.py --model Qwen/Qwen3-VL-8B-Instruct --max-visual-tokens 2000

A real Chromium shows local pages, one a step. The agent first runs without a budget, then with one. The table has, for
each step, the visual tokens that the language model read (layer-average), the milliseconds to the first token and the
size of the key-value cache.

mini was not trained to use tools. The middleware ``ask_for_screenshots`` makes any model take a screenshot at each step
and then answer, so that both runs have the same steps.
"""

import argparse
import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_tops import ChatTOPSLlava, VisualBudgetMiddleware, image_block
from playwright.async_api import Page, async_playwright

PAGE = """
<body style="font: 40px sans-serif; margin: 30px; background: hsl({hue}, 60%, 90%)">
  <h1>Order {step}</h1>
  <p style="font-size: 160px; margin: 0">{digit}</p>
  <p>{items} items, <b style="color: hsl({hue}, 90%, 30%)">{state}</b></p>
</body>
"""


class Step(NamedTuple):
    """What one call of the model read."""

    visual_tokens: float
    milliseconds: float
    cache_kilobytes: float


def screenshot_tool(page: Page) -> BaseTool:
    """Return a tool that shows the next page of a shop in a browser and returns a picture of it."""
    steps: Iterator[int] = count(1)

    @tool
    async def screenshot() -> list[Any]:
        """Open the next order and take a screenshot."""
        step = next(steps)
        state = ("new", "paid", "sent")[step % 3]
        await page.set_content(
            PAGE.format(step=step, digit=step * 7 % 10, items=step * 3, state=state, hue=step * 47 % 360)
        )
        return [image_block(await page.screenshot())]

    return screenshot


def ask_for_screenshots(steps: int) -> AgentMiddleware[Any, Any, Any]:
    """Return a middleware that has the model call the tool so many times, and then answer."""

    @wrap_model_call
    async def ask(
        request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        if sum(isinstance(message, ToolMessage) for message in request.messages) < steps:
            return await handler(request.override(tool_choice="any", model_settings={"parallel_tool_calls": False}))
        return await handler(request.override(tool_choice="none"))

    return ask


async def run(model: ChatTOPSLlava, steps: int, middleware: Sequence[AgentMiddleware[Any, Any, Any]]) -> list[Step]:
    """Run the agent in a browser of its own and return what each call read, the last for the answer."""
    model.setup({}).engine.forget()  # both runs see the same pictures, and none may use the work of the other
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 504, "height": 504})
        agent: Any = create_agent(model, [screenshot_tool(page)], middleware=[ask_for_screenshots(steps), *middleware])
        question = {"messages": [("user", "What number is written?")]}
        state = await agent.ainvoke(question, {"recursion_limit": 4 * steps + 10})
        await browser.close()
    return [_step(message) for message in state["messages"] if isinstance(message, AIMessage)]


def _step(answer: AIMessage) -> Step:
    measured = answer.response_metadata
    seconds = sum(measured["timings"][name] for name in ("vision", "selection", "prefill"))
    return Step(measured["usage"]["layer_average"], 1000 * seconds, measured["kv_cache_bytes"] / 1024)


def table(without: Sequence[Step], budgeted: Sequence[Step]) -> str:
    """Return the steps of both runs as a Markdown table."""
    lines = [
        "| pictures | visual tokens | with budget | ms to first token | with budget | cache, kB | with budget |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pictures, pair in enumerate(zip(without, budgeted, strict=True)):
        cells = [f"{value:.0f}" for values in zip(*pair, strict=True) for value in values]
        lines.append(f"| {pictures} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(without: Sequence[Step], budgeted: Sequence[Step], path: Path) -> None:
    """Draw the three measurements over the number of pictures."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    titles = ("visual tokens (layer-average)", "milliseconds to the first token", "key-value cache, kB")
    for axis, title, *values in zip(axes, titles, zip(*without, strict=True), zip(*budgeted, strict=True), strict=True):
        axis.plot(values[0], label="without budget", color="tab:gray")
        axis.plot(values[1], label="with budget", color="tab:blue")
        axis.set(title=title, xlabel="screenshots in the history", ylim=(0, None))
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--keep", type=float, default=0.25, help="fraction of the visual tokens of the newest picture")
    parser.add_argument("--max-visual-tokens", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="how many screenshots the agent takes")
    parser.add_argument("--plot", type=Path, help="where to save a plot")
    given = parser.parse_args(arguments)

    model = ChatTOPSLlava(model=given.model, keep=given.keep, max_tokens=100)
    asyncio.run(run(model, 1, []))  # loads the weights
    without = asyncio.run(run(model, given.steps, []))
    budgeted = asyncio.run(run(model, given.steps, [VisualBudgetMiddleware(given.max_visual_tokens)]))
    print(table(without, budgeted))
    if given.plot:
        plot(without, budgeted, given.plot)


if __name__ == "__main__":
    main()
