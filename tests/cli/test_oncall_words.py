"""What a share really is, in the words of a terminal."""

from ratchet_cli.oncall.words import real_share, traffic

from .builders import arm, cycle


def test_a_share_that_is_not_the_one_asked_for_is_said() -> None:
    stable, candidate = arm("assistant-0", 95, ready=3), arm("assistant-1", 5, ready=1)
    serving = {"stable": stable, "candidate": candidate | {"observedWeight": 25}}
    behind = cycle(serving=serving)
    spec = behind.spec.model_copy(update={"serving": behind.spec.serving.model_copy(update={"router": "replicas"})})
    assert real_share(behind.model_copy(update={"spec": spec})) == " (really 25 %: 1 of 4 pods)"
    assert real_share(cycle(serving=serving)) == " (really 25 %)"
    assert real_share(cycle(serving={"stable": stable, "candidate": candidate | {"observedWeight": 5}})) == ""
    assert real_share(cycle(serving={"stable": stable})) == ""
    assert traffic(behind) == "sessions"
