"""The state of ipywidgets, as the guest sends it over comms: only models whose every part is known, each made harmless.

In the front end a widget is a model (its state) and views of it. The classes of both are named in the state, by a
module that would be loaded, so modules and names are held against a list; texts that are shown as HTML are
sanitised. What a state has besides stays as it is: the models of this list show it as text.
Source: the models and views of @jupyter-widgets/base 6, controls 5 (ipywidgets 8) and their predecessors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vm_kernel.kernel.outputs import css, tex
from vm_kernel.kernel.outputs.rules import Rules

TARGET = "jupyter.widget"
#: by which a front end that was opened anew asks for the state of all widgets
CONTROL_TARGET = "jupyter.widget.control"
#: comms that a session may have open; beyond, new ones are closed
MAX_COMMS = 20_000

State = dict[str, Any]

_CONTROLS, _BASE, _OUTPUT = "@jupyter-widgets/controls", "@jupyter-widgets/base", "@jupyter-widgets/output"
_STYLES = tuple(
    "Button Checkbox Description HTML HTMLMath Label Progress Slider Text ToggleButton ToggleButtons".split()
)
#: models without a view of their own name
_VIEWS = {
    "BoundedFloatTextModel": "FloatTextView",
    "BoundedIntTextModel": "IntTextView",
    "FloatProgressModel": "ProgressView",
    "IntProgressModel": "ProgressView",
    "NaiveDatetimeModel": "DatetimeView",
}
_NAMES = (
    "Accordion Audio BoundedFloatText BoundedIntText Box Button Checkbox ColorPicker ColorsInput Combobox Controller "
    "ControllerAxis ControllerButton DatePicker Datetime Dropdown FileUpload FloatLogSlider FloatProgress "
    "FloatRangeSlider FloatSlider FloatText FloatsInput GridBox HBox HTML HTMLMath Image IntProgress IntRangeSlider "
    "IntSlider IntText IntsInput Label NaiveDatetime Password Play RadioButtons Select SelectMultiple "
    "SelectionContainer SelectionRangeSlider SelectionSlider Stack Tab TagsInput Text Textarea Time ToggleButton "
    "ToggleButtons VBox Valid Video"
).split()
#: by model name: module, and name of the view
MODELS: dict[str, tuple[str, str | None]] = {
    **{f"{name}Model": (_CONTROLS, _VIEWS.get(f"{name}Model", f"{name}View")) for name in _NAMES},
    **{f"{name}StyleModel": (_CONTROLS, "StyleView") for name in _STYLES},
    "LinkModel": (_CONTROLS, None),
    "DirectionalLinkModel": (_CONTROLS, None),
    "LayoutModel": (_BASE, "LayoutView"),
    "OutputModel": (_OUTPUT, "OutputView"),
}
_VIEW_MODULES = frozenset({_CONTROLS, _BASE, _OUTPUT})
_VERSION = re.compile(r"[\w.^~*-]{1,20}")

_HTML = frozenset({"HTMLModel", "HTMLMathModel"})
_LINKS = frozenset({"LinkModel", "DirectionalLinkModel"})
#: models whose value is bytes, and the formats that it may have: 'url' would be fetched
_MEDIA = {
    "ImageModel": frozenset({"png", "jpeg", "jpg", "gif", "webp", "bmp", "svg+xml"}),
    "AudioModel": frozenset({"mp3", "wav", "ogg", "flac", "mpeg", "webm"}),
    "VideoModel": frozenset({"mp4", "webm", "ogg"}),
}
_WITH_BYTES = frozenset({*_MEDIA, "FileUploadModel"})
#: what one widget may set in another without the guest, and models in which nothing may be set like that
_LINKED = frozenset({"value", "min", "max", "step", "index", "disabled", "selected_index", "options", "orientation"})
_NOT_LINKED = frozenset({*_HTML, *_MEDIA, "LabelModel", "OutputModel", *_LINKS, "LayoutModel"})
#: prefixes of classes that belong to the interface of a front end
_TAKEN_CLASSES = ("jp-", "lm-", "p-", "lab-", "cm-", "bp", "jupyter", "fa-")

#: in the place of a model's name: the comm behind CONTROL_TARGET, and any other that a client has opened
_CONTROL, _CLIENTS_OWN = "control", "client"


class Comms:
    """The comms that are open, as far as clients know of them: by id, the model's name, or what else it is."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._models: dict[str, str] = {}

    def opened_by_client(self, content: State) -> None:
        """A client has opened a comm. Unless that is a widget's, what comes back is for the client to deal with."""
        comm_id, target = content.get("comm_id"), content.get("target_name")
        if isinstance(comm_id, str) and target != TARGET and len(self._models) < MAX_COMMS:
            self._models.setdefault(comm_id, _CONTROL if target == CONTROL_TARGET else _CLIENTS_OWN)

    def knows(self, comm_id: object) -> bool:
        """True if clients know of that comm."""
        return isinstance(comm_id, str) and comm_id in self._models

    def shows(self, comm_id: str) -> bool:
        """True if it is a widget that may be shown."""
        return self._models.get(comm_id) in MODELS

    def closed(self, comm_id: object) -> None:
        """It is not there any more."""
        if isinstance(comm_id, str):
            self._models.pop(comm_id, None)

    def open(self, content: State) -> State | None:
        """A comm that the guest opens. None: clients are not to hear of it."""
        comm_id, data = content.get("comm_id"), content.get("data")
        if content.get("target_name") != TARGET or not isinstance(comm_id, str) or not isinstance(data, dict):
            return None
        state = data.get("state")
        if not isinstance(state, dict):
            return None
        name = state.get("_model_name")
        if not isinstance(name, str) or not self._admits(comm_id, name):
            return None
        kept, paths = self._state(name, state, data.get("buffer_paths"))
        if kept is None:
            return None
        self._models[comm_id] = name
        return {"comm_id": comm_id, "target_name": TARGET, "data": {"state": kept, "buffer_paths": paths}}

    def message(self, content: State) -> State | None:
        """What the guest says over a comm. None: it is dropped."""
        comm_id, data = content.get("comm_id"), content.get("data")
        if not isinstance(comm_id, str) or not isinstance(data, dict) or comm_id not in self._models:
            return None
        name, method = self._models[comm_id], data.get("method")
        if name == _CLIENTS_OWN:
            made: State | None = data
        elif name == _CONTROL:
            made = self._all_states(data) if method == "update_states" else None
        elif method in ("update", "echo_update") and isinstance(data.get("state"), dict):
            state, paths = self._state(name, data["state"], data.get("buffer_paths"))
            made = None if state is None else {"method": method, "state": state, "buffer_paths": paths}
        else:
            made = {"method": "custom", "content": data.get("content")} if method == "custom" else None
        return None if made is None else {"comm_id": comm_id, "data": made}

    def _admits(self, comm_id: str, name: str) -> bool:
        before = self._models.get(comm_id)
        return name in MODELS and (before == name if before is not None else len(self._models) < MAX_COMMS)

    def _all_states(self, data: State) -> State | None:
        """The answer to a client that was opened anew. Buffers are left out if any of them is out of place."""
        states, made, paths = data.get("states"), {}, data.get("buffer_paths") or []
        if not isinstance(states, dict) or not isinstance(paths, list):
            return None
        for comm_id, whole in states.items():
            state = whole.get("state") if isinstance(whole, dict) else None
            name = self._models.get(comm_id)
            if name not in MODELS or not isinstance(state, dict) or whole.get("model_name") != name:
                continue
            kept, _ = self._state(name, state, None)
            if kept is not None:
                module, version = MODELS[name][0], _version(whole.get("model_module_version"))
                made[comm_id] = {
                    "model_name": name,
                    "model_module": module,
                    "model_module_version": version,
                    "state": kept,
                }
        in_place = all(_is_path(path) and path[0] in made and self._takes_bytes(path) for path in paths)
        return {"method": "update_states", "states": made, "buffer_paths": paths if in_place else []}

    def _takes_bytes(self, path: list[Any]) -> bool:
        """A path in the answer above: model id, ``state``, ``value``, …"""
        return self._models[path[0]] in _WITH_BYTES and path[1:3] == ["state", "value"]

    def _state(self, name: str, state: State, paths: object) -> tuple[State | None, list[Any]]:
        """The whole or a part of a model's state, and the places of its buffers. No state: it cannot be shown."""
        if not _names_agree(name, state):
            return None, []
        made = {key: self._value(name, key, value) for key, value in state.items()}
        made = {key: value for key, value in made.items() if value is not _DROP}
        if name in _LINKS and not self._may_link(made):
            return None, []
        if paths and not (
            isinstance(paths, list)
            and name in _WITH_BYTES
            and all(_is_path(path) and path[0] == "value" for path in paths)
        ):
            return None, []
        return made, paths if isinstance(paths, list) else []

    def _value(self, name: str, key: str, value: Any) -> Any:
        """One entry of a state; _DROP: it goes."""
        if key.startswith(("_model_", "_view_")):
            return value
        if key in ("description_allow_html", "tooltip_allow_html"):
            return False
        if key == "_dom_classes":
            return _own_classes(value)
        if key == "outputs":
            outputs = value if isinstance(value, list) else []
            return [made for output in outputs if (made := self._rules.output(output)) is not None]
        if name in _MEDIA and key == "format":
            return value if value in _MEDIA[name] else sorted(_MEDIA[name])[-1]
        if name in _HTML and key in ("value", "placeholder"):
            return self._rules.html(value) or ""
        if name.endswith(("StyleModel", "LayoutModel")):
            return value if not isinstance(value, str) or not css.fetches(value) else None
        if name not in _TYPED and isinstance(value, str) and key != "value":
            return tex.defused(value)
        if name == "LabelModel" and key == "value":
            return tex.defused(value) if isinstance(value, str) else _DROP
        return value

    def _may_link(self, state: State) -> bool:
        """True if what a link sets, and from where, is shown as text in both places."""
        for end in ("source", "target"):
            pair = state.get(end)
            if end not in state:
                continue
            if not (isinstance(pair, list) and len(pair) == 2 and pair[1] in _LINKED and isinstance(pair[0], str)):
                return False
            model = self._models.get(pair[0].removeprefix("IPY_MODEL_"), "")
            if not model or model in _NOT_LINKED or model.endswith("StyleModel"):
                return False
        return True


class _Drop:
    """Stands for an entry that goes."""


_DROP = _Drop()
#: models whose texts a person types: nothing but ``description`` is typeset
_TYPED = frozenset({"TextModel", "TextareaModel", "PasswordModel", "ComboboxModel", "TagsInputModel"})


def _names_agree(name: str, state: State) -> bool:
    """True if the classes that a state names, if any, are the model's own."""
    module, view = MODELS[name]
    expected: dict[str, Callable[[Any], bool]] = {
        "_model_name": lambda value: value == name,
        "_model_module": lambda value: value == module,
        "_model_module_version": lambda value: _version(value) == value,
        "_view_name": lambda value: value is None or value == view,
        "_view_module": lambda value: value is None or value in _VIEW_MODULES,
        "_view_module_version": lambda value: value in (None, "") or _version(value) == value,
    }
    return all(check(state[key]) for key, check in expected.items() if key in state)


def _version(value: object) -> str:
    return value if isinstance(value, str) and _VERSION.fullmatch(value) else "*"


def _is_path(path: object) -> bool:
    return isinstance(path, list) and len(path) > 0 and all(isinstance(step, str | int) for step in path)


def _own_classes(value: object) -> list[str]:
    classes = value if isinstance(value, list) else []
    return [name for name in classes if isinstance(name, str) and not name.lower().startswith(_TAKEN_CLASSES)]
