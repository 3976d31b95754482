"""A report as sentences, tables in words and plots, which Markdown, LaTeX and one HTML page show alike."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ivedit.reporting.run_table import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cells", "Report", "picture", "save_plots", "to_html", "to_latex", "to_markdown"]


@dataclass(frozen=True)
class Cells:
    """A table in words.

    Attributes:
        title: Above it.
        head: Of its columns.
        rows: Of as many cells.
        muted: First cells of rows that are only there to compare with.
        figure: Shown below it on a page.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    muted: frozenset[str] = frozenset()
    figure: Figure | None = None


@dataclass(frozen=True)
class Report:
    """Everything that is shown, in order.

    Attributes:
        name: Of the sweep.
        heading: Sentences; those in ``**`` stand out.
        tables: At least one.
        notes: What the numbers are and rest on.
        csv: All numbers, unrounded.
        extras: Parts of the page that text has no room for: (title, plot or HTML).
        plots: All plots by a name for a file.
    """

    name: str
    heading: tuple[str, ...]
    tables: tuple[Cells, ...]
    notes: tuple[str, ...]
    csv: str
    extras: tuple[tuple[str, Figure | str], ...] = ()
    plots: tuple[tuple[str, Figure], ...] = ()


def to_markdown(report: Report) -> str:
    """Without a heading of its own, so that it fits into any page."""
    parts = [*report.heading]
    for table in report.tables:
        parts += [f"**{table.title}**", aligned(table.head, table.rows)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in report.notes)])


def to_latex(report: Report) -> str:
    """Tables for `booktabs`; what was measured is the caption of the first, what the numbers are a comment."""
    parts = ["% \\usepackage{booktabs}", "\n".join(f"% {note}" for note in report.notes)]
    for number, table in enumerate(report.tables):
        caption = " ".join(report.heading) if number == 0 else f"{table.title}."
        body = "\n".join(" & ".join(_tex(cell) for cell in row) + r" \\" for row in table.rows)
        parts.append(
            "\\begin{table}\n\\centering\\small\n"
            f"\\caption{{{_tex(caption)}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}\n\\toprule\n"
            f"{' & '.join(_tex(cell) for cell in table.head)} \\\\\n\\midrule\n{body}\n\\bottomrule\n"
            "\\end{tabular}\n\\end{table}"
        )
    return "\n\n".join(parts) + "\n"


def to_html(report: Report) -> str:
    """One file that needs nothing else."""
    body = [f"<h1>{html.escape(report.name)}</h1>"]
    for line in report.heading:
        body.append(f"<p{' class=running' if line.startswith('**') else ''}>{_inline(line)}</p>")
    for table in report.tables:
        body += [f"<h2>{html.escape(table.title)}</h2>", _table(table)]
        body += [_shown(table.figure)] if table.figure is not None else []
    for title, content in report.extras:
        body += [f"<h2>{html.escape(title)}</h2>", _shown(content)]
    items = "".join(f"<li>{_inline(note)}</li>" for note in report.notes)
    body.append(f"<h2>What the numbers are</h2><ul class=notes>{items}</ul>")
    content = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(report.name)}: report</title>\n<style>\n{_STYLE}</style>\n</head>\n"
        f"<body>\n{content}\n</body>\n</html>\n"
    )


_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1320px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.5em; margin-bottom: .2em; }
h2 { font-size: 1.15em; margin-top: 2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; }
th, td { padding: .3em .6em; text-align: right; border-bottom: 1px solid #e4e4e4; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.holds { color: #20734a; font-weight: 600; white-space: normal; min-width: 11em; }
td.failed { color: #b03024; font-weight: 600; white-space: normal; min-width: 11em; }
tr.muted td { color: #777; }
.running { background: #fff3d6; border: 1px solid #e0b95c; padding: .6em 1em; }
figure { margin: 1em 0; }
svg, figure img { max-width: 100%; height: auto; }
li { margin: .35em 0; }
.notes { color: #555; font-size: 13px; }
.strips { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 620px), 1fr)); gap: 1.4em; }
.strip { overflow-x: auto; }
.strip td { border: 0; padding: 1px 8px; }
.strip td:first-child { text-align: right; white-space: normal; overflow-wrap: anywhere; width: 12em; }
.strip img { height: 64px; image-rendering: pixelated; display: block; }
code { background: #f3f3f3; padding: 0 .25em; }
"""


def _inline(text: str) -> str:
    """Markdown's ``**`` and backticks, which are all that the sentences use."""
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)


def _table(table: Cells) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = []
    for row in table.rows:
        cells = "".join(f"<td{_mark(cell)}>{html.escape(cell)}</td>" for cell in row)
        rows.append(f"<tr{' class=muted' if row[0] in table.muted else ''}>{cells}</tr>")
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _mark(cell: str) -> str:
    if cell.endswith(": holds"):
        return " class=holds"
    return " class=failed" if ": FAILED" in cell else ""


def picture(path: Path) -> str:
    """HTML of a PNG file within the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></figure>'


def _shown(content: Figure | str) -> str:
    """A plot as SVG whose words stay words; HTML as it is."""
    if isinstance(content, str):
        return content
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ivedit"}):
        content.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def save_plots(report: Report, folder: Path) -> list[Path]:
    """Write each plot as PNG (160 dots per inch) and PDF: ``<sweep>-<plot>.png``. Equal plots are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in report.plots:
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None, "Producer": None})):
            files.append(folder / f"{report.name}-{name}{suffix}")
            figure.savefig(files[-1], dpi=160, metadata=metadata)
    return files


_TEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "{": r"\{", "}": r"\}", "$": r"\$",
    "↑": r"$\uparrow$", "<": "$<$", ">": "$>$", "`": "", "*": "", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)

