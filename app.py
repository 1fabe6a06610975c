"""The front door: build the page and serve it. `python app.py`, or the entry of a Hugging Face Space.

PORT (default 7860) and GRADIO_SERVER_NAME say where. LOWBIT_OWNER_TOKEN lets its owner start runs on a Space.
"""

from __future__ import annotations

import os
import socket

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    port = free_port(os.environ.get("PORT", "7860"))

    from leaderboard.lab import Lab
    from leaderboard.ui import page, theme

    lab = Lab()
    blocks = page.build(lab)
    lab.start()
    blocks.launch(
        server_port=port,
        theme=theme.THEME,
        head=theme.HEAD,
        js=theme.ON_LOAD,
        max_file_size="32mb",
        ssr_mode=False,
        show_error=False,
        footer_links=[],
    )


def free_port(text: str) -> int:
    """The port as a number. Ends with a sentence if it is none, or if something listens there already."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise SystemExit(f"PORT must be a number from 1 to 65535, not {text!r}.")
    port = int(text)
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SystemExit(f"Port {port} is in use: stop what listens there, or set PORT to another number.")
    return port


if __name__ == "__main__":
    main()
