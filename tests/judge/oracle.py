"""A judge that knows: an OpenAI-compatible server that decodes the pictures it is sent and scores from their pixels.

It is told the true edits beforehand and finds the clip it is asked about by the source frames themselves. It answers
400 to a question that shows other pictures than the protocol says (number, order, labels, colours, metadata), so a
mistake on the way to the judge cannot pass. Its eyes can be spoiled, to see that the anchors find such judges out.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3)
Clip = NDArray[np.uint8]  # (T, H, W, 3)


class Violation(Exception):
    """The question does not show what the protocol says."""


@dataclass(frozen=True)
class Known:
    """A clip whose true edit the oracle was told."""

    source: Clip
    truth: Clip
    words: tuple[str, ...]  # names that must not reach a judge


@dataclass
class Seen:
    """The pictures of one question, in their own size."""

    labels: list[str]
    frames: list[Frame]
    text: str


def swapped(frames: list[Frame], seed: int) -> list[Frame]:
    """Red and blue exchanged."""
    return [frame[..., ::-1] for frame in frames]


def disordered(frames: list[Frame], seed: int) -> list[Frame]:
    """The pictures under each other's labels."""
    return [frames[i] for i in np.random.default_rng(seed).permutation(len(frames))]


@dataclass
class Oracle:
    """The judge behind the server.

    Attributes:
        eyes: Spoils the pictures after they were checked and before they are scored.
        constant: Answers this score to everything.
        moments: Pictures of a clip, and of a window, that the protocol shows.
    """

    eyes: Callable[[list[Frame], int], list[Frame]] | None = None
    constant: Any = None
    moments: int = 8
    violations: list[str] = field(default_factory=list)
    asked: int = 0
    known: list[Known] = field(default_factory=list)
    _places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _sizes: set[tuple[int, int]] = field(default_factory=set)

    def tell(self, source: NDArray[np.uint8], truth: NDArray[np.uint8], words: Sequence[str] = ()) -> None:
        """The true edit of a source, both (T, 3, H, W), and names that no question about it may hold."""
        clip, edit = source.transpose(0, 2, 3, 1), truth.transpose(0, 2, 3, 1)
        for moment, frame in enumerate(clip):
            self._places.setdefault(_digest(frame), []).append((len(self.known), moment))
        self._sizes.add(clip.shape[1:3])
        self.known.append(Known(clip, edit, tuple(words)))

    # -- a question ---------------------------------------------------------------------------------------------

    def answer(self, body: dict[str, Any]) -> str:
        """The JSON text of an answer to a chat-completions request; raises `Violation`."""
        schema = self._schema(body)
        seen = self._seen(body["messages"])
        fields = schema["properties"]
        seed = int(body["seed"])
        kind = re.sub(r"\d+", "#", seen.labels[0])
        if kind == "Frame #":
            scores = self._alone(seen, ("Frame",), seed)
        elif kind == "A #":
            scores = self._alone(seen, ("A", "B"), seed)
        elif kind == "Source #":
            scores = self._moment_by_moment(seen, fields, seed)
        elif kind == "Reference #":
            scores = self._windows(seen, seed)
        else:
            raise Violation(f"no question begins with a picture labelled {seen.labels[0]!r}")
        result: dict[str, Any] = {}
        for name, part in fields.items():
            if part["type"] == "string" and "enum" not in part:
                result[name] = "seen from the pixels"
            elif part["type"] == "array":
                result[name] = [1]
            else:
                result[name] = self.constant if self.constant is not None else scores[name]
            if "enum" in part and result[name] not in part["enum"]:
                raise Violation(f"{result[name]!r} is none of the answers asked for: {part['enum']}")
        return json.dumps(result)

    def _schema(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = body.get("response_format", {})
        if asked.get("type") != "json_schema" or any(name.startswith("guided_") for name in body):
            raise Violation("the answer's form must be asked for with response_format json_schema")
        for name in ("temperature", "seed", "model"):
            if name not in body:
                raise Violation(f"{name} was not sent")
        return asked["json_schema"]["schema"]

    def _seen(self, messages: list[dict[str, Any]]) -> Seen:
        labels, frames, text = [], [], ""
        for message in messages:
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "text":
                    text += part["text"] + "\n"
                    continue
                labels.append(text.rstrip().rsplit("\n", 1)[-1].strip().rstrip(":"))
                frames.append(self._decoded(part["image_url"]["url"]))
        if not frames:
            raise Violation("no pictures")
        return Seen(labels, frames, text)

    def _decoded(self, url: str) -> Frame:
        head, _, data = url.partition(",")
        if head != "data:image/png;base64":
            raise Violation(f"a picture is not a PNG data URL: {head!r}")
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        if picture.format != "PNG" or picture.mode != "RGB" or picture.info:
            raise Violation(f"a picture is {picture.format} {picture.mode} with {sorted(picture.info)}; RGB PNG, bare")
        shown = np.asarray(picture)
        for height, width in self._sizes:  # shown enlarged by a whole factor, pixel by pixel
            factor = shown.shape[0] // height
            small = shown[::factor, ::factor] if factor else shown
            if small.shape[:2] != (height, width):
                continue
            if (small.repeat(factor, axis=0).repeat(factor, axis=1) == shown).all():
                return small
        raise Violation(f"a picture of size {shown.shape[:2]} is none of {sorted(self._sizes)} enlarged")

    # -- checks -------------------------------------------------------------------------------------------------

    @staticmethod
    def _numbered(labels: list[str], wanted: list[str]) -> None:
        if labels != wanted:
            raise Violation(f"labels {labels}, not {wanted}")

    def _moments(self, sources: list[Frame], text: str) -> tuple[Known, list[int]]:
        """The clip that all source pictures are of, and their moments, which must run forward."""
        places = [self._places.get(_digest(frame), []) for frame in sources]
        for number in {clip for clip, _ in places[0]}:
            moments: list[int] = []
            for found in places:
                later = [t for clip, t in found if clip == number and (not moments or t > moments[-1])]
                if not later:
                    break
                moments.append(later[0])
            else:
                known = self.known[number]
                if told := [word for word in known.words if word in text]:
                    raise Violation(f"the question says {told}")
                return known, moments
        raise Violation("the source pictures are of no known clip in order of time, or their colours are wrong")

    def _looked(self, seen: Seen, seed: int) -> list[Frame]:
        """What the eyes make of the pictures; what they do at random is another thing for every question."""
        if self.eyes is None:
            return seen.frames
        return self.eyes(seen.frames, zlib.crc32(b"".join(frame.tobytes() for frame in seen.frames), seed))

    # -- the questions ------------------------------------------------------------------------------------------

    def _alone(self, seen: Seen, names: tuple[str, ...], seed: int) -> dict[str, Any]:
        count = len(seen.labels) // len(names)
        self._numbered(seen.labels, [f"{name} {i + 1}" for name in names for i in range(count)])
        looked = self._looked(seen, seed)
        return _verdict([{"score": appeal(looked[i : i + count])} for i in range(0, len(looked), count)])

    def _moment_by_moment(self, seen: Seen, fields: dict[str, Any], seed: int) -> dict[str, Any]:
        edits = ("A", "B") if seen.labels[1] == "A 1" else ("Edit",)
        width = 1 + len(edits)
        count = len(seen.labels) // width
        self._numbered(seen.labels, [f"{what} {i + 1}" for i in range(count) for what in ("Source", *edits)])
        known, moments = self._moments(seen.frames[::width], seen.text)
        length = len(known.source)
        steps = np.diff(moments)
        if count != min(self.moments, length) or (moments[0], moments[-1]) != (0, length - 1) or np.ptp(steps) > 1:
            raise Violation(f"moments {moments} are not {self.moments}, spread evenly over {length} frames")
        looked = self._looked(seen, seed)
        truth = known.truth[moments]
        changes = (known.source[moments] != truth).any(axis=-1)
        found = []
        for place in range(1, width):
            source, edit = np.stack(looked[::width]), np.stack(looked[place::width])
            seen_as = {"done": done(source, edit, truth, changes), "kept": kept(source, edit, changes)}
            seen_as["clean"] = clean(edit, truth)
            found.append(seen_as)
        if "carried out better" in seen.text:
            return _verdict([{"score": one["done"]} for one in found])
        if "better" in fields:
            return _verdict([{"score": min(one["kept"], one["clean"])} for one in found])
        (one,) = found
        return {
            "score": one["done"], "preserve": one["kept"], "render": one["clean"],
            "compliance": one["done"], "naturalness": one["clean"], "integrity": one["kept"],
        }  # fmt: skip

    def _windows(self, seen: Seen, seed: int) -> dict[str, Any]:
        sources = [i for i, label in enumerate(seen.labels) if label.startswith("Reference")]
        frames = [seen.frames[i] for i in sources]
        size = min(self.moments, len(frames))
        found = [self._moments(frames[i : i + size], seen.text) for i in range(0, len(frames), size)]  # may overlap
        known, moments = found[0][0], [t for _, times in found for t in times]
        if any(other is not known for other, _ in found):
            raise Violation("the windows are of several clips")
        length = len(known.source)
        edits = ("A", "B") if "A 1" in seen.labels else ("Edit",)
        wanted, times = [], []
        for first in [0] if length <= size else [0, length - size]:
            numbers = range(len(times) + 1, len(times) + size + 1)
            wanted += [f"{what} {i}" for what in ("Reference", *edits) for i in numbers]
            times += range(first, first + size)
        self._numbered(seen.labels, wanted)
        if moments != times:
            raise Violation(f"moments {moments}, not {times}")
        looked = self._looked(seen, seed)
        steps = [i for i in range(1, len(times)) if i % size]
        clips = [
            np.stack([frame for frame, label in zip(looked, wanted, strict=True) if label.startswith(name)])
            for name in edits
        ]
        return _verdict([{"score": steady(clip, known.truth[moments], steps)} for clip in clips])


def _verdict(scores: list[dict[str, int]]) -> dict[str, Any]:
    """The score of one edit, or which of two is better."""
    if len(scores) == 1:
        return dict(scores[0])
    gap = scores[0]["score"] - scores[1]["score"]
    return {"better": "A" if gap > 0 else "B" if gap < 0 else "tie"}


def _digest(frame: Frame) -> str:
    return hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest()


# -- scores from pixels: clips (T, H, W, 3) uint8, 1 to 5 -----------------------------------------------------------


def _gap(one: Clip, other: Clip, where: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute difference in levels, within (T, H, W) where given."""
    gap = np.abs(one.astype(np.float32) - other)
    return float((gap if where is None else gap[where]).mean()) if where is None or where.any() else 0.0


def _level(good: float) -> int:
    return int(np.clip(1 + round(4 * good), 1, 5))


def done(source: Clip, edit: Clip, truth: Clip, changes: NDArray[np.bool_]) -> int:
    """How much of the way from the source to the true edit was gone, where they differ."""
    return _level(1 - _gap(edit, truth, changes) / max(_gap(source, truth, changes), 1e-6))


def kept(source: Clip, edit: Clip, changes: NDArray[np.bool_]) -> int:
    """How little changed where nothing should."""
    return _level(float(np.exp(-_gap(source, edit, ~changes) / 8)))


def clean(edit: Clip, truth: Clip) -> int:
    """How much of the true edit's fine detail there is."""
    detail = [float(np.abs(np.diff(clip.astype(np.float32), axis=2)).mean()) for clip in (edit, truth)]
    return _level(min(1.0, detail[0] / max(detail[1], 1e-6)))


def steady(edit: Clip, truth: Clip, steps: list[int]) -> int:
    """How like the true edit's are the changes from one frame to the next."""
    move = [clip.astype(np.float32)[steps] - clip.astype(np.float32)[[i - 1 for i in steps]] for clip in (edit, truth)]
    return _level(1 - float(np.abs(move[0] - move[1]).mean()) / max(float(np.abs(move[1]).mean()), 1e-6))


def appeal(frames: list[Frame]) -> int:
    """Sharpness of the edges, from the pictures alone: the steepest step of a neighbourhood as a share of its range."""
    import cv2

    shares = []
    for frame in frames:
        luma = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        kernel = np.ones((9, 9), np.uint8)
        spread = cv2.dilate(luma, kernel) - cv2.erode(luma, kernel)
        across = np.abs(np.diff(luma, axis=1, append=luma[:, -1:]))
        down = np.abs(np.diff(luma, axis=0, append=luma[-1:]))
        steepest = cv2.dilate(np.maximum(across, down), kernel)
        strong = spread > 0.5 * spread.max()
        shares.append(float(np.median(steepest[strong] / np.maximum(spread[strong], 1e-6))))
    return _level((float(np.mean(shares)) - 0.2) / 0.4)


# -- the server -----------------------------------------------------------------------------------------------------


class OracleServer:
    """``with OracleServer(Oracle()) as server: ... server.url``: a real loopback HTTP server."""

    def __init__(self, oracle: Oracle, model: str = "oracle-1") -> None:
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    oracle.asked += 1
                try:
                    if self.path != "/v1/chat/completions":
                        raise Violation(f"posted to {self.path}")
                    text, status = oracle.answer(body), 200
                except Violation as error:
                    with lock:
                        oracle.violations.append(str(error))
                    text, status = str(error), 400
                reply: dict[str, Any] = {"error": {"message": text, "type": "invalid_request_error"}}
                if status == 200:
                    message = {"role": "assistant", "content": text}
                    reply = {
                        "id": f"chatcmpl-{oracle.asked}", "object": "chat.completion", "model": model,
                        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
                    }  # fmt: skip
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.oracle = oracle
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> OracleServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
