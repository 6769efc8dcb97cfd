"""Cameras of tests: servers on the loopback that speak RTSP (H.264 over TCP or UDP) and MJPEG over HTTP."""

from __future__ import annotations

import base64
import http.server
import re
import select
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import av
import cv2
import numpy as np

__all__ = ["HttpCamera", "RtspCamera", "Unit", "encoded", "jpeg", "moving"]

Unit = tuple[tuple[bytes, ...], bool]
"""NAL units of one picture, and whether the picture is a key frame."""


def moving(count: int, size: tuple[int, int] = (176, 144)) -> Iterator[np.ndarray[Any, Any]]:
    """Yield pictures (width, height) of a texture that moves, so that damage is seen in all later pictures."""
    width, height = size
    blocks = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    texture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    for i in range(count):
        yield np.ascontiguousarray(np.roll(texture, (i, 2 * i), (0, 1)))


@cache
def encoded(
    count: int, *, gop: int = 10, codec: str = "libx264", size: tuple[int, int] = (176, 144), options: str = "bf=0"
) -> tuple[Unit, ...]:
    """Return an encoded video as NAL units without start codes, one entry per picture."""
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height = size
    context.pix_fmt, context.framerate = "yuv420p", 10
    context.time_base = 1 / context.framerate
    context.gop_size = gop
    context.options = {"preset": "ultrafast", "tune": "zerolatency"} | dict(
        option.split("=", 1) for option in options.split(";")
    )
    packets = []
    for image in moving(count, size):
        packets += context.encode(av.VideoFrame.from_ndarray(image, format="bgr24"))
    packets += context.encode(None)
    return tuple((_nal_units(bytes(packet)), packet.is_keyframe) for packet in packets)


def _nal_units(stream: bytes) -> tuple[bytes, ...]:
    return tuple(unit for unit in re.split(b"\x00\x00\x00\x01|\x00\x00\x01", stream) if unit)


def jpeg(number: int = 0, size: tuple[int, int] = (176, 144)) -> bytes:
    """Return a JPEG file, the ``number``-th picture of a moving texture."""
    *_, image = moving(number + 1, size)
    return cv2.imencode(".jpg", image)[1].tobytes()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Camera:
    """Server on a free port of the loopback, or on a given one; stopped connections are cut."""

    def __init__(self, handler: type[socketserver.BaseRequestHandler], port: int = 0) -> None:
        self.gone = threading.Event()
        self.opened = 0
        """Number of clients that began to get pictures."""
        self._server = _Server(("127.0.0.1", port), handler)
        self._server.camera = self  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Sending:
    """How a camera sends its pictures."""

    fps: float = 10.0
    most: int | None = None
    """Number of pictures after which the camera closes the connection."""
    silent_after: int | None = None
    """Number of pictures after which the camera sends nothing more, with the connection open."""
    first_gap: float = 0.0
    """Seconds without a picture after the first one."""
    lost: Callable[[int, int], bool] = field(default=lambda picture, packet: False)
    """(number of the picture, number of the RTP packet in it) -> whether the packet is lost."""
    stamp: Callable[[int], float] | None = None
    """Number of the picture -> time stamp in seconds; the number divided by ``fps`` if None."""
    begin: int = 0
    """Number of the first picture that is sent."""


class RtspCamera(_Camera):
    """RTSP server that sends one video again and again.

    Args:
        units: pictures, from :func:`encoded`.
        sending: rate, losses and silences.
        transports: transports that are allowed: ``"tcp"``, ``"udp"``.
        login: user and password of Basic authentication, as ``user:password``; none if None.
        port: port to listen on; a free one if 0.
        codec: ``"H264"`` or ``"H265"``, as in RTP.
        tracks: what the camera offers: ``"video"``, ``"audio"``. Sound is sent where there is no video.
        path: the only path at which there is a video.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        sending: Sending | None = None,
        *,
        transports: Sequence[str] = ("tcp", "udp"),
        login: str | None = None,
        port: int = 0,
        codec: str = "H264",
        tracks: Sequence[str] = ("video",),
        path: str = "/live",
    ) -> None:
        self.units, self.sending, self.transports, self.login = units, sending or Sending(), transports, login
        self.codec, self.tracks, self.path = codec, tracks, path
        super().__init__(_RtspHandler, port)

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}{self.path}"

    def description(self) -> str:
        """Return the camera's tracks in SDP (RFC 8866)."""
        units = self.units[0][0]
        if self.codec == "H264":
            sets = ",".join(base64.b64encode(unit).decode() for unit in units if unit[0] & 31 in (7, 8))
            parameters = f"packetization-mode=1;sprop-parameter-sets={sets}"
        else:
            found = {unit[0] >> 1 & 63: base64.b64encode(unit).decode() for unit in units}
            parameters = f"sprop-vps={found[32]};sprop-sps={found[33]};sprop-pps={found[34]}"
        media = {
            "video": f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {self.codec}/90000\r\na=fmtp:96 {parameters}\r\n",
            "audio": "m=audio 0 RTP/AVP 0\r\n",
        }
        parts = [f"{media[name]}a=control:{name}\r\n" for name in self.tracks]
        return "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n" + "".join(parts)


class _RtspHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.camera: RtspCamera = self.server.camera  # type: ignore[attr-defined]
        self.lock, self.halt = threading.Lock(), threading.Event()
        self.send: Callable[[bytes], object] | None = None
        self.speak: Callable[[bytes], object] = lambda data: self._write(b"$\2" + len(data).to_bytes(2, "big") + data)
        self.connection.settimeout(5)
        buffer = b""
        while not self.camera.gone.is_set() and not self.halt.is_set():
            # Not a timeout of the socket, which sending pictures has too.
            if not select.select([self.connection], [], [], 0.05)[0]:
                continue
            try:
                data = self.connection.recv(4096)
            except OSError:
                break
            if not data:
                break
            buffer += data
            while b"\r\n\r\n" in buffer or buffer[:1] == b"$":
                if buffer[:1] == b"$":
                    buffer = buffer[4 + int.from_bytes(buffer[2:4], "big") :]
                    continue
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                self._answer(head.decode())
        self.halt.set()

    def _answer(self, head: str) -> None:
        method = head.split(" ", 1)[0]
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n")[1:])}
        sequence = headers.get("cseq", "0")
        camera = self.camera

        def reply(status: str, extra: str = "", body: str = "") -> None:
            text = f"RTSP/1.0 {status}\r\nCSeq: {sequence}\r\n{extra}"
            if body:
                text += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            self._write((text + "\r\n" + body).encode())

        if camera.login is not None and method not in ("OPTIONS", "TEARDOWN"):
            wanted = "Basic " + base64.b64encode(camera.login.encode()).decode()
            if headers.get("authorization") != wanted:
                reply("401 Unauthorized", 'WWW-Authenticate: Basic realm="x"\r\n')
                return
        if method == "DESCRIBE" and not head.split(" ", 2)[1].endswith(camera.path):
            reply("404 Not Found")
        elif method == "DESCRIBE":
            reply("200 OK", f"Content-Base: {camera.url}/\r\n", camera.description())
        elif method == "SETUP":
            transport = headers["transport"]
            kind = "tcp" if "interleaved" in transport or "/TCP" in transport else "udp"
            if kind not in camera.transports:
                reply("461 Unsupported Transport")
            elif "/audio " in head.split("\r\n", 1)[0]:
                reply("200 OK", "Transport: RTP/AVP/TCP;unicast;interleaved=2-3\r\nSession: 1\r\n")
            elif kind == "tcp":
                self.send = lambda data: self._write(b"$\0" + len(data).to_bytes(2, "big") + data)
                reply("200 OK", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n")
            else:
                port = int(re.search(r"client_port=(\d+)", transport)[1])  # type: ignore[index]
                udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                udp.bind(("127.0.0.1", 0))
                own = udp.getsockname()[1]
                self.send = lambda data: udp.sendto(data, ("127.0.0.1", port))
                ports = f"client_port={port}-{port + 1};server_port={own}-{own + 1}"
                reply("200 OK", f"Transport: RTP/AVP;unicast;{ports}\r\nSession: 1\r\n")
        elif method == "PLAY":
            reply("200 OK", "Session: 1\r\nRange: npt=0.000-\r\n")
            camera.opened += 1
            play = self._play if "video" in camera.tracks else self._sound
            threading.Thread(target=play, daemon=True).start()
        elif method == "TEARDOWN":
            reply("200 OK")
            self.halt.set()
        else:
            reply("200 OK", "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n")

    def _play(self) -> None:
        how, units = self.camera.sending, self.camera.units
        began, number, sequence = time.monotonic(), 0, 0
        while not (self.halt.is_set() or self.camera.gone.is_set()):
            if number == how.most:
                self.halt.set()
                return
            if number == how.silent_after:
                self.halt.wait(60)
                return
            parts, _ = units[(how.begin + number) % len(units)]
            seconds = how.stamp(number) if how.stamp is not None else number / how.fps
            if number and how.first_gap:
                seconds += how.first_gap
            packets = [packet for unit in parts for packet in _fragments(unit, self.camera.codec)]
            for i, payload in enumerate(packets):
                marker = 0x80 if i == len(packets) - 1 else 0
                header = struct.pack(
                    ">BBHII", 0x80, 96 | marker, sequence & 0xFFFF, (int(seconds * 90000) + 1234567) & 0xFFFFFFFF, 7
                )
                sequence += 1
                if not how.lost(number, i):
                    assert self.send is not None
                    self.send(header + payload)
            number += 1
            due = began + number / how.fps + how.first_gap
            self.halt.wait(max(0.0, due - time.monotonic()))

    def _sound(self) -> None:
        """Send silence as G.711: a packet every 20 ms."""
        number = 0
        while not (self.halt.wait(0.02) or self.camera.gone.is_set()):
            self.speak(struct.pack(">BBHII", 0x80, 0, number & 0xFFFF, 160 * number, 7) + b"\xff" * 160)
            number += 1

    def _write(self, data: bytes) -> None:
        try:
            with self.lock:
                self.connection.sendall(data)
        except OSError:
            self.halt.set()


def _fragments(unit: bytes, codec: str, most: int = 1200) -> list[bytes]:
    """Return the RTP payloads of a NAL unit (RFC 6184 for H.264, RFC 7798 for H.265)."""
    if len(unit) <= most:
        return [unit]
    if codec == "H264":
        head, kind, body = bytes(((unit[0] & 0xE0) | 28,)), unit[0] & 31, unit[1:]
    else:
        head, kind, body = bytes(((unit[0] & 0x81) | 49 << 1, unit[1])), unit[0] >> 1 & 63, unit[2:]
    pieces = [body[i : i + most] for i in range(0, len(body), most)]
    return [
        head + bytes((kind | (0x80 if i == 0 else 0) | (0x40 if i == len(pieces) - 1 else 0),)) + piece
        for i, piece in enumerate(pieces)
    ]


class HttpCamera(_Camera):
    """HTTP server with ``/mjpeg`` (multipart, ``fps`` pictures per second) and ``/snapshot`` (one JPEG).

    Args:
        pictures: JPEG files, sent again and again.
        sending: rate and silences.
    """

    def __init__(self, pictures: Sequence[bytes], sending: Sending | None = None, *, port: int = 0) -> None:
        self.pictures, self.sending = pictures, sending or Sending()
        self.asked: list[str] = []
        """Paths that were asked for."""
        super().__init__(_HttpHandler, port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _HttpHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        camera: HttpCamera = self.server.camera  # type: ignore[attr-defined]
        camera.asked.append(self.path)
        path, how = self.path.partition("?")[0], camera.sending
        if path == "/snapshot":
            body = camera.pictures[len(camera.asked) % len(camera.pictures)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if path != "/mjpeg":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        camera.opened += 1
        began, number = time.monotonic(), 0
        while not camera.gone.is_set() and number != how.most:
            if number == how.silent_after:
                camera.gone.wait(60)
                return
            body = camera.pictures[number % len(camera.pictures)]
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + body + b"\r\n")
            except OSError:
                return
            number += 1
            camera.gone.wait(max(0.0, began + number / how.fps - time.monotonic()))
