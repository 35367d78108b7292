"""A page made of sections, as HTML in one file or as Markdown with a folder of figures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observatory.records import Finding, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent
WIDE = 1.9  # figures of a larger aspect ratio get a row of their own
_STYLE: Any = {"svg.fonttype": "path", "svg.hashsalt": "observatory", "font.size": 10, "axes.titlesize": 10}


@dataclass(frozen=True)
class Section:
    """One part of a page. Whatever is empty is left out."""

    title: str
    text: str = ""
    findings: Sequence[Finding] = ()
    panels: Sequence[Panel] = ()
    header: Sequence[str] = ()  # of the table
    rows: Sequence[Sequence[str]] = ()
    code: str = ""  # shown as it is, folded

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"


@dataclass
class _Image:
    title: str
    caption: str
    data: bytes
    wide: bool
    name: str = field(default="")

    @property
    def uri(self) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(self.data).decode()}"


def write_page(title: str, sections: Sequence[Section], path: Path, *, subtitle: str = "") -> Path:
    """Write the page to `path`; its suffix, .html or .md, decides the format.

    Titles, names and captions are escaped: they are shown, never executed.

    Raises:
        ValueError: if the suffix is another.
        OSError: if the disk refuses.
    """
    if path.suffix not in (".html", ".md"):
        raise ValueError(
            f"a page is written as .html or .md, not as {path.suffix or 'a file without suffix'!r}"
        )
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: bool(name) and str(name).endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    images = {section.anchor: [_image(panel) for panel in section.panels] for section in sections}
    if path.suffix == ".md":
        _store(images, path)
    page = environment.get_template(f"page{path.suffix}").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        images=images,
        style=(TEMPLATES / "page.css").read_text(),
        levels={"result": "", "note": "Note: ", "warning": "Warning: "},
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def _image(panel: Panel) -> _Image:
    width, height = panel.figure.get_size_inches()
    return _Image(panel.title, panel.caption, _svg(panel.figure), bool(width > WIDE * height))


def _svg(figure: Figure) -> bytes:
    """The figure as SVG on white paper, the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()


def _store(images: dict[str, list[_Image]], path: Path) -> None:
    """Figures of a Markdown page, in a folder beside it."""
    folder = path.with_name(f"{path.stem}_figures")
    folder.mkdir(exist_ok=True)
    for anchor, several in images.items():
        for k, image in enumerate(several):
            image.name = f"{folder.name}/{anchor}-{k}.svg"
            (path.parent / image.name).write_bytes(image.data)


def _cell(text: str) -> str:
    """Text in a Markdown table or line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", str(text)).replace("\n", " ")
