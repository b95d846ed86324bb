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
    error CODE [N [R]]   HTTP CODE the first N times (default: always), retry-after: R; CODE
                         `overflow`: 400, the prompt is too long
    drop                 break the connection in mid-stream
    tokens N [C [O]]     report N input tokens, C more from a cache, and O of output (10)

Of several scripts the last counts, but one inside the JSON of a tool, or after ``echo`` or
``sum``, is text: ``tool handoff {"task": "MOCK:say hi"}`` is a script for the worker.

No state is kept but the counters of ``error``: the tool results after the prompt tell how
far its script has come. A CLI's side requests (titles, routing) have a schema or a system
prompt and no tools: they get a dummy, so that no script runs twice.
"""

from __future__ import annotations

import argparse
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
REMINDER = re.compile(r"<(system-reminder|current_datetime)>.*?</\1>", re.S)
INJECTED = re.compile(r"\s*<([A-Za-z_][\w-]*)[ >].*</\1>\s*\Z", re.S)
OVERFLOW = "This model's maximum context length is 9 tokens, your messages have 10"
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
        if item.get("type") == "agent_message":  # of Codex's agents to each other
            role, said = "user", blocks[-1]
            blocks = said.get("encrypted_content") or said.get("text", "")
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
    for index, (kind, text) in [*enumerate(events)][::-1]:
        own = REMINDER.sub("", text).strip()
        if kind == "U" and ("MOCK:" in text or (own and not INJECTED.match(own))):
            prompt, after = (text if "MOCK:" in text else own), events[index + 1 :]
            break
    kinds, steps = "".join(kind for kind, _ in after), parse_prompt(prompt)
    if re.search(r"A(?![AC])", kinds):  # answered already: this is about what came later
        later = [text for kind, text in after if kind == "U"]
        prompt, steps = [prompt, *later][-1], []
    if not steps:  # "mock:", since an answer may become another agent's prompt
        opening = " ".join(prompt.replace("MOCK:", "mock:").split())[:60]
        return prompt, [("say", f"ok: {opening}")]
    done = kinds.count("R")
    while done > 0 and "tool" in (verbs := [verb for verb, _ in steps]):
        index = verbs.index("tool")
        done, steps = done - len(steps[index][1]), steps[index + 1 :]
    result = next((text for kind, text in events[::-1] if kind == "R"), "no result")
    steps = [("say", result) if verb == "result" else (verb, arg) for verb, arg in steps]
    return prompt, steps or [("say", "ok")]


def side_answer(body):
    """Return the answer to a side request, None if this is the agent's own."""
    if body.get("tools"):
        return None
    keys = ("output_config", "text", "response_format", "generationConfig")
    forms = [body.get(key) or {} for key in keys]
    forms += [form.get("format") or form.get("json_schema") or {} for form in forms]
    keys = ("schema", "responseJsonSchema", "responseSchema")
    if schema := next((form[key] for form in forms for key in keys if key in form), None):
        empty = {"string": "mock", "boolean": False, "array": [], "object": {}}
        fields = schema.get("properties", {}).items()
        kinds = {key: str(field.get("type")).lower() for key, field in fields}
        simple = {key: empty.get(kind, 0) for key, kind in kinds.items()}
        choice = {key: field["enum"][0] for key, field in fields if "enum" in field}
        return json.dumps({**simple, **choice})
    roles = [item.get("role") for item in body.get("messages") or []]
    keys = ("system", "instructions", "systemInstruction")
    return "mock title" if "system" in roles or any(map(body.get, keys)) else None


def find_tool(body, wanted):
    """Return the full name of a tool, and its parts as Codex wants them in a call."""
    known = {}
    items = [item for item in body.get("input") or [] if isinstance(item, dict)]
    for tool in [tool for one in (body, *items) for tool in one.get("tools") or []]:
        for leaf in tool.get("tools") or tool.get("functionDeclarations") or [tool]:
            names = {"name": (leaf.get("function") or leaf).get("name") or leaf["type"]}
            if tool.get("type") == "namespace":  # an MCP server's tools
                names = {"namespace": tool["name"], **names}
            full = "__".join(names.values())
            if leaf.get("type") == "custom":  # its argument is text, not JSON
                names["type"] = "custom"
            known[full] = names
    for end in (f"\0{wanted}", f"__{wanted}", wanted):
        for full, names in known.items():
            if f"\0{full}".endswith(end):
                return full, names
    return wanted, {"name": wanted}


def new_id(prefix):
    return prefix + uuid.uuid4().hex[:24]


# The four wire formats. Each sends the reply as it comes, by send(event, **fields), and
# returns it whole. A part of it is (kind, tool or None, pieces): pieces of the text if the
# kind is text or think, of the arguments' JSON if it is call.


def anthropic(body, parts, tokens, send):
    content, stop = [], "end_turn"
    usage = {"input_tokens": tokens[0], "output_tokens": tokens[2]}
    usage.update(cache_read_input_tokens=tokens[1], cache_creation_input_tokens=0)
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


def responses_item(kind, tool, ids, said):
    if kind == "think":
        summary = [{"type": "summary_text", "text": said}]
        return {**ids, "type": "reasoning", "encrypted_content": "", "summary": summary}
    if kind == "call" and tool[1].get("type") == "custom":
        text = json.loads(said)["input"] if said else ""
        return {**ids, **tool[1], "type": "custom_tool_call", "input": text}
    if kind == "call":
        return {**ids, **tool[1], "type": "function_call", "arguments": said}
    content = [{"type": "output_text", "text": said, "annotations": []}]
    return {**ids, "type": "message", "role": "assistant", "content": content}


def responses(body, parts, tokens, send):
    base = {"id": new_id("resp_"), "object": "response", "created_at": int(time.time())}
    base.update(model=body.get("model"), status="in_progress", output=[])
    send("response.created", response=base)
    output, deltas = [], {"text": "output_text", "think": "reasoning_summary_text"}
    for index, (kind, tool, pieces) in enumerate(parts):
        ids, said = {"id": new_id("item_")}, ""
        where = {"output_index": index, "content_index": 0, "summary_index": 0}
        where.update(item_id=ids["id"])
        ids.update({"call_id": new_id("call_")} if tool else {})
        item = responses_item(kind, tool, ids, "")
        send("response.output_item.added", output_index=index, item=item)
        for piece in pieces:
            said += piece
            delta = deltas.get(kind, "function_call_arguments")
            send(f"response.{delta}.delta", delta=piece, **where)
        output.append(responses_item(kind, tool, ids, said))
        send("response.output_item.done", output_index=index, item=output[-1])
    usage = {"input_tokens": sum(tokens[:2]), "output_tokens": tokens[2]}
    usage.update(total_tokens=sum(tokens), input_tokens_details={"cached_tokens": tokens[1]})
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
    usage = {"prompt_tokens": sum(tokens[:2]), "completion_tokens": tokens[2]}
    usage.update(total_tokens=sum(tokens), prompt_tokens_details={"cached_tokens": tokens[1]})
    chunk({}, stop, usage=usage)
    choice = {"index": 0, "message": {**message, **more}, "finish_reason": stop}
    return {**base, "object": "chat.completion", "usage": usage, "choices": [choice]}


def gemini(body, parts, tokens, send):
    usage = {"promptTokenCount": sum(tokens[:2]), "candidatesTokenCount": tokens[2]}
    usage.update(totalTokenCount=sum(tokens), cachedContentTokenCount=tokens[1])

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


def count_tokens(body, parts, tokens, send):
    return {"input_tokens": tokens[0], "totalTokens": tokens[0]}


WIRES = {"/messages": anthropic, "/responses": responses, "/chat/completions": chat}
WIRES.update({":generateContent": gemini, ":streamGenerateContent": gemini})
WIRES.update({"/count_tokens": count_tokens, ":countTokens": count_tokens})


class Handler(BaseHTTPRequestHandler):
    """One connection: turns the steps into bytes, time and HTTP errors."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        """Leave the test's stderr alone."""

    def begin(self, code, **headers):
        self.send_response(code)
        # Closed after each reply, so that no thread waits for a client's next request.
        for key, value in {**headers, "connection": "close"}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def reply(self, code, answer, **headers):
        content = json.dumps(answer).encode()
        kind = {"content_type": "application/json", "content_length": len(content)}
        self.begin(code, **kind, **headers)
        self.wfile.write(content)
        return f"HTTP {code}"

    def fail(self, code, text, **headers):
        kind = ERRORS.get(code, "api_error")
        error = {"type": kind, "message": text, "code": code, "status": kind}
        return self.reply(code, {"type": "error", "error": error}, **headers)

    def do_GET(self):
        card = {"id": "mock", "type": "model", "object": "model", "display_name": "Mock"}
        self.reply(200, {"object": "list", "data": [card], "has_more": False})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        body, path, started = json.loads(raw or b"{}"), self.path.split("?")[0], time.time()
        self.server.record(path=path, body=body)
        wire = next((wire for end, wire in WIRES.items() if path.endswith(end)), None)
        try:
            outcome = self.answer(wire, body) if wire else self.fail(404, "no such API")
        except ConnectionAbortedError as error:  # by us
            outcome = str(error)
        except ConnectionError:
            outcome = "client left"
        self.server.record(path=path, outcome=outcome, seconds=time.time() - started)

    def answer(self, wire, body):
        """Answer a model request; return the outcome for the log."""
        events, side = history(body), side_answer(body)
        prompt, steps = plan(events) if side is None else ("", [("say", side)])
        # By session: two agents with one prompt have errors of their own.
        who = self.headers.get("x-claude-code-session-id") or body.get("prompt_cache_key")
        if failed := self.fail_as_scripted(steps, (wire, who, prompt, len(events))):
            return failed
        is_stream = body.get("stream") or ":stream" in self.path

        def send(kind, **fields):
            content = json.dumps({"type": kind, **fields} if kind else fields)
            event = (f"event: {kind}\n" if kind else "") + f"data: {content}\n\n"
            if kind == "ping" and wire is not anthropic:
                event = "" if wire is gemini else ": ping\n\n"
            self.wfile.write(event.encode() if is_stream else b"")

        if is_stream:
            self.begin(200, content_type="text/event-stream")
        counts = (argument for verb, argument in steps if verb == "tokens")
        said = [int(count) for count in next(counts, str(len(str(body)) // 4)).split()]
        tokens = tuple([*said, 0, 10][:2] + [*said[2:], 10][:1])
        whole = wire(body, self.run(body, steps, send), tokens, send)
        if wire is not count_tokens:
            self.server.usage.append((*tokens, side is not None))
        if is_stream and wire is chat:
            self.wfile.write(b"data: [DONE]\n\n")
        return "ok" if is_stream else self.reply(200, whole)

    def fail_as_scripted(self, steps, key):
        """Answer with the first error of the script that is not used up, if any."""
        for index, (verb, argument) in enumerate(steps):
            if verb == "error":
                code, times, after = [*argument.split(), "", ""][:3]
                if code == "overflow":  # once it has summed up, the prompt stands elsewhere
                    key = key[:3]
                if self.server.count((*key, index)) <= int(times or sys.maxsize):
                    headers = {"retry_after": after} if after else {}
                    if code == "overflow":
                        return self.fail(400, OVERFLOW)
                    return self.fail(int(code), f"mock error {code}", **headers)
        return None

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
                raise ConnectionAbortedError("dropped")
            elif verb == "tool":
                for name, arguments in argument:
                    yield "call", find_tool(body, name), [json.dumps(arguments)]
                return

    def wait(self, seconds, send):
        """Sleep and ping, but no longer than the client and the server are there."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable = select.select([self.connection], [], [], min(0.2, left))[0]
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
            if self.server.is_stopping:
                raise ConnectionAbortedError("server stopped")
            send("ping")


class MockServer(ThreadingMixIn, TCPServer):
    """The mock on 127.0.0.1: MockServer(log=path).start(), .port, .requests, .stop().

    Owns what was asked and the log: a JSON line for each request and for its end. With
    `with` it stops at the end.
    """

    # Not HTTPServer: that looks its own name up, which is slow where there is no DNS.
    daemon_threads, request_queue_size, allow_reuse_address = True, 128, True

    def __init__(self, log=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.port, self._log = self.server_address[1], Path(log) if log else None
        self._lock, self._thread, self.is_stopping = threading.Lock(), None, False
        self._bodies, self._counts = [], {}
        self.usage = []  # of each answer: input, cached, output, was it a side request?

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
        """End the server; a reply still going on ends within 0.2 s."""
        self.is_stopping = True
        if self._thread:  # else shutdown() would wait for ever
            self.shutdown()
            self._thread.join()
        self.server_close()

    def __exit__(self, *error):
        self.stop()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave
            super().handle_error(request, client_address)

    def count(self, key):
        """Return how often this was called with `key`."""
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            return self._counts[key]

    def record(self, **fields):
        with self._lock:
            if "body" in fields:
                self._bodies.append(fields["body"])
            if self._log:
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps({"time": time.time(), **fields}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=0, help="0 (default): a free one")
    parser.add_argument("--log", help="append a JSON line for each request and its end")
    server = MockServer(**vars(parser.parse_args()))
    print(f"PORT {server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
