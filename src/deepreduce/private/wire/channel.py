"""Frames over a connected stream socket: blocking, with a deadline for every frame and a bound on every size.

One thread talks through a channel at a time; a server has one thread per connection. The two parties take turns: if
both send more than the network holds at the same moment, neither reads, and both end at their deadlines.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from deepreduce.errors import problem

from .deadline import Deadline, check_deadline
from .errors import PeerError, PeerGone, PeerTimeout, TlsError, WireError
from .frames import (
    HEADER_BYTES,
    MAX_ERROR_BYTES,
    Buffer,
    Header,
    Kind,
    decode_error,
    decode_header,
    encode_error,
    encode_header,
    flat_view,
    violation,
)

_RECORD_BYTES = 16384  # of a TLS record; one write of at most this much is one record
_FAREWELL_SECONDS = 1.0
_LINGER_SECONDS = 1.0
_WHILE_WE_SEND = {Kind.READY: 4096}
"""What a peer may say while it takes our bytes, beside an ERROR."""
_LEAST_SECONDS = 0.001  # for a frame when the patience has run out


@dataclass(frozen=True)
class Traffic:
    """What went over a channel, or between two moments of it: `after - before`.

    Attributes:
        sent_bytes: frames that this party sent, headers included. TLS adds 22 bytes per 16 KiB, TCP and IP theirs.
        received_bytes: the same for what it received.
        turns: how often this party received after it had sent, which is the number of round trips it waited for.
    """

    sent_bytes: int
    received_bytes: int
    turns: int

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(
            self.sent_bytes - before.sent_bytes,
            self.received_bytes - before.received_bytes,
            self.turns - before.turns,
        )


class Channel:
    """One connection to the peer.

    A frame that was not sent or received whole leaves the channel dead: every later call raises, except `fail` and
    `close`. The channel owns its socket; closing it (or leaving its `with` block) closes the socket. A forked child
    cannot use its parent's: both would encrypt different bytes under the same nonce.

    Args:
        sock: a connected stream socket, wrapped in TLS wherever the peer is another machine.
        deadline_seconds: how long one whole frame may take, unless a call says otherwise.
        name: how error messages call the peer.
        certificate: SHA-256 of what the CA signed of the peer's certificate, in hexadecimal, where one was asked for
            and verified.
    """

    def __init__(
        self, sock: socket.socket, *, deadline_seconds: float = 60.0, name: str = "peer", certificate: str = ""
    ) -> None:
        self.name = name
        self.certificate = certificate
        self._sock = sock
        self._deadline_seconds = check_deadline(deadline_seconds)
        self._dead: str | None = None
        self._torn = False  # a frame was begun and not sent to its end, so that not even an ERROR can follow
        self._closed = False
        self._sent_frames = 0
        self._received_frames = 0
        self._sent_bytes = 0
        self._received_bytes = 0
        self._turns = 0
        self._spoke = False
        self._patience: float | None = None  # seconds that are left, see `patience`
        self._process = os.getpid()
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # a peer that has gone already is reported by the first frame
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def sent_bytes(self) -> int:
        """Bytes of all frames sent so far, headers included."""
        return self._sent_bytes

    @property
    def received_bytes(self) -> int:
        """Bytes of all frames received so far, headers included."""
        return self._received_bytes

    @property
    def turns(self) -> int:
        """How often this party received after it had sent."""
        return self._turns

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Bound what frames take in all within this block, beside the deadline of each.

        What this party computes between them does not count. A frame that would take more ends as at its deadline.

        Args:
            seconds: above 0.
        """
        self._patience = check_deadline(seconds)
        try:
            yield
        finally:
            self._patience = None

    def snapshot(self) -> Traffic:
        """Return the counters of this moment; the difference of two snapshots is the traffic between them."""
        return Traffic(self._sent_bytes, self._received_bytes, self._turns)

    def send(self, kind: Kind, *parts: Buffer, deadline_seconds: float | None = None) -> None:
        """Send one frame.

        Args:
            kind: what it is; for Kind.ERROR there is `fail`.
            parts: the body in pieces, sent one after the other; large ones are not copied.
            deadline_seconds: for the whole frame; the channel's own if None.

        Raises:
            WireError: if a part is no plain memory (nothing was sent then), or the channel is dead.
            PeerTimeout: if the peer did not take the frame in time.
            PeerGone: if the connection has ended.
            PeerError: if it has ended and the peer said why.
        """
        if kind == Kind.ERROR:
            raise WireError(problem("an ERROR frame ends the channel", got="send", remedy="call fail"))
        views = [flat_view(part) for part in parts]
        clock = self._begin(deadline_seconds)
        try:
            self._write_frame(kind, views, clock)
        except OSError as error:
            failure = self._failure(error, f"{self.name} must take the {kind.name} frame")
            raise self._give_up(self._last_words(failure)) from error
        self._spoke = True
        self._end(clock)

    def receive(self, kind: Kind, size: int, *, deadline_seconds: float | None = None) -> bytearray:
        """Receive one frame of exactly this kind and size and return its body.

        Args:
            kind: what must come.
            size: length of its body in bytes; this much is reserved once the header has said the same.
            deadline_seconds: for the whole frame; the channel's own if None.

        Raises:
            WireError: if anything else comes, or the channel is dead.
            PeerTimeout: if the frame is not complete in time.
            PeerGone: if the connection ends before that.
            PeerError: if the peer gave up.
        """
        clock = self._begin(deadline_seconds)
        self._read_header({kind: size}, clock, exactly=True)
        return self._read_body(kind, size, clock)

    def receive_into(self, kind: Kind, buffer: Buffer, *, deadline_seconds: float | None = None) -> None:
        """Receive one frame of exactly this kind and the size of `buffer`, into `buffer`.

        Args:
            kind: what must come.
            buffer: writable memory in C order; if the call raises, its content is undefined.
            deadline_seconds: for the whole frame; the channel's own if None.

        Raises:
            WireError, PeerTimeout, PeerGone, PeerError: as `receive`.
        """
        view = flat_view(buffer)
        if view.readonly:
            raise WireError(
                problem("the buffer must be writable", got="a read-only one", remedy="give numpy.empty or a bytearray")
            )
        clock = self._begin(deadline_seconds)
        self._read_header({kind: len(view)}, clock, exactly=True)
        self._fill(view, clock, f"bytes of the {kind.name} frame's body")
        self._end(clock)

    def receive_any(
        self, limits: Mapping[Kind, int], *, deadline_seconds: float | None = None
    ) -> tuple[Kind, bytearray]:
        """Receive one frame of one of several kinds, each up to its own size.

        Args:
            limits: the kinds that may come, each with the largest length of its body in bytes.
            deadline_seconds: for the whole frame; the channel's own if None.

        Returns:
            The kind that came, and its body.

        Raises:
            WireError, PeerTimeout, PeerGone, PeerError: as `receive`.
        """
        clock = self._begin(deadline_seconds)
        kind, _, length = self._read_header(limits, clock, exactly=False)
        return kind, self._read_body(kind, length, clock)

    def check(self) -> None:
        """Return if the peer is still there: nothing is due from it now, so that whatever came says why it left.

        Raises:
            WireError: the channel is dead, or the peer sent what was not due.
            PeerGone: the connection has ended.
            PeerError: the peer gave up.
        """
        clock = self._begin(_LINGER_SECONDS)
        raw = bytearray(HEADER_BYTES)
        try:
            self._sock.settimeout(0)
            count = self._sock.recv_into(raw)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._dead = None
            return
        except OSError as error:
            raise self._give_up(self._failure(error, f"{self.name} must be there")) from error
        if not count:
            raise self._give_up(self._failure(EOFError(), f"{self.name} must be there"))
        self._received_bytes += count
        self._read_header({}, clock, exactly=True, begun=bytes(raw[:count]))

    def fail(self, code: str, message: str) -> None:
        """Tell the peer why this party gives up, if it can be told at all, and close. Never raises.

        Args:
            code: one of the codes in `errors.py`.
            message: for a person at the other side; no secret, no path of this machine.
        """
        if self._closed:
            return
        if not self._torn and self._process == os.getpid():
            with contextlib.suppress(OSError, WireError):
                clock = Deadline(self._sock, _FAREWELL_SECONDS)
                self._write_frame(Kind.ERROR, [memoryview(encode_error(code, message))], clock)
                self._linger()
        self.close()

    def abort(self) -> None:
        """Cut the connection from another thread: whoever waits in this channel gets an error at once."""
        with contextlib.suppress(OSError):
            # Of the TCP connection itself: an SSLSocket's own method would change the object under its user's feet.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._closed = True
        self._dead = "it was closed"
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, deadline_seconds: float | None) -> Deadline:
        """Check that the channel lives; until the frame is whole, count it as dead, whatever may interrupt us."""
        seconds = check_deadline(self._deadline_seconds if deadline_seconds is None else deadline_seconds)
        if self._process != os.getpid():
            raise WireError(
                problem(
                    "a channel belongs to the process that opened it",
                    got="another process, forked from it",
                    remedy="connect in the process that talks",
                    where=self.name,
                )
            )
        if self._dead is not None:
            raise WireError(
                problem("the channel must be alive", got=self._dead, remedy="connect again", where=self.name)
            )
        self._dead = "an earlier frame was interrupted"
        if self._patience is not None:
            seconds = min(seconds, max(self._patience, _LEAST_SECONDS))
        return Deadline(self._sock, seconds)

    def _end(self, clock: Deadline) -> None:
        """A frame is whole."""
        self._dead = None
        if self._patience is not None:
            self._patience -= clock.spent

    def _write_frame(self, kind: Kind, views: Iterable[memoryview], clock: Deadline) -> None:
        views = list(views)
        header = encode_header(kind, self._sent_frames, sum(len(view) for view in views))
        self._torn = True
        for piece in _records(header, views):
            at = 0
            while at < len(piece):
                clock.arm()
                count = self._sock.send(piece[at:])
                self._sent_bytes += count
                at += count
        self._sent_frames += 1
        self._torn = False

    def _read_header(self, limits: Mapping[Kind, int], clock: Deadline, *, exactly: bool, begun: bytes = b"") -> Header:
        """Read the next header, of which some bytes may be here, and hold it against what may come; nothing is reserved
        before that.
        """
        raw = bytearray(begun.ljust(HEADER_BYTES, b"\0"))
        self._fill(memoryview(raw)[len(begun) :], clock, "header bytes")
        if self._spoke:
            self._turns += 1
            self._spoke = False
        try:
            header = decode_header(raw)
            if header.sequence != self._received_frames:
                raise violation(
                    "no frame may be missing, repeated, or out of order",
                    f"number {header.sequence} in place of {self._received_frames}",
                    self.name,
                )
            self._received_frames += 1
            self._check(header, limits, exactly=exactly)
        except WireError as error:
            raise self._give_up(error) from None
        if header.kind == Kind.ERROR:
            body = bytearray(header.length)
            self._fill(memoryview(body), clock, "bytes of the ERROR frame's body")
            raise self._give_up(_reason(body, self.name))
        return header

    def _check(self, header: Header, limits: Mapping[Kind, int], *, exactly: bool) -> None:
        if header.kind == Kind.ERROR:
            if header.length > MAX_ERROR_BYTES:
                raise violation(
                    f"an ERROR frame must be at most {MAX_ERROR_BYTES:,} bytes", f"{header.length:,}", self.name
                )
            return
        largest = limits.get(header.kind)
        if largest is None:
            names = " or ".join(kind.name for kind in limits)
            raise violation(f"the next frame must be {names or 'none'}", header.kind.name, self.name)
        if header.length > largest or (exactly and header.length != largest):
            bound = "exactly" if exactly else "at most"
            raise violation(
                f"the {header.kind.name} frame must be {bound} {largest:,} bytes", f"{header.length:,}", self.name
            )

    def _read_body(self, kind: Kind, size: int, clock: Deadline) -> bytearray:
        body = bytearray(size)
        self._fill(memoryview(body), clock, f"bytes of the {kind.name} frame's body")
        self._end(clock)
        return body

    def _fill(self, view: memoryview, clock: Deadline, what: str) -> None:
        """Receive until `view` is full."""
        at, size = 0, len(view)
        try:
            while at < size:
                clock.arm()
                count = self._sock.recv_into(view[at:])
                if not count:
                    raise EOFError
                self._received_bytes += count
                at += count
        except (OSError, EOFError) as error:
            failure = self._failure(error, f"{self.name} must send whole frames", f"{at:,} of {size:,} {what}")
            raise self._give_up(failure) from error

    def _failure(self, error: Exception, must: str, progress: str | None = None) -> WireError:
        """Translate what the socket said."""
        if isinstance(error, TimeoutError):
            return PeerTimeout(
                problem(
                    f"{must} within the deadline",
                    got=f"{progress} when it passed" if progress else "the deadline passed",
                    remedy="check that the other side runs and the network is up, then connect again",
                    where=self.name,
                )
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return TlsError(_distrusted(error.reason or str(error), self.name))
        ended = f"the connection ended after {progress}" if progress else "the connection ended"
        reason = "" if isinstance(error, EOFError) else f" ({error})"
        return PeerGone(
            problem(must, got=ended + reason, remedy="see the other side's log, then connect again", where=self.name)
        )

    def _give_up(self, error: WireError) -> WireError:
        if not self._closed:
            self._dead = f"an earlier call ended with {type(error).__name__}"
        return error

    def _last_words(self, failure: WireError) -> WireError:
        """Return why a peer no longer takes our bytes, if it had said so before; otherwise `failure`."""
        if isinstance(failure, PeerGone):
            clock = Deadline(self._sock, _LINGER_SECONDS)
            try:
                while True:
                    header = self._read_header(_WHILE_WE_SEND, clock, exactly=False)
                    self._fill(memoryview(bytearray(header.length)), clock, "bytes of a frame's body")
            except (PeerError, TlsError) as error:  # TLS has alerts of its own: a client without a certificate
                return error
            except WireError:
                pass
        return failure

    def _linger(self) -> None:
        """Take what the peer still sends: closing over unread bytes would reset the connection (RFC 9112, 9.6)."""
        self._sock.shutdown(socket.SHUT_WR)
        clock = Deadline(self._sock, _LINGER_SECONDS)
        scratch = bytearray(4 * _RECORD_BYTES)
        clock.arm()
        while self._sock.recv_into(scratch):
            clock.arm()


def _distrusted(reason: str, peer: str) -> str:
    """Say why TLS ended; `reason` is OpenSSL's word for it."""
    must, got = "both sides must trust each other and every record must be authentic", reason
    remedy = "connect again; if it happens again, something between the two sides changes the bytes"
    if "CERTIFICATE_REQUIRED" in reason:
        must, got = "a client must show its certificate to this server", "none"
        remedy = "give one that the server's CA has signed, with --cert and --key"
    elif "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        must, got = "the other side must trust this side's certificate", f"it refused: {reason}"
        remedy = "give one that its CA has signed and that is valid now, with --cert and --key"
    return problem(must, got=got, remedy=remedy, where=peer)


def _reason(body: bytearray, peer: str) -> WireError:
    try:
        return decode_error(body, peer)
    except WireError as error:
        return error


def _records(header: bytes, views: Iterable[memoryview]) -> Iterator[memoryview]:
    """Cut header and parts into writes: small parts go together, large ones are not copied, records are full."""
    pending = bytearray(header)
    for view in views:
        if len(pending) + len(view) < _RECORD_BYTES:
            pending += view
            continue
        fill = _RECORD_BYTES - len(pending)
        yield memoryview(pending + view[:fill])
        whole = fill + (len(view) - fill) // _RECORD_BYTES * _RECORD_BYTES
        if whole > fill:
            yield view[fill:whole]
        pending = bytearray(view[whole:])
    if pending:
        yield memoryview(pending)
