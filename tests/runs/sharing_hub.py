"""A hub on this machine with one data set and its jobs: the HTTP API that `huggingface_hub` speaks, over a dictionary.

Whoever has TOKEN may do everything. `hub.broken` maps the start of a method and path to a status, or to "cut" for an
answer that ends in the middle. A job is a process of this machine.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_anna"
COMMIT = "c" * 40
REPO = "anna/results"
OWNER = {"id": "1", "name": "anna", "type": "user"}


class Hub:
    """What the hub has: files of the data set by name, jobs by id, and what was asked."""

    def __init__(self):
        self.files, self.jobs, self.asked, self.broken = None, {}, [], {}
        self.address, self.home = "", tempfile.mkdtemp()

    def start_job(self, about):
        number = f"job{len(self.jobs)}"
        log = Path(self.home) / f"{number}.txt"
        environment = {
            "HF_ENDPOINT": self.address,
            "LOWBIT_HOME": str(Path(self.home) / number),
            "HF_HOME": str(Path(self.home) / f"{number}-hub"),
            "HF_HUB_OFFLINE": "0",
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *about["command"][1:]],
                env=os.environ | about["environment"] | about["secrets"] | environment,
                cwd=Path(__file__).parents[2],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.jobs[number] = {"about": about, "process": process, "log": log, "cancelled": False}
        return number

    def job(self, number):
        job = self.jobs[number]
        code = job["process"].poll()
        stage = "RUNNING" if code is None else "COMPLETED" if code == 0 else "ERROR"
        stage = "CANCELED" if job["cancelled"] else stage
        return {"id": number, "owner": OWNER, "status": {"stage": stage}, "labels": job["about"].get("labels")}


class Handler(BaseHTTPRequestHandler):
    hub = None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        if not self.allowed(path):
            return None
        hub = self.hub
        if path == "/":
            return self.json({})
        if path == "/api/whoami-v2":
            return self.json({"name": "anna", "type": "user"})
        if path.startswith("/api/jobs/anna"):
            return self.jobs(path.removeprefix("/api/jobs/anna").strip("/"), query)
        if hub.files is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if path.startswith(f"/api/datasets/{REPO}/tree/"):
            return self.json([self.entry(name, content) for name, content in hub.files.items()])
        name = path.partition("/resolve/")[2].partition("/")[2]
        if name in hub.files:
            content = hub.files[name]
            tag = hashlib.sha256(content).hexdigest()
            return self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        if path.startswith(f"/api/datasets/{REPO}"):
            return self.json({"id": REPO, "sha": COMMIT, "siblings": []})
        return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def jobs(self, path, query):
        hub = self.hub
        if not path:
            wanted = dict(label.split("=") for label in query.get("label", []))
            found = [hub.job(number) for number in hub.jobs]
            return self.json([job for job in found if wanted.items() <= (job["labels"] or {}).items()])
        number, _, what = path.partition("/")
        if what == "logs":
            lines = hub.jobs[number]["log"].read_text().splitlines()
            events = "".join(f"data: {json.dumps({'data': line, 'timestamp': ''})}\n\n" for line in lines)
            return self.answer(200, events.encode(), {"Content-Type": "text/event-stream"})
        return self.json(hub.job(number))

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.allowed(path):
            return None
        hub = self.hub
        if path == "/api/repos/create":
            hub.files = hub.files if hub.files is not None else {}
            return self.json({"url": f"{hub.address}/datasets/{REPO}", "id": REPO})
        if path == "/api/jobs/anna":
            return self.json(hub.job(hub.start_job(json.loads(body))))
        if path.endswith("/cancel"):
            job = hub.jobs[path.split("/")[-2]]
            job["process"].kill()
            job["process"].wait()
            job["cancelled"] = True
            return self.json({})
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.json({"files": files})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.json({"commitUrl": f"{hub.address}/datasets/{REPO}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.json({"errors": [], "warnings": []})

    def allowed(self, path):
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        for start, how in self.hub.broken.items():
            if asked.startswith(start):
                if how == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "100000")
                    self.end_headers()
                    self.wfile.write(b"half")
                    self.close_connection = True
                else:
                    self.answer(how, b"{}", {})
                return False
        if path != "/" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"{}", {})
            return False
        return True

    @staticmethod
    def entry(name, content):
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}

    def json(self, body):
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def serve():
    hub = Hub()
    handler = type("Handler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        for job in hub.jobs.values():
            job["process"].kill()
            job["process"].wait()
