"""Pages as one file: Jinja2's templates with style and script inside, and nothing from outside.

Everything that a page shows is escaped. Its policy allows this style and this script by their
hashes, and images that it has itself; so text that got past the escaping would still not run.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from tr_det.runtime.cli import require
from tr_det.study.page.charts import pixel
from tr_det.study.page.content import Page

TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> str:
    """Return a page as HTML.

    Raises:
        ValueError: Jinja2 is not installed.
    """
    require("the page", "jinja2", extra="study")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style, script = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["px"] = pixel
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return environment.get_template("layout.html").render(
        page=page,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"sha256-{digest}"
