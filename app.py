"""The front door: build the page and serve it. `python app.py`, or the entry of a Hugging Face Space.

PORT (default 7860) and GRADIO_SERVER_NAME say where. LOWBIT_OWNER_TOKEN lets its owner start runs on a Space.
"""

from __future__ import annotations

import os
import socket

from quant_engine import folders
from quant_engine.failures import exits_plainly
from quant_engine.spec import UserError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main() -> None:
    """Serves the page until it is stopped. What keeps it from starting is said in a sentence; --debug shows where."""
    port = free_port(os.environ.get("PORT", "7860"))
    with exits_plainly("page", "start the page again"):
        serve(port)


def serve(port: int) -> None:
    """Builds the page and serves it. Raises UserError if there is no folder for what it writes."""
    try:
        folders.home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"There can be no folder {folders.home()} ({error.strerror}): set LOWBIT_HOME to one that can be written."
        ) from None
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
        prevent_thread_lock=True,
    )
    lab.warm_up()
    blocks.block_thread()


def free_port(text: str) -> int:
    """The port as a number. Ends with a sentence if it is none, or if something listens there already."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise SystemExit(f"PORT must be a number from 1 to 65535, not {text!r}.")
    port = int(text)
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SystemExit(f"Port {port} is in use: stop what listens there, or set PORT to another number.")
    check_address(os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", port)
    return port


def check_address(name: str, port: int) -> None:
    """Ends with a sentence if the page can't listen there, which Gradio would call a port in use."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SystemExit(
            f"The page can't listen on {name}, port {port} ({error.strerror}): set GRADIO_SERVER_NAME and PORT to an "
            "address of this machine and a free port."
        ) from None


if __name__ == "__main__":
    main()
