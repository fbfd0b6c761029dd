"""The state of widgets: what ipywidgets sends passes, what could run something in the page does not."""

from __future__ import annotations

from typing import Any

import ipywidgets
import pytest

from vm_kernel.kernel.outputs.rules import Rules
from vm_kernel.kernel.outputs.widgets import MODELS, Comms

CONTROLS = "@jupyter-widgets/controls"


def comms() -> Comms:
    return Comms(Rules())


def opening(name: str, comm_id: str = "c1", to: str = "jupyter.widget", **state: Any) -> dict[str, Any]:
    """The content of a comm_open."""
    module, view = MODELS.get(name, (CONTROLS, "View"))
    own = {"_model_name": name, "_model_module": module, "_view_name": view, "_view_module": CONTROLS}
    return {"comm_id": comm_id, "target_name": to, "data": {"state": own | state, "buffer_paths": []}}


def opened(name: str, **state: Any) -> dict[str, Any] | None:
    """The state that clients get, None if they hear nothing."""
    made = comms().open(opening(name, **state))
    return made["data"]["state"] if made else None


def updated(name: str, **state: Any) -> dict[str, Any] | None:
    """The same of an update."""
    own = comms()
    assert own.open(opening(name))
    made = own.message({"comm_id": "c1", "data": {"method": "update", "state": state, "buffer_paths": []}})
    return made["data"]["state"] if made else None


def all_widgets() -> list[type[ipywidgets.Widget]]:
    found = [cls for cls in vars(ipywidgets).values() if isinstance(cls, type) and issubclass(cls, ipywidgets.Widget)]
    abstract = ("Widget", "CoreWidget", "DOMWidget", "ValueWidget", "Style")
    return [cls for cls in found if cls.__name__ not in abstract and cls._model_name.default_value in MODELS]


@pytest.mark.parametrize("cls", all_widgets(), ids=lambda cls: cls.__name__)
def test_what_ipywidgets_sends_passes(cls: type[ipywidgets.Widget]) -> None:
    """Names of models, views and modules as the package itself has them."""
    defaults = {name: trait.default_value for name, trait in cls.class_traits(sync=True).items() if name[0] == "_"}
    names = {name: value for name, value in defaults.items() if name.startswith(("_model", "_view"))}
    content = {"comm_id": "c", "target_name": "jupyter.widget", "data": {"state": names}}
    made = comms().open(content)
    assert made is not None
    assert made["data"]["state"] == names


def test_every_control_is_known() -> None:
    names = {cls.__name__ for cls in all_widgets()}
    assert len(names) >= 60
    assert {"IntSlider", "HTML", "Output", "Tab", "FloatProgress", "Layout", "Button"} <= names


@pytest.mark.parametrize(
    "state",
    [
        {"_model_module": "anywidget", "_esm": "export default {}"},
        {"_model_module": "https://example.org/x.js"},
        {"_view_module": "anywidget"},
        {"_view_name": "HTMLView"},
        {"_model_module_version": "<script>"},
    ],
)
def test_models_of_other_modules_and_views_of_other_models_are_refused(state: dict[str, Any]) -> None:
    assert opened("TextModel", **state) is None
    assert updated("TextModel", **state) is None


def test_unknown_models_and_targets_are_refused() -> None:
    assert opened("AnyModel") is None
    assert comms().open(opening("TextModel", to="other")) is None
    made = comms().open(opening("TextModel") | {"target_module": "x", "extra": 1})
    assert made is not None
    assert set(made) == {"comm_id", "target_name", "data"}


def test_an_open_comm_keeps_its_model() -> None:
    own = comms()
    assert own.open(opening("TextModel"))
    assert own.open(opening("HTMLModel")) is None
    assert own.open(opening("TextModel"))
    own.closed("c1")
    assert own.open(opening("HTMLModel"))


def test_html_is_sanitised_or_framed() -> None:
    for state in (opened("HTMLModel", value="<b>x</b>"), updated("HTMLModel", value="<b>x</b>")):
        assert state is not None
        assert state["value"] == "<b>x</b>"
    for state in (opened("HTMLModel", value="<img src=x onerror=1>"), updated("HTMLMathModel", value="<script>1")):
        assert state is not None
        assert state["value"].startswith("<div style=")
        assert "sandbox" in state["value"]
    assert opened("HTMLModel", value={"a": 1})["value"] == ""  # type: ignore[index]
    assert opened("TextModel", value="<script>")["value"] == "<script>", "that is text"  # type: ignore[index]


def test_descriptions_are_text() -> None:
    state = opened("IntSliderModel", description=r"\href{javascript:x}{y}", description_allow_html=True)
    assert state is not None
    assert state["description_allow_html"] is False
    assert "\\href" not in state["description"]
    assert "\\href" not in opened("LabelModel", value=r"$\href{x}{y}$")["value"]  # type: ignore[index]


def test_the_outputs_of_an_output_widget_go_by_the_rules() -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "x"},
        {"output_type": "display_data", "data": {"text/html": "<script>1</script>"}, "metadata": {}},
        {"output_type": "unknown"},
    ]
    for state in (opened("OutputModel", outputs=outputs), updated("OutputModel", outputs=outputs)):
        assert state is not None
        stream, display = state["outputs"]
        assert stream == outputs[0]
        assert "sandbox" in display["data"]["text/html"]


def test_nothing_is_fetched() -> None:
    assert opened("ImageModel", format="url")["format"] != "url"  # type: ignore[index]
    assert updated("VideoModel", format="url")["format"] != "url"  # type: ignore[index]
    assert opened("ImageModel", format="jpeg")["format"] == "jpeg"  # type: ignore[index]
    assert opened("LabelStyleModel", background="url(/api/contents)")["background"] is None  # type: ignore[index]
    assert opened("LayoutModel", width="50%")["width"] == "50%"  # type: ignore[index]


def test_classes_of_the_interface_are_not_to_be_had() -> None:
    assert opened("ButtonModel", _dom_classes=["mine", "jp-mod-accept"])["_dom_classes"] == ["mine"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("source", "target", "may"),
    [
        (("slider", "value"), ("text", "value"), True),
        (("text", "value"), ("html", "value"), False),
        (("html", "value"), ("text", "value"), False),
        (("text", "value"), ("slider", "description"), False),
        (("text", "value"), ("nobody", "value"), False),
    ],
)
def test_links_between_texts_only(source: tuple[str, str], target: tuple[str, str], may: bool) -> None:
    own = comms()
    for comm_id, name in (("slider", "IntSliderModel"), ("text", "TextModel"), ("html", "HTMLModel")):
        assert own.open(opening(name, comm_id))
    ends = {name: [f"IPY_MODEL_{end[0]}", end[1]] for name, end in (("source", source), ("target", target))}
    assert (own.open(opening("LinkModel", "link", **ends)) is not None) is may


def test_bytes_go_where_bytes_belong() -> None:
    for name, path, may in [
        ("ImageModel", ["value"], True),
        ("HTMLModel", ["value"], False),
        ("ImageModel", ["x"], False),
    ]:
        content = opening(name)
        content["data"]["buffer_paths"] = [path]
        assert (comms().open(content) is not None) is may


def test_a_front_end_that_is_opened_anew_gets_all_states_by_the_same_rules() -> None:
    own = comms()
    assert own.open(opening("HTMLModel", "h"))
    own.opened_by_client({"comm_id": "control", "target_name": "jupyter.widget.control"})
    whole = {"model_name": "HTMLModel", "model_module": "evil", "model_module_version": "2.0.0", "state": {}}
    states = {"h": whole | {"state": {"value": "<script>1</script>"}}, "x": whole}
    data = {"method": "update_states", "states": states, "buffer_paths": [["h", "state", "value"]]}
    made = own.message({"comm_id": "control", "data": data})
    assert made is not None
    assert list(made["data"]["states"]) == ["h"]
    assert made["data"]["states"]["h"]["model_module"] == CONTROLS
    assert "sandbox" in made["data"]["states"]["h"]["state"]["value"]
    assert made["data"]["buffer_paths"] == []
    assert own.message({"comm_id": "nobody", "data": data}) is None


def test_what_comes_over_a_comm_of_a_client_is_for_the_client() -> None:
    own = comms()
    own.opened_by_client({"comm_id": "mine", "target_name": "echo"})
    content = {"comm_id": "mine", "data": {"anything": ["<script>"]}}
    assert own.message(content) == content
    assert not own.shows("mine")
    own.opened_by_client({"comm_id": "w", "target_name": "jupyter.widget"})
    assert own.message({"comm_id": "w", "data": {"method": "update", "state": {}}}) is None


def test_other_messages_of_a_comm() -> None:
    own = comms()
    assert own.open(opening("ButtonModel"))
    assert own.message({"comm_id": "c1", "data": {"method": "custom", "content": {"a": 1}}}) is not None
    for data in ({"method": "eval"}, {}, None, {"method": "update", "state": []}):
        assert own.message({"comm_id": "c1", "data": data}) is None
