"""A rank that follows: `python -m ratchet_trainer.train.follow ORDER.json`, started by `team.Team` or `nodes.lend`.

Room: trainer. Touches the device, and what the order names. It reads what its pod's stage has fetched and verified, and
ends when the leader says so or is gone.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from ratchet_api.stage import STAGE_INPUT, ExitCode, TrainInput
from ratchet_trainer.errors import OutOfMemory
from ratchet_trainer.train.team import END, Order, Wire, join, share


def main() -> int:
    """Exit code 0 at the end, 137 out of memory, 70 for anything else."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the leader saves, and ends us
    import torch

    try:
        follow(Order.read(Path(sys.argv[1])))
    except (OutOfMemory, MemoryError, torch.OutOfMemoryError) as error:
        logging.getLogger("ratchet").error("%s", error)
        return ExitCode.KILLED
    return ExitCode.DONE


def follow(order: Order) -> None:
    """Every step's share of the gradient, until there are no more."""
    import torch

    from ratchet_trainer.loading import quiet_libraries
    from ratchet_trainer.train import loop
    from ratchet_trainer.train.stage import prepare, save_memory

    stage = STAGE_INPUT.validate_json(order.stage)
    assert isinstance(stage, TrainInput)
    quiet_libraries()
    hyper = stage.hyperparameters
    device = torch.device("cuda", order.device) if torch.cuda.is_available() else torch.device("cpu")
    prepared = prepare(stage, Path(order.base), Path(order.rows), order.rows_name, device)
    save_memory(hyper, prepared.model, device)
    loop.ready(prepared.model, order.packed)
    forward = loop.Forward(device, order.packed, torch.bfloat16 if order.precision == "bf16" else None)
    parameters = [parameter for parameter in prepared.model.parameters() if parameter.requires_grad]
    join(order.rank, order.ranks, order.meeting, device)
    wire = Wire(parameters)
    batches = enumerate(loop.batches(prepared.examples, hyper))
    steps = loop.steps_of(len(prepared.examples), hyper)
    while True:
        wire.number().wait()
        step = wire.heard
        if step == END:
            return
        wire.weights(leads=False).wait()
        wire.take_weights()
        batch = next(batch for at, batch in batches if at == step)
        # Stateless, so that a resumed training draws the same: the leader alone has a generator that goes on.
        torch.manual_seed((hyper.seed * steps + step) * order.ranks + order.rank)
        mine = share(batch, order.rank, order.ranks)
        figures = prepared.objective.backward(prepared.model, mine, batch, hyper.micro_batch, forward)
        wire.gradient(figures).wait()
        for parameter in parameters:
            parameter.grad = None


if __name__ == "__main__":
    sys.exit(main())
