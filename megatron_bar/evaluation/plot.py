"""Curves as an SVG file: a picture that needs no plotting library and that any browser shows."""

from collections.abc import Mapping, Sequence

COLOURS = ("#1b6ca8", "#c0392b", "#27864a", "#8e5ea2", "#b9770e", "#4a4a4a", "#c2185b", "#00838f")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 50, 170, 36, 40


def line_chart(curves: Mapping[str, Sequence[Sequence[float]]], *, title: str, x: str, y: str) -> str:
    """An SVG of one or more named curves over 1, 2, 3, ...; of several runs, thin lines and their mean, as far as all go."""
    values = [value for runs in curves.values() for run in runs for value in run]
    low, high = min(0.0, *values), max(1.0, *values)
    steps = max(len(run) for runs in curves.values() for run in runs)

    def points(run: Sequence[float]) -> str:
        return " ".join(
            f"{LEFT + n * (WIDTH - LEFT - RIGHT) / max(1, steps - 1):.1f},"
            f"{HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"
            for n, value in enumerate(run)
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, anchor="middle"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, f"{x} (1 to {steps})", anchor="middle"),
        _text(6, TOP - 10, y),
    ]
    for mark in (low, (low + high) / 2, high):
        height = points([mark]).split(",")[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, float(height) + 4, f"{mark:.2g}", anchor="end"))
    for number, (name, runs) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        mean = [sum(run[n] for run in runs) / len(runs) for n in range(min(map(len, runs)))]
        thin = runs if len(runs) > 1 else ()
        for run, width in [*((run, 0.6) for run in thin), (mean, 2)]:
            parts.append(f'<polyline points="{points(run)}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts.append(_text(WIDTH - RIGHT + 10, TOP + 18 * number, name, colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222222") -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{safe}</text>'
