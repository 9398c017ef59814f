"""Records what clients of OpenAI's interface send: tests/it/clients.json. Needs the packages openai and litellm, and curl.

    python crates/serve/tests/it/clients.py > crates/serve/tests/it/clients.json
"""

import http.server
import json
import subprocess
import threading

import litellm
import openai

recorded = []


class Recorder(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        recorded.append({"path": self.path, "body": body})
        choice = {"index": 0, "finish_reason": "stop"}
        answer = {"id": "x", "created": 0, "model": "m", "choices": [choice]}
        self.send_response(200)
        if body.get("stream"):
            choice["delta"] = {"content": "a"}
            answer["object"] = "chat.completion.chunk"
            text = f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode()
            self.send_header("content-type", "text/event-stream")
        else:
            choice.update(text="a", message={"role": "assistant", "content": "a"})
            answer["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            text = json.dumps(answer).encode()
            self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}/v1"
client = openai.OpenAI(base_url=base, api_key="x")
parts = [{"role": "user", "content": [{"type": "text", "text": "Name a colour."}]}]
brief = [{"role": "developer", "content": "Be brief."}, *parts]

client.chat.completions.create(
    model="tiny", messages=brief, seed=7, max_completion_tokens=12, temperature=0.5, top_p=0.9, stop=["\n"], n=2,
    logprobs=True, top_logprobs=2, user="u", store=False,
)
list(
    client.chat.completions.create(
        model="tiny", messages=parts, seed=7, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
)
client.completions.create(model="tiny", prompt=["The sky", "Grass"], max_tokens=3, logprobs=2, n=2)
client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}], extra_body={"top_k": 5})
plain = {"model": "tiny", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 12, "seed": 7}
json_type = ["-H", "content-type: application/json"]
subprocess.run(["curl", "-s", f"{base}/chat/completions", *json_type, "-d", json.dumps(plain)], check=True, stdout=subprocess.DEVNULL)
system = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
lite = {"model": "openai/tiny", "api_base": base, "api_key": "x"}
litellm.completion(**lite, messages=system, seed=3, max_tokens=5, temperature=0)
list(litellm.completion(**lite, messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=5))

names = ["openai", "openai, streamed", "openai, texts", "openai, a field of this server", "curl", "litellm", "litellm, streamed"]
rows = [{"client": name, **row} for name, row in zip(names, recorded, strict=True)]
print("[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]")
