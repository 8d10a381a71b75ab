"""Argo CD's way of running a script: Lua 5.1 with the base and table libraries, os.time and os.date, and nothing else.

Health checks and actions that come from argocd-cm, and every action wherever it comes from, run without the string and
math libraries (argo-cd, util/lua/lua.go: SkipOpenLibs). A health check or an action reads the object as the global
`obj` and an action's parameters as `actionParams`.
"""

from collections.abc import Mapping
from typing import Any

from lupa.lua51 import LuaRuntime, lua_type

Document = dict[str, Any]

_KEPT = (
    "assert error getfenv getmetatable ipairs next pairs pcall print rawequal rawget rawset select setfenv "
    "setmetatable tonumber tostring type unpack xpcall _G _VERSION table os"
)
_SANDBOX = """
    local kept = ...
    getmetatable("").__index = nil
    os = { time = os.time, date = os.date }
    for name in pairs(_G) do
        if not kept[name] then _G[name] = nil end
    end
"""


class LuaError(Exception):
    """What a script said by `error`."""


def run(script: str, document: Mapping[str, Any], parameters: Mapping[str, str] | None = None) -> Any:
    """What the script returns, as JSON would carry it: an empty table is a list. Raises LuaError."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.execute(_SANDBOX, lua.table_from(dict.fromkeys(_KEPT.split(), True)))
    lua.globals().obj = _to_lua(lua, document)
    lua.globals().actionParams = _to_lua(lua, dict(parameters or {}))
    try:
        return _from_lua(lua.execute(script))
    except Exception as error:
        raise LuaError(str(error)) from error


def _to_lua(lua: LuaRuntime, value: Any) -> Any:
    if isinstance(value, Mapping):
        return lua.table_from({key: _to_lua(lua, child) for key, child in value.items()})
    if isinstance(value, list):
        return lua.table_from([_to_lua(lua, child) for child in value])
    return value


def _from_lua(value: Any) -> Any:
    if lua_type(value) == "table":
        entries = dict(value.items())
        if set(entries) == set(range(1, len(entries) + 1)):
            return [_from_lua(entries[index]) for index in range(1, len(entries) + 1)]
        return {str(key): _from_lua(child) for key, child in entries.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def healed(new: Any, old: Any) -> Any:
    """`new` with the empty lists that were empty objects in `old`, as Argo CD puts them right (cleanReturnedObj)."""
    if isinstance(old, Mapping) and new == []:
        return {}
    if isinstance(old, Mapping) and isinstance(new, dict):
        return {key: healed(child, old[key]) if key in old else child for key, child in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        return [healed(child, old[at]) if at < len(old) else child for at, child in enumerate(new)]
    return new


def merge_patch(old: Any, new: Any) -> Any:
    """The JSON merge patch (RFC 7386) from one object to the other."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    changed = {key: merge_patch(old.get(key, {}), child) for key, child in new.items() if old.get(key) != child}
    return changed | {key: None for key in old if key not in new}
