"""The report of `mac-check` as one page of HTML, without scripts or other files."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid #ccc;
padding: .4em .6em; text-align: left; vertical-align: top } pre { white-space: pre-wrap }
.refuted { background: #fdd } .unclear { background: #ffd } .not { color: #777 }
"""


def page(report: dict[str, Any]) -> str:
    """Return the page of a report."""
    rows = []
    for result in report["results"]:
        check = report["checks"][result["check"]]
        seen = escape("; ".join(part for part in (result["end"], result["text"]) if part))
        figures = escape(json.dumps(result["figures"])) if result["figures"] else ""
        stderr = escape(result["stderr"])
        rows.append(
            f'<tr class="{escape(result["verdict"])}"><td>{escape(result["check"])}<br>'
            f"<small>{escape(result['condition'])}</small></td>"
            f"<td><b>{escape(result['verdict'])}</b></td>"
            f"<td>{escape(check['runs'])}</td><td>{escape(check['expected'])}</td>"
            f"<td>{escape(check['refuted_if'])}</td><td>{seen}<br><small>{figures}</small>"
            + (f"<details><summary>stderr</summary><pre>{stderr}</pre></details>" if stderr else "")
            + "</td></tr>"
        )
    note = f"<p><b>{escape(report['note'])}</b></p>" if report["note"] else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>onelane mac-check</title>'
        f"<style>{_STYLE}</style><h1>onelane mac-check</h1>{note}"
        f"<pre>{escape(json.dumps(report['machine'], indent=1))}</pre>"
        "<table><tr><th>check<th></th><th>runs<th>expected<th>refuted if<th>observed</tr>"
        f"{''.join(rows)}</table></html>\n"
    )


__all__ = ["page"]
