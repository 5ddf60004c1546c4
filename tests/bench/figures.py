"""Figures: what was measured, its spread, its target, and the table of them."""
import statistics


class Figure:
    """A number measured n times. `limit` is a target: ("<=", number) or (">=", number). `peer` is somebody else's
    number for the like, which is no target. `setting` says in which shape it was measured, `busy` which share of the
    machine other work had just before."""

    def __init__(self, group, name, unit, runs, limit=None, peer=None, setting=None, note=None, better="less",
                 busy=0):
        self.group, self.name, self.unit, self.runs = group, name, unit, [float(r) for r in runs]
        self.limit, self.peer, self.setting, self.note = limit, peer, setting or {}, note
        self.better, self.busy = better, busy
        self.median = statistics.median(self.runs)

    def met(self):
        if self.limit is None:
            return None
        return self.median <= self.limit[1] if self.limit[0] == "<=" else self.median >= self.limit[1]

    def slower_than_peer(self):
        if self.peer is None:
            return None
        return self.median > self.peer["value"] if self.better == "less" else self.median < self.peer["value"]

    def json(self):
        out = {"group": self.group, "name": self.name, "unit": self.unit, "better": self.better,
               "median": round(self.median, 4), "min": round(min(self.runs), 4), "max": round(max(self.runs), 4),
               "n": len(self.runs), "runs": [round(r, 4) for r in self.runs], "setting": self.setting,
               "busy_before": self.busy, "target": None, "met": self.met(), "peer": self.peer, "note": self.note}
        if self.limit:
            out["target"] = {"relation": self.limit[0], "value": self.limit[1]}
        return out


def number(x):
    """Three significant digits, whole from 1000 on."""
    if abs(x) >= 1000:
        return f"{x:.0f}"
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3
    return f"{x:.{digits}f}"


def verdict(f):
    words = []
    if f.limit:
        words.append(f"{'met' if f.met() else 'MISSED'} ({f.limit[0]} {number(f.limit[1])})")
    if f.peer:
        times = f.median / f.peer["value"]
        words.append(f"{times:.2f} x {f.peer['name']}'s {number(f.peer['value'])}")
    return ", ".join(words)


def print_table(figures, out):
    """One block a group."""
    rows = [(f, number(f.median), f"{number(min(f.runs))} .. {number(max(f.runs))}", str(len(f.runs)), verdict(f))
            for f in figures]
    widths = [max([len(r[0].name) for r in rows] + [6])] + [max(len(r[i]) for r in rows) for i in (1, 2, 3)]
    units = max(len(f.unit) for f in figures)
    group = None
    for f, median, spread, n, words in rows:
        if f.group != group:
            group = f.group
            print(f"\n{group}", file=out)
        print(f"  {f.name:{widths[0]}}  {median:>{widths[1]}} {f.unit:{units}}  [{spread:^{widths[2]}}] "
              f"n={n:<{widths[3]}}  {words}".rstrip(), file=out)
        if f.note:
            print(f"  {'':{widths[0]}}  {f.note}", file=out)
