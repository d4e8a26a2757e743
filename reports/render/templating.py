"""The look that every page of the workbench shares: templates, filters, style and the one script that may run.

Templates escape everything they print; nothing in a page is fetched from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from fusion_workbench.core.text import printable
from fusion_workbench.reports.render.links import anchor
from fusion_workbench.reports.words import wording
from fusion_workbench.version import __version__

_IN_URI = ",:;/()[]=+@!*~$"  # what a data URI takes as it is
# What could start markup inside a line; an underscore within a word and a bracket that is no link cannot.
_MARKDOWN = re.compile(r"[\\`*|~$]|(?<!\w)_|_(?!\w)|(?<=\])[(\[]|(?<=!)\[|\](?=:)|^[#>]|^[+-](?=\s)")


def template(name: str) -> Template:
    """One of ``reports/render/templates``, by its file name; what ``*.md.j2`` prints is escaped for Markdown too."""
    return _environment(name.split(".")[-2]).get_template(name)


def frame() -> dict[str, Any]:
    """What every page prints around its content: version, style, script and the script's hash for its policy."""
    script = _asset("report.js")
    return {
        "version": __version__,
        "style": Markup(_asset("report.css")),
        "script": Markup(script),
        # for the page's content security policy: this script, and no other
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def harmless(value: Any) -> Any:
    """A printed value; words without what turns the direction of a text about, or is no character at all."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def markdown(value: Any) -> Any:
    """A printed value, escaped for Markdown and for the HTML that Markdown lets through."""
    if isinstance(value, Markup):
        return value
    text = printable(re.sub(r"\s+", " ", str(value)) if str(value).strip() else str(value))
    return Markup(_MARKDOWN.sub(r"\\\g<0>", escape(text, quote=False)))


@cache
def _environment(kind: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("fusion_workbench.reports.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=markdown if kind == "md" else harmless,
    )
    filters: dict[str, Callable[..., Any]] = {
        "count": wording.count,
        "number": wording.number,
        "when": wording.when,
        "svg": lambda figure: Markup(figure.inline),
        "anchor": anchor,
        "csv_uri": lambda text: f"data:text/csv;charset=utf-8,{quote(text, safe=_IN_URI, errors='replace')}",
        "fence": lambda text: Markup(printable(str(text)).replace("```", "'''")),
    }
    environment.filters |= filters
    return environment


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
