"""A hub on this machine: the file API that `huggingface_hub` speaks, over folders of files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

WRITER = "hf_that_may_write"


def entry(file, folder):
    """A file as the hub lists it."""
    tag = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": tag}


@contextmanager
def hub(repos, uploaded=None):
    """Serves {repo: {revision: (commit, folder)}}, as models too, and yields (address, list of the paths asked for).

    Models are uploaded into `uploaded`, {repo: {path: content}}, by whoever has WRITER for a token.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            path = path.replace("/api/models/", "/api/datasets/")
            if path.split("/")[1] not in ("api", "datasets"):
                path = f"/datasets{path}"  # a model's files lie at the top
            for repo, revisions in repos.items():
                for revision, (commit, folder) in revisions.items():
                    for name in {revision, commit}:
                        about = f"/api/datasets/{repo}"
                        if path == f"{about}/revision/{name}" or (path == about and name == "main"):
                            return self.json({"id": repo, "sha": commit, "siblings": []})
                        if path == f"/api/datasets/{repo}/tree/{name}":
                            return self.json([entry(file, folder) for file in folder.rglob("*") if file.is_file()])
                        if path.startswith(f"/datasets/{repo}/resolve/{name}/"):
                            file = folder / path.removeprefix(f"/datasets/{repo}/resolve/{name}/")
                            return self.file(file, commit)
                if path.startswith((f"/api/datasets/{repo}/", f"/datasets/{repo}/")):
                    return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def do_POST(self):
            path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(f"{self.command} {path}")
            if self.headers.get("Authorization") != f"Bearer {WRITER}":
                return self.answer(401, b"{}", {})
            if path == "/api/validate-yaml":  # the head of a README
                return self.json({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                made = json.loads(body)
                name = f"{made['organization']}/{made['name']}"
                uploaded.setdefault(name, {})
                return self.json({"url": f"http://{self.headers['Host']}/{name}", "id": name})
            repo, _, what = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
            if what == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.json({"files": files})
            lines = [json.loads(line) for line in body.splitlines()]
            uploaded[repo] |= {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            address = f"http://{self.headers['Host']}/{repo}/commit/{'c' * 40}"
            return self.json({"commitUrl": address, "commitOid": "c" * 40})

        def json(self, body):
            self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def file(self, file, commit):
            content = file.read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": commit})

        def answer(self, status, content, headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def ask(monkeypatch, address, cache):
    """Lets this process take `address` for the hub, and `cache` for the folder of what was fetched."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
