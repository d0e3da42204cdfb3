"""The forms that tables of a study are written in: CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping
from itertools import groupby

from reben_cloud.training.study.scores import Spread
from reben_cloud.training.study.tables import Table, Value

_DIGITS = 3


def to_csv(table: Table) -> str:
    """A table as CSV: a column ``NAME_std`` beside each that has deviations; empty where there is no number."""
    spreads = [
        any(isinstance(row[len(table.keys) + n], Spread) for row in table.rows)
        for n in range(len(table.heads))
    ]
    head = list(table.keys)
    for name, has_deviation in zip(table.columns, spreads, strict=True):
        head += [name, f"{name}_std"] if has_deviation else [name]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        cells: list[object] = list(row[: len(table.keys)])
        for value, has_deviation in zip(row[len(table.keys) :], spreads, strict=True):
            if isinstance(value, Spread):
                cells += [_number(value.mean), _number(value.deviation)]
            else:
                cells += [_number(value), ""] if has_deviation else [_number(value)]
        writer.writerow(cells)
    return text.getvalue()


def _number(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return "" if value is None else str(value)


_TEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # Of these, the fonts that LaTeX begins with have other signs.
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


def to_latex(table: Table) -> str:
    """A table for the packages booktabs and amsmath: means with deviations, the best of a column in bold."""
    best = _best(table)
    keys = len(table.keys)
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' * keys}{'r' * len(table.heads)}}}",
        r"\toprule",
        " & ".join(_tex(head) for head in (*table.keys, *table.heads)) + r" \\",
        r"\midrule",
    ]
    for number, (_, rows) in enumerate(
        groupby(enumerate(table.rows), key=lambda one: one[1][0] if keys > 1 else 0)
    ):
        if number:
            lines.append(r"\midrule")
        for n, (at, row) in enumerate(rows):
            cells = [_tex(str(one)) if m or not n or keys == 1 else "" for m, one in enumerate(row[:keys])]
            for column, value in enumerate(row[keys:]):
                text = _tex_value(value, table.holds == "differences")
                cells.append(rf"\textbf{{{text}}}" if text and at in best.get(column, ()) else text)
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _tex_value(value: Value, is_signed: bool) -> str:
    return shown(value, is_signed).replace("−", "$-$").replace(" ± ", r" $\pm$ ").replace("–", "--")


def _best(table: Table) -> dict[int, set[int]]:
    """Column -> the rows with the largest mean of those tested on the same; none where all of these have the same."""
    best: dict[int, set[int]] = {}
    for column in range(len(table.heads)) if table.holds == "scores" else ():
        for test in dict.fromkeys(table.tests):
            values = {
                n: row[len(table.keys) + column] for n, row in enumerate(table.rows) if table.tests[n] == test
            }
            means = {n: one.mean for n, one in values.items() if isinstance(one, Spread) and one.values}
            largest = {n for n, mean in means.items() if mean == max(means.values())}
            if len(largest) < len(means):
                best.setdefault(column, set()).update(largest)
    return best


def shown(value: Value, is_signed: bool = False) -> str:
    """A value for people: three digits, the deviation after it, a dash where there is none."""
    if isinstance(value, Spread):
        deviation = value.deviation
        return shown(value.mean, is_signed) + (
            f" ± {deviation:.{_DIGITS}f}" if math.isfinite(deviation) else ""
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        if abs(value) > 10:
            return f"{value:,.0f}"
        return f"{value:+.{_DIGITS}f}".replace("-", "−").removeprefix("" if is_signed else "+")
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else value


def to_html(table: Table) -> str:
    """A table as a piece of a page."""
    best = _best(table)
    keys = len(table.keys)
    head = "".join(f"<th>{html.escape(one)}</th>" for one in table.keys)
    head += "".join(f'<th class="value">{html.escape(one)}</th>' for one in table.heads)
    rows = []
    for at, row in enumerate(table.rows):
        cells = [f"<th>{html.escape(str(one))}</th>" for one in row[:keys]]
        for column, value in enumerate(row[keys:]):
            marked = ' class="best"' if at in best.get(column, ()) else ""
            text = html.escape(shown(value, table.holds == "differences"))
            cells.append(f"<td{marked}>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
