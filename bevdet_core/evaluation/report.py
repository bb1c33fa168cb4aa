"""What the reports of all metrics share: precision-recall curves, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..files import written_aside


def print_report(table: Table, warnings: Sequence[str], console: Console | None = None) -> None:
    """Show scores and what looks wrong with them in the terminal."""
    console = console or Console()
    console.print(table)
    for text in warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(text)}")


def draw_curves(
    path: Path, title: str, legend: str, panels: Mapping[str, Mapping[str, np.ndarray]], columns: int = 5
) -> None:
    """Draw precision over recall, one panel for each class.

    Args:
        path: the picture.
        title: of the whole.
        legend: what tells the curves of a panel apart.
        panels: title of each panel -> label of each curve -> precision at recalls spread evenly from 0 to 1.
        columns: panels in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(3 * columns, 5), 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for label, precision in curves.items():
            axes.plot(np.linspace(0, 1, len(precision)), precision, label=label, linewidth=1.2)
        axes.set(title=name, xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if number % columns == 0:
            axes.set_ylabel("precision")
        if number >= len(panels) - columns:
            axes.set_xlabel("recall")
    axes.legend(title=legend, fontsize="small", title_fontsize="small")
    figure.suptitle(title)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=110, format=path.suffix.removeprefix("."))
