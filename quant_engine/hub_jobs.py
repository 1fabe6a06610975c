"""Hugging Face Jobs: containers that the hub runs, found again by a label. Asked in this one place.

Every function raises UserError for what the hub refuses (`hub.asking`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from quant_engine.deferred import deferred
from quant_engine.hub import asking, user

huggingface_hub = deferred("huggingface_hub")

LABEL = "low-bit-lab-run"
WORKING = ("RUNNING", "SCHEDULING", "UPDATING")
DONE = "COMPLETED"


def start(
    run_id: str,
    *,
    image: str,
    command: Sequence[str],
    env: Mapping[str, str],
    flavor: str,
    timeout: str,
) -> str:
    """Starts a job that may act for the owner of HF_TOKEN, and returns its id."""
    with asking("A job"):
        secrets = {"HF_TOKEN": os.environ.get("HF_TOKEN") or huggingface_hub.get_token() or ""}
        job = huggingface_hub.HfApi().run_job(
            image=image,
            command=list(command),
            env=dict(env),
            secrets=secrets,
            flavor=flavor,
            timeout=timeout,
            labels={LABEL: run_id},
        )
    return job.id


def working(run_id: str) -> str | None:
    """The id of a job that works on a run, whoever started it; None if there is none."""
    with asking("The list of jobs"):
        jobs = list(huggingface_hub.HfApi().list_jobs(labels={LABEL: run_id}, namespace=user()))
    return next((job.id for job in jobs if _stage(job) in WORKING), None)


def all_working() -> dict[str, str]:
    """The runs that jobs work on, by the jobs' ids, whoever started them."""
    with asking("The list of jobs"):
        jobs = list(huggingface_hub.HfApi().list_jobs(namespace=user()))
    labels = {job.id: (job.labels or {}).get(LABEL) for job in jobs if _stage(job) in WORKING}
    return {job: run_id for job, run_id in labels.items() if run_id}


def stage(job_id: str) -> tuple[str, str]:
    """Where a job stands, such as RUNNING or COMPLETED, and what the hub says of it."""
    with asking(f"The job {job_id}"):
        job = huggingface_hub.HfApi().inspect_job(job_id=job_id)
    return _stage(job), str(getattr(job.status, "message", None) or "")


def log_lines(job_id: str, most: int) -> list[str]:
    """The last lines that a job has written. Takes some seconds while the job works."""
    with asking(f"The log of the job {job_id}"):
        return list(huggingface_hub.HfApi().fetch_job_logs(job_id=job_id, tail=most))


def cancel(job_id: str) -> None:
    with asking(f"The job {job_id}"):
        huggingface_hub.HfApi().cancel_job(job_id=job_id)


def _stage(job: object) -> str:
    stage = job.status.stage
    return str(getattr(stage, "value", stage))
