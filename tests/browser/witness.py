"""Sees which attacks on a browser succeed: by the requests that leave it, and by what happens to its windows."""

from __future__ import annotations

import re
from collections import defaultdict
from urllib.parse import unquote, urlsplit

from playwright.sync_api import BrowserContext, Dialog, Page, Request, Route, WebSocket

_MARK = re.compile(r"\battack=([a-z0-9-]+)")
#: requests that Lab itself makes only if a person, or an attack that passes for one, wants a terminal or a new file
_LABS_OWN = re.compile(r"/api/(terminals|contents)/?(\?\d+)?$")
_ANSWER = {"status": 204}


class Witness:
    """Watches a browser's context, in all its frames and windows.

    A request of an attack is answered by nobody's leave: with 204, upon which a window stays where it is. Requests that
    the browser itself refuses (a policy of the page, a sandbox) never come here.
    """

    def __init__(self, page: Page) -> None:
        #: what each attack has done
        self.seen: dict[str, list[str]] = defaultdict(list)
        #: whose doing it is if Lab itself is made to open a terminal
        self.current = ""
        self._page = page
        self._popups: list[Page] = []
        context: BrowserContext = page.context
        context.route(re.compile("attack(=|%3D)"), self._attack)
        context.route(_LABS_OWN, self._labs_own)
        context.on("page", self._popup)
        context.on("dialog", self._dialog)
        page.on("websocket", self._websocket)

    def look(self) -> set[str]:
        """The names of attacks that have succeeded until now."""
        name = str(self._page.evaluate("window.name"))
        if found := _MARK.search(name):
            self._note(found[1], f"the window's name is {name}")
        return set(self.seen)

    def close_popups(self) -> None:
        """Close the windows that have been opened, once their scripts have had the time to run."""
        for popup in self._popups:
            if not popup.is_closed():
                popup.wait_for_timeout(200)
                popup.close()
        self._popups.clear()

    def told(self, names: set[str]) -> str:
        """What such attacks have done, for a failing test."""
        return "\n".join(f"{name}: {', '.join(sorted(set(self.seen[name])))}" for name in sorted(names))

    def _note(self, name: str, what: str) -> None:
        self.seen[name].append(what)

    def _attack(self, route: Route, request: Request) -> None:
        url = unquote(request.url)
        if found := _MARK.search(url):
            self._note(found[1], f"{request.method} {url[:200]} ({request.resource_type})")
        route.fulfill(**_ANSWER)  # type: ignore[arg-type]

    def _labs_own(self, route: Route, request: Request) -> None:
        if request.method == "POST" and self.current:
            self._note(self.current, f"POST {urlsplit(request.url).path} by Lab")
            route.fulfill(status=403)
        else:
            route.fallback()

    def _popup(self, page: Page) -> None:
        page.on("websocket", self._websocket)
        self._popups.append(page)

    def _dialog(self, dialog: Dialog) -> None:
        # "leave this page?" is for a person who still sees it
        dialog.accept()

    def _websocket(self, socket: WebSocket) -> None:
        if found := _MARK.search(socket.url):
            self._note(found[1], f"websocket {socket.url}")
