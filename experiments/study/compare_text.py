"""Verdicts of a comparison for people and for JSON."""

from typing import Any

import pandas as pd


def records(verdicts: pd.DataFrame) -> list[dict[Any, Any]]:
    return verdicts.to_dict("records")


def nested(verdicts: pd.DataFrame) -> dict[str, Any]:
    """{slots: {baseline: {metric: verdict}}}, a simulated time named `tpot on <machine>`."""
    out: dict[str, Any] = {}
    for row in records(verdicts):
        metric = row["metric"] if pd.isna(row["machine"]) else f"tpot on {row['machine']}"
        out.setdefault(str(int(row["slots"])), {}).setdefault(row["baseline"], {})[metric] = row["verdict"]
    return out


def printed(verdicts: pd.DataFrame, name: str) -> str:
    """A table a capacity for people: difference, interval and verdict against each baseline."""
    lines, places = [], sorted({(int(r["slots"]), float(r["capacity_share"])) for r in records(verdicts)})
    for slots, share in places:
        lines.append(f"\n{name} with {slots} slots ({100 * share:.0f} % of the experts); less is better:")
        at: dict[tuple[str, str], list[dict[Any, Any]]] = {}
        for row in records(verdicts[verdicts["slots"] == slots]):
            at.setdefault((row["metric"], "" if pd.isna(row["machine"]) else row["machine"]), []).append(row)
        for (metric, machine), own in at.items():
            scale, unit = {"tpot": (1e3, "ms/token"), "hit_rate": (100.0, "points")}.get(metric, (1.0, own[0]["unit"]))
            more = " (more is better)" if metric == "hit_rate" else ""
            lines.append(f"  {metric}{f' on {machine} (simulated)' if machine else ''}, {unit}{more}")
            for row in sorted(own, key=lambda r: float(r["value"])):
                interval = f"[{scale * row['lo']:+.3f}, {scale * row['hi']:+.3f}]"
                lines.append(
                    f"    {row['verdict']:<11} than {row['baseline']:<20} {scale * row['value']:+9.3f} {interval}"
                )
    return "\n".join(lines) + "\n"
