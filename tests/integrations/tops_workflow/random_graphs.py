"""Seeded graphs as frontends save them: every structure, in a random arrangement."""

import uuid
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tops_workflow.widgets import Input, inputs_of, node_widgets, sockets

from tests.integrations.tops_workflow.random_definitions import DEFINITIONS

Saved = dict[str, Any]


_VALUES: dict[str, list[Any]] = {
    "INT": [0, 5, 12345],
    "FLOAT": [0, 0.25, 2],
    "BOOLEAN": [True, False],
    "STRING": ["", "plain", 'quotes "and" braces \\{x\\}', "日本 // a comment", "two\nlines /* hidden */ end"],
    "COMBO": ["bold", "alpha", "x"],
    "COLOR": ["#123456"],
    "COLORS": [["#111111", "#222222"], []],
}


#: The frontend 1.58.1 fails to send a graph where these are linked.
UNLINKED = ("BOUNDING_BOX", "COLORS", "COLOR", "IMAGECOMPARE", "COMFY_DYNAMICCOMBO_V3")


@dataclass
class _Scope:
    """A graph in the making."""

    nodes: list[Saved] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    inputs: list[Saved] = field(default_factory=list)
    outputs: list[Saved] = field(default_factory=list)


class RandomGraph:
    """A graph that depends on the seed alone; ``graph`` is what a frontend could have saved."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._old_style = self._random.random() < 0.25
        self._restarts = self._random.random() < 0.2
        self._last_node = self._last_link = 0
        self._subgraphs: list[Saved] = []
        self._promoted: dict[str, list[str]] = {}  # by the id of a subgraph's input: the (node, widget) behind it
        for depth in range(self._random.choice((0, 1, 1, 2, 3))):
            self._add_subgraph(depth)
        root = self._scope(self._random.randint(4, 10), self._subgraphs)
        groups = self._add_groups(root) if self._random.random() < 0.3 else {}
        self.graph = self._saved(root)
        if groups:
            self.graph["extra"] = {"groupNodes": groups}

    def _saved(self, root: _Scope) -> Saved:
        self._random.shuffle(root.nodes)
        graph: Saved = {
            "id": self._uuid(),
            "last_node_id": self._last_node,
            "last_link_id": self._last_link,
            "nodes": root.nodes,
            "links": root.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        if self._subgraphs:
            graph["definitions"] = {"subgraphs": self._subgraphs}
        if self._random.random() < 0.3:
            numbers = {"lastNodeId": self._last_node, "lastLinkId": self._last_link}
            graph |= {"version": 1, "links": _as_objects(root.links)}
            graph["state"] = numbers | {"lastGroupId": 0, "lastRerouteId": 0}
        return graph

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _add_subgraph(self, depth: int) -> None:
        if self._restarts:
            self._last_node = 0  # ids that other parts have too
        scope = self._scope(self._random.randint(2, 5), self._subgraphs[-1:] if depth else [])
        free = [
            (node, index)
            for node in scope.nodes
            if node["type"] not in ("Reroute", "PrimitiveNode", "Note")
            for index, slot in enumerate(node["inputs"])
            if slot["link"] is None and slot["type"] not in UNLINKED
        ]
        for node, index in self._random.sample(free, min(len(free), self._random.randint(1, 4))):
            self._expose_input(scope, node, index)
        outputs = [(node, slot) for node in scope.nodes for slot in range(len(node["outputs"])) if node["mode"] == 0]
        for node, slot in self._random.sample(outputs, min(len(outputs), 2)):
            link = self._link_id()
            kind = node["outputs"][slot]["type"]
            scope.links.append([link, node["id"], slot, -20, len(scope.outputs), kind])
            name = f"out{len(scope.outputs)}"
            scope.outputs.append({"id": self._uuid(), "name": name, "type": kind, "linkIds": [link]})
        self._subgraphs.append(
            {
                "id": self._uuid(),
                "version": 1,
                "state": {"lastGroupId": 0, "lastNodeId": 0, "lastLinkId": 0, "lastRerouteId": 0},
                "revision": 0,
                "config": {},
                "name": f"Part {depth}",
                "inputNode": {"id": -10, "bounding": [0, 0, 120, 60]},
                "outputNode": {"id": -20, "bounding": [900, 0, 120, 60]},
                "inputs": scope.inputs,
                "outputs": scope.outputs,
                "widgets": [],
                "nodes": scope.nodes,
                "groups": [],
                "links": _as_objects(scope.links),
                "extra": {},
            }
        )

    def _expose_input(self, scope: _Scope, node: Saved, index: int) -> None:
        slot = node["inputs"][index]
        link = self._link_id()
        same = [entry for entry in scope.inputs if entry["type"] == slot["type"]]
        if same and self._random.random() < 0.3:
            entry = self._random.choice(same)  # one input of the subgraph that reaches two nodes
        else:
            names = {entry["name"] for entry in scope.inputs}
            name = slot["name"] if slot["name"] not in names else f"{slot['name']}_{len(names)}"
            entry = {"id": self._uuid(), "name": name, "type": slot["type"], "linkIds": []}
            scope.inputs.append(entry)
        if "widget" in slot:
            self._promoted.setdefault(entry["id"], [str(node["id"]), slot["name"]])
        entry["linkIds"].append(link)
        slot["link"] = link
        scope.links.append([link, -10, scope.inputs.index(entry), node["id"], index, slot["type"]])

    def _scope(self, size: int, subgraphs: list[Saved]) -> _Scope:
        scope = _Scope()
        for _ in range(size):
            kind = self._random.choice(list(DEFINITIONS))
            self._add(scope, self._node(kind))
            if self._random.random() < 0.2:
                self._add_reroute(scope)
        for subgraph in subgraphs:
            for _ in range(self._random.choice((1, 1, 2))):
                self._add(scope, self._host(subgraph))
        if self._random.random() < 0.5:
            self._add(scope, self._node("RandomShow"))
        if self._random.random() < 0.3:
            note = self._shell("Note") | {"widgets_values": ["remember"]}
            scope.nodes.append(note)
        return scope

    def _shell(self, kind: str) -> Saved:
        self._last_node += 1
        if self._random.random() < 0.05:
            self._last_node += 3
        return {
            "id": self._last_node,
            "type": kind,
            "pos": [100, 100],
            "size": [200, 100],
            "flags": {},
            "order": 0,
            "mode": self._random.choices((0, 2, 4), (16, 1, 2))[0],
            "inputs": [],
            "outputs": [],
            "properties": {},
        }

    def _node(self, kind: str) -> Saved:
        definition = DEFINITIONS[kind]
        node = self._shell(kind)
        widgets = node_widgets(definition, self._value(definition))
        node["widgets_values"] = [widget.value for widget in widgets if widget.saved]
        node["properties"] = {"cnr_id": "random_graphs", "ver": "1.2.3"} if self._random.random() < 0.5 else {}
        if self._random.random() < 0.3:
            node["title"] = f"My {kind}"
        shown = {widget.name for widget in widgets if widget.entry is not None}
        chosen = {widget.name: widget.value for widget in widgets}
        for name, type_ in _all_sockets(inputs_of(definition), chosen):
            slot: Saved = {"name": name, "type": type_, "link": None}
            if name in shown:
                if self._old_style and self._random.random() < 0.7:
                    continue  # early frontends saved only the widgets that the user had turned into inputs
                slot["widget"] = {"name": name}
            node["inputs"].append(slot)
        node["outputs"] = [{"name": kind, "type": kind, "links": []} for kind in definition["output"]]
        self._add_lost_inputs(node)
        self._spoil_values(node)
        return node

    def _add_lost_inputs(self, node: Saved) -> None:
        """Sometimes add inputs of widgets that the class no longer has."""
        if self._random.random() < 0.15:
            place = self._random.randint(0, len(node["inputs"]))
            for number in range(self._random.randint(1, 3)):
                name = f"lost{number}"
                kind = self._random.choice(("INT", "STRING", "FLOAT"))
                node["inputs"].insert(place, {"name": name, "type": kind, "link": None, "widget": {"name": name}})

    def _value(self, definition: Saved) -> Any:
        entries = {entry.name: entry for entry in inputs_of(definition)}

        def take(name: str, default: Any) -> Any:
            entry = entries.get(name)
            if name == "control_after_generate":
                return self._random.choice(["fixed", "randomize", "increment"])
            if entry is not None and (choices := entry.choices or list(entry.variants)):
                return self._random.choice(choices)
            values = _VALUES.get(entry.kind) if entry is not None else None
            return self._random.choice(values) if values else default

        return take

    def _spoil_values(self, node: Saved) -> None:
        """Sometimes leave the values of another version: too few, too many, none, or an object."""
        values = node["widgets_values"]
        what = self._random.random()
        if what < 0.06:
            node["widgets_values"] = values[: len(values) // 2]
        elif what < 0.1:
            node["widgets_values"] = [*values, "from", "the", "future"]
        elif what < 0.13:
            del node["widgets_values"]
        elif what < 0.16:
            node["widgets_values"] = {f"name{index}": value for index, value in enumerate(values)}

    def _add_groups(self, scope: _Scope) -> Saved:
        """Add a group node of early frontends, with a link into it and one out of it."""
        text, ask, number = (self._node(kind) for kind in ("RandomText", "RandomAsk", "RandomNumber"))
        saved = []
        for index, inner in enumerate((number, text, ask)):
            plain = [slot for slot in inner["inputs"] if "widget" not in slot]
            saved.append(inner | {"id": -1, "index": index, "mode": 0, "inputs": plain})
        is_linked = self._random.random() < 0.5
        links = [[1, 0, 2, 2, 1, "STRING"], [0, 0, 1, 0, 1, "INT"]] if is_linked else []  # the second one does not fit
        if is_linked:
            saved[2]["inputs"].append({"name": "prompt", "type": "STRING", "link": 1, "widget": {"name": "prompt"}})
        host = self._shell("workflow>trio") | {"mode": 0}
        values = [value for inner in saved for value in _listed(inner.get("widgets_values"))]
        prompt = len(values) - len(_listed(saved[2].get("widgets_values")))
        if is_linked:
            del values[prompt : prompt + 1]
        host["widgets_values"] = [self._other(value) for value in values]
        host["inputs"] = [{"name": name, "type": name.upper(), "link": None} for name in ("image", "mask")]
        kinds = ["FLOAT", "STRING", "IMAGE"] if is_linked else ["INT", "FLOAT", "STRING", "STRING", "IMAGE"]
        host["outputs"] = [{"name": kind, "type": kind, "links": []} for kind in kinds]
        self._add(scope, host)
        self._add(scope, self._node("RandomShow"))
        self._link(scope, host, 0, scope.nodes[-1], 0)
        return {"trio": {"nodes": saved, "links": links, "external": []}}

    def _other(self, value: Any) -> Any:
        return value + 1 if isinstance(value, int) and not isinstance(value, bool) else value

    def _host(self, subgraph: Saved) -> Saved:
        """A node that stands for a subgraph, with values for the promoted widgets."""
        node = self._shell(subgraph["id"])
        values: list[Any] = []
        for entry in subgraph["inputs"]:
            slot: Saved = {"name": entry["name"], "type": entry["type"], "link": None}
            if entry["id"] in self._promoted:
                slot["widget"] = {"name": entry["name"]}
                values.append(self._random.choice(_VALUES[entry["type"]]))
            node["inputs"].append(slot)
        node["outputs"] = [{"name": entry["name"], "type": entry["type"], "links": []} for entry in subgraph["outputs"]]
        if values and self._random.random() < 0.8:
            node["widgets_values"] = values
        if self._random.random() < 0.4:
            self._add_proxies(node, subgraph, values)
        return node

    def _add_proxies(self, node: Saved, subgraph: Saved, values: list[Any]) -> None:
        """Promote widgets as earlier frontends did: by name, some with no input of the subgraph."""
        names = [
            (str(inner["id"]), slot["name"])
            for inner in subgraph["nodes"]
            for slot in inner["inputs"]
            if "widget" in slot and slot["type"] in _VALUES and slot["type"] not in UNLINKED and slot["link"] is None
        ]
        chosen = self._random.sample(names, min(len(names), 2))
        kinds = {
            (str(inner["id"]), slot["name"]): slot["type"] for inner in subgraph["nodes"] for slot in inner["inputs"]
        }
        known = [self._promoted[entry["id"]] for entry in subgraph["inputs"] if entry["id"] in self._promoted]
        node["properties"] = {"proxyWidgets": [*known, *(list(one) for one in chosen)]}
        node["widgets_values"] = values + [self._random.choice(_VALUES[kinds[one]]) for one in chosen]

    def _add(self, scope: _Scope, node: Saved) -> None:
        """Add a node, and link some of its inputs to nodes that are there."""
        if node["mode"] == 4 and not node["inputs"]:
            node["mode"] = 0
        for index, slot in enumerate(node["inputs"]):
            if slot["type"] in UNLINKED:
                continue
            sources = [
                (source, number)
                for source in scope.nodes
                for number, output in enumerate(source["outputs"])
                if source["type"] != "PrimitiveNode" and _fits(output["type"], slot["type"])
            ]
            likely = 0.25 if "widget" in slot else 0.8
            if sources and self._random.random() < likely:
                source, number = self._random.choice(sources)
                self._link(scope, source, number, node, index)
            elif "widget" in slot and slot["type"] in ("INT", "FLOAT", "STRING") and self._random.random() < 0.08:
                self._add_primitive(scope, node, index)
        scope.nodes.append(node)

    def _add_reroute(self, scope: _Scope) -> None:
        node = self._shell("Reroute") | {
            "inputs": [{"name": "", "type": "*", "link": None}],
            "outputs": [{"name": "", "type": "*", "links": []}],
        }
        sources = [(source, number) for source in scope.nodes for number in range(len(source["outputs"]))]
        sources = [(source, number) for source, number in sources if source["type"] != "PrimitiveNode"]
        if not sources:
            return
        source, number = self._random.choice(sources)
        node["outputs"][0]["type"] = source["outputs"][number]["type"]
        self._link(scope, source, number, node, 0)
        scope.nodes.append(node)

    def _add_primitive(self, scope: _Scope, target: Saved, index: int) -> None:
        kind = target["inputs"][index]["type"]
        node = self._shell("PrimitiveNode") | {"mode": 0}
        node["outputs"] = [
            {"name": kind, "type": kind, "links": [], "widget": {"name": target["inputs"][index]["name"]}}
        ]
        node["widgets_values"] = [self._random.choice(_VALUES[kind]), "fixed"]
        self._link(scope, node, 0, target, index)
        scope.nodes.append(node)

    def _link(self, scope: _Scope, source: Saved, slot: int, target: Saved, index: int) -> None:
        link = self._link_id()
        output = source["outputs"][slot]
        output["links"].append(link)
        target["inputs"][index]["link"] = link
        scope.links.append([link, source["id"], slot, target["id"], index, output["type"]])

    def _link_id(self) -> int:
        self._last_link += 1
        return self._last_link


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else []


def _fits(output: str, wanted: str) -> bool:
    return "*" in (output, wanted) or bool(set(output.split(",")) & set(wanted.split(",")))


def _all_sockets(entries: list[Input], chosen: Saved) -> list[tuple[str, str]]:
    """The inputs of a node, those that the choice of a dynamic combo brings after it."""
    found = []
    variants = {entry.name: entry.variants.get(str(chosen.get(entry.name)), []) for entry in entries}
    for name, kind in sockets(entries):
        found.append((name, kind))
        for inner in variants.get(name, []):
            found += _all_sockets([inner], chosen)
    return found


def _as_objects(links: list[list[Any]]) -> list[Saved]:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [dict(zip(names, link, strict=True)) for link in links]
