"""One look for all pictures: boxes, arrows and text inside one Axes, placed in inches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes = Any

INK, MUTED, FAINT, PAPER, BAND = "#1f2933", "#52606d", "#b6bec8", "#ffffff", "#eef3f8"
# Okabe & Ito, "Color universal design" (2008): told apart with any colour vision.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
GATES = {"i": BLUE, "f": ORANGE, "g": GREEN, "o": PURPLE}
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
TEXT, SMALL = 9.5, 8.5  # points
LINE = 1.1


class Diagram:
    """An Axes on which 1 is an inch, where the picture has the size that it is made for."""

    def __init__(self, ax: Axes | None, width: float, height: float):
        """Fill an Axes as far as the picture's proportions allow, or make one of its size, in inches."""
        pyplot = _pyplot()
        from matplotlib.patches import Rectangle

        _check(ax)
        self.ax: Any = ax
        if ax is None:
            figure, self.ax = pyplot.subplots(figsize=(width, height))
            figure.set_facecolor(PAPER)
            self.ax.set_position((0, 0, 1, 1))
        self.ax.axis("off")
        # Whatever the style or the figure behind it: all colours here are made for this one.
        self.ax.add_patch(Rectangle((0, 0), width, height, facecolor=PAPER, edgecolor="none", zorder=-1))
        self.ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        room = self.ax.get_window_extent()
        self.scale = min(room.width / width, room.height / height) / self.ax.figure.dpi

    def text(self, x: float, y: float, text: str, size: float = TEXT, color: str = INK, **look: Any) -> None:
        """Write, centred unless told otherwise."""
        look = {"ha": "center", "va": "center"} | look
        self.ax.text(x, y, text, size=size * self.scale, color=color, zorder=5, **look)

    def box(
        self, x: float, y: float, width: float, height: float, *, name: str = "", line: float = LINE, **look: Any
    ) -> None:
        """Draw a rounded box around a centre; `name` is its gid, by which it can be found."""
        from matplotlib.patches import FancyBboxPatch

        look = {"facecolor": PAPER, "edgecolor": INK, "zorder": 3} | look
        radius = min(0.08, width / 4, height / 4)
        patch = FancyBboxPatch(
            (x - width / 2 + radius, y - height / 2 + radius),
            width - 2 * radius,
            height - 2 * radius,
            boxstyle=f"round,pad={radius}",
            linewidth=line * self.scale,
            gid=name or None,
            **look,
        )
        self.ax.add_patch(patch)

    def value(self, x: float, y: float, width: float, height: float, symbol: str, shape: str, **look: Any) -> None:
        """A box for an array: its symbol above its shape."""
        faint = look.pop("faint", False)
        color = FAINT if faint else INK
        self.box(x, y, width, height, edgecolor=color, linestyle="--" if faint else "-", **look)
        self.text(x, y + 0.1, symbol, color=color)
        self.text(x, y - 0.12, shape, SMALL, FAINT if faint else MUTED)

    def dot(self, x: float, y: float, symbol: str) -> None:
        """A pointwise operation."""
        from matplotlib.patches import Circle

        self.ax.add_patch(Circle((x, y), 0.14, facecolor=PAPER, edgecolor=INK, linewidth=LINE * self.scale, zorder=3))
        self.text(x, y, symbol, TEXT + 1)

    def wire(self, *points: tuple[float, float], head: bool = True, color: str = INK, **look: Any) -> None:
        """Draw a line through points, with rounded corners and an arrow's head at its end."""
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path

        vertices, codes = [points[0]], [Path.MOVETO]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            vertices += [_towards(corner, before), corner, _towards(corner, after)]
            codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
        patch = FancyArrowPatch(
            path=Path([*vertices, points[-1]], [*codes, Path.LINETO]),
            arrowstyle="-|>" if head else "-",
            mutation_scale=9 * self.scale,
            linewidth=LINE * self.scale,
            color=color,
            **{"zorder": 2, "capstyle": "butt", "joinstyle": "miter"} | look,
        )
        self.ax.add_patch(patch)

    def panel(self, x: float, y: float, width: float, height: float) -> Any:
        """An Axes of its own, from its lower left corner."""
        panel = self.ax.inset_axes((x, y, width, height), transform=self.ax.transData)
        self.trim(panel)
        panel.grid(False)  # whatever the style says
        for spine in panel.spines.values():
            spine.set(linewidth=0.7 * self.scale, color=MUTED)
        return panel

    def trim(self, panel: Any) -> None:
        """Thin ticks, with numbers of our size."""
        lengths = {"labelsize": SMALL, "width": 0.7, "length": 2.5, "pad": 2.5}
        panel.tick_params(colors=MUTED, **{name: points * self.scale for name, points in lengths.items()})


def width_of(text: str, size: float = TEXT, weight: str = "normal") -> float:
    """The width of a text, in inches."""
    _pyplot()
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text:  # of which there is no path
        return 0.0
    return TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight)).get_extents().width / 72


def shown(count: int, most: int = 8) -> Sequence[int]:
    """The numbers from 1 to count; where they are too many the first three, 0 for a gap, and the last."""
    return range(1, count + 1) if count <= most else (1, 2, 3, 0, count)


def tint(color: str, share: float = 0.28) -> tuple[float, float, float]:
    """A colour thinned with white."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - share * (1 - part) for part in to_rgb(color))
    return red, green, blue


def told(array: Any) -> str:
    """The shape of an array, as Python writes it."""
    return str(tuple(array.shape))


def _check(ax: Any) -> None:
    from matplotlib.axes import Axes

    if ax is None or (isinstance(ax, Axes) and ax.name == "rectilinear"):
        return
    came = f"one that is {ax.name}" if isinstance(ax, Axes) else type(ax).__name__
    raise TypeError(f"ax must be a matplotlib Axes of x and y, as plt.subplots makes it, or None; got {came}.")


def _towards(corner: tuple[float, float], other: tuple[float, float], radius: float = 0.08) -> tuple[float, float]:
    (x, y), (to_x, to_y) = corner, other
    length = max(abs(to_x - x), abs(to_y - y))
    share = min(radius, length / 2) / length if length else 0
    return x + (to_x - x) * share, y + (to_y - y) * share


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError("lstmjax.inspect.plot draws with matplotlib: pip install 'lstmjax[plot]'.") from error
    return pyplot
