"""Output of rows as a Markdown table and a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tr_det.runtime.files import write_json

Row = dict[str, Any]


def markdown(rows: list[Row]) -> str:
    """Return rows as a table; columns in order of first use, ``-`` for missing cells."""
    columns = list(dict.fromkeys(key for row in rows for key in row if not key.startswith("_")))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(folder: Path, name: str, title: str, rows: list[Row], conditions: Row) -> str:
    """Write ``NAME.md`` and ``NAME.json`` and return the Markdown.

    Keys that start with an underscore, such as single samples, go to the JSON file only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    versions = conditions["versions"].items()
    installed = ", ".join(f"{package} {version}" for package, version in versions if version)
    others = ", ".join(f"{key} {value}" for key, value in conditions.items() if key != "versions")
    text = f"### {title}\n\n{markdown(rows)}\n\n{others}, {installed}.\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    write_json(folder / f"{name}.json", {"title": title, "conditions": conditions, "rows": rows})
    return text
