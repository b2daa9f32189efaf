"""Test TOPS Prune LLM and TOPS Load from CLIP as a user meets them: Load CLIP's file, Generate Text, in Chromium."""

from typing import Any

import pytest

from tests.comfyui.conftest import Server, open_template, save_picture
from tests.comfyui.small_files import save_qwen3_vl_file
from tests.comfyui.test_generate_text import HAS_QWEN3_VL

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not HAS_QWEN3_VL, reason="COMFYUI_PATH names no ComfyUI that has Qwen3-VL"),
]

FILE = "qwen3vl_small.safetensors"
#: Choose values as a user does, so that the frontend notices them.
SET_WIDGETS = """([id, values]) => { const node = window.app.graph.getNodeById(id); for (const widget of node.widgets) {
    if (!(widget.name in values)) continue
    const before = widget.value
    widget.value = values[widget.name]
    widget.callback?.(widget.value)
    node.onWidgetChanged?.(widget.name, widget.value, before, widget) } }"""
#: The text that a node shows in itself.
ON_NODE = "id => window.app.graph.getNodeById(id).widgets.find(one => one.name === 'shown_text')?.value ?? ''"
SHOWN = "id => window.app.nodeOutputs?.[id]?.text?.join('') ?? ''"

#: TOPS Load from CLIP and TOPS Ask beside the template, on the same Load CLIP and the same picture.
ADD_ASK = """() => {
    const add = (type, x, y) => {
        const node = window.LiteGraph.createNode(type)
        node.pos = [x, y]
        window.app.graph.add(node)
        return node
    }
    const at = id => window.app.graph.getNodeById(id)
    const connect = (from, slot, to, name) => from.connect(slot, to, to.inputs.findIndex(one => one.name === name))
    const load = add('TOPSLoadFromClip', 490, 1000), ask = add('TOPSAsk', 920, 1000)
    const answer = add('PreviewAny', 1410, 1000), cost = add('PreviewAny', 1410, 1250)
    connect(at(1), 0, load, 'clip')
    connect(load, 0, ask, 'model')
    connect(at(2), 0, ask, 'image')
    connect(ask, 0, answer, 'source')
    connect(ask, ask.outputs.findIndex(one => one.name === 'stats_text'), cost, 'source')
    return [load, ask, answer, cost].map(node => String(node.id))
}"""

#: A text encoder in the place of Load CLIP. It has no pictures, so that Generate Text gets none.
USE_TEXT_ENCODER = """() => {
    const at = id => window.app.graph.getNodeById(id)
    const clip = window.LiteGraph.createNode('TestSmallClip')
    clip.pos = [40, 200]
    window.app.graph.add(clip)
    clip.widgets[0].value = 'text'
    clip.connect(0, at(4), at(4).inputs.findIndex(one => one.name === 'clip'))
    at(5).disconnectInput(at(5).inputs.findIndex(one => one.name === 'image'))
    for (const id of [7, 8, 9]) window.app.graph.remove(at(id))
}"""


@pytest.fixture(scope="module")
def opened(page: Any, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Open the template "Make Generate Text faster" with a small file chosen in Load CLIP."""
    file = server.base / "models" / "text_encoders" / FILE
    save_qwen3_vl_file(file, tmp_path_factory.mktemp("qwen3_vl"))
    open_template(page, server, "Make Generate Text faster")
    page.evaluate(SET_WIDGETS, [1, {"clip_name": FILE}])
    page.evaluate(SET_WIDGETS, [5, {"max_length": 8}])
    page.problems.clear()  # of the start, such as the missing templates of ComfyUI itself
    return page


def run(page: Any, *node_ids: str) -> None:
    """Press Run and wait until the nodes show something new."""
    page.evaluate("window.app.nodeOutputs = {}")
    page.get_by_role("button", name="Run").first.click()
    page.wait_for_function("ids => ids.every(id => window.app.nodeOutputs?.[id])", arg=list(node_ids))
    page.wait_for_timeout(1000)


def test_generate_text_reads_pruned_pictures_and_the_nodes_show_it(opened: Any, server: Server) -> None:
    run(opened, "4", "6", "7", "8", "9")
    save_picture(opened, "generate_text")
    assert opened.evaluate(ON_NODE, 4) == "Qwen3VL (qwen3vl_8b): divprune, keeps 33.3 % of the visual tokens"
    assert "visual tokens →" in opened.evaluate(ON_NODE, 7)
    assert "method divprune" in opened.evaluate(SHOWN, "9")
    assert opened.evaluate("window.app.nodeOutputs['8'].images.length") == 1
    pruned = opened.evaluate(SHOWN, "6")
    opened.evaluate("window.app.graph.getNodeById(4).mode = 4")  # bypassed, as its note says
    opened.evaluate("for (const id of [7, 8, 9]) window.app.graph.getNodeById(id).mode = 2")  # muted
    run(opened, "6")
    plain = opened.evaluate(SHOWN, "6")
    opened.evaluate("for (const id of [4, 7, 8, 9]) window.app.graph.getNodeById(id).mode = 0")
    opened.evaluate(SET_WIDGETS, [3, {"keep": 1.0}])
    run(opened, "6", "7")
    assert opened.evaluate(SHOWN, "6") == plain != pruned
    opened.evaluate(SET_WIDGETS, [3, {"keep": 0.333}])


def test_our_nodes_run_on_the_file_that_load_clip_read(opened: Any, server: Server) -> None:
    load, ask, answer, cost = opened.evaluate(ADD_ASK)
    opened.evaluate(SET_WIDGETS, [int(ask), {"prompt": "What is shown?", "max_tokens": 4}])
    loaded = server.times_loaded
    run(opened, answer, cost)
    save_picture(opened, "load_from_clip")
    assert opened.evaluate(SHOWN, answer)
    assert "model Qwen3VL of ComfyUI, method tops" in opened.evaluate(SHOWN, cost)
    assert server.times_loaded == loaded  # no second copy
    opened.evaluate("ids => ids.forEach(id => app.graph.remove(app.graph.getNodeById(id)))", [load, ask, answer, cost])


def test_a_text_encoder_gives_a_warning_on_the_node_and_runs(opened: Any, server: Server) -> None:
    opened.evaluate(USE_TEXT_ENCODER)
    errors = server.log.count("Traceback")  # of other tests on this server
    run(opened, "4", "6")
    save_picture(opened, "generate_text_warning")
    assert opened.evaluate(ON_NODE, 4).startswith("Warning: This CLIP is a text encoder without a vision tower")
    assert not opened.evaluate("window.app.graph.nodes.some(node => node.has_errors)")
    assert server.log.count("Traceback") == errors
    # The first two lines name what failed and where; the lines below, who called it.
    said = [" ".join(problem.splitlines()[:2]) for problem in opened.problems]
    assert not [problem for problem in said if "tops" in problem.lower()]
