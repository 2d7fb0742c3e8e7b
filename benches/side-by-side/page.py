"""The results as pages: HTML with the plots in it, Markdown for docs/, and six lines.

Everything said comes from the results of one run; who is faster or slower is computed, not written.
"""

from __future__ import annotations

import html
from typing import Any

from columns import Column, columns, worst_poison

OURS = "onelane serve"
Results = dict[str, Any]


def table(results: Results) -> list[list[str]]:
    """Head and rows. A server that did not run has its reason in place of figures."""
    shown = columns(list(results["shares"]))
    rows = [["server", *(column.head for column in shown)]]
    for name, found in results["servers"].items():
        if "unavailable" in found:
            rows.append([name, f"did not run: {found['unavailable']}"])
        else:
            rows.append([name, *(column.cell(found) for column in shown)])
    return rows


def ran(results: Results) -> dict[str, Any]:
    return {n: f for n, f in results["servers"].items() if "unavailable" not in f}


def ahead_of(results: Results, ours: str = OURS) -> dict[str, list[str]]:
    """For each column the others that are better than ours, with both figures; none left out."""
    found = ran(results)
    if ours not in found:
        return {}
    better: dict[str, list[str]] = {}
    for column in columns(list(results["shares"])):
        mine = column.of(found[ours])
        for name, other in found.items():
            if other["ours"] or not column.better:
                continue
            theirs = column.of(other)
            if theirs is not None and (mine is None or (theirs - mine) * column.better > 0):
                better.setdefault(column.head, []).append(
                    f"{name} {column.cell(other)} (ours {column.cell(found[ours])})"
                )
    return better


def _best_other(results: Results, column: Column) -> tuple[str, float] | None:
    others = [
        (name, value)
        for name, one in ran(results).items()
        if not one["ours"] and (value := column.of(one)) is not None
    ]
    return max(others, key=lambda item: item[1] * column.better) if others else None


def six_lines(results: Results) -> list[str]:
    """The newest result for the README."""
    shown = {column.head: column for column in columns(list(results["shares"]))}
    mine = ran(results).get(OURS, {})
    share = list(results["shares"])[-1]

    def both(head: str) -> str:
        best = _best_other(results, shown[head])
        other = (
            f"; best of the others: {best[0]} {shown[head].form.format(best[1])}" if best else ""
        )
        return f"{shown[head].cell(mine)}{other}"

    peers = [name for name, one in ran(results).items() if not one["ours"]]
    return [
        f"`onelane serve` beside {', '.join(peers)}: one run, {results['model']} fp32, "
        f"{results['machine']['cores']} cores ([all figures](docs/side-by-side.md)).",
        f"- one text a call, {results['clients']} clients: {both('texts/s')} texts/s",
        f"- p99 at {share} of that, the same arrivals: {both(f'p99 at {share}, ms')} ms",
        f"- goodput at {results['overload']:g} times each one's own best, within "
        f"{results['within_s']:g} s: {both('of its own best')} of it",
        f"- the worst of {_kinds(results)} poisoned requests: {both('innocents failed')} innocent "
        f"requests failed; wrong answers: {both('wrong answers')}",
        f"- slower or larger than one of the others in: "
        f"{', '.join(ahead_of(results)) or 'nothing measured'}",
    ]


def _kinds(results: Results) -> int:
    return max((len(_tried(one)) for one in ran(results).values()), default=0)


def _tried(found: dict[str, Any]) -> list[str]:
    return [k for k, v in found["poison"].items() if isinstance(v, dict) and k != "none"]


def notes(results: Results) -> list[str]:
    """What the table cannot say of each server."""
    said = []
    for name, found in ran(results).items():
        parts = [f"set: {found['settings']}"]
        versions = ", ".join(f"{p} {v}" for p, v in found["versions"].items())
        if versions:
            parts.append(versions)
        parts.append(f"answered its first text after {found['start_s']:.0f} s")
        worst = worst_poison(found) if "error" not in found["poison"] else None
        if worst:
            usual = found["poison"]["none"]["recovery_s"]
            parts.append(
                f"worst poison: {worst[0]}, answered with {worst[1]['answer']} after "
                f"{worst[1]['answered_after_s']:.1f} s (20 answers usually took "
                f"{'more than the limit' if usual is None else f'{usual:.2f} s'})"
            )
            missed = _kinds(results) - len(_tried(found))
            if missed:
                parts.append(f"{missed} poisons not tried after that")
        for load in ("memory", "closed", "open", "overload", "poison"):
            if "error" in found[load]:
                parts.append(f"{load} failed: {found[load]['error']}")
        memory = found["memory"]
        if "texts" in memory and memory["texts"] < results["memory_texts"]:
            parts.append(
                f"memory after {memory['texts']} texts: the time was over"
                + (f", {memory['texts_failed']} failed" if memory["texts_failed"] else "")
            )
        if found["wrong"]["checked"]:
            parts.append(
                f"largest difference {found['wrong']['largest_difference']:.1e} in "
                f"{found['wrong']['checked']} answers"
            )
        said.append(f"{name}: {'; '.join(parts)}.")
    return said


def how(results: Results) -> list[str]:
    """What was run, a paragraph an entry."""
    machine = results["machine"]
    where = f"{machine['cores']} of {machine['of']} cores, {machine['cpu']} ({machine['system']})"
    client = "shares them" if machine["shared"] else "is on others"
    rates = ", ".join(f"{share}: {rate:.0f} a second" for share, rate in results["shares"].items())
    quick = ["**A quick run: it shows that everything works; its figures say nothing.**"]
    return [
        *(quick if results["quick"] else []),
        f"One run on {where}, load average {machine['load']:.1f} when it began; the client, a "
        f"process of its own, {client}. `{results['command']}`, seed {results['seed']}, "
        f"{results['seconds']:g} s a load. Every server has {results['model']} in fp32 and the "
        "same cores, and answers the same texts of 3 to 40 words at the same instants.",
        f"**texts/s**: one text a call, {results['clients']} clients. **p50, p99**: Poisson "
        f"arrivals at that share of {OURS}'s texts/s ({rates}), the same for all; latency counts "
        "from when a request was planned, and who got no answer within 10 s waited for ever. "
        f"**Goodput**: arrivals at {results['overload']:g} times each one's own texts/s, from "
        f"clients that give up after {results['within_s']:g} s and say so as openai's client does. "
        "**Recovery**: until 20 requests in a row are answered after the poisoned one that did "
        "most harm, among 16 clients; **innocents**: good requests that failed then. **MB**: "
        "proportional set size of all its processes before, and what "
        f"{results['memory_texts']:,} texts of 1 to 100 words, most of them short, "
        "added. **Wrong**: answers that differ by more than 1e-4 from sentence-transformers alone.",
    ]


def markdown(results: Results) -> str:
    """The page of docs/."""
    rows = table(results)
    width = len(rows[0])
    lines = ["# Side by side", ""]
    for paragraph in how(results):
        lines += [paragraph, ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|---" * width + "|"]
    lines += [
        "| "
        + " | ".join(cell.replace("|", "\\|") for cell in row + [""] * (width - len(row)))
        + " |"
        for row in rows[1:]
    ]
    lines += ["", "![plots of the table](side-by-side.svg)", "", "## Where onelane is slower", ""]
    lines += _slower(results)
    if results["in_process"]:
        lines += ["", "## Without a server", "", *_in_process(results)]
    lines += ["", "## How each was run", "", *(f"- {note}" for note in notes(results)), ""]
    return "\n".join(lines)


def _slower(results: Results) -> list[str]:
    better = ahead_of(results)
    if OURS not in ran(results):
        return [f"{OURS} did not run."]
    if not better:
        return ["In nothing that was measured."]
    return [f"- **{head}**: {', '.join(others)}" for head, others in better.items()]


def _in_process(results: Results) -> list[str]:
    lines = [
        "| threads of one process | texts/s | p50, ms | p99, ms | wrong answers |",
        "|---" * 5 + "|",
    ]
    for name, one in results["in_process"].items():
        if "unavailable" in one:
            lines.append(f"| {name} | did not run: {one['unavailable']} | | | |")
        else:
            lines.append(
                f"| {name} | {one['texts_s']:.0f} | {one['closed_p50_ms']:.0f} | "
                f"{one['closed_p99_ms']:.0f} | {one['wrong']} of {one['checked']} |"
            )
    return lines


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #d1d5db; padding: .3rem .6rem; text-align: right }
th:first-child, td:first-child, td[colspan] { text-align: left } tr.ours { background: #dbeafe }
svg { max-width: 100%; height: auto }
"""


def page(results: Results, plots: str) -> str:
    """One HTML file without others."""
    rows = table(results)
    width = len(rows[0])
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = []
    for row in rows[1:]:
        ours = ' class="ours"' if results["servers"][row[0]]["ours"] else ""
        span = f' colspan="{width - 1}"' if len(row) < width else ""
        cells = "".join(f"<td{span}>{html.escape(cell)}</td>" for cell in row[1:])
        body.append(f"<tr{ours}><td>{html.escape(row[0])}</td>{cells}</tr>")
    listed = [("Where onelane is slower", _slower(results)), ("How each was run", notes(results))]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>Side by side</title>",
        f"<style>{_STYLE}</style><h1>Side by side</h1>",
        *(f"<p>{_inline(text)}</p>" for text in how(results)),
        f"<div class='wide'><table><tr>{head}</tr>{''.join(body)}</table></div>",
        plots,
    ]
    for title, entries in listed:
        items = "".join(f"<li>{_inline(text.removeprefix('- '))}</li>" for text in entries)
        parts.append(f"<h2>{title}</h2><ul>{items}</ul>")
    if results["in_process"]:
        parts.append(f"<h2>Without a server</h2>{_html_table(_in_process(results))}")
    return "\n".join(parts) + "\n"


def _html_table(lines: list[str]) -> str:
    rows = [line.strip("| ").split(" | ") for line in (lines[0], *lines[2:])]
    cells = ("".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _inline(text: str) -> str:
    """Bold and code of Markdown; nothing else is written here."""
    out = html.escape(text)
    for mark, tag in (("**", "b"), ("`", "code")):
        parts = out.split(mark)
        for at in range(1, len(parts) - 1, 2):
            parts[at] = f"<{tag}>{parts[at]}</{tag}>"
        out = "".join(parts)
    return out
