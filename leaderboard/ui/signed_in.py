"""Who asks: the user that Gradio's own login has signed in on a Space, for handlers and endpoints alike."""

from __future__ import annotations

import os
import time

from gradio.context import LocalContext


def offered() -> bool:
    """Whether visitors can sign in: a Space with `hf_oauth: true` in its metadata."""
    return bool(os.environ.get("OAUTH_CLIENT_ID"))


def user() -> str:
    """The name of whoever makes the present request; empty where nobody is signed in, or no longer."""
    request = LocalContext.request.get(None)
    scope = getattr(getattr(request, "request", request), "scope", None) or {}
    signed_in = (scope.get("session") or {}).get("oauth_info") or {}
    if signed_in.get("expires_at", 0) < time.time():
        return ""
    return str((signed_in.get("userinfo") or {}).get("preferred_username") or "")
