"""A transparent bridge to an MCP server on stdio, so that tools that only speak HTTP can judge it.

    mcp_bridge.py --port 0 [--log FILE] -- COMMAND…    Streamable HTTP on loopback
    mcp_bridge.py [--log FILE] -- COMMAND…             stdio as it is, only written down

Bodies pass as they are. Synthesised is only what HTTP itself needs: session ids, status codes,
a stream (SSE) for a request that is answered with more than one message, and the refusal of
foreign hosts and of a header that contradicts the body (-32020). A session of the handshake
versions has a process of its own; each stateless request (2026-07-28) has a fresh one, so
that nothing can lean on what was before it: one that was started before it is needed, for
the official suite waits half a second for some answers, also on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

META = "io.modelcontextprotocol/"
ENVELOPE = (META + "protocolVersion", META + "clientCapabilities")
LOCAL = re.compile(r"(https?://)?(localhost|127\.0\.0\.1|\[::1\])(:\d+)?\Z")
STATUS = {-32601: 404, -32020: 400, -32021: 400, -32022: 400, -32700: 400, -32600: 400}
LONGEST_S = 60.0  # that a request may stay unanswered


class Log:
    """Writes down who said what, one JSON object a line."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "a", encoding="utf-8") if path else None  # noqa: SIM115
        self.lock, self.children = threading.Lock(), 0

    def child(self) -> int:
        with self.lock:
            self.children += 1
            return self.children

    def note(self, child: int, side: str, line: bytes) -> None:
        if self.file:
            row = {"child": child, "side": side, "line": line.decode("utf-8", "replace")}
            with self.lock:
                self.file.write(json.dumps(row) + "\n")
                self.file.flush()


class Child:
    """One server process; each line it writes goes to the request it belongs to."""

    def __init__(self, command: list, log: Log) -> None:
        self.log, self.number = log, log.child()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.waiting = {}  # id as JSON: the queue of an open request
        self.tokens = {}  # progress token as JSON: the same queue
        self.lock = threading.Lock()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.log.note(self.number, "server", line)
            target = self.find(json.loads(line))
            if target:
                target.put(line)
        for target in list(self.waiting.values()):
            target.put(None)

    def find(self, message) -> queue.SimpleQueue | None:
        """Return the queue of the request that a message belongs to, else of the newest."""
        said = message if isinstance(message, dict) else {}
        with self.lock:
            newest = next(reversed(list(self.waiting.values())), None)
            if "method" not in said:
                return self.waiting.get(json.dumps(said.get("id")), newest)
            token = json.dumps((said.get("params") or {}).get("progressToken"))
            return self.tokens.get(token, newest)

    def write(self, body: bytes) -> None:
        line = body.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"
        self.log.note(self.number, "client", line)
        with self.lock:
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def open(self, key: str, token: str) -> queue.SimpleQueue:
        with self.lock:
            self.waiting[key] = self.tokens[token] = queue.SimpleQueue()
            return self.waiting[key]

    def end(self) -> None:
        """Close its input, as a client that leaves does; it has two seconds."""
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Fresh:
    """Server processes that nobody has used yet."""

    def __init__(self, command: list, log: Log) -> None:
        self.command, self.log, self.ready = command, log, queue.SimpleQueue()
        for _ in range(2):
            self.start()

    def start(self) -> None:
        self.ready.put(Child(self.command, self.log))

    def take(self) -> Child:
        try:
            return self.ready.get_nowait()
        except queue.Empty:
            return Child(self.command, self.log)

    def end(self) -> None:
        while not self.ready.empty():
            self.ready.get().end()


class Handler(BaseHTTPRequestHandler):
    """One HTTP request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: int, text: str, key=None) -> None:
        error = {"jsonrpc": "2.0", "id": key, "error": {"code": code, "message": text}}
        self.answer(status, json.dumps(error).encode())

    def is_local(self) -> bool:
        """Hold that the page that asks is one of this machine's (DNS rebinding)."""
        origin = self.headers.get("Origin")
        if LOCAL.match(self.headers.get("Host", "")) and (not origin or LOCAL.match(origin)):
            return True
        self.refuse(403, -32600, "not a local host")
        return False

    def do_GET(self) -> None:
        self.answer(405, Allow="POST, DELETE")

    def do_DELETE(self) -> None:
        child = self.is_local() and self.server.sessions.pop(
            self.headers.get("Mcp-Session-Id"), None
        )
        if child:
            child.end()
        self.answer(200 if child else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.is_local():
            return
        try:
            message = json.loads(body)
        except ValueError:
            message = None
        said = message if isinstance(message, dict) else {}
        params = said.get("params") if isinstance(said.get("params"), dict) else {}
        meta = params.get("_meta") if isinstance(params.get("_meta"), dict) else {}
        version, session = meta.get(ENVELOPE[0]), self.headers.get("Mcp-Session-Id")
        if version is not None and self.headers.get("MCP-Protocol-Version") != version:
            self.refuse(400, -32020, "the MCP-Protocol-Version header is another", said.get("id"))
            return
        if session and session not in self.server.sessions:
            self.refuse(404, -32600, "there is no such session", said.get("id"))
            return
        stateless = not session and (version is not None or said.get("method") != "initialize")
        child = self.server.sessions.get(session) or self.server.fresh.take()
        more = {}
        if not session and not stateless:
            session = uuid.uuid4().hex
            self.server.sessions[session] = child
            more = {"Mcp_Session_Id": session}
        if said and ("id" not in said or "method" not in said):
            child.write(body)
            self.answer(202)
        else:
            complete = all(name in meta for name in ENVELOPE)
            lines = child.open(json.dumps(said.get("id")), json.dumps(meta.get("progressToken")))
            child.write(body)
            self.pass_on(lines, said.get("id"), stateless and not complete, stateless, more)
            child.waiting.pop(json.dumps(said.get("id")), None)
        if stateless:
            child.end()
        if child is not self.server.sessions.get(session) or more:
            self.server.fresh.start()

    def pass_on(self, lines, key, incomplete: bool, stateless: bool, more: dict) -> None:
        """Send the answer: alone as JSON, after other messages as a stream of events."""
        streams = False
        while True:
            try:
                line = lines.get(timeout=LONGEST_S)
            except queue.Empty:
                line = None
            if line is None:
                if not streams:
                    self.refuse(504, -32603, "the server did not answer", key)
                return
            said = json.loads(line)
            last = not isinstance(said, dict) or "method" not in said
            if last and not streams:
                code = said.get("error", {}).get("code") if isinstance(said, dict) else None
                status = 400 if incomplete and code == -32602 else STATUS.get(code, 200)
                self.answer(status if stateless else 200, line.strip(), **more)
                return
            try:
                if not streams:
                    streams, self.close_connection = True, True
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Connection", "close")
                    self.end_headers()
                self.wfile.write(b"event: message\ndata: " + line.strip() + b"\n\n")
                self.wfile.flush()
            except OSError:
                return  # the client has seen enough
            if last:
                return


def serve(port: int, command: list, log: Log) -> None:
    """Serve on loopback until our input is closed; the first line we print is the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.fresh, server.sessions = Fresh(command, log), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}/mcp", flush=True)
    sys.stdin.buffer.read()
    server.shutdown()
    for child in list(server.sessions.values()):
        child.end()
    server.fresh.end()


def tap(command: list, log: Log) -> int:
    """Be the command, and write down what passes."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    number = log.child()

    def forward() -> None:
        for line in sys.stdin.buffer:
            log.note(number, "client", line)
            child.stdin.write(line)
            child.stdin.flush()
        child.stdin.close()

    threading.Thread(target=forward, daemon=True).start()
    for line in child.stdout:
        log.note(number, "server", line)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return child.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--log", default="")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    log = Log(given.log)
    if given.port is None:
        os._exit(tap(given.command, log))
    serve(given.port, given.command, log)


if __name__ == "__main__":
    main()
