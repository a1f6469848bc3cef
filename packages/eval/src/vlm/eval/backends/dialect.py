"""What servers refuse in their own words: a parameter, a prompt for its length, a prompt for its content.

    dialect = Dialect()
    dialect.learn(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", body)   # True
    dialect.apply(body)                                              # with max_completion_tokens from now on

The protocol has no codes for these; each server writes a sentence.
"""

import json
import re
import threading
from typing import Any

RENAMED = {"max_tokens": "max_completion_tokens"}
"""Parameter -> the name that newer models want instead."""

REQUIRED = ("model", "messages", "stream")
"""Keys of a request that are never left out."""

NOT_SUPPORTED = re.compile(
    r"unsupported|support|unrecogni[sz]ed|unknown|unexpected|extra[ _](inputs|fields|forbidden)|not (be )?"
    r"(allowed|permitted|accepted|available|valid)|deprecated|removed?\b|omit|only .{0,40}default"
)
"""Words of a server that does not take a parameter at all."""

WRONG_VALUE = re.compile(r"must|should|invalid|positive|greater|only|range|allowed values")
"""Words of a server that does not take the value; a temperature is then left out."""

ONLY_STREAMS = re.compile(r"only.{0,40}stream|stream.{0,40}(must|required|only|true)|(set|enable|use).{0,20}stream")

TOO_LONG = re.compile(
    r"""
      context[ _-]?(length|size|window|limit) | exceed_context | contextlength
    | (maximum|max)[ _](model|sequence|total|input|prompt|session|allowed)[ _a-z]{0,20}(len|length|tokens|size)
    | max_(model|seq|input|total|prompt|position)[_a-z]*
    | session_?len | input_length_error | string_above_max_length
    | too[ ]many[ ](input[ ]|prompt[ ])?tokens
    | maximum[ ]number[ ]of[ ](input[ ])?tokens
    | (prompt|inputs?|messages?|conversation)\b[^.]{0,80}\b(too[ ](long|large)|exceeds?|longer|larger[ ]than)
    | tokens?\b[^.]{0,60}\b(exceeds?|longer[ ]than|larger[ ]than|greater[ ]than)
    | \binputs?\b[^.]{0,40}(must[ ]have[ ](less|fewer)|tokens[^.]{0,60}(<=|less|fewer))
    | range[ ]of[ ]input[ ]length | input[ ]length[ ]should
    | current[ ]length[ ]is[ ]\d+ | reduce[ ](the[ ])?(length|size)[ ]of
    """,
    re.VERBOSE,
)
"""Words of llama.cpp, vLLM, SGLang, LMDeploy, TGI, OpenAI, Anthropic, Google, Mistral and others for a long prompt."""

FILTERED = re.compile(r"content[ _-]?filter|content[ _-]?(management[ ])?policy|content_policy_violation|safety system")
"""Words of servers that refuse a question for its content."""


class Dialect:
    """How one server wants its requests, learned from what it refused; threads may share it.

    `left_out`: parameters that are not sent any more, because the model refuses them.
    """

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._renamed: dict[str, str] = {}
        self._stream, self._lock = False, threading.Lock()

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a request as the server wants it."""
        known = {self._renamed.get(key, key): value for key, value in body.items() if key not in self.left_out}
        return {**known, "stream": True} if self._stream else known

    def learn(self, status: int | None, said: str, body: dict[str, Any]) -> bool:
        """Learn from a refusal of `body`; return whether the question should be sent again, as it is known now.

        Args:
            status: HTTP code.
            said: The text of the response.
            body: The request, before `apply`.
        """
        text = words_of(said)
        if status not in (400, 422) or TOO_LONG.search(text):
            return False
        with self._lock:
            sent = self.apply(body)
            if not self._stream and ONLY_STREAMS.search(text):
                self._stream = True
                return True
            for name in _named(said, sent):
                if name in RENAMED and RENAMED[name] in text:
                    self._renamed[name] = RENAMED[name]
                    return True
                limit = name in RENAMED or name in RENAMED.values()
                if NOT_SUPPORTED.search(text) or (not limit and WRONG_VALUE.search(text)):
                    self.left_out.append(next((k for k, v in self._renamed.items() if v == name), name))
                    return True
        return False

    @property
    def note(self) -> str:
        """Which parameters are left out, in words; empty when all are sent."""
        names = ", ".join(self.left_out)
        return f"{names} not sent: the model refuses it" if names else ""


def _named(said: str, sent: dict[str, Any]) -> list[str]:
    """Return the parameters of a request that an error names, the one that it calls the culprit first."""
    culprits: list[str] = []
    try:
        answer = json.loads(said)
        error = answer.get("error", answer)
        culprits += [error["param"]] if isinstance(error, dict) and error.get("param") else []
        culprits += [place["loc"][-1] for place in answer.get("detail", [])]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # the names in the text are all there is
    optional = [name for name in sent if name not in REQUIRED]
    found = [name for name in culprits if name in optional]
    return found or [name for name in optional if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", said)]


def words_of(said: str) -> str:
    """Return the sentences and codes of an error response in lower case, without the keys of its JSON."""

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict | list):
            return [s for item in (value.values() if isinstance(value, dict) else value) for s in strings(item)]
        return [value] if isinstance(value, str) else []

    try:
        return " . ".join(strings(json.loads(said))).lower()
    except (ValueError, RecursionError):
        return said.lower()


def message_of(said: str) -> str:
    """Return the sentence in an error response; the whole text where there is none.

    >>> message_of('{"error": {"message": "no such model", "code": 404}}')
    'no such model'
    """
    try:
        found = json.loads(said)
        error = found.get("error") or found
        message = error if isinstance(error, str) else error.get("message") or error.get("detail")
    except (ValueError, AttributeError, RecursionError):
        return said
    return message if isinstance(message, str) and message else said
