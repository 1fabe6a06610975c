"""The front door: build the page and serve it. `python app.py`, or the entry of a Hugging Face Space.

PORT (default 7860) and GRADIO_SERVER_NAME say where. LOWBIT_OWNER_TOKEN lets its owner start runs on a Space.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    from leaderboard.lab import Lab
    from leaderboard.ui import page, theme

    lab = Lab()
    blocks = page.build(lab)
    lab.start()
    blocks.launch(
        server_port=int(os.environ.get("PORT", "7860")),
        theme=theme.THEME,
        head=theme.HEAD,
        js=theme.ON_LOAD,
        max_file_size="32mb",
        ssr_mode=False,
        show_error=False,
        footer_links=[],
    )


if __name__ == "__main__":
    main()
