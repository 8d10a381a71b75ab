"""`ratchet chat`: a work session by hand. Each answer is judged, and corrected where it was wrong.

Room: cli. Talks to a model and a terminal; what was said is recorded by the gateway, or by a collector.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from ratchet_api.records import Interaction
from ratchet_cli.collect.collector import WorkSessionCollector
from ratchet_cli.collect.errors import NoAnswer
from ratchet_cli.collect.model import Answer, Message, Model, started
from ratchet_cli.collect.terminal import Terminal

HELP = """/retry        ask the last question again
/new          begin a new conversation
/system TEXT  begin a new conversation under this system prompt; without TEXT, under none
/help         this list
/quit         the end (as Ctrl-D; Ctrl-C breaks off an answer)"""
_STATUSES = {"cancelled": 499, "error": 502}
"""What the gateway records for an answer that ended like this."""
_YES, _NO = frozenset({"y", "yes"}), frozenset({"n", "no"})


@dataclass
class Tally:
    """What came of a session."""

    answers: int = 0
    helpful: int = 0
    corrected: int = 0
    judged: int = 0
    failed: int = 0

    def text(self) -> str:
        """In one line."""
        failed = f", {self.failed} without an answer" if self.failed else ""
        return (
            f"{self.answers} answers: {self.judged} judged, {self.helpful} helpful, {self.corrected} corrected{failed}"
        )


@dataclass
class Chat:
    """One work session."""

    model: Model
    terminal: Terminal
    collector: WorkSessionCollector | None
    """None: the gateway records."""
    tally: Tally = field(default_factory=Tally)
    _system: str = ""
    _turns: list[Message] = field(default_factory=list)
    _session: str = ""
    _question: str = ""

    def run(self) -> Tally:
        """Until /quit or the end of the input. Raises OSError or Misused when nothing can be recorded any more."""
        self._begin(self._system)
        while True:
            try:
                line = self.terminal.ask("you> ")
            except KeyboardInterrupt:
                self.terminal.line("\n(/quit ends it)")
                continue
            if line is None or line.strip() in ("/quit", "/exit"):
                self.terminal.line(self.tally.text())
                return self.tally
            if line.strip():
                self._take(line.strip())

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        match command:
            case "/help":
                self.terminal.line(HELP)
            case "/new":
                self._begin(self._system)
                self.terminal.line("a new conversation begins")
            case "/system":
                self._begin(rest.strip())
                under = f"under: {self._system}" if self._system else "without a system prompt"
                self.terminal.line(f"a new conversation begins, {under}")
            case "/retry" if self._question:
                if self._turns and self._turns[-1]["role"] == "assistant":
                    del self._turns[-2:]
                self._exchange(self._question)
            case "/retry":
                self.terminal.line("nothing has been asked in this conversation")
            case _ if command.startswith("/"):
                self.terminal.line(f"there is no command {command}: /help lists them all")
            case _:
                self._exchange(line)

    def _begin(self, system: str) -> None:
        self._system, self._turns, self._question = system, [], ""
        self._session = f"chat-{secrets.token_hex(8)}"

    def _exchange(self, question: str) -> None:
        self._question = question
        system = [{"role": "system", "content": self._system}] if self._system else []
        messages = [*system, *self._turns, {"role": "user", "content": question}]
        answer = started()
        trouble = self._stream(messages, answer)
        recorded = self._record(messages, answer)
        if trouble or not answer.text.strip():
            self.tally.failed += 1
            self.terminal.line(trouble or "the answer is empty")
            return
        self.tally.answers += 1
        kept = self._judged(answer, recorded)
        # The conversation goes on from what should have been said.
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": kept}]

    def _stream(self, messages: list[Message], answer: Answer) -> str:
        """Shows the answer as it comes; what went wrong, if something did."""
        trouble = ""
        try:
            with closing(self.model.ask(messages, self._session, answer)) as pieces:
                for number, piece in enumerate(pieces):
                    if number == 0:
                        self.terminal.say(f"{answer.version or self.model.name}> ")
                    self.terminal.say(piece)
        except KeyboardInterrupt:
            answer.finish_reason, trouble = "cancelled", "(broken off)"
        except NoAnswer as error:
            answer.finish_reason, trouble = "error", f"({error})"
        if answer.parts:
            self.terminal.line()
        return trouble

    def _record(self, messages: list[Message], answer: Answer) -> Interaction | None:
        if self.collector is None:
            return None
        record = interaction_of(self.collector, self.model, messages, answer, self._session)
        self.collector.write(record)
        return record

    def _judged(self, answer: Answer, recorded: Interaction | None) -> str:
        """Asks for the verdict and passes it on; what the answer should have been."""
        said = self._helpful()
        if said is None:
            return answer.text
        correction = "" if said else self._corrected()
        try:
            if self.collector is None or recorded is None:
                self.model.judge(answer, said, correction)
            else:
                self.collector.judge(recorded, said, correction)
        except NoAnswer as error:
            self.terminal.line(f"({error})")
            return correction or answer.text
        self.tally.judged += 1
        self.tally.helpful += said
        self.tally.corrected += bool(correction)
        return correction or answer.text

    def _helpful(self) -> bool | None:
        while True:
            try:
                line = self.terminal.ask("  was this helpful? [y/n, Enter: no verdict] ")
            except KeyboardInterrupt:
                self.terminal.line()
                return None
            told = (line or "").strip().lower()
            if not told:
                return None
            if told in _YES | _NO:
                return told in _YES
            self.terminal.line("  write y, n, or nothing")

    def _corrected(self) -> str:
        try:
            line = self.terminal.ask("  what should it have said? [Enter: leave it] ")
        except KeyboardInterrupt:
            self.terminal.line()
            return ""
        return (line or "").strip()


def interaction_of(
    collector: WorkSessionCollector, model: Model, messages: Sequence[Message], answer: Answer, session: str,
    metadata: Mapping[str, Any] | None = None,
) -> Interaction:  # fmt: skip
    """An exchange as a record, as the gateway makes one: what a server that is none answered, as far as it came."""
    parameters: dict[str, Any] = {"model": model.name}
    return collector.interaction(
        messages, answer.text if answer.parts else None, answer.at, session=session, finish_reason=answer.finish_reason,
        parameters=parameters | ({"metadata": dict(metadata)} if metadata else {}),
        status=_STATUSES.get(answer.finish_reason, 200), stream=True, duration=round(answer.seconds, 6),
        time_to_first_token=answer.seconds_to_first,
    )  # fmt: skip
