"""A real judge server on the loopback that answers from the pixels it gets, and fails in every way servers do.

What a question's score must be is written in its pictures: in the red of the last one (see `truth`), so a score that
was made up, read from prose, taken from another question or seen with red and blue swapped is a wrong one. Each
question has a scenario, a pure function of what the judge reads; replies that must not be scored carry other numbers.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image

from ivedit.judge.cases import Case

MODEL = "fault-judge"

# scenario: (status that the judgement must end in, whether it took a repair request)
SCENARIOS = {
    "good": ("ok", False),
    "fenced": ("ok", False),
    "parts": ("ok", False),  # content as a list of parts
    # the first call fails, a later one succeeds
    "busy": ("ok", False),  # 429 with Retry-After
    "busy_date": ("ok", False),  # 429 with an HTTP date
    "unavailable": ("ok", False),  # 503
    "stall": ("ok", False),  # no byte within the client's time
    "cut_body": ("ok", False),  # the connection ends inside the body
    "half_json": ("ok", False),  # 200 with half of a chat completion
    "html": ("ok", False),  # 200 with a proxy's page
    "error_in_200": ("ok", False),  # 200 with an error object
    # the first answer is none, the repaired one is good
    "truncated": ("ok", True),
    "prose": ("ok", True),
    "prose_fraction": ("ok", True),
    "not_a_number": ("ok", True),
    "boolean": ("ok", True),
    "seven_of_five": ("ok", True),
    "half_points": ("ok", True),
    "float": ("ok", True),
    "word": ("ok", True),
    "missing": ("ok", True),
    "schema_ignored": ("ok", True),
    "empty": ("ok", True),
    "null_content": ("ok", True),
    "length": ("ok", True),
    # never a value
    "always_prose": ("unparsed", True),
    "always_length": ("unparsed", True),
    "refusal": ("refused", False),
    "refused_repair": ("refused", True),
    "filter": ("filtered", False),
    "filter_400": ("filtered", False),
    "always_500": ("error", False),
    "bad_request": ("error", False),
    "wrong_model": ("error", False),
}
FAULTS = tuple(name for name in SCENARIOS if name != "good")


def clips(count: int, methods: tuple[str, ...] = ("a",), frames: int = 5, size: int = 16) -> list[Case]:
    """Cases whose scores are known: see `truth`."""
    cases = []
    for i in range(count):
        for m, method in enumerate(methods):
            source = np.full((frames, 3, size, size), 128, np.uint8)
            edited = np.empty_like(source)
            edited[:, 0], edited[:, 1], edited[:, 2] = colour(i * len(methods) + m)
            edited += np.arange(frames, dtype=np.uint8)[:, None, None, None] % 2 * 128  # frames differ
            cases.append(Case.of(f"clip-{i}", method, source, edited, f"Make everything colour {i}."))
    return cases


def colour(number: int) -> tuple[int, int, int]:
    """A colour below 128 for each number; its blue would be another score than its red."""
    red, green = number % 120, number // 120
    return red, green, (red + 1) % 120


def truth(case: Case, repeat: int) -> int:
    """1 to 5: what a judge that sees the right pixels says."""
    return 1 + (int(case.edited[-1, 0, 0, 0]) % 128 + repeat) % 5


@dataclass
class Call:
    """One request as the server saw it."""

    question: str
    turn: int
    scenario: str
    id: str | None = None  # of a chat completion that was sent whole
    body: dict = field(default_factory=dict, repr=False)
    headers: dict = field(default_factory=dict, repr=False)
    time: float = 0.0


class FaultServer:
    """Use as a context; `url` is the base address.

    Args:
        scenario: The same for every question, or a share of faults (0 to 1) spread over all kinds.
        stall: Seconds before a stalled reply.
        retry_after: Seconds that a busy server asks for.
        model: The name it answers with.
        delay: Seconds of thought per reply.
    """

    def __init__(
        self, scenario: str | float = "good", *, stall: float = 30.0, retry_after: float = 0.05, model: str = MODEL,
        delay: float = 0.0,
    ) -> None:
        self.scenario, self.stall, self.retry_after, self.model, self.delay = scenario, stall, retry_after, model, delay
        self.calls: list[Call] = []
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:  # a client that was killed or gave up
                pass

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FaultServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def bodies(self) -> list[dict]:
        return [call.body for call in self.calls]

    def scenario_of(self, question: str) -> str:
        if isinstance(self.scenario, str):
            return self.scenario
        drawn = int(question[:12], 16)
        return FAULTS[drawn // 1000 % len(FAULTS)] if drawn % 1000 < 1000 * self.scenario else "good"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        messages = body["messages"]
        question = hashlib.sha256(json.dumps([messages[0], body.get("seed")]).encode()).hexdigest()
        call = Call(question, 1 if len(messages) > 1 else 0, self.scenario_of(question), None, body,
                    dict(handler.headers), time.monotonic())  # fmt: skip
        with self.lock:
            earlier = sum(other.question == question and other.turn == call.turn for other in self.calls)
            self.calls.append(call)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.closing.wait(self.delay)
            self._send(handler, call, body, earlier)
        finally:
            with self.lock:
                self.under_way -= 1

    def _send(self, handler: BaseHTTPRequestHandler, call: Call, body: dict, earlier: int) -> None:
        scenario, first = call.scenario, earlier == 0
        if scenario in ("busy", "busy_date") and first:
            after = f"{self.retry_after:g}" if scenario == "busy" else time.strftime(
                "%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time())
            )  # fmt: skip
            return _write(handler, 429, {"error": {"message": "slow down"}}, {"Retry-After": after})
        if (scenario == "unavailable" and first) or scenario == "always_500":
            return _write(handler, 503 if first else 500, {"error": {"message": "overloaded"}})
        if scenario == "bad_request":
            said = f"too many pictures from {call.headers.get('Authorization')}"
            return _write(handler, 400, {"error": {"message": said, "code": "invalid_request"}})
        if scenario == "filter_400":
            return _write(handler, 400, {"error": {"message": "filtered, 4 of 5", "code": "content_filter"}})
        if scenario == "stall" and first:
            self.closing.wait(self.stall)
            handler.close_connection = True
            return None
        completion = self._completion(call, body)
        if first and scenario in ("cut_body", "half_json", "html", "error_in_200"):
            whole = json.dumps(completion).encode()
            if scenario == "cut_body":
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(whole)))
                handler.end_headers()
                handler.wfile.write(whole[: len(whole) // 2])
                handler.wfile.flush()
                handler.close_connection = True
                return None
            pages = {"half_json": whole[: len(whole) // 2], "html": b"<html>score: 5</html>",
                     "error_in_200": b'{"error": {"message": "backend lost, score 5"}}'}  # fmt: skip
            return _write(handler, 200, pages[scenario])
        with self.lock:
            call.id = completion["id"] = f"reply-{len(self.calls)}-{call.question[:8]}-{call.turn}-{earlier}"
        return _write(handler, 200, completion)

    def _completion(self, call: Call, body: dict) -> dict:
        names = body["response_format"]["json_schema"]["schema"]["required"][1:-1]
        right = 1 + (seen_red(body) % 128 + body["seed"]) % 5
        other = right % 5 + 1
        good = {"observations": f"{other} dogs.", **dict.fromkeys(names, 5), "evidence_frames": [1]}
        good[names[0]] = right
        message: dict = {"role": "assistant", "content": json.dumps(good), "refusal": None}
        reason, model, scenario = "stop", self.model, call.scenario
        repaired = call.turn == 1 and SCENARIOS[scenario][0] == "ok"

        def changed(value: object) -> str:
            return json.dumps({**good, names[0]: value})

        wrong = {
            "fenced": f"```json\n{json.dumps(good)}\n```",
            "truncated": changed(other)[:-9],
            "prose": f"There are {other} dogs. Score: {other}",
            "prose_fraction": f"{other} / 2",
            "not_a_number": changed(float("nan")),
            "boolean": changed(True),
            "seven_of_five": changed(7),
            "half_points": changed(12.5),
            "float": changed(float(other)),
            "word": changed(str(other)),
            "missing": json.dumps({key: value for key, value in good.items() if key != names[0]}),
            "schema_ignored": json.dumps({"rating": other, "explanation": "nice"}),
            "empty": "",
            "null_content": None,
            "always_prose": f"I would say {other} out of 5, {call.headers.get('Authorization')}.",
            "refused_repair": f"Hmm, {other}.",
        }
        if scenario == "parts":
            message["content"] = [{"type": "text", "text": json.dumps(good)}]
        if scenario in wrong and not repaired:
            message["content"] = wrong[scenario]
        if scenario in ("length", "always_length") and not repaired:
            message["content"], reason = changed(other), "length"
        if scenario == "refusal" or (scenario == "refused_repair" and call.turn == 1):
            message["content"], message["refusal"] = changed(other), "I cannot judge this."
        if scenario == "filter":
            message["content"], reason = changed(other), "content_filter"
        if scenario == "wrong_model":
            message["content"], model = changed(other), "some-other-judge"
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return {"id": "", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def seen_red(body: dict) -> int:
    """Red of the last picture in a request, from its PNG."""
    pictures = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    data = pictures[-1]["image_url"]["url"].removeprefix("data:image/png;base64,")
    with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        return int(np.asarray(picture)[0, 0, 0])


def statuses(calls: list[Call]) -> Counter[str]:
    """How many questions must end in each state, from what the server did to them."""
    return Counter(SCENARIOS[scenario][0] for scenario in {call.question: call.scenario for call in calls}.values())


def _write(handler: BaseHTTPRequestHandler, status: int, body: dict | bytes, headers: dict | None = None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)
