"""datatrove's side: its local executor, one task and one worker, MinHash as its documentation sets it up.

Runs in an environment of its own: `python trove.py SESSIONS OUT`. Prints processor seconds, without the time to import,
and the ids kept and redacted. It gets the text of each interaction (question, then answer) from the same files by an
adapter, and its own cheapest tokenizer, which parts words at spaces; English is spaCy's by default, and slower.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WhitespaceTokenizer

REPLACED = ("email@example.com", "firstname.lastname@example.org", "22.214.171.124")


def adapter(self: Any, data: dict[str, Any], path: str, id_in_file: int | str) -> dict[str, Any]:
    """An interaction as a document; feedback has no text, and is left out."""
    if data["kind"] != "interaction":
        return {"text": "", "id": "", "media": [], "metadata": {}}
    text = f"{data['messages'][-1]['content']} {data['answer']['content']}"
    return {"text": text, "id": data["id"], "media": [], "metadata": {}}


def processor_seconds() -> float:
    """Of this process and those that it waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    sessions, out = sys.argv[1], Path(sys.argv[2])
    config = MinhashConfig()
    begun = processor_seconds()

    def run(name: str, *steps: Any, tasks: int = 1) -> None:
        logs = str(out / "logs" / name)
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=logs).run()

    def read() -> JsonlReader:
        return JsonlReader(sessions, compression="zstd", adapter=adapter, glob_pattern="*.zst")

    signatures, buckets, removed = (str(out / name) for name in ("signatures", "buckets", "removed"))
    run("signatures", read(), PIIFormatter(),
        MinhashDedupSignature(signatures, config, WhitespaceTokenizer()))  # fmt: skip
    run("buckets", MinhashDedupBuckets(signatures, buckets, config=config), tasks=config.num_buckets)
    run("cluster", MinhashDedupCluster(buckets, removed, config=config))
    kept = JsonlWriter(str(out / "kept"), compression=None)
    run("filter", read(), PIIFormatter(), MinhashDedupFilter(removed), kept)
    seconds = processor_seconds() - begun
    rows = [json.loads(line) for path in (out / "kept").glob("*.jsonl") for line in path.open()]
    redacted = [row["id"] for row in rows if any(word in row["text"] for word in REPLACED)]
    json.dump({"seconds": seconds, "kept": [row["id"] for row in rows], "redacted": redacted}, sys.stdout)


if __name__ == "__main__":
    main()
