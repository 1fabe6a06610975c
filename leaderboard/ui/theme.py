"""What the page looks like: IBM Plex (served by Gradio itself, nothing is fetched), ink on paper, one stylesheet."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import colors

from quant_engine import folders

html = partial(gr.HTML, apply_default_css=False)  # our own stylesheet says what our own HTML looks like

NO_PROGRESS = {"show_progress": "hidden", "show_progress_on": []}
"""For a function whose progress Gradio need not show: with no parts to show it on, the browser copies none for it."""
QUICK = {"queue": False, "api_visibility": "private", **NO_PROGRESS}
"""How a function of the page is connected that answers at once and is no endpoint for programs."""

_INK = colors.Color(
    name="ink",
    c50="#fbfaf8", c100="#f4f2ee", c200="#e6e3dc", c300="#cfcbc2", c400="#a09c94", c500="#77746d",
    c600="#57554f", c700="#3a3936", c800="#242322", c900="#191918", c950="#111110",
)  # fmt: skip

_VALUES = {
    "var(--paper)": "body_background_fill background_fill_secondary",
    "var(--ink)": (
        "body_text_color border_color_accent input_border_color_focus button_primary_background_fill "
        "button_secondary_text_color checkbox_label_background_fill_selected checkbox_label_text_color "
        "link_text_color"
    ),
    "var(--quiet)": "body_text_color_subdued block_label_text_color block_title_text_color block_info_text_color",
    "var(--sheet)": (
        "background_fill_primary input_background_fill input_background_fill_focus button_primary_text_color "
        "button_secondary_background_fill checkbox_background_color checkbox_label_text_color_selected"
    ),
    "var(--rule)": "border_color_primary",
    "var(--wash)": "color_accent_soft button_secondary_background_fill_hover checkbox_label_background_fill_hover",
    "transparent": (
        "block_background_fill block_label_background_fill panel_background_fill checkbox_label_background_fill"
    ),
    "0px": "block_border_width",
    "none": "block_shadow",
    "1px": "input_border_width button_border_width",
    "var(--edge)": "input_border_color button_secondary_border_color checkbox_border_color checkbox_label_border_color",
    "0 0 0 1px var(--ink)": "input_shadow_focus",
    "var(--faint)": "input_placeholder_color",
    "var(--ink-hover)": "button_primary_background_fill_hover",
}
"""Values of the theme, the same by day and by night: the stylesheet says what the variables are then."""

THEME = gr.themes.Base(
    primary_hue=_INK,
    secondary_hue=_INK,
    neutral_hue=_INK,
    text_size=gr.themes.sizes.text_sm,
    spacing_size=gr.themes.sizes.spacing_sm,
    radius_size=gr.themes.sizes.radius_sm,
    font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"],
).set(
    **{
        f"{name}{night}": value for value, names in _VALUES.items() for name in names.split() for night in ("", "_dark")
    },
    color_accent="var(--ink)",
    block_padding="0px",
    block_title_text_size="12px",
    block_title_text_weight="400",
    input_shadow="none",
    button_primary_border_color="transparent",
    checkbox_background_color_selected="var(--ink)",
    checkbox_background_color_selected_dark="var(--gain)",  # the tick is white
    checkbox_border_color_selected="var(--ink)",
    checkbox_border_color_selected_dark="var(--gain)",
)

PLOTLY = Path(importlib.util.find_spec("plotly").submodule_search_locations[0]) / "package_data" / "plotly.min.js"
"""Plotly's own script, which its Python package carries: charts need no other host."""
_SCRIPT = (folders.PROJECT / "leaderboard" / "ui" / "page.js").read_text(encoding="utf-8")

# In the head, not through css=, so that the page is never drawn without it and selectors mean what they say.
HEAD = f"""
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>{(folders.ASSETS / "page.css").read_text(encoding="utf-8")}</style>
<script>{_SCRIPT.replace("PLOTLY", f"gradio_api/file={PLOTLY}")}</script>
"""

# Gradio follows the system's theme; a choice made with the page's own switch comes after it.
ON_LOAD = """() => {
  const chosen = new URLSearchParams(location.search).get('__theme') || localStorage.getItem('lowbit-theme');
  if (chosen) document.body.classList.toggle('dark', chosen === 'dark');
}"""

MASTHEAD = """
<header class="masthead">
  <div class="brand"><i class="bitmark" aria-hidden="true"></i><b>Low-Bit Lab</b></div>
  <p>What does a model lose when its weights are stored in <em>b</em> bits by method <em>M</em>,
     and what does it gain?</p>
  <button type="button" class="switch" aria-label="Switch between light and dark">◐</button>
</header>
"""
MASTHEAD_JS = """
element.querySelector('.switch').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('lowbit-theme', dark ? 'dark' : 'light');
});
"""


def offer(choices: list, value: Any, before: Any, **more: Any) -> dict:
    """An update of a list: its choices, and its value if that changes. One that stays is not written, for the visitor
    may have chosen another while the answer was on its way."""
    change = {} if value == before else {"value": value}
    return gr.update(choices=choices, **change, **more)
