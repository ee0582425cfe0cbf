"""Whether one JSON schema takes all that another one describes: types, enums, limits, required and known fields.

It knows the part of JSON Schema that OpenAPI documents of services use. What it does not know (formats, patterns)
it does not compare.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

# Limits from below and from above: the wider schema's must not be the tighter one.
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


@dataclass(frozen=True)
class Named:
    """A schema, and the document in which its references lead somewhere."""

    schema: Schema
    document: Schema

    def at(self, schema: Schema) -> "Named":
        while "$ref" in schema:
            place: Any = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                place = place[part]
            schema = place
        return Named(schema, self.document)

    def resolved(self) -> "Named":
        return self.at(self.schema)

    def branches(self) -> Iterator["Named"]:
        """The alternatives of a union, and of a list of types; itself, if it is none."""
        schema = self.resolved().schema
        parts = schema.get("anyOf") or schema.get("oneOf")
        if parts:
            for part in parts:
                yield from self.at(part).branches()
        elif isinstance(schema.get("type"), list):
            for kind in schema["type"]:
                yield self.at({**schema, "type": kind})
        else:
            yield self.at(schema)

    def get(self, key: str) -> Any:
        return self.schema.get(key)

    def values(self) -> set[Any] | None:
        """Of an enum or a constant."""
        if "const" in self.schema:
            return {self.schema["const"]}
        found = self.schema.get("enum")
        return None if found is None else {*found, *self.schema.get("x-hone-adds", ())}

    def kind(self) -> str | None:
        if "type" in self.schema:
            return self.schema["type"]
        values = self.values()
        return _KINDS[type(next(iter(values)))] if values else None


def gaps(wide: Named, narrow: Named, where: str) -> list[str]:
    """What `narrow` describes and `wide` does not take, one sentence each."""
    found: list[str] = []
    alternatives = list(wide.branches())
    for branch in narrow.branches():
        misses = [_branch_gaps(one, branch, where) for one in alternatives]
        found += min(misses, key=lambda one: (any("kind" in gap for gap in one), len(one)))
    return found


def _branch_gaps(wide: Named, narrow: Named, where: str) -> list[str]:
    kinds = wide.kind(), narrow.kind()
    if None not in kinds and kinds[0] != kinds[1] and kinds != ("number", "integer"):
        return [f"{where}: kind {kinds[1]}, where {kinds[0]} is taken"]
    values = wide.values(), narrow.values()
    if values[0] is not None and (values[1] is None or not values[1] <= values[0]):
        missing = "anything" if values[1] is None else sorted(map(str, values[1] - values[0]))
        return [f"{where}: {missing}, where {sorted(map(str, values[0]))} is taken"]
    found = [*_limits(wide, narrow, where)] if values[1] is None else []
    if wide.get("items") is not None and narrow.get("items") is not None:
        found += gaps(wide.at(wide.get("items")), narrow.at(narrow.get("items")), f"{where}[]")
    found += [
        f"{where}.{name}: may be absent, and is required"
        for name in wide.get("required") or ()
        if name not in (narrow.get("required") or ())
    ]
    known = wide.get("properties") or {}
    for name, schema in (narrow.get("properties") or {}).items():
        if name in known:
            found += gaps(wide.at(known[name]), narrow.at(schema), f"{where}.{name}")
    return found


def _limits(wide: Named, narrow: Named, where: str) -> Iterator[str]:
    for names, is_tighter in ((_LOWER, lambda a, b: a > b), (_UPPER, lambda a, b: a < b)):
        for name in names:
            ours, theirs = wide.get(name), narrow.get(name)
            if name == "minLength" and ours == 1 and theirs is None:
                continue  # an empty text that names something names nothing
            if ours is not None and (theirs is None or is_tighter(ours, theirs)):
                yield f"{where}: {name} {theirs}, where {ours} is taken"


def unknown(here: Named, there: Named, where: str) -> list[str]:
    """Fields that `there` has and `here` does not."""
    found: list[str] = []
    alternatives = list(here.branches())
    for branch in there.branches():
        for name, schema in (branch.get("properties") or {}).items():
            of_name = [one for one in alternatives if name in (one.get("properties") or {})]
            if not of_name:
                found.append(f"{where}.{name}: unknown")
                continue
            deeper = [
                unknown(one.at(one.get("properties")[name]), branch.at(schema), f"{where}.{name}") for one in of_name
            ]
            found += min(deeper, key=len)
        if branch.get("items") is not None:
            arrays = [one for one in alternatives if one.get("items") is not None]
            for one in arrays[:1]:
                found += unknown(one.at(one.get("items")), branch.at(branch.get("items")), f"{where}[]")
    return found
