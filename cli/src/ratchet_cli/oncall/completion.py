"""Shell completion: scripts for bash, zsh and fish, and the words that may stand next.

Room: cli. The scripts ask `ratchet __complete -- WORD...` at each press of Tab, as kubectl's plugins do
(https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins); only names of objects need the API server.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from ratchet_cli.oncall.errors import REACHED, OncallError

Names = Callable[[str, argparse.Namespace], list[str]]
"""(metavar such as `CYCLE|VERSION`, options typed so far) to names of objects."""

_BASH = """# bash completion for ratchet: source <(ratchet completion bash)
_ratchet() {
    local IFS=$'\\n'
    COMPREPLY=($(ratchet __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _ratchet ratchet
"""
_ZSH = """#compdef ratchet
# zsh completion for ratchet: source <(ratchet completion zsh)
_ratchet() {
    local -a found
    found=("${(@f)$(ratchet __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -a found; else _files; fi
}
compdef _ratchet ratchet
"""
_FISH = """# fish completion for ratchet: ratchet completion fish | source
function __ratchet_complete
    set -l words (commandline -opc) (commandline -ct)
    ratchet __complete -- $words[2..-1] 2>/dev/null
end
complete -c ratchet -a '(__ratchet_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(args: argparse.Namespace) -> int:
    """`ratchet completion`."""
    print(SCRIPTS[args.shell], end="")
    return REACHED


def complete(args: argparse.Namespace) -> int:
    """`ratchet __complete -- WORD...`: prints one word a line, nothing when files are meant."""
    from ratchet_cli.main import parser

    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    print("\n".join(candidates(parser(), words or [""], names)))
    return REACHED


def plugin() -> int:
    """`kubectl_complete-ratchet`: what kubectl runs to complete `kubectl ratchet ...`; ends with cobra's directive 4
    (no files) or 0."""
    from ratchet_cli.main import parser

    found = candidates(parser(), sys.argv[1:] or [""], names)
    print("\n".join([*found, ":4" if found else ":0"]))
    return REACHED


def candidates(parser: argparse.ArgumentParser, words: Sequence[str], names: Names) -> list[str]:
    """What the last of `words`, which may be empty, may become."""
    *before, last = words
    node, positional, wanted, options = _walked(parser, before)
    if wanted is not None:
        found = _values(wanted, names, options)
    elif last.startswith("-"):
        found = [text for action in node._actions for text in action.option_strings if action.help != argparse.SUPPRESS]
    else:
        places = [action for action in node._actions if not action.option_strings]
        at = positional if positional < len(places) else len(places) - 1
        repeats = at >= 0 and places[at].nargs in ("+", "*")
        found = _values(places[at], names, options) if at >= 0 and (positional == at or repeats) else []
    return sorted(word for word in dict.fromkeys(found) if word.startswith(last))


def _walked(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.ArgumentParser, int, argparse.Action | None, argparse.Namespace]:
    """(parser of the deepest command, positionals given to it, option that waits for its value, options so far)."""
    node, positional, wanted = parser, 0, None
    options = argparse.Namespace(namespace=None, context=None, kubeconfig=None, program="ratchet")
    for word in words:
        if wanted is not None:
            setattr(options, wanted.dest, word)
            wanted = None
            continue
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            action = next((a for a in node._actions if name in a.option_strings), None)
            if action is not None and action.nargs != 0:
                if equals:
                    setattr(options, action.dest, value)
                else:
                    wanted = action
            continue
        commands = next((a for a in node._actions if isinstance(a, argparse._SubParsersAction)), None)
        if commands is not None and word in commands.choices:
            node, positional = commands.choices[word], 0
        else:
            positional += 1
    return node, positional, wanted, options


def _values(action: argparse.Action, names: Names, options: argparse.Namespace) -> list[str]:
    if isinstance(action, argparse._SubParsersAction):
        return [name for name in action.choices if not name.startswith("_")]
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    kind = str(action.metavar or action.dest).upper()
    return names(kind, options) if set(kind.split("|")) <= {"CYCLE", "VERSION", "NAMESPACE"} else []


def names(kind: str, options: argparse.Namespace) -> list[str]:
    """Names in the cluster; none when it cannot be asked, as a press of Tab is no place for an error."""
    from ratchet_api.names import CYCLE_KIND, VERSION_KIND
    from ratchet_cli.oncall.commands import connect

    kinds = {"CYCLE": CYCLE_KIND, "VERSION": VERSION_KIND}
    try:
        with connect(options) as cluster:
            if kind == "NAMESPACE":
                found = cluster.raw_list(CYCLE_KIND, everywhere=True)["items"]
                return [item["metadata"]["namespace"] for item in found]
            lists = [cluster.raw_list(kinds[one])["items"] for one in kind.split("|")]
            return [item["metadata"]["name"] for items in lists for item in items]
    except OncallError:
        return []
