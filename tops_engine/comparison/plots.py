"""Draw the figures of comparisons (needs the extra ``bench``)."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tops_engine.comparison.position_bias import PositionBias
from tops_engine.comparison.records import FolderResult, Summary
from tops_engine.evaluation.plotting import line_style, require_matplotlib, save_figure
from tops_engine.evaluation.prunings import pruning_name

# Budgets are written beside the points of at most this many lines; with more lines they would overlap.
MOST_ANNOTATED = 5


def plot_folder(result: FolderResult, path: Path) -> None:
    """Draw fidelity (loss increase) against the time to the first token and against FLOPs, one line per method."""
    pyplot = require_matplotlib("--plot")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    lines: dict[str, list[Summary]] = defaultdict(list)
    for summary in result.summaries[1:]:
        if summary.num_answers:
            lines[summary.pruning.label].append(summary)
    for number, (label, summaries) in enumerate(lines.items()):
        summaries.sort(key=lambda summary: summary.layer_average)
        losses = [summary.loss_increase.value for summary in summaries if summary.loss_increase is not None]
        style = line_style(number, label)
        times = [1e3 * summary.first_token for summary in summaries]
        left.plot(times, losses, **style)
        right.plot([summary.flops / 1e9 for summary in summaries], losses, **style)
        for summary, time, loss in zip(summaries, times, losses, strict=True) if len(lines) <= MOST_ANNOTATED else ():
            text = summary.pruning.budget_text
            left.annotate(text, (time, loss), (4, 4), textcoords="offset points", fontsize=7, color="#555555")
    unpruned = result.summaries[0]
    for axes, x in ((left, 1e3 * unpruned.first_token), (right, unpruned.flops / 1e9)):
        axes.plot(x, 0.0, "k*", markersize=13, label="unpruned")
        axes.axvline(x, color="grey", linestyle=":", linewidth=1)
        axes.grid(alpha=0.25)
    left.set(xlabel="median ms to the first token", ylabel="loss increase on the unpruned answer, nats a token")
    right.set(xlabel="GFLOPs an answer")
    right.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(result.title, fontsize=11)
    save_figure(figure, path)


def draw_position_bias(biases: Sequence[PositionBias], path: Path) -> None:
    """Draw heat maps of how often each place is kept, side by side on one scale."""
    pyplot = require_matplotlib("A heat map")
    columns = min(4, len(biases))
    rows = -(-len(biases) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(2.9 * columns + 1.2, 3.3 * rows + 0.5), layout="constrained", squeeze=False
    )
    highest = max(float(bias.frequency.nan_to_num().max()) for bias in biases)
    for axis in axes.flat:
        axis.axis("off")
    for axis, bias in zip(axes.flat, biases, strict=False):
        image = axis.imshow(bias.frequency.numpy(), vmin=0, vmax=highest, cmap="viridis")
        axis.set_title(
            f"{pruning_name(bias.pruning)}\nGini {bias.gini:.2f} (chance {bias.chance_gini:.2f}), "
            f"entropy {bias.entropy:.3f} ({bias.chance_entropy:.3f})",
            fontsize=8,
        )
    figure.colorbar(image, ax=axes, label="share of questions in which the place is kept", shrink=0.8)
    figure.suptitle(f"Places kept up to the last layer, {biases[0].num_answers} questions", fontsize=10)
    save_figure(figure, path)
