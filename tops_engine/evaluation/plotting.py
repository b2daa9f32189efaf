"""Drawing figures with matplotlib (the extra ``bench``)."""

from pathlib import Path
from typing import Any

from tops_engine.errors import InvalidInput, MissingDependency, reason_of, shorten


def require_matplotlib(what: str) -> Any:
    """Return ``matplotlib.pyplot``; call this before the work whose results are drawn.

    Raises
    ------
    MissingDependency
        If matplotlib is not installed; the message names ``what`` needs it.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency(f"{what} needs matplotlib: pip install 'tops-engine[bench]'.") from error
    matplotlib.use("agg")  # draws to files, without a display
    from matplotlib import pyplot

    return pyplot


def line_style(number: int, label: str) -> dict[str, Any]:
    """Return the style of line ``number`` of a plot: ten colours solid, then dashed, with changing markers."""
    return {
        "color": f"C{number % 10}",
        "linestyle": ("-", "--", ":")[number // 10 % 3],
        "marker": "osD^vP*X"[number % 8],
        "linewidth": 1.4,
        "label": label,
    }


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure to a file and close it.

    Raises
    ------
    InvalidInput
        If the file cannot be written.
    """
    pyplot = require_matplotlib("A plot")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The figure cannot be written to {shorten(path)}: {reason_of(error)}.") from error
    finally:
        pyplot.close(figure)
