"""From templates to pages."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from matu.report.charts import sized
from matu.report.console import span
from matu.words import counted, percent


def render(template: str, **content: Any) -> str:
    """A page from its template: what is filled in is escaped, and no script but the template's own may run."""
    script = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _templates().get_template(template).render(script=script, script_sha256=digest, **content)


@cache
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("matu.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters.update(percent=percent, sized=sized, span=span, counted=counted)
    return found
