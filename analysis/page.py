"""A template -> one HTML file that opens without a network: style, script and plotly.js are inside."""

from importlib import resources
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def page(name: str, **values: Any) -> str:
    """The template `name`.html.j2 with the script `name`.js and these values. Text from data is escaped."""
    environment = Environment(
        loader=PackageLoader("analysis"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["json_script"] = _json_script
    inside = {"style": _asset("report.css"), "script": _asset(f"{name}.js"), "plotly": Markup(get_plotlyjs())}
    return environment.get_template(f"{name}.html.j2").render(**inside, **values)


def _asset(name: str) -> Markup:
    return Markup(resources.files("analysis").joinpath("templates", name).read_text(encoding="utf-8"))


def _json_script(plot: go.Figure) -> Markup:
    """The plot as JSON that cannot end the script element it stands in."""
    text = str(plot.to_json())
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
