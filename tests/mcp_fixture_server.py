"""What the official conformance suite wants of a server and cao does not offer, on cao's engine.

Rows of cao's own Tool, sent by cao's own McpServer: lines, versions, ids, errors, threads,
progress, argument checks and the envelope of 2026-07-28 are the engine's. Of its own this
server has the content, and what cao leaves out on purpose: logging, completion,
subscriptions, questions to the client in both eras.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import queue
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cao

META = "io.modelcontextprotocol/"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5E"
    "rkJggg=="
)
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
KEY = b"the fixture's"  # a process a request: what is signed must be known to the next one


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def resource(uri: str, mime: str, words: str) -> dict:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": words}}


IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
CONTENT = {  # of tools whose content is not one text
    "test_image_content": [IMAGE],
    "test_audio_content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}],
    "test_embedded_resource": [
        resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    ],
    "test_multiple_content_types": [
        text("Multiple content types test:"),
        IMAGE,
        resource(
            "test://mixed-content-resource", "application/json", '{"test":"data","value":123}'
        ),
    ],
}
RESOURCES = {
    "test://static-text": (
        "text/plain",
        "text",
        "This is the content of the static text resource.",
    ),
    "test://static-binary": ("image/png", "blob", PNG),
    "test://watched-resource": ("text/plain", "text", "Watched."),
}
PROMPTS = {  # name: (arguments, what it says)
    "test_simple_prompt": ((), lambda _: [text("This is a simple prompt for testing.")]),
    "test_prompt_with_arguments": (
        ("arg1", "arg2"),
        lambda a: [text(f"Prompt with arguments: arg1='{a['arg1']}', arg2='{a['arg2']}'")],
    ),
    "test_prompt_with_embedded_resource": (
        ("resourceUri",),
        lambda a: [
            resource(a["resourceUri"], "text/plain", "Embedded resource content for testing."),
            text("Please process the embedded resource above."),
        ],
    ),
    "test_prompt_with_image": ((), lambda _: [IMAGE, text("Please analyze the image above.")]),
    "test_input_required_result_prompt": ((), lambda _: [text("With your context.")]),
}


def form(message: str, **properties: dict) -> dict:
    """Return an elicitation; all of its fields are required."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "method": "elicitation/create",
        "params": {"message": message, "requestedSchema": schema},
    }


def sample(words: str) -> dict:
    messages = [{"role": "user", "content": text(words)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": 100}}


STRING, BOOL = {"type": "string"}, {"type": "boolean"}
ROOTS = {"method": "roots/list", "params": {}}
NAME = form("What is your name?", name=STRING)
ROUNDS = {  # what each tool (or prompt) of 2026-07-28 asks, round by round
    "test_input_required_result_elicitation": [{"user_name": NAME}],
    "test_input_required_result_sampling": [{"capital_question": sample("The capital of France?")}],
    "test_input_required_result_list_roots": [{"client_roots": ROOTS}],
    "test_input_required_result_request_state": [{"confirm": form("Please confirm", ok=BOOL)}],
    "test_input_required_result_tampered_state": [{"confirm": form("Please confirm", ok=BOOL)}],
    "test_input_required_result_multiple_inputs": [
        {"user_name": NAME, "greeting": sample("Generate a greeting"), "client_roots": ROOTS}
    ],
    "test_input_required_result_multi_round": [
        {"step1": form("Step 1: What is your name?", name=STRING)},
        {"step2": form("Step 2: What is your favorite color?", color=STRING)},
    ],
    "test_input_required_result_capabilities": [{"user_name": NAME, "greeting": sample("Hello")}],
    "test_input_required_result_prompt": [{"user_context": form("Which context?", context=STRING)}],
}
NEEDS = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


def titled(name: str, ordinals: str) -> list:
    return [
        {"const": f"value{n}", "title": f"{o} {name}"} for n, o in enumerate(ordinals.split(), 1)
    ]


OPTIONS = ["option1", "option2", "option3"]
FORMS = {  # what each tool of the handshake versions asks
    "test_elicitation": {"username": STRING, "email": STRING},
    "test_elicitation_sep1034_defaults": {
        "name": {**STRING, "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {**STRING, "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {**BOOL, "default": True},
    },
    "test_elicitation_sep1330_enums": {
        "untitledSingle": {**STRING, "enum": OPTIONS},
        "titledSingle": {**STRING, "oneOf": titled("Option", "First Second Third")},
        "legacyEnum": {
            **STRING,
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {**STRING, "enum": OPTIONS}},
        "titledMulti": {
            "type": "array",
            "items": {"anyOf": titled("Choice", "First Second Third")},
        },
    },
}


def sign(state: str) -> str:
    return f"{state}.{hmac.new(KEY, state.encode(), hashlib.sha256).hexdigest()}"


def pause() -> None:
    queue_empty = queue.SimpleQueue()
    try:
        queue_empty.get(timeout=0.05)
    except queue.Empty:
        pass


class FixtureServer(cao.McpServer):
    """cao's server, with other rows."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.asked, self.count = {}, 0
        cao.PROGRESS_S = 0.01  # the engine's own progress, faster
        plain = ["test_missing_capability", "test_streaming_elicitation", "test_logging_tool"]
        calls = {
            **{name: lambda *_: cao.Answer("done", None) for name in (*plain, *ROUNDS)},
            **{name: lambda *_, name=name: cao.Answer(name, None) for name in CONTENT},
            **{name: self.elicits(name) for name in FORMS},
            "test_simple_text": lambda *_: cao.Answer("This is a simple text response.", None),
            "test_error_handling": self.fails,
            "test_tool_with_progress": self.moves,
            "test_tool_with_logging": self.logs,
            "test_sampling": self.samples,
        }
        takes = {"test_elicitation": "message", "test_sampling": "prompt"}
        cao.TOOLS.clear()
        for name, call in calls.items():
            if name in PROMPTS:
                continue
            arguments = (
                {takes[name]: {**STRING, "description": "What to ask."}} if name in takes else {}
            )
            about = "A tool of the conformance suite."
            tool = cao.Tool(name, name, about, tuple(arguments), "", call, reads=True)
            cao.TOOLS[name] = tool._replace(arguments=arguments)
        cao._CAPABILITIES.update(logging={}, completions={}, resources={"subscribe": True})
        both = {
            "prompts/list": FixtureServer.list_prompts,
            "prompts/get": FixtureServer.get_prompt,
            "resources/list": FixtureServer.list_resources,
            "resources/templates/list": FixtureServer.list_templates,
            "resources/read": FixtureServer.read_resource,
            "completion/complete": lambda *_: {
                "completion": {"values": ["test"], "hasMore": False}
            },
        }
        cao._MODERN_METHODS.update(both)
        cao._MODERN_METHODS["server/discover"] = FixtureServer.discover
        nothing = ("logging/setLevel", "resources/subscribe", "resources/unsubscribe")
        cao._LEGACY_METHODS.update(both, **dict.fromkeys(nothing, lambda *_: {}))

    # ---- tools ----

    def fails(self, *_) -> None:
        raise cao.CaoError("This tool intentionally returns an error for testing")

    def moves(self, call, _given) -> cao.Answer:
        for _ in range(4):
            pause()
            call.on_look(cao.Waited(*[()] * len(cao.Waited._fields)))
        return cao.Answer("It moved.", None)

    def logs(self, _call, _given) -> cao.Answer:
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            self.send({"jsonrpc": "2.0", "method": "notifications/message",
                       "params": {"level": "info", "data": words}})  # fmt: skip
            pause()
        return cao.Answer("It said three things.", None)

    def samples(self, _call, given) -> cao.Answer:
        said = self.ask(**sample(given["prompt"]))
        return cao.Answer(f"LLM response: {said['content']['text']}", None)

    def elicits(self, name):
        def call(_call, given) -> cao.Answer:
            said = self.ask(**form(given.get("message", "Please fill this in"), **FORMS[name]))
            return cao.Answer(f"User response: {json.dumps(said)}", None)

        return call

    def ask(self, method: str, params: dict) -> dict:
        """Ask the client (the handshake versions) and return its result."""
        self.count += 1
        key = f"ask-{self.count}"
        self.asked[key] = queue.SimpleQueue()
        self.send({"jsonrpc": "2.0", "id": key, "method": method, "params": params})
        return self.asked[key].get(timeout=20)["result"]

    def handle(self, message) -> None:
        if (
            isinstance(message, dict)
            and "method" not in message
            and message.get("id") in self.asked
        ):
            self.asked[message["id"]].put(message)
        else:
            super().handle(message)

    def end_call(self, key, cancelled, done):
        result = super().end_call(key, cancelled, done)
        if result and done.text in CONTENT:
            result["content"] = CONTENT[done.text]
        return result

    def call_tool(self, key, params, meta, modern) -> None:
        name, can = params.get("name"), meta.get(META + "clientCapabilities", {})
        if modern and name == "test_missing_capability" and "sampling" not in can:
            raise cao.RpcError(
                -32021, "sampling is needed", {"requiredCapabilities": {"sampling": {}}}
            )
        wanted = self.input_required(name, params, can) if modern and name in ROUNDS else None
        if wanted:
            self.send({"jsonrpc": "2.0", "id": key, "result": cao._modern(wanted)})
        else:
            super().call_tool(key, params, meta, modern)

    def input_required(self, name, params, can):
        """Return what is still to be asked (2026-07-28, multi round-trip requests), or None."""
        given, state = params.get("inputResponses", {}), params.get("requestState")
        if not isinstance(given, dict) or not all(isinstance(v, dict) for v in given.values()):
            raise cao.RpcError(-32602, "inputResponses must be an object of objects")
        reached = 0
        if state is not None:
            told = str(state).rpartition(".")[0]
            if not hmac.compare_digest(sign(told), str(state)):
                raise cao.RpcError(-32602, "requestState was changed")
            reached = int(told.rpartition(":")[2])
        rounds = ROUNDS[name]
        while reached < len(rounds) and all(k in given for k in rounds[reached]):
            reached += 1
            given = {}
        if reached == len(rounds):
            return None
        asks = {k: v for k, v in rounds[reached].items() if NEEDS[v["method"]] in can}
        return {"resultType": "input_required", "inputRequests": asks,
                "requestState": sign(f"{name}:{reached}")}  # fmt: skip

    # ---- the rest ----

    def discover(self, params) -> dict:
        found = super().discover(params)
        can = {**found["capabilities"], "resources": {}}  # 2026-07-28 has no subscribe
        del can["logging"]
        return {**found, "capabilities": can}

    def list_prompts(self, params) -> dict:
        rows = [{"name": name, "description": "A prompt of the conformance suite.",
                 "arguments": [{"name": a, "required": True} for a in arguments]}
                for name, (arguments, _) in PROMPTS.items()]  # fmt: skip
        return cao._page(params, {"prompts": rows})

    def get_prompt(self, params) -> dict:
        name, given = params.get("name"), params.get("arguments", {})
        if name not in PROMPTS or any(a not in given for a in PROMPTS[name][0]):
            raise cao.RpcError(-32602, f"no such prompt, or an argument is missing: {name!r}")
        can = params.get("_meta", {}).get(META + "clientCapabilities", {})
        wanted = self.input_required(name, params, can) if name in ROUNDS else None
        contents = PROMPTS[name][1](given)
        return wanted or {"messages": [{"role": "user", "content": c} for c in contents]}

    def list_resources(self, params) -> dict:
        rows = [{"uri": uri, "name": uri[7:], "mimeType": row[0]} for uri, row in RESOURCES.items()]
        return cao._page(params, {"resources": rows})

    def list_templates(self, params) -> dict:
        row = {
            "uriTemplate": "test://template/{id}/data",
            "name": "data",
            "mimeType": "application/json",
        }
        return cao._page(params, {"resourceTemplates": [row]})

    def read_resource(self, params) -> dict:
        uri = str(params.get("uri"))
        parts = uri.split("/")
        if uri.startswith("test://template/") and uri.endswith("/data"):
            row = ("application/json", "text", json.dumps({"id": parts[3], "templateTest": True}))
        elif uri in RESOURCES:
            row = RESOURCES[uri]
        else:
            return super().read_resource(params)
        return {"contents": [{"uri": uri, "mimeType": row[0], row[1]: row[2]}]}


if __name__ == "__main__":
    FixtureServer(cao.Store(cao.runtime_home()), 0, 1).serve()
    os._exit(0)
