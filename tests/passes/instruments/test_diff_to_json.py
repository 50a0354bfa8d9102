"""Diffs as JSON: every line is as the schema says, and holds what changed and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit import convert_pt2e, lower_pt2e, prepare_pt2e
from lowbit.backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from lowbit.passes.instruments import DiffToJson
from lowbit.passes.instruments.diff_to_json import SCHEMA
from torch import nn

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "null": type(None)}
KNOWN = {
    *("$schema", "$id", "$defs", "title", "description", "$ref", "type", "properties", "required"),
    *("additionalProperties", "propertyNames", "items", "minItems", "minimum", "enum", "const", "anyOf"),
}
DOCUMENT: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether ``value`` is valid by ``schema``, of the keywords of JSON Schema that ours has."""
    assert schema.keys() <= KNOWN
    if "$ref" in schema:
        return fits(value, DOCUMENT["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    of_type = not kinds or any(isinstance(value, TYPES[k]) and not isinstance(value, bool) for k in kinds)
    allowed = value in schema.get("enum", [value]) and value == schema.get("const", value)
    return of_type and allowed and fits_inside(value, schema)


def fits_inside(value: Any, schema: dict[str, Any]) -> bool:
    match value:
        case int():
            return value >= schema.get("minimum", value)
        case list():
            inside = all(fits(item, schema.get("items", {})) for item in value)
            return inside and len(value) >= schema.get("minItems", 0)
        case dict():
            return has_properties(value, schema)
        case _:
            return True


def has_properties(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name, item in value.items():
        if not fits(name, schema.get("propertyNames", {})):
            return False
        rule = properties.get(name, others)
        if rule is False or not fits(item, rule):
            return False
    return all(name in value for name in schema.get("required", []))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.conv(x)))
        return torch.cond(y.sum() > 0, torch.sin, torch.cos, (y,))


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[dict[str, Any]]:
    path: Path = tmp_path_factory.mktemp("json") / "made" / "diffs.jsonl"
    batch = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(Model().eval(), (batch,)).module()
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    to_json = DiffToJson(path)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config), instruments=[to_json])
    prepared(batch)
    lower_pt2e(convert_pt2e(prepared, instruments=[to_json]), instruments=[to_json])
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_line_is_as_the_schema_says(lines) -> None:
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert {"ANNOTATED", "OBSERVED", "QDQ", "LOWERED"} <= {line["stage"] for line in lines}
    assert all(fits(line, DOCUMENT) for line in lines)
    aspects = {aspect for line in lines for node in line["diff"]["nodes"] for aspect in node["aspects"]}
    assert {"added", "removed", "rewired", "annotated"} <= aspects


def test_the_schema_refuses_other_lines(lines) -> None:
    line = next(line for line in lines if line["diff"]["nodes"])
    for path, value in [
        (("format",), "other"),
        (("stage",), "FLAOT"),
        (("index",), -1),
        (("more",), 1),
        (("diff", "nodes", 0, "aspects"), []),
        (("diff", "nodes", 0, "aspects"), ["changed"]),
        (("diff", "nodes", 0, "id"), "7"),
        (("diff", "counts", "added"), 0),
        (("diff", "counts", "other"), 1),
    ]:
        wrong = copy.deepcopy(line)
        place: Any = wrong
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert not fits(wrong, DOCUMENT), path
    for name in DOCUMENT["required"]:
        assert not fits({k: v for k, v in line.items() if k != name}, DOCUMENT)


def test_a_line_holds_what_its_pass_did(lines) -> None:
    for line in lines:
        nodes = line["diff"]["nodes"]
        assert all(node["before"] != node["after"] or node["aspects"] == ["moved"] for node in nodes)
        for node in nodes:
            assert (node["before"] is None) == ("added" in node["aspects"])
            assert (node["after"] is None) == ("removed" in node["aspects"])
            if "added" in node["aspects"]:
                assert node["made_by"] == line["pass"].partition("{")[0]
        counted = {a: sum(a in n["aspects"] for n in nodes) for a in line["diff"]["counts"]}
        assert counted == line["diff"]["counts"]
    folded = next(line for line in lines if line["pass"].startswith("fold-batch-norm"))
    (removed,) = [n for n in folded["diff"]["nodes"] if "= aten.batch_norm.default(" in str(n["before"])]
    assert removed["module"] == "bn"
    assert removed["source"].endswith("y = torch.relu(self.bn(self.conv(x)))")
