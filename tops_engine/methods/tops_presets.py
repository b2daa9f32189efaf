"""The schedules of the TOPS paper's tables 9, 10 and 17, with the weights they were run with.

The paper states its budgets as layer-averages. Some rows of its tables 9 and 10 do not average what they claim; the
presets keep the published counts and report their true average.
"""

from tops_engine.budget import Preset, Stage


def _preset(
    counts: tuple[int, int, int], layers: tuple[int, int], model: tuple[int, int], weights: tuple[float, float]
) -> Preset:
    stages = tuple(Stage(layer, count) for layer, count in zip((0, *layers), counts, strict=True))
    return Preset(stages, *model, dict(zip(("alpha", "lambda"), weights, strict=True)), for_every_method=True)


def _presets() -> dict[str, Preset]:
    llava_1_5 = {128: (256, 128, 32), 64: (128, 64, 16), 32: (64, 32, 8)}
    llava_next = {640: (1280, 640, 160), 320: (640, 320, 80), 160: (320, 160, 40)}
    qwen_and_internvl = {256: (512, 281, 77), 128: (256, 139, 39), 64: (128, 71, 19)}
    rows: list[tuple[str, dict[int, tuple[int, int, int]], tuple[int, int], tuple[int, int], list[tuple[float, float]]]]
    rows = [
        ("llava-1.5-7b", llava_1_5, (12, 24), (32, 576), [(0.5, 0.5), (0.5, 1.0), (0.5, 1.0)]),
        ("llava-1.5-13b", llava_1_5, (15, 30), (40, 576), [(0.5, 0.4)] * 3),
        ("llava-next-7b", llava_next, (12, 24), (32, 2880), [(0.5, 0.5), (0.5, 0.4), (0.5, 0.5)]),
        ("llava-next-13b", llava_next, (15, 30), (40, 2880), [(0.5, 0.5)] * 3),
        ("qwen2.5-vl-7b", qwen_and_internvl, (12, 16), (28, 1296), [(0.5, 0.4)] * 3),
        ("internvl3-8b", qwen_and_internvl, (12, 16), (28, 1280), [(0.2, 0.2), (0.3, 0.2), (0.3, 0.2)]),
    ]
    presets = {
        f"{model}/{budget}": _preset(counts, layers, size, pair)
        for model, table, layers, size, weights in rows
        for (budget, counts), pair in zip(table.items(), weights, strict=True)
    }
    # Table 17 gives other counts for this run than table 9; only these average 128.
    presets["llava-1.5-7b/128-table17"] = _preset((256, 64, 32), (12, 24), (32, 576), (0.5, 0.5))
    return presets


#: By model and budget, such as ``llava-1.5-7b/64``.
PRESETS: dict[str, Preset] = _presets()
