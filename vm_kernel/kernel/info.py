"""What the kernel says about itself before its VM is there: the answer to a kernel_info_request."""

from __future__ import annotations

import json
from typing import Any

from vm_kernel import paths

#: for the very first start, when the pool service has not written the facts of a profile yet
BUILT_IN: dict[str, Any] = {
    "protocol_version": "5.3",
    "implementation": "ipython",
    "implementation_version": "9.0.0",
    "language_info": {
        "name": "python",
        "version": "3.11.2",
        "mimetype": "text/x-python",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "pygments_lexer": "ipython3",
        "nbconvert_exporter": "python",
        "file_extension": ".py",
    },
    "banner": "Python 3.11 in a virtual machine (VM Sandbox)",
    "help_links": [],
    "supported_features": ["kernel subshells", "debugger"],
}


_TRUSTED = (
    "Output policy: trusted. HTML, scripts and widgets of this kernel run in the notebook's page with all its rights; "
    "use it for your own code only.\n\n"
)


def kernel_info(profile: str, policy: str | None = None) -> dict[str, Any]:
    """Content of a kernel_info_reply: that of the profile's image if it is known, else a constant.

    policy: the output policy of the session's VM; None: there is none yet, so the profile's as last told.
    """
    facts: dict[str, Any] = {}
    try:
        facts = json.loads(paths.profile_facts(profile).read_bytes())
        info = facts["kernel_info"]
        if not isinstance(info["language_info"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        info = BUILT_IN
    links = info.get("help_links")
    made = {**info, "status": "ok", "help_links": [link for link in links or () if _is_web_link(link)]}
    if (policy or facts.get("outputs")) == "trusted":
        made["banner"] = _TRUSTED + str(info.get("banner", ""))
    return made


def _is_web_link(link: Any) -> bool:
    """An image may be somebody else's: a link goes to the web, or nowhere."""
    return isinstance(link, dict) and str(link.get("url", "")).startswith(("https://", "http://"))
