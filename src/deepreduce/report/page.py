"""The report as one HTML page that needs no network: styles, scripts and data stand in the file itself."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from deepreduce._files import write_bytes
from deepreduce.errors import missing_extra
from deepreduce.report._page_data import chart_data, page_data
from deepreduce.report.front import Json, check_front

_FOLDER = Path(__file__).parent


def write_page(front: Json, path: Path) -> None:
    """Write the report of a run as one self-contained HTML page, about 5 MB (most of it is plotly.js).

    Args:
        front: the parsed `front.json`.
        path: the file; a file that is there is replaced in one step.

    Raises:
        RunError: `front` is not a front of a known version, a key is missing, or the file cannot be written.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    # Replacing lone surrogates, which JSON can carry and UTF-8 cannot.
    write_bytes(Path(path), render_page(front).encode("utf-8", "replace"))


def render_page(front: Json) -> str:
    """Return the page that `write_page` writes.

    Every text of the front is escaped by the template. On top of that the page carries a content security policy under
    which only its own two scripts run (by their hash) and nothing is ever fetched.
    """
    check_front(front)
    try:
        import jinja2
        from markupsafe import Markup  # jinja2 depends on it
    except ImportError as error:
        raise missing_extra("jinja2", "report", purpose="writing the HTML page") from error
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise missing_extra("plotly", "report", purpose="writing the HTML page") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    library = _one_newline(get_plotlyjs())
    script = _one_newline((_FOLDER / "page_script.html").read_text(encoding="utf-8"))
    return environment.get_template("page.html").render(
        **page_data(front),
        library=Markup(library),
        script=Markup(script),
        style=Markup((_FOLDER / "page_style.html").read_text(encoding="utf-8")),
        hashes=[_hash(library), _hash(script)],
        chart=Markup(embedded_json(chart_data(front))),
    )


def embedded_json(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _one_newline(script: str) -> str:
    # A browser turns CRLF into LF before it computes the hash.
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
