"""The results of a study as a folder: tables as CSV and LaTeX, plots, and one page with all of them."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Collection
from pathlib import Path

from reben_cloud.files.whole import replacing, write_whole
from reben_cloud.root.dataset import Dataset
from reben_cloud.training.study.forms import to_csv, to_html, to_latex
from reben_cloud.training.study.grid import Study
from reben_cloud.training.study.pictures import distance_plot, heat_map, score_bars, validation_curves
from reben_cloud.training.study.plan import distances_of
from reben_cloud.training.study.scores import Results, measures_of
from reben_cloud.training.study.tables import Table, tables_of

PAGE = "index.html"
"""Name of the page."""

_HEAT_MAPS = ("per_class", "by_country", "by_season", "by_split")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px; margin: 0.5rem 0 }
thead { border-bottom: 1px solid #222 } table { border-top: 2px solid #222; border-bottom: 2px solid #222 }
th { text-align: left; font-weight: normal; padding: 2px 10px 2px 0 } thead th { font-weight: 600 }
thead th.value { text-align: right; padding: 2px 10px }
td { text-align: right; white-space: nowrap; padding: 2px 10px; font-variant-numeric: tabular-nums }
td.best { font-weight: 700 }
.wide { overflow-x: auto } img { max-width: 100%; height: auto } .files { font-size: 13px; color: #666 }
"""


def write_results(folder: Path, study: Study, results: Results, dataset: Dataset, *, runs: str) -> Path:
    """Write tables, plots and the page of the runs that are finished.

    Args:
        folder: Where to; made if need be.
        study: The study.
        results: What its finished runs found, at least one.
        dataset: What they were measured on.
        runs: Folder of the runs, as seen from `folder`.

    Returns:
        Path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    distances = distances_of(study, dataset)
    tables = tables_of(study, results, distances)
    for table in tables:
        write_whole(folder / f"{table.name}.csv", to_csv(table).encode())
        write_whole(folder / f"{table.name}.tex", to_latex(table).encode())
    figures = {"scores": score_bars(study, results, measures_of(results))}
    figures |= {table.name: heat_map(table) for table in tables if table.name in _HEAT_MAPS}
    figures["distances"] = distance_plot(study, distances, patch_m=dataset.schema.patch_m)
    figures["runs"] = validation_curves(study, {name: _scores_of(folder / runs / name) for name in results})
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as new:
            figure.savefig(new, format="png")
    page = folder / PAGE
    write_whole(page, _page(study, results, dataset, tables, figures.keys(), runs).encode())
    return page


def _scores_of(run: Path) -> list[tuple[int, float]]:
    if not (run / "log.csv").is_file():
        return []  # of neighbours, which learn nothing
    with (run / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("validation_score")]
    return [(int(row["step"]), float(row["validation_score"])) for row in rows]


def _prose(text: str) -> str:
    """Text in which names stand between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _shared(study: Study) -> str:
    """How many models the runs have, where that is not one each."""
    num_models = len(study.trainings())
    if num_models == len(study.runs):
        return ""
    return f" Runs that differ in nothing but what they are tested on have one model: {num_models} were to be trained."


def _page(
    study: Study,
    results: Results,
    dataset: Dataset,
    tables: list[Table],
    figures: Collection[str],
    runs: str,
) -> str:
    missing = [run.name for run in study.runs if run.name not in results]
    parts = [f"<h1>{html.escape(study.title)}</h1>"]
    parts += [f"<p>{_prose(text)}</p>" for text in study.about.split("\n\n") if text]
    parts.append(
        f"<p>{len(results)} of {len(study.runs)} runs, on {len(dataset):,} patches of {html.escape(dataset.url)} "
        f"(fingerprint {dataset.manifest.fingerprint}). The best weights of each run, by its validation patches, were "
        f"measured once on its test patches.{_shared(study)}</p>"
    )
    if missing:
        parts.append(f"<p><strong>Not finished:</strong> {html.escape(', '.join(missing))}</p>")
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        if table.name in figures:
            parts.append(f'<p><img src="{table.name}.png" alt="{html.escape(table.title)}"></p>')
        parts.append(f'<div class="wide">{to_html(table)}</div>')
        files = f'<a href="{table.name}.csv">CSV</a> <a href="{table.name}.tex">LaTeX</a>'
        parts.append(f'<p class="files">{files}</p>')
    links = " ".join(
        f'<a href="{runs}/{name}/report/metrics.json">{html.escape(name)}</a>' for name in results
    )
    parts.append(f'<h2>Each run</h2><p class="files">{links}</p>')
    head = f'<meta charset="utf-8"><title>{html.escape(study.title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
