"""Any server that speaks ``POST {base_url}/chat/completions``: vLLM, llama.cpp, Ollama, hosted ones.

Pictures travel as PNG data URLs, the schema as ``response_format`` of type ``json_schema`` (never vLLM's old
``guided_*`` fields, which current servers ignore while answering 200), and every sampling parameter is sent. The key
is read from the environment when the backend is made and is taken out of anything that comes back.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import math
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ivedit.errors import ConfigError
from ivedit.judge.backends.base import NoReply, Repair, Reply
from ivedit.judge.protocol import Question

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpBackend"]

_LONGEST_REASON = 300
_LARGEST_REPLY = 8 * 2**20  # bytes; a judge's answer has a few thousand
_FINAL = {
    401: "it refuses the key", 403: "it refuses the key", 404: "it has no such address or model",
    405: "it takes no POST there",
}  # fmt: skip
_FILTERED = ("content_filter", "content_policy_violation", "responsibleaipolicyviolation")
"""Error codes of hosted servers whose filter stops a request."""


class HttpBackend:
    """A vision-language model behind a server.

    Args:
        base_url: Such as ``http://host:8000/v1``. No user or password in it.
        model: The name that the server knows it by.
        temperature, top_p, max_tokens: Sent with every request.
        request: Further fields of the request's body, the value of each as JSON; ``null`` leaves a field out that
            would be sent otherwise (some servers refuse ``seed`` or want ``max_completion_tokens``).
        key_env: Name of the environment variable with the key; None: no key is sent.
        timeout: Seconds for a whole call.

    Raises:
        ConfigError: the address cannot be used, the variable is empty, or a field of ``request`` is not JSON.
    """

    name = "http"
    concurrency: int | None = None

    def __init__(
        self, base_url: str, model: str, *, temperature: float = 0.7, top_p: float = 1.0, max_tokens: int = 1024,
        request: Mapping[str, str] | None = None, key_env: str | None = None, timeout: float = 120.0,
    ) -> None:  # fmt: skip
        import httpx

        if "@" in base_url or "?" in base_url:
            raise ConfigError("judge.base_url has a user, password or query: put the key where judge.key_env names it")
        try:
            url = httpx.URL(base_url.rstrip("/") + "/chat/completions")
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
            raise ConfigError(f"judge.base_url={base_url}: give the server's address, such as http://HOST:8000/v1")
        self.model, self.address = model, url
        sampling: dict[str, Any] = {
            "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "response_format": "json_schema",
        }  # fmt: skip
        extra = {name: _as_json(name, text) for name, text in (request or {}).items()}
        self._dropped = {name for name, value in extra.items() if value is None}
        self._extra = {name: value for name, value in extra.items() if value is not None}
        left = {name: value for name, value in {**sampling, **extra}.items() if name not in self._dropped}
        # A judge without seed is another judge than one with it.
        self.sampling: Mapping[str, Any] = left | ({"seed": None} if "seed" in self._dropped else {})
        self._key = _key(key_env)
        self._timeout = timeout
        self._heard = False
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        if self._client:
            await self._client.aclose()
            self._client = None

    def _connected(self) -> httpx.AsyncClient:
        """Connections belong to the event loop that opened them, so they are opened inside it."""
        import httpx

        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            # How many questions are under way is the runner's business: no limit of its own here.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            elsewhere = self.address.host not in ("localhost", "127.0.0.1", "::1")  # no proxy leads to this machine
            self._client = httpx.AsyncClient(headers=headers, timeout=self._timeout, limits=limits, trust_env=elsewhere)
        return self._client

    async def ask(self, question: Question, repair: Repair | None = None) -> Reply:
        """One call. Raises `NoReply` where the server gives no reply that could be an answer."""
        import httpx

        body = await asyncio.to_thread(self._body, question, repair)
        client, kind = self._connected(), {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self._timeout),
                client.stream("POST", self.address, content=body, headers=kind) as response,
            ):
                content = await _read(response)
        except TimeoutError:
            raise NoReply(f"no reply within {self._timeout:g} s", again=True, nobody=not self._heard) from None
        except httpx.RequestError as error:
            reason = self._clean(f"{type(error).__name__}: {error}")
            raise NoReply(f"the connection failed ({reason})", again=True, nobody=not self._heard) from None
        self._heard = True
        return self._reply(response.status_code, response.headers, content)

    def _body(self, question: Question, repair: Repair | None) -> bytes:
        content: list[dict[str, Any]] = []
        for part in question.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                url = "data:image/png;base64," + base64.b64encode(part.png).decode("ascii")
                content.append({"type": "text", "text": f"{part.label}:"})
                content.append({"type": "image_url", "image_url": {"url": url}})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if repair:
            messages.append({"role": "assistant", "content": repair.text})
            messages.append({"role": "user", "content": repair.request})
        wanted = {"name": "answer", "strict": True, "schema": question.schema}
        body = {
            "model": self.model, "messages": messages, **self.sampling, "seed": question.seed, "stream": False,
            "response_format": {"type": "json_schema", "json_schema": wanted}, **self._extra,
        }  # fmt: skip
        return json.dumps({name: value for name, value in body.items() if name not in self._dropped}).encode()

    def _reply(self, status: int, headers: Mapping[str, str], content: bytes) -> Reply:
        value = _loaded(content)
        if status != 200:
            return self._not_ok(status, headers, value)
        try:
            choice = value["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
            if isinstance(text, list):  # parts, as some servers send them
                text = "".join(part["text"] for part in text if part.get("type") == "text")
            usage = value.get("usage") or {}
            return Reply(
                text=None if text is None else self._clean(_string(text)),
                model=_word(value.get("model")),
                finish_reason=_word(choice.get("finish_reason")),
                refusal=self._clean(_string(refusal)) if refusal else None,
                usage={k: usage[k] for k in ("prompt_tokens", "completion_tokens") if type(usage.get(k)) is int},
                id=_word(value.get("id")),
            )
        except (TypeError, KeyError, IndexError, AttributeError):
            said = self._said(value) or "its body is no chat completion"
            raise NoReply(f"status 200, but {said}", again=True) from None

    def _not_ok(self, status: int, headers: Mapping[str, str], value: Any) -> Reply:
        said = self._said(value)
        error = value.get("error") if isinstance(value, dict) else None
        code = str(error.get("code") or error.get("type") or "").lower() if isinstance(error, dict) else ""
        if status == 400 and code in _FILTERED:
            return Reply(None, finish_reason="content_filter", refusal=said or None)
        if status in _FINAL or 300 <= status < 400:
            why = _FINAL.get(status, "it sends elsewhere; give that address as judge.base_url")
            raise NoReply(f"the server answered {status}: {why}{_after(said)}", final=True)
        again = status in (408, 409, 425, 429) or status >= 500
        wait = _retry_after(headers.get("retry-after")) if again else None
        raise NoReply(f"the server answered {status}{_after(said)}", again=again, after=wait)

    def _said(self, value: Any) -> str:
        """The error that a server's body tells, on one line, without the key."""
        error = value.get("error", value.get("message")) if isinstance(value, dict) else None
        if isinstance(error, dict):
            error = error.get("message")
        return self._clean(" ".join(error.split()))[:_LONGEST_REASON] if isinstance(error, str) else ""

    def _clean(self, text: str) -> str:
        """Without the key, should a server repeat it."""
        return text.replace(self._key, "***") if self._key else text


def _key(variable: str | None) -> str | None:
    if not variable:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ConfigError("judge.key_env is no name of an environment variable; it names the variable, not the key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"judge.key_env={variable}: there is no such environment variable, or it is empty; set it")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"judge.key_env={variable}: the variable's value cannot be sent as a key; set it anew")
    return key


def _as_json(name: str, text: str) -> Any:
    if re.search(r"api_?key|authorization|password|secret", name.lower()):
        raise ConfigError(f"judge.request names {name}: a key goes into the variable that judge.key_env names")
    if name in ("model", "messages", "stream"):
        raise ConfigError(f"judge.request names {name}, which is not a setting of the sampling; leave it out")
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"judge.request: {name}={text} is not JSON; a word needs quotes: '\"{text}\"'") from None


async def _read(response: Any) -> bytes:
    """The whole body. A server that never ends is no reply."""
    found = bytearray()
    async for piece in response.aiter_bytes():
        found += piece
        if len(found) > _LARGEST_REPLY:
            raise NoReply(f"the reply has more than {_LARGEST_REPLY >> 20} MB")
    return bytes(found)


def _loaded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, got {type(value).__name__}")
    return value


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _after(said: str) -> str:
    return f" ({said})" if said else ""


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3); None where it is neither."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
