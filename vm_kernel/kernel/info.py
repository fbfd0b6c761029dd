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


def kernel_info(profile: str) -> dict[str, Any]:
    """Content of a kernel_info_reply: that of the profile's image if it is known, else a constant."""
    try:
        info = json.loads(paths.profile_facts(profile).read_bytes())["kernel_info"]
        if not isinstance(info["language_info"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        info = BUILT_IN
    return {**info, "status": "ok"}
