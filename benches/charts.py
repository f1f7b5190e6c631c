#!/usr/bin/env python3
"""Draws charts of what a request costs, for the guide.

    benches/compare.py --rounds 9 --json costs.json && benches/charts.py costs.json docs/src/images

Writes `cost-keep-alive.svg` and `cost-close.svg`: one bar a server, shortest first. The pictures use the
reader's light or dark colours, and a description for screen readers.
"""

import html
import json
import pathlib
import sys

WIDTH, ROW, LABEL, TOP = 640, 26, 150, 44
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .title { font-weight: 600 }
.bar { fill: #8a94a3 } .ours { fill: #2f6fb0 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .bar { fill: #7b8491 } .ours { fill: #5d9fe0 } }
"""


def chart(mode, costs):
    """Returns an SVG document."""
    rows = sorted(costs.items(), key=lambda row: row[1])
    title = f"CPU time a request, µs, {mode}: less is better"
    scale = (WIDTH - LABEL - 70) / max(costs.values())
    height = TOP + ROW * len(rows) + 8
    description = ", ".join(f"{name} {cost:.1f}" for name, cost in rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' aria-labelledby="title description">',
        f'<title id="title">{html.escape(title)}</title>',
        f'<desc id="description">{html.escape(description)}</desc>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="24">{html.escape(title)}</text>',
    ]
    for number, (name, cost) in enumerate(rows):
        y, width = TOP + ROW * number, cost * scale
        kind = "bar ours" if name.startswith("ostler") else "bar"
        lines += [
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="18" rx="2"/>',
            f'<text x="{LABEL + width + 6:.1f}" y="{y + 14}">{cost:.1f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: charts.py COSTS.json DIRECTORY")
    results = json.loads(pathlib.Path(sys.argv[1]).read_text())
    for mode, costs in results.items():
        # Interpreters are an order of magnitude dearer: they would make the other bars equal.
        costs = {name: cost for name, cost in costs.items() if not name.startswith("gunicorn")}
        if costs:
            path = pathlib.Path(sys.argv[2], f"cost-{mode}.svg")
            path.write_text(chart(mode, costs))
            print(path)


if __name__ == "__main__":
    main()
