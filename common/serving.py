"""A gradio page as a server that answers what the page asks, and does nothing else.

gradio alone also takes anybody's file and serves it again, opens its functions to calls past the queue, and reads
requests of any size. Here a request is refused unless a browser that shows the page would send it.
"""

import os
import socket
from typing import Any

from common.options import UserError

QUEUE = 64  # questions that wait; whoever asks one more gets the message that the queue is full
API = "/gradio_api/"
USED = ("queue/", "cancel", "reset", "heartbeat/", "startup-events", "info", "theme.css", "app_id", "login_check")


class OnlyThePage:
    """ASGI middleware: what the page does not use is not found, and a body has a length, at most `max_bytes`."""

    def __init__(self, app, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    def refusal(self, method: str, path: str, length: bytes) -> tuple[int, str] | None:
        """Status and reason, or None."""
        name = path.removeprefix(API)
        if not name.startswith(USED) if path.startswith(API) else method not in ("GET", "HEAD"):
            return 404, "This server answers questions only."
        if method == "POST" and not (length.isdigit() and int(length) <= self.max_bytes):
            return 413, f"This question is too long: a request has at most {self.max_bytes:,} bytes."
        return None

    async def __call__(self, scope, receive, send):
        app = self.app
        if scope["type"] == "http":
            from starlette.responses import JSONResponse  # comes with gradio

            length = dict(scope["headers"]).get(b"content-length", b"")
            if refused := self.refusal(scope["method"], scope["path"], length):
                app = JSONResponse({"detail": refused[1]}, refused[0])
                while (await receive()).get("more_body"):  # read and forgotten: else the reason never arrives
                    pass
        await app(scope, receive, send)


def launch(page: Any, host: str, port: int, css: str, max_bytes: int) -> str:
    """Serve a gr.Blocks, to this machine and without any outside help, in threads of its own -> its address.

    One event runs at a time, `QUEUE` wait; a request has at most `max_bytes`.
    """
    import gradio as gr  # after the page is built, which switches its analytics off
    from starlette.middleware import Middleware

    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    theme.set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # gradio calls its own server when it starts
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)  # else statistics of 10,000 events after each answer
    page.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)
    try:
        with socket.socket() as probe:  # gradio's own message on a wrong address or a taken port is less clear
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            theme=theme,
            css=css,
            app_kwargs={"middleware": [Middleware(OnlyThePage, max_bytes=max_bytes)]},
        )
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on --host {host} --port {port}: {error}") from None
    return url
