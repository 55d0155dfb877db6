"""matplotlib's SVG made small enough for a page of many: the page's colours and font, styles said once for all figures.

Drawn inside `style(page=True)`. What is not seen goes: wrappers, unused ids, invisible frames, long numbers.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from eval.plots.style import PAGE_INK, PAGE_LINE, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINK = "{http://www.w3.org/1999/xlink}href"
SCALE = 1.6  # pixels per point, at most: beyond it letters would be larger than the page's own
NO_TURN = re.compile(r"rotate\(-?0 [^)]*\)")
LONG = re.compile(r"-?\d+\.\d{2,}")
KEPT = ("viewBox", "d", "x", "y", "width", "height", "transform", "clip-path")


class Sheet:
    """The figures of one page and the style sheet that they share."""

    def __init__(self) -> None:
        self.classes: dict[str, str] = {}
        self.figures = 0

    def css(self) -> str:
        """The style sheet of all that was drawn so far."""
        return "\n".join(f".{name} {{ {rule} }}" for rule, name in self.classes.items())

    def svg(self, figure: Figure, title: str) -> str:
        """An element to stand inside a page; `title` for those who cannot see it."""
        text, self.figures = to_svg(figure), self.figures + 1
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
        root = ElementTree.fromstring(text)
        body = "".join(self._element(child, used, 1) for child in root)
        width = float(root.get("viewBox").split()[2])
        head = f'<svg viewBox="{root.get("viewBox")}" role="img" style="max-width:{SCALE * width:.0f}px">'
        return f"{head}<title>{html.escape(title)}</title>{body}</svg>"

    def _element(self, element: ElementTree.Element, used: set[str], digits: int) -> str:
        tag = element.tag.rpartition("}")[2]
        if tag in ("metadata", "style") or element.get("style") == "fill: none":
            return ""
        digits = 2 if tag in ("defs", "image") else digits  # a marker is drawn around 0, a picture has a scale
        attributes = self._attributes(element, used, digits)
        inside = html.escape(element.text or "", quote=False).strip()
        inside += "".join(self._element(child, used, digits) for child in element)
        if tag in ("g", "defs") and (not attributes or not inside):
            return inside if tag == "g" or not inside else f"<defs>{inside}</defs>"
        return f"<{tag}{attributes}>{inside}</{tag}>" if inside else f"<{tag}{attributes}/>"

    def _attributes(self, element: ElementTree.Element, used: set[str], digits: int) -> str:
        found = {"id": self._id(element.get("id"))} if element.get("id") in used else {}
        found |= {name: element.get(name) for name in KEPT if element.get(name)}
        if "clip-path" in found:
            found["clip-path"] = f"url(#{self._id(found['clip-path'][5:-1])})"
        if NO_TURN.fullmatch(found.get("transform", "")):
            del found["transform"]
        for name in ("d", "x", "y", "transform"):
            if name in found:
                found[name] = LONG.sub(lambda number: f"{float(number[0]):.{digits}f}", found[name]).strip()
        if element.get(LINK):
            link = re.sub(r"\s", "", element.get(LINK))
            found["href"] = f"#{self._id(link[1:])}" if link.startswith("#") else link
        if element.get("style"):
            found["class"] = self._class(element.get("style"))
        return "".join(f' {name}="{html.escape(value)}"' for name, value in found.items())

    def _id(self, name: str) -> str:
        return f"f{self.figures}{name}"

    def _class(self, style: str) -> str:
        rule = style.replace(PAGE_INK, "currentColor").replace(PAGE_LINE, "var(--line)")
        parts = sorted({part.strip() for part in rule.split(";") if part.strip() and "font-family" not in part})
        return self.classes.setdefault("; ".join(parts), f"c{len(self.classes)}")
