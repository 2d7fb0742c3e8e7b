"""The plots of the page as one SVG, by matplotlib."""

from __future__ import annotations

import io
from typing import Any

from columns import Column, columns


def svg(results: dict[str, Any]) -> str:
    """Bars for each column; ours in another colour. Servers that did not run have none."""
    import matplotlib

    matplotlib.use("svg")
    # Texts stay texts, and the same figures give the same file.
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "onelane",
            "font.size": 8,
            "font.family": "sans-serif",
        }
    )
    from matplotlib import pyplot

    found = {name: one for name, one in results["servers"].items() if "unavailable" not in one}
    shares = list(results["shares"])
    shown = [column for column in columns(shares) if column.head != "of its own best"]
    rows = (len(shown) + 2) // 3
    figure, axes = pyplot.subplots(rows, 3, figsize=(11, 0.9 + rows * (0.5 + 0.17 * len(found))))
    for axis, column in zip(axes.flat, shown, strict=False):
        _bars(axis, column, found, {n for n, o in found.items() if o["ours"]})
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    figure.suptitle(f"{results['model']}, {results['machine']['cores']} cores, {results['title']}")
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = out.getvalue()
    # Within a page there is neither a declaration nor a document type.
    return text[text.index("<svg") :]


def _bars(axis: Any, column: Column, found: dict[str, Any], ours: set[str]) -> None:
    names = list(found)[::-1]
    values = [column.of(found[name]) for name in names]
    axis.barh(
        names,
        [value or 0 for value in values],
        color=["#2563eb" if name in ours else "#9ca3af" for name in names],
    )
    for at, name in enumerate(names):
        axis.annotate(
            column.cell(found[name]), (max(values[at] or 0, 0), at), xytext=(3, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    better = {1: "more is better", -1: "less is better", 0: ""}[column.better]
    axis.set_title(f"{column.head} ({better})", fontsize=8)
    # Room for the figure behind the longest bar.
    axis.set_xmargin(0.25)
    axis.spines[["top", "right"]].set_visible(False)
