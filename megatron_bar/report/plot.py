"""Line charts as SVG: they need no plotting library, stand in a file or in a page, and are light or dark as
the reader's screen is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
"""Colours that colour-blind readers tell apart too: Paul Tol's bright scheme (personal.sron.nl/~pault), its
grey somewhat darker."""
DASHES = ("", "6 3", "2 2", "8 2 2 2")
"""Dashes of the first, second, third, ... round through the colours."""
WIDTH = 480
PLOT = 230
LEFT = 44
RIGHT = 12
TOP = 42
BOTTOM = 36
LINE = 18
STYLE = (
    ".plot{color:#222}.plot text{fill:currentColor}.plot .grid{stroke:currentColor;stroke-opacity:.15}"
    "@media(prefers-color-scheme:dark){.plot{color:#ddd}}"
)


def expert_colour(number: int) -> str:
    """Returns the colour of the expert in slot ``number`` as #rrggbb: the anchor's is grey; beyond the
    scheme's, hues go on by the golden angle."""
    if number < len(COLOURS):
        return COLOURS[number - 1]
    rgb = hls_to_rgb(number * 0.381966 % 1, 0.5, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    """End of the interval from ``low``, which is drawn as a bar."""
    tip: str = ""
    """Text that a page shows on hover and focus; a point with one is marked."""


@dataclass(frozen=True, kw_only=True)
class Line:
    name: str
    points: tuple[Point, ...]
    thin: tuple[tuple[Point, ...], ...] = ()
    """Curves drawn behind it: the seeds that it is the mean of."""
    strong: bool = False


def line_chart(curves: Mapping[str, Sequence[Sequence[float]]], *, title: str, x: str, y: str) -> str:
    """Draws named curves over 1, 2, 3, ...; of several runs, thin lines and their mean, up to the end of the
    shortest."""
    lines = []
    steps = 1
    for name, runs in curves.items():
        mean = [sum(run[n] for run in runs) / len(runs) for n in range(min(map(len, runs)))]
        thin = tuple(map(_numbered, runs)) if len(runs) > 1 else ()
        lines.append(Line(name=name, points=_numbered(mean), thin=thin))
        steps = max(steps, *map(len, runs))
    return chart(lines, title=title, x=f"{x} (1 to {steps})", y=y, ticks={}, low=0, high=1)


def _numbered(values: Sequence[float]) -> tuple[Point, ...]:
    return tuple(Point(x=n, y=value) for n, value in enumerate(values, 1))


def chart(
    lines: Sequence[Line], *, title: str, x: str, y: str, ticks: Mapping[float, str], low: float, high: float
) -> str:
    """Draws an SVG; ``ticks`` are the marks of the x axis, and ``low`` to ``high`` is shown at least."""
    drawn = [point for line in lines for points in (line.points, *line.thin) for point in points]
    heights = [value for p in drawn for value in (p.y, p.low, p.high) if value is not None]
    low = min(low, *heights)
    high = max(high, *heights)
    first = min(p.x for p in drawn)
    last = max(p.x for p in drawn)

    def across(value: float) -> float:
        return LEFT + (value - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return TOP + (high - value) / ((high - low) or 1) * PLOT

    columns = max(1, (WIDTH - LEFT) // (30 + 7 * max(len(line.name) for line in lines)))
    rows = -(-len(lines) // columns)
    parts = [
        *_frame(title, x, y, height=TOP + PLOT + BOTTOM + LINE * rows),
        *_grid(low, high, up),
        *(_text(across(value), TOP + PLOT + 15, mark, anchor="middle") for value, mark in ticks.items()),
    ]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        parts += _line(line, colour, dash, across, up)
        row, column = divmod(number, columns)
        legend_x = LEFT + column * ((WIDTH - LEFT) // columns)
        legend_y = TOP + PLOT + BOTTOM + LINE * row
        parts.append(_stroke(f'd="M{legend_x} {legend_y + 5}h18"', colour, dash, 3 if line.strong else 2))
        parts.append(_text(legend_x + 23, legend_y + 9, line.name))
    return "\n".join([*parts, "</svg>", ""])


def _frame(title: str, x: str, y: str, *, height: int) -> list[str]:
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height}"'
        f' font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
        f"<style>{STYLE}</style>",
        _text(LEFT, 14, title, extra=' font-weight="bold"'),
        _text(LEFT, 30, y, extra=' opacity=".7"'),
        _text(middle, TOP + PLOT + 30, x, anchor="middle", extra=' opacity=".7"'),
    ]


def _grid(low: float, high: float, up: Callable[[float], float]) -> Iterator[str]:
    for mark in (low, low + (high - low) / 4, (low + high) / 2, high - (high - low) / 4, high):
        y = f"{up(mark):.1f}"
        label = f"{mark:.2g}" if high < 10 else f"{mark:.0f}"
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield _text(LEFT - 6, up(mark) + 4, label, anchor="end")


def _line(
    line: Line, colour: str, dash: str, across: Callable[[float], float], up: Callable[[float], float]
) -> list[str]:
    def path(points: Sequence[Point]) -> str:
        return 'd="M' + "L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in points) + '"'

    parts = [_stroke(path(points), colour, dash, 0.5) for points in line.thin]
    parts.append(_stroke(path(line.points), colour, dash, 3 if line.strong else 1.8))
    for p in line.points:
        if p.low is not None and p.high is not None:
            parts.append(_stroke(f'd="M{across(p.x):.1f} {up(p.low):.1f}V{up(p.high):.1f}"', colour, "", 1))
        if p.tip:
            centre = f'cx="{across(p.x):.1f}" cy="{up(p.y):.1f}"'
            radius = 4.5 if line.strong else 3.5
            parts.append(f'<circle {centre} r="{radius}" fill="{colour}" data-tip="{escape(p.tip)}"/>')
    return parts


def _stroke(path: str, colour: str, dash: str, width: float) -> str:
    style = f'stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"'
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path {path} fill="none" {style}{dashes}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
