"""Pages in headless Chromium: skipped where none is installed."""

import html
import json
import re
import shutil
import subprocess

import pytest

from tr_det.study.page.writing import write_page

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = (400, 1400)

# Frames have the width that is asked for; a window may have no less than 500 pixels.
OUTER = """<!doctype html><meta charset="utf-8"><body>{frames}<pre id="found"></pre><script>
const look = (frame) => {{
  const view = frame.contentWindow, page = frame.contentDocument;
  const all = [...page.body.querySelectorAll("*")];
  // What has a box of its own that scrolls or cuts off.
  const boxed = (e) => e.closest(".scroll, pre, .tip, caption, title, .panels svg *");
  const name = (e) => `${{e.tagName}} ${{e.getAttribute("class")}} ${{e.textContent.trim()}}`;
  const right = (e) => e.getBoundingClientRect().right;
  const left = (e) => e.getBoundingClientRect().left;
  const wide = all.filter((e) => !boxed(e) && (right(e) > view.innerWidth + 1 || left(e) < -1));
  const texts = [...page.querySelectorAll("svg.plot text")];
  const letters = texts.filter((e) => e.getClientRects().length);
  const clipped = letters.filter((e) => {{
    const plot = e.ownerSVGElement;
    return left(e) < left(plot) - 1 || right(e) > right(plot) + 1;
  }});
  const found = {{
    width: view.innerWidth, scroll: page.documentElement.scrollWidth, hacked: view.hacked ?? null,
    wide: wide.map(name), clipped: clipped.map(name),
    letters: Math.min(...letters.map((e) => e.getBoundingClientRect().height)),
    text: page.body.innerText.length, plots: page.querySelectorAll("svg.plot").length,
  }};
  const table = page.querySelector("table.sortable");
  if (table) {{
    const column = [...table.tHead.rows[0].cells].findIndex((c) => c.classList.contains("number"));
    const rows = () => [...table.tBodies[0].rows];
    const read = () => rows().map((row) => row.cells[column].dataset.sort ?? null);
    const button = table.tHead.rows[0].cells[column].querySelector("button");
    button.click();
    found.falling = read();
    button.click();
    found.rising = read();
    const form = page.querySelector("form.filters"), input = form.querySelector("input");
    input.value = rows()[0].cells[0].textContent;
    input.dispatchEvent(new view.Event("input", {{ bubbles: true }}));
    found.rows = rows().length;
    found.shown = rows().filter((row) => row.getClientRects().length).length;
  }}
  const plot = page.querySelector("svg[data-hover]"), box = plot.getBoundingClientRect();
  const at = {{ clientX: box.left + box.width / 2, clientY: box.top + 40, bubbles: true }};
  plot.dispatchEvent(new view.PointerEvent("pointermove", at));
  found.tip = page.querySelector(".tip").innerText;
  return found;
}};
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(look);
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script></body>"""


def opened(path, folder):
    """Return what the script above finds at each width, and what the console says."""
    page = html.escape(path.read_text(encoding="utf-8"), quote=True)
    frames = [
        f'<iframe width="{width}" height="900" frameborder="0" srcdoc="{page}"></iframe>'
        for width in WIDTHS
    ]
    outer = folder / "outer.html"
    outer.write_text(OUTER.format(frames="".join(frames)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [BROWSER, *options, "--window-size=1900,1000", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found)), console


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")
@pytest.mark.parametrize("kind", ["classifier", "detector", "study"])
def test_a_page_works_at_the_width_of_a_phone_and_of_a_screen(kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    found, console = opened(write_page(source), tmp_path)
    assert console == []
    for width, seen in zip(WIDTHS, found, strict=True):
        assert seen["width"] == width
        assert seen["scroll"] <= width
        assert seen["wide"] == []
        assert seen["clipped"] == []
        assert seen["letters"] >= 9
        assert seen["hacked"] is None
        assert seen["text"] > 500
        assert seen["plots"] >= 4
        # What has no number is last, whichever way numbers are sorted.
        falling, rising = (
            sorted(map(float, filter(None, seen[key])), reverse=down)
            for key, down in (("falling", True), ("rising", False))
        )
        for key, numbers in (("falling", falling), ("rising", rising)):
            none = [None] * (seen["rows"] - len(numbers))
            assert [value and float(value) for value in seen[key]] == numbers + none
        assert 0 < seen["shown"] <= seen["rows"]
        assert re.search(r"update \d+", seen["tip"])
