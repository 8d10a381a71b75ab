"""Personal data and secrets in text: found by form, checked by their check digits where they have any, replaced.

Room: trainer. Pure. Forms: RFC 5322 (common part), E.164, ISO 13616 (IBAN, mod 97), ISO/IEC 7812 (Luhn), and the
published prefixes of each maker's tokens. What has no form (a name, an address) is not found.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import re2

from ratchet_api.data import Sensitive, SensitiveKind
from ratchet_trainer.curate.columns import containing

Action = Literal["keep", "redact", "drop"]
KINDS: tuple[SensitiveKind, ...] = get_args(SensitiveKind)
REDACT_ALL: Mapping[SensitiveKind, Action] = dict.fromkeys(KINDS, "redact")


def actions(configured: Iterable[Sensitive]) -> dict[SensitiveKind, Action]:
    """What is done with each kind: redact, unless something else was said."""
    what = dict(REDACT_ALL)
    what.update({entry.kind: entry.action for entry in configured})
    return what


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return digits[0] in range(2, 7) and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _mod97(text: str) -> bool:
    plain = text.replace(" ", "")
    return len(plain) >= 15 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _address(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (found.is_loopback or found.is_unspecified)


def _no_account_of_git(text: str) -> bool:
    return not text.startswith("git@")


@dataclass(frozen=True)
class _Form:
    kind: SensitiveKind
    pattern: re.Pattern[str]
    hints: tuple[str, ...] = ()
    """One of these stands in every match: a search for them spares most texts the pattern."""
    holds: Callable[[str], bool] | None = None
    digits: int = 0
    """So many are in every match, at least."""


# Whole secrets before what may be found within them; a number's longer forms before the shorter ones.
_FORMS = (
    _Form(
        "privateKey",
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
            r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.S,
        ),
        ("-----BEGIN ",),
    ),
    _Form(
        "urlPassword",
        re.compile(r"(?<![a-z0-9+.-])(?i:[a-z][a-z0-9+.-]{1,20})://[^\s/:@]{0,64}:(?!\[URL_PASSWORD\]@)(?P<part>[^\s/@]{1,128})@"),
        ("://",),
    ),
    _Form("jsonWebToken", re.compile(r"(?<![\w-])eyJ[\w-]{8,4096}\.eyJ[\w-]{8,8192}\.[\w-]{8,4096}"), ("eyJ",)),
    _Form(
        "awsKey",
        re.compile(
            r"(?<![A-Z0-9])(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])"
            r"|(?i:aws_?secret[\w ]{0,30}[\"']?\s{0,4}[=:]\s{0,4}[\"']?)(?P<part>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
        ),
        ("AKIA", "ASIA", "AROA", "AIDA", "ABIA", "ACCA", "ecret", "ECRET"),
    ),
    _Form(
        "githubToken",
        re.compile(r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255})"),
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    ),
    _Form("gitlabToken", re.compile(r"(?<!\w)glpat-[\w-]{20,128}"), ("glpat-",)),
    _Form(
        "slackToken",
        re.compile(r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,255}|(?<=hooks\.slack\.com/services/)[\w/]{20,80}"),
        ("xox", "hooks.slack.com"),
    ),
    _Form("googleApiKey", re.compile(r"(?<!\w)AIza[\w-]{35}(?![\w-])"), ("AIza",)),
    _Form(
        "apiKey",
        re.compile(
            r"(?<![\w-])(?:sk-(?:proj-|svcacct-|ant-[a-z0-9]{1,10}-)?[A-Za-z0-9_]{20,255}|(?:sk|rk)_(?:live|test)_\w{16,255}"
            r"|hf_[A-Za-z0-9]{30,255}|pypi-[\w-]{50,255}|npm_[A-Za-z0-9]{36}|SG\.[\w-]{22}\.[\w-]{43})"
        ),
        ("sk-", "_live_", "_test_", "hf_", "pypi-", "npm_", "SG."),
    ),
    _Form(
        "email",
        re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w@])"),
        ("@",),
        _no_account_of_git,
    ),
    # Those without a hint begin with the letters that they begin with, by which a search passes over all others; what
    # must not stand before them comes second.
    _Form(
        "iban",
        re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"),
        (),
        _mod97,
        2,
    ),
    _Form("creditCard", re.compile(r"\d(?<![\w.].)(?:[ -]?\d){12,18}(?![\w])"), (), _luhn, 13),
    _Form(
        "usSocialSecurityNumber",
        re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"),
        ("-",),
        digits=9,
    ),
    _Form(
        "phone",
        re.compile(
            r"[+(\d](?:(?<=\+)(?<![\w.].)\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){5,12}(?!\w)"
            r"|(?<![\w.(-].)(?:(?<=\()\d{3}\) ?|(?<=\d)\d\d[-. ])\d{3}[-. ]\d{4}(?![\w-])"
            r"|(?<=0)(?<![\w.-].)\d{2,4}[ /-]\d{5,8}(?![\w-]))"
        ),
        digits=7,
    ),
    _Form(
        "ipAddress",
        re.compile(
            r"[\da-fA-F:](?:(?<=\d)(?<![\w.:-].)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\w-]|\.\w)"
            r"|(?<![\w:.].)(?:(?<=:)|(?<=[0-9a-fA-F])[0-9a-fA-F]{0,3}:)(?:[0-9a-fA-F]{0,4}:){1,6}[0-9a-fA-F]{0,4}(?![\w:]))"
        ),
        (".", ":"),
        _address,
        1,
    ),
)  # fmt: skip
_SUSPECT = re2.compile(
    r"@|://|-----BEGIN |eyJ|AKIA|ASIA|AROA|AIDA|ABIA|ACCA|ecret|ECRET|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-"
    r"|hooks\.slack|AIza|sk-|_live_|_test_|hf_|pypi-|npm_|SG\.|[A-Z]{2}\p{Nd}{2}|\p{Nd}(?:[ -]?\p{Nd}){12}"
    r"|\p{Nd}{3}-\p{Nd}{2}-\p{Nd}{4}|\+\p{Nd}|\p{Nd}{3}\)? ?[-. ]?\p{Nd}{3}[-. ]\p{Nd}{4}|0\p{Nd}{2,4}[ /-]\p{Nd}{5}"
    r"|\p{Nd}\.\p{Nd}{1,3}\.\p{Nd}|:[0-9a-fA-F]{0,4}:"
)
"""In linear time what is in every match of a form; so no text in which it is not has any."""
_DIGIT = re.compile(r"\d")
_PLACEHOLDERS = {kind: "[" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).upper() + "]" for kind in KINDS}


def _forms(text: str) -> Iterator[_Form]:
    """The forms that a text may hold."""
    digits = len(_DIGIT.findall(text))
    for form in _FORMS:
        if digits < form.digits:
            continue
        for hint in form.hints:
            if hint in text:
                yield form
                break
        else:
            if not form.hints:
                yield form


def suspects(texts: Sequence[str]) -> Iterator[int]:
    """Ascending indices of the texts in which something may be found: never too few, and few."""
    return containing(_SUSPECT, [text.encode("utf-8", "surrogatepass") for text in texts])


def find(text: str) -> Counter[SensitiveKind]:
    """How many of each kind are in a text, each place counted once."""
    return redact(text, REDACT_ALL)[1]


def redact(text: str, what: Mapping[SensitiveKind, Action]) -> tuple[str, Counter[SensitiveKind]]:
    """The text with what is not to be kept replaced by placeholders, and how many of each kind that were."""
    found: Counter[SensitiveKind] = Counter()
    for form in _forms(text):
        if what[form.kind] == "keep":
            continue

        def replaced(match: re.Match[str], form: _Form = form) -> str:
            if form.holds is not None and not form.holds(match.group()):
                return match.group()
            found[form.kind] += 1
            part = match.groupdict().get("part")
            placeholder = _PLACEHOLDERS[form.kind]
            if part is None:
                return placeholder
            start, end = (place - match.start() for place in match.span("part"))
            return match.group()[:start] + placeholder + match.group()[end:]

        text = form.pattern.sub(replaced, text)
    return text, found
