#!/usr/bin/env python3
"""Stand in for the model APIs, so that the real coding CLIs run without an account.

Loopback only, standard library only; streaming or not: Anthropic /v1/messages, OpenAI
/v1/responses and /v1/chat/completions, Gemini :generateContent, :streamGenerateContent.

The LAST user prompt decides. If it holds ``MOCK:``, a script follows: steps joined by
``;`` (before anything but a step, ``;`` is text). Else: ``ok: <its first 60 characters>``.

    say TEXT             answer TEXT (up to a ``;`` and a step, or the end of the line)
    repeat N TEXT        answer N lines of TEXT
    slow S TEXT          answer word by word, over S seconds
    echo                 answer all that follows the script's line, byte for byte
    sum                  answer "<characters> <sha1 of its UTF-8>" of the prompt as received
    result               answer the last tool result's text, verbatim
    think TEXT           a thinking block
    sleep S | hang       wait S seconds (hang: an hour); a client that leaves ends it
    tool NAME {json}     call a tool; the next steps run when its result is back. NAME may
                         be the end of the full name; ``tool A {} & tool B {}`` calls both
    error CODE [N [R]]   HTTP CODE the first N times (default: always), retry-after: R
    drop | tokens N      break the connection in mid-stream | report N input tokens

Of several scripts the last counts, but one inside the JSON of a tool, or after ``echo`` or
``sum``, is text: ``tool handoff {"task": "MOCK:say hi"}`` is a script for the worker.

No state is kept but the counters of ``error``: the tool results after the prompt tell how
far its script has come. A CLI's side requests (titles, routing) have a schema or a system
prompt and no tools: they get a dummy, so that no script runs twice.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import select
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn

# A word that takes nothing is a step only if nothing follows it: "; result: 5" is text.
STEP = (
    r"(?:(?:say|repeat|slow|think|sleep|tool|error|tokens)\b"
    r"|(?:echo|sum|result|hang|drop)(?=[ \t]*(?:[;&<\r\n]|\Z)))"
)
NEXT_STEP = re.compile(rf"[ \t]*([;&]?)\s*({STEP})[ \t]*")
TOOL_NAME = re.compile(r"([^\s{;&]*)\s*")
# The CLIs wrap some prompts, as in <hook_prompt>MOCK:say x</hook_prompt>.
END_OF_TEXT = re.compile(rf"[;&]\s*(?={STEP})|\r?\n|</\w+[^<>]*>\s*\Z|\Z")
# What they add in the user's name, inside a prompt and as a message of its own.
REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.S)
INJECTED = re.compile(r"\s*<([A-Za-z_][\w-]*)[ >].*</\1>\s*\Z", re.S)
ERRORS = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error"}


def parse_script(prompt, pos):
    """Return the steps [(verb, argument)] of the script at `pos`, and where it ends."""
    steps, text_end = [], 0
    while (match := NEXT_STEP.match(prompt, pos)) and (match[1] or not steps):
        joiner, verb, pos = match[1], match[2], match.end()
        if verb == "tool":
            name = TOOL_NAME.match(prompt, pos)
            arguments, pos = {}, name.end()
            if prompt[pos : pos + 1] == "{":
                arguments, pos = json.JSONDecoder(strict=False).raw_decode(prompt, pos)
            if joiner != "&" or not steps or steps[-1][0] != "tool":
                steps.append(("tool", []))
            steps[-1][1].append((name[1], arguments))
        elif verb in ("echo", "sum"):
            digest = hashlib.sha1(prompt.encode("utf-8", "surrogatepass")).hexdigest()
            echo, text_end = prompt[pos:].partition("\n")[2], len(prompt)
            steps.append(("say", echo if verb == "echo" else f"{len(prompt)} {digest}"))
        else:
            start, pos = pos, END_OF_TEXT.search(prompt, pos).start()
            steps.append((verb, prompt[start:pos].strip()))
    return steps, max(pos, text_end)


def parse_prompt(prompt):
    """Return the steps of the last script in `prompt`, [] if there is none."""
    steps, pos = [], 0
    while (found := prompt.find("MOCK:", pos)) >= 0:
        try:
            script, pos = parse_script(prompt, found + len("MOCK:"))
        except json.JSONDecodeError as error:
            return [("say", f"bad MOCK script: {error}")]
        steps = script or steps
    return steps


def text_of(value):
    """Return the text in a message or a tool result, whatever API it has its shape from."""
    if isinstance(value, list):
        return "\n".join(text_of(block) for block in value)
    if isinstance(value, dict):
        for key in ("text", "content", "output", "functionResponse", "response"):
            if key in value:
                return text_of(value[key])
    return value if isinstance(value, str) else json.dumps(value)


def event_kind(role, block):
    """Return what a block is: U(ser) A(ssistant) C(all) R(esult), None for the rest."""
    kind = block.get("type") or ""
    if kind == "tool_use" or kind.endswith("_call") or "functionCall" in block:
        return "C"
    is_result = kind == "tool_result" or kind.endswith("_output") or role == "tool"
    if is_result or "functionResponse" in block:
        return "R"
    is_said = block.get("text") and not block.get("thought")
    return {"user": "U", "assistant": "A", "model": "A"}.get(role) if is_said else None


def history(body):
    """Return the events (kind, text) of a request, the oldest first."""
    events = []
    items = body.get("contents") or body.get("input") or body.get("messages") or []
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        role, blocks = item.get("role"), item.get("parts") or item.get("content") or []
        if role == "tool" or not role:  # a result in Chat; a call or result in Responses
            blocks = [item]
        blocks = [{"text": blocks}] if isinstance(blocks, str) else blocks
        for block in [*blocks, *[{"type": "tool_use"}] * len(item.get("tool_calls") or [])]:
            if kind := event_kind(role, block):
                events.append((kind, "" if kind == "C" else text_of(block)))
    return events


def plan(events):
    """Return the prompt that counts, and the steps that are still to do for it."""
    prompt, after = "", events
    for index, (kind, text) in reversed(list(enumerate(events))):
        own = REMINDER.sub("", text).strip()
        if kind == "U" and ("MOCK:" in text or (own and not INJECTED.match(own))):
            prompt, after = (text if "MOCK:" in text else own), events[index + 1 :]
            break
    kinds, steps = "".join(kind for kind, _ in after), parse_prompt(prompt)
    if re.search(r"A(?![AC])", kinds):  # answered already: this is about what came later
        prompt, steps = next((text for kind, text in after if kind == "U"), prompt), []
    if not steps:
        return prompt, [("say", "ok: " + " ".join(prompt.split())[:60])]
    done = kinds.count("R")
    while done > 0 and "tool" in (verbs := [verb for verb, _ in steps]):
        index = verbs.index("tool")
        done, steps = done - len(steps[index][1]), steps[index + 1 :]
    result = next((text for kind, text in reversed(events) if kind == "R"), "no result")
    steps = [("say", result) if verb == "result" else (verb, arg) for verb, arg in steps]
    return prompt, steps or [("say", "ok")]


def fill(schema):
    """Return a small value that a JSON schema allows."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = str(schema.get("type", "object")).lower()  # upper case in Gemini's
    if kind == "object":
        return {key: fill(value) for key, value in schema.get("properties", {}).items()}
    simple = {"array": [], "string": "mock", "boolean": False}
    return simple.get(kind, schema.get("minimum", 0))


def side_answer(body):
    """Return the answer to a side request, None if this is the agent's own."""
    if body.get("tools"):
        return None
    keys = ("output_config", "text", "response_format", "generationConfig")
    forms = [body.get(key) or {} for key in keys]
    forms += [form.get("format") or form.get("json_schema") or {} for form in forms]
    keys = ("schema", "responseJsonSchema", "responseSchema")
    if schema := next((form[key] for form in forms for key in keys if key in form), None):
        return json.dumps(fill(schema))
    roles = [item.get("role") for item in body.get("messages") or []]
    keys = ("system", "instructions", "systemInstruction")
    return "mock title" if "system" in roles or any(map(body.get, keys)) else None


def find_tool(body, wanted):
    """Return the full name of a tool, and its parts as Codex wants them in a call."""
    known = {}
    for tool in body.get("tools") or []:
        for leaf in tool.get("tools") or tool.get("functionDeclarations") or [tool]:
            name = (leaf.get("function") or leaf).get("name") or leaf.get("type", "")
            known[name] = name, {"name": name}
            if tool.get("type") == "namespace":  # an MCP server's tools, in Codex
                space = {"namespace": tool["name"], "name": name}
                known["__".join(space.values())] = known.pop(name)[0], space
    for end in (f"\0{wanted}", f"__{wanted}", wanted):
        for full, tool in known.items():
            if f"\0{full}".endswith(end):
                return tool
    return wanted, {"name": wanted}


def new_id(prefix):
    return prefix + uuid.uuid4().hex[:24]


# The four wire formats. Each sends the reply as it comes, by send(event, **fields), and
# returns it whole. A part of it is (kind, tool or None, pieces): pieces of the text if the
# kind is text or think, of the arguments' JSON if it is call.


def anthropic(body, parts, tokens, send):
    content, stop, usage = [], "end_turn", {"input_tokens": tokens, "output_tokens": 10}
    message = {"id": new_id("msg_"), "type": "message", "role": "assistant", "usage": usage}
    message.update(model=body.get("model"), stop_reason=None, stop_sequence=None)
    send("message_start", message={**message, "content": []})
    for index, (kind, tool, pieces) in enumerate(parts):
        key, said = "thinking" if kind == "think" else "text", ""
        block, delta = {"type": key, key: ""}, f"{key}_delta"
        block.update({"signature": "bW9jaw=="} if kind == "think" else {})
        if kind == "call":
            stop, key, delta = "tool_use", "partial_json", "input_json_delta"
            block = {"type": stop, "id": new_id("toolu_"), "name": tool[0], "input": {}}
        send("content_block_start", index=index, content_block=block)
        for piece in pieces:
            said += piece
            send("content_block_delta", index=index, delta={"type": delta, key: piece})
        send("content_block_stop", index=index)
        content.append({**block, **({"input": json.loads(said)} if tool else {key: said})})
    send("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=usage)
    send("message_stop")
    return {**message, "content": content, "stop_reason": stop}


def responses(body, parts, tokens, send):
    base = {"id": new_id("resp_"), "object": "response", "created_at": int(time.time())}
    base.update(model=body.get("model"), status="in_progress", output=[])
    send("response.created", response=base)
    output, message = [], {"type": "message", "role": "assistant"}
    for index, (kind, tool, pieces) in enumerate(parts):
        delta, said, item = "output_text", "", {"id": new_id("item_"), **message}
        if kind == "think":
            delta, item = "reasoning_summary_text", {"id": item["id"], "type": "reasoning"}
        elif kind == "call":
            delta, item = "function_call_arguments", {"id": item["id"], **tool[1]}
            item.update(type="function_call", call_id=new_id("call_"), arguments="")
        where = {"output_index": index, "item_id": item["id"]}
        empty = {"text": {"content": []}, "think": {"summary": []}}.get(kind, {})
        send("response.output_item.added", output_index=index, item={**item, **empty})
        for piece in pieces:
            said += piece
            more = {"content_index": 0, "summary_index": 0, "delta": piece}
            send(f"response.{delta}.delta", **where, **more)
        text = {"type": "output_text", "text": said, "annotations": []}
        summary = {"type": "summary_text", "text": said}
        whole = {"text": {"content": [text]}, "think": {"summary": [summary]}}
        output.append({**item, **whole.get(kind, {"arguments": said})})
        send("response.output_item.done", output_index=index, item=output[-1])
    usage = {"input_tokens": tokens, "output_tokens": 10, "total_tokens": tokens + 10}
    base.update(status="completed", output=output, usage=usage)
    send("response.completed", response=base)
    return base


def chat(body, parts, tokens, send):
    base = {"id": new_id("chatcmpl-"), "model": body.get("model"), "created": 0}

    def chunk(delta, stop=None, **more):
        choice = {"index": 0, "delta": delta, "finish_reason": stop}
        send("", **base, object="chat.completion.chunk", choices=[choice], **more)

    message, calls = {"role": "assistant", "content": ""}, []
    chunk(message)
    for kind, tool, pieces in parts:
        said = ""
        for piece in pieces:
            said += piece
            if kind != "call":
                chunk({"reasoning_content" if kind == "think" else "content": piece})
        if kind == "call":
            function = {"name": tool[0], "arguments": said}
            calls.append({"id": new_id("call_"), "type": "function", "function": function})
            chunk({"tool_calls": [{**calls[-1], "index": len(calls) - 1}]})
        elif kind == "text":
            message = {**message, "content": message["content"] + said}
    stop, more = ("tool_calls", {"tool_calls": calls}) if calls else ("stop", {})
    usage = {"prompt_tokens": tokens, "completion_tokens": 10, "total_tokens": tokens + 10}
    chunk({}, stop, usage=usage)
    choice = {"index": 0, "message": {**message, **more}, "finish_reason": stop}
    return {**base, "object": "chat.completion", "usage": usage, "choices": [choice]}


def gemini(body, parts, tokens, send):
    usage = {"promptTokenCount": tokens, "candidatesTokenCount": 10}
    usage["totalTokenCount"] = tokens + 10

    def reply(content, **more):
        answer = {"content": {"role": "model", "parts": content}, "index": 0, **more}
        return {"candidates": [answer], "modelVersion": "mock", "usageMetadata": usage}

    whole = []
    for kind, tool, pieces in parts:
        for piece in pieces:
            part = {"text": piece, **({"thought": True} if kind == "think" else {})}
            if kind == "call":
                part = {"functionCall": {"name": tool[0], "args": json.loads(piece)}}
            whole.append(part)
            send("", **reply([part]))
    send("", **reply([{"text": ""}], finishReason="STOP"))
    return reply(whole, finishReason="STOP")


WIRES = {"/messages": anthropic, "/responses": responses, "/chat/completions": chat}
WIRES.update({":generateContent": gemini, ":streamGenerateContent": gemini})


class Handler(BaseHTTPRequestHandler):
    """One connection: turns the steps into bytes, time and HTTP errors."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        """Leave the test's stderr alone."""

    def reply(self, code, answer, **headers):
        content = json.dumps(answer).encode()
        headers.update(content_type="application/json", content_length=len(content))
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)
        return f"HTTP {code}"

    def fail(self, code, text, **headers):
        kind = ERRORS.get(code, "api_error")
        error = {"type": kind, "message": text, "code": code, "status": kind}
        return self.reply(code, {"type": "error", "error": error}, **headers)

    def do_GET(self):
        card = {"id": "mock", "type": "model", "object": "model", "display_name": "Mock"}
        self.reply(200, {"object": "list", "data": [card], "has_more": False})

    do_HEAD = do_GET

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        body, path, started = json.loads(raw or b"{}"), self.path.split("?")[0], time.time()
        self.server.record(self.path, body)
        wire = next((wire for end, wire in WIRES.items() if path.endswith(end)), None)
        try:
            if path.endswith(("/count_tokens", ":countTokens")):
                count = len(raw) // 4
                outcome = self.reply(200, {"input_tokens": count, "totalTokens": count})
            else:
                outcome = self.answer(wire, body) if wire else self.fail(404, "no such API")
        except ConnectionError as error:
            is_ours = isinstance(error, ConnectionAbortedError)
            outcome, self.close_connection = "dropped" if is_ours else "client left", True
        self.server.write_log(path=path, outcome=outcome, seconds=time.time() - started)

    def answer(self, wire, body):
        """Answer a model request; return the outcome for the log."""
        events, side = history(body), side_answer(body)
        prompt, steps = plan(events) if side is None else ("", [("say", side)])
        # With the session, so that each of two agents with one prompt has its own errors.
        key = self.headers.get("x-claude-code-session-id") or body.get("prompt_cache_key")
        errors = [
            (at, arg.split()) for at, (verb, arg) in enumerate(steps) if verb == "error"
        ]
        for at, (code, *rest) in errors:
            if not rest or self.server.count((key, prompt, len(events), at)) <= int(
                rest[0]
            ):
                headers = {"retry_after": rest[1]} if rest[1:] else {}
                return self.fail(int(code), f"mock error {code}", **headers)
        is_stream = body.get("stream") or ":stream" in self.path

        def send(kind, **fields):
            content = json.dumps({"type": kind, **fields} if kind else fields)
            event = (f"event: {kind}\n" if kind else "") + f"data: {content}\n\n"
            if kind == "ping" and wire is not anthropic:
                event = "" if wire is gemini else ": ping\n\n"
            self.wfile.write(event.encode() if is_stream else b"")

        if is_stream:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
        counts = (int(argument) for verb, argument in steps if verb == "tokens")
        tokens = next(counts, len(str(body)) // 4)
        whole = wire(body, self.run(body, steps, send), tokens, send)
        if is_stream and wire is chat:
            self.wfile.write(b"data: [DONE]\n\n")
        return "ok" if is_stream else self.reply(200, whole)

    def run(self, body, steps, send):
        """Do the steps up to the first tool; yield the parts of the reply as they come."""
        for verb, argument in steps:
            first, _, rest = argument.partition(" ") if isinstance(argument, str) else "   "
            if verb in ("say", "think"):
                yield {"say": "text"}.get(verb, verb), None, [argument]
            elif verb == "repeat":
                yield "text", None, [rest + "\n"] * int(first)
            elif verb == "slow":
                words = re.findall(r"\S+\s*", rest)
                pause = float(first) / max(1, len(words))
                yield "text", None, (self.wait(pause, send) or word for word in words)
            elif verb in ("sleep", "hang"):
                self.wait(float(argument or 3600), send)
            elif verb == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
                raise ConnectionAbortedError
            elif verb == "tool":
                for name, arguments in argument:
                    yield "call", find_tool(body, name), [json.dumps(arguments)]
                return

    def wait(self, seconds, send):
        """Sleep, but ping every second and notice at once when the client leaves."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable = select.select([self.connection], [], [], min(1, left))[0]
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
            send("ping")


class MockServer(ThreadingMixIn, TCPServer):
    """The mock on 127.0.0.1: MockServer(log=path).start(), .port, .requests, .stop().

    Owns what was asked, the log (a JSON line for each request and for its end) and the
    open connections. Used with `with`, it stops at the end.
    """

    # Not HTTPServer: that looks its own name up, which is slow where there is no DNS.
    daemon_threads, request_queue_size, allow_reuse_address = True, 128, True

    def __init__(self, log=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.port, self._log = self.server_address[1], Path(log) if log else None
        self._lock, self._thread = threading.Lock(), None
        self._bodies, self._counts, self._open = [], {}, set()

    @property
    def requests(self):
        """A copy of the bodies received so far, the newest last."""
        with self._lock:
            return list(self._bodies)

    def start(self):
        serve = self.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self):
        """End the server and what it still answers; block for a second at most."""
        if self._thread:  # else shutdown() would wait for ever
            self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + 1
        while self._open and time.monotonic() < end:
            time.sleep(0.01)

    def __exit__(self, *error):
        self.stop()

    def process_request(self, request, client_address):
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        with self._lock:
            self._open.discard(request)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave
            super().handle_error(request, client_address)

    def count(self, key):
        """Return how often this was called with `key`."""
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            return self._counts[key]

    def record(self, path, body):
        with self._lock:
            self._bodies.append(body)
        self.write_log(path=path, body=body)

    def write_log(self, **fields):
        with self._lock:
            if self._log:
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps({"time": time.time(), **fields}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=0, help="0 (default): a free one")
    parser.add_argument("--log", help="append a JSON line for each request and its end")
    server = MockServer(**vars(parser.parse_args()))
    print(f"PORT {server.port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
