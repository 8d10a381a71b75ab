"""Stories under seeded faults: `make chaos SEEDS=2000`, or one seed again: `chaos.py --seed 17 --verbose`.

A seed picks its story and everything that goes wrong in it, and is the same on every machine.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections import Counter
from pathlib import Path

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
for _name in ("world", "fake", "neighbours", "stories", "gitserver", "forges", "shop"):
    if f"operator_{_name}" not in sys.modules:
        _file = _HERE.parent / "operator_room" / f"{_name}.py"
        _spec = importlib.util.spec_from_file_location(f"operator_{_name}", _file)
        assert _spec is not None
        assert _spec.loader is not None
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[f"operator_{_name}"] = _module
        _spec.loader.exec_module(_module)

from catalogue import TALES  # noqa: E402
from simulation import Result, tell  # noqa: E402

_undisturbed: dict[str, Result] = {}


def undisturbed(story: str) -> Result:
    """The story when nothing goes wrong."""
    if story not in _undisturbed:
        _undisturbed[story] = tell(TALES[story], None)
    return _undisturbed[story]


def story_of(seed: int) -> str:
    """The story that a seed is told with."""
    return list(TALES)[seed % len(TALES)]


def attempt(seed: int, story: str | None = None) -> Result:
    """One seed; its failures include an end that is not the undisturbed one."""
    story = story or story_of(seed)
    expected = undisturbed(story)
    if expected.failures:
        return expected
    result = tell(TALES[story], seed)
    if not result.failures:
        for key, value in expected.ending.items():
            if result.ending.get(key) != value:
                result.failures.append(f"the end differs in {key}: {result.ending.get(key)} instead of {value}")
    return result


def told(result: Result) -> str:
    """A failed seed, and how to see it again."""
    lines = [f"seed {result.seed} ({result.story}) fails:", *(f"  {text}" for text in result.failures[:5])]
    lines += ["what went wrong before, by virtual seconds:", *(f"  {text}" for text in result.schedule)]
    lines.append(f"again: python tests/chaos/chaos.py --seed {result.seed} --story {result.story!r}")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many, from --first on (default: 2000)")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--story", choices=list(TALES), help="only this story (default: the seeds take turns)")
    parser.add_argument("--stop", type=int, default=10, help="give up after so many failures (default: 10)")
    parser.add_argument("--verbose", action="store_true", help="print the schedule of good seeds, too")
    arguments = parser.parse_args()
    first = arguments.first if arguments.seed is None else arguments.seed
    seeds = range(first, first + (arguments.seeds if arguments.seed is None else 1))
    begun, failed, passes, faults = time.monotonic(), 0, 0, Counter[str]()
    done = 0
    for seed in seeds:
        result = attempt(seed, arguments.story)
        done += 1
        passes += result.passes
        faults.update(line[10:].split(":")[0] for line in result.schedule if ":" in line)
        if result.failures:
            failed += 1
            print(told(result), flush=True)
            if failed >= arguments.stop:
                break
        elif arguments.verbose:
            print(f"seed {seed} ({result.story}): {result.passes} passes, {result.seconds:.0f} virtual seconds")
            print("\n".join(f"  {text}" for text in result.schedule), flush=True)
        if done % 50 == 0 and done < len(seeds):
            left = (time.monotonic() - begun) / done * (len(seeds) - done)
            print(f"{done} of {len(seeds)} seeds, {failed} failed; about {left / 60:.0f} minutes left", flush=True)
    seconds = time.monotonic() - begun
    print(f"{done} seeds, {failed} failed; {passes} passes in {seconds:.1f} s; {dict(faults.most_common())}")
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets are walked in the order of their hashes.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
