"""The page of a study: what won, the table, and how its runs went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tr_det.study.outcomes import DONE
from tr_det.study.page.charts import COLOURS
from tr_det.study.page.content import (
    Block,
    Cell,
    Charts,
    Code,
    Column,
    Folded,
    Page,
    Pictures,
    Row,
    Section,
    Table,
    Tile,
)
from tr_det.study.page.detections import side_by_side
from tr_det.study.page.histograms import weight_histograms
from tr_det.study.page.panels import layer_charts, run_charts
from tr_det.study.page.recorded import DETECTION, RecordedRun
from tr_det.study.page.run_page import FOOTER, OPEN_LAYERS, command_of
from tr_det.study.page.studied import Studied, bits_of, key_of, name_of
from tr_det.study.page.study_charts import (
    MOST_POINTS,
    Runs,
    cost_charts,
    curve_charts,
    search_chart,
)
from tr_det.study.page.study_table import main_table, sentence
from tr_det.study.record import RowEntry, RunEntry
from tr_det.study.table import environment_text, hours_name

MOST_SENTENCES, MOST_ROWS = 4, 20
"""Groups that the head of the page speaks of; rows whose runs are shown one by one."""


def study_page(study: Studied) -> Page:
    """Return the page of a study."""
    record = study.record
    first = _important(study)
    runs = {}
    for row in first:
        run = study.run_of(row)
        if run is not None:
            runs[key_of(row)] = run
    bits = {}
    for row in study.rows:
        key = key_of(row)
        both = bits_of(study, row, runs.get(key))
        if both is not None:
            bits[key] = both
    charts = cost_charts(study, bits)
    sections = [
        Section("results", "Results", blocks=[main_table(study)]),
        *(
            [Section("costs", f"{_capital(study.metric)} against costs", blocks=[Charts(charts)])]
            if charts
            else []
        ),
        _curves(first, runs),
        *([_detections(study)] if record["side"] == DETECTION else []),
        *([_searches(study)] if record["searches"] else []),
        _runs(study, first, runs),
        _made(study),
    ]
    groups = study.groups()
    unit = " %" if study.metric == "accuracy" else ""
    lead = [sentence(group, study.metric, unit) for group in groups[:MOST_SENTENCES]]
    if len(groups) > MOST_SENTENCES:
        lead.append(f"The table has {len(groups) - MOST_SENTENCES} more groups.")
    return Page(
        kind=f"{record['side']} study",
        title=record["name"],
        subtitle=f"{' × '.join(study.axes)}, {len(study.rows)} rows, {len(record['seeds'])} seeds",
        lead=lead,
        tiles=_tiles(study),
        sections=sections,
        footer=FOOTER,
    )


def _important(study: Studied) -> list[RowEntry]:
    """Return the rows with results, of each group the best and the baseline first."""
    groups = study.groups()
    first = [row for group in groups for row in (group.best, group.baseline) if row is not None]
    unique = {key_of(row): row for row in [*first, *study.rows] if row["n"]}
    return list(unique.values())


def _tiles(study: Studied) -> list[Tile]:
    record = study.record
    states = Counter(cell["state"] for cell in record["cells"])
    rest = ", ".join(f"{count} {state}" for state, count in states.items() if state != DONE)
    hours = sum(record["hours"].values())
    return [
        Tile("runs done", f"{states[DONE]} of {len(record['cells'])}", rest or "all of them"),
        Tile("seeds", str(len(record["seeds"])), ", ".join(map(str, record["seeds"]))),
        Tile(
            "training",
            f"{hours:.1f} h" if hours >= 0.1 else f"{60 * hours:.1f} min",
            f"{hours_name(record)}, searches included",
        ),
    ]


def _curves(rows: Sequence[RowEntry], runs: Runs) -> Section:
    key, title = "curves", "Curves"
    shown = [row for row in rows if key_of(row) in runs]
    charts = curve_charts(shown, runs)
    if not shown:
        return Section(key, title, ["No folder of a run that has ended is here."])
    if not charts:
        return Section(key, title, ["The runs have fewer than two records each."])
    text = "Of each row the run of the first seed whose folder is here; means over layers."
    if len(shown) > COLOURS:
        text += f" {COLOURS} of {len(shown)} rows: of each group the best and the baseline first."
    legend = max((chart.legend() for chart in charts), key=len)
    return Section(key, title, [text], [Charts(charts, legend=legend)])


def _detections(study: Studied) -> Section:
    key, title = "detections", "Detections"
    pairs = [g for g in study.groups() if g.best is not None and g.best["difference"]]
    if pairs:
        group = max(pairs, key=lambda g: g.best["difference"]["mean"])  # type: ignore[index]
        row, other = group.best, group.baseline
    else:
        best = [g.best for g in study.groups() if g.best is not None]
        row, other = (best[0] if best else None), None
    if row is None:
        return Section(key, title, ["No run has ended yet."])
    seeds = [cell["seed"] for cell in study.cells_of(row)]
    common = seeds
    if other is not None:
        common = [cell["seed"] for cell in study.cells_of(other) if cell["seed"] in seeds] or seeds
    run = study.run_of(row, common[0])
    second = study.run_of(other, common[0]) if other is not None else None
    if run is None:
        return Section(key, title, [f"The folder of {name_of(row)} is not here."])
    pictures, text = side_by_side(run, second)
    what = f"{name_of(row)}" + (f" beside {name_of(other)}" if other is not None else "")
    return Section(
        key, title, [f"{what}, seed {common[0]}. {text}"], [Pictures(pictures)] if pictures else []
    )


def _searches(study: Studied) -> Section:
    charts, rows = [], []
    for search in study.record["searches"]:
        chart = search_chart(search, study.metric)
        charts += [chart] if chart is not None else []
        found = "; ".join(", ".join(row.values()) for row in search["rows"])
        chosen = None if search["chosen"] is None else list(search["chosen"].values())
        for entry in search["points"]:
            point, value = entry["point"], entry["value"]
            told = ", ".join(f"{k} {v}" for k, v in zip(search["keys"], point, strict=True))
            mean = Cell("–", small=entry["state"]) if value is None else Cell(f"{value:.2f}", value)
            edge = "chosen, at the edge of what was tried" if search["at_edge"] else "chosen"
            rows.append(
                Row(
                    [Cell(found), Cell(told), mean, Cell(edge if point == chosen else "")],
                    "best" if point == chosen else "",
                )
            )
    columns = [
        Column("for", numeric=False),
        Column("value", numeric=False),
        Column(study.metric),
        Column("", numeric=False),
    ]
    table = Table("Searches", columns, rows, filters=[])
    blocks: list[Block] = [Charts(charts)] if charts else []
    blocks.append(Folded("All values", [table], note=f"{len(rows)} values", open=not charts))
    text = "Chosen on a part of the training set, never on the test set."
    return Section("searches", "Searches", [text], blocks)


def _runs(study: Studied, rows: Sequence[RowEntry], runs: Runs) -> Section:
    blocks: list[Block] = []
    for row in rows[:MOST_ROWS]:
        run = runs.get(key_of(row))
        if run is not None:
            cell = study.cell_of(run)
            value = f"{row['mean']:.2f} {study.metric}, seed {cell['seed']} shown"
            blocks.append(Folded(name_of(row), _run_blocks(run, cell), note=value))
    if not blocks:
        return Section("runs", "Runs", ["No folder of a run that has ended is here."])
    more = len(rows) - len(blocks)
    texts = (
        [f"{more} more rows: tools/report.py FOLDER makes the page of a run."] if more > 0 else []
    )
    return Section("runs", "Runs", texts, blocks)


def _run_blocks(run: RecordedRun, cell: RunEntry) -> list[Block]:
    charts = run_charts(run.records, MOST_POINTS)
    layers = layer_charts(run.records, MOST_POINTS // 4)
    histograms, _ = weight_histograms(run)
    blocks: list[Block] = [Charts(charts)] if charts else []
    if 0 < len(layers) <= OPEN_LAYERS * 3:
        blocks.append(
            Folded(
                "Step sizes by layer", [Charts(layers, small=True)], note=f"{len(layers)} layers"
            )
        )
    if histograms:
        blocks.append(Folded("Latent weights", [Charts(histograms)]))
    settings = "\n".join(f"{key}: {value}" for key, value in cell["settings"].items())
    blocks.append(Code("Settings", settings or "those of the study's config"))
    blocks.append(Code("The same run again", command_of(run)))
    return blocks


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _made(study: Studied) -> Section:
    record = study.record
    items = [("made", environment_text(each)) for each in record["environments"]]
    items += [("seeds", ", ".join(map(str, record["seeds"])))]
    name = hours_name(record)
    items += [(f"{name}, {key}", f"{value:.2f}") for key, value in record["hours"].items()]
    rows = [Row([Cell(key), Cell(value)]) for key, value in items]
    columns = [Column("what", numeric=False), Column("value", numeric=False)]
    blocks: list[Block] = [
        Code("The same study again", str(record["command"])),
        Table("Environment", columns, rows, sortable=False),
    ]
    bad = [c for c in [*record["cells"], *record["runs"]] if c["error"]]
    if bad:
        failed = [Row([Cell(c["folder"]), Cell(c["state"]), Cell(c["error"])]) for c in bad]
        heads = [Column(title, numeric=False) for title in ("run", "state", "error")]
        blocks.append(Table("Runs that did not end well", heads, failed, sortable=False))
    return Section("made", "Command and environment", blocks=blocks)
