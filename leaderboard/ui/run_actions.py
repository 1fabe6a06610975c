"""What can be done to the shown run: stop and go on, let it go first, note, save, delete."""

from __future__ import annotations

import gradio as gr

from leaderboard.downloads import zip_run
from leaderboard.ui.theme import html
from quant_engine.runs import folder as run_folder
from quant_engine.runs.queue import ENDED, LONGEST_NOTE, PRIORITIES, QueuedRun

_DOWNLOAD_JS = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button[data-folder]');
  if (!button) return;
  try {
    const file = await server.zip_run(button.dataset.folder);
    lowbit.save(file.name, 'application/zip', file.content);
  } catch { lowbit.say(button, 'Could not be made'); }
});
"""


class RunActions:
    """The buttons of the shown run. `asking` holds the id of the run whose deletion waits for a second press."""

    def __init__(self) -> None:
        """Lays out the part; the tab connects it."""
        self.asking = gr.State(None)
        with gr.Row(elem_classes="run-buttons"):
            self.pause = self._button("Pause", "pause")
            self.resume = self._button("Resume", "resume")
            self.cancel = self._button("Cancel", "cancel")
            self.see = self._button("See it on the leaderboard", "see")
            self.download = html(
                "", elem_id="download-run", js_on_load=_DOWNLOAD_JS, server_functions=[zip_run], min_width=0
            )
            self.delete = self._button("Delete", "delete")
        with gr.Row(visible=False, elem_classes="run-buttons asked", elem_id="delete-asked") as self.question:
            html(
                "<p>Delete this run, its results on this machine and its log?</p>",
            )
            self.confirm = gr.Button("Delete for good", elem_id="delete-confirm", size="sm", min_width=88)
            self.keep = gr.Button("Keep it", elem_id="delete-keep", size="sm", min_width=88)
        self.problem = html("", elem_id="action-problem")
        self.priority = gr.Radio(
            list(PRIORITIES), label="Priority", visible=False, elem_id="priority", elem_classes="segments"
        )
        with gr.Row(visible=False, elem_classes="asking") as self.noting:
            self.note = gr.Textbox(
                label="Note", placeholder="What this run is for", max_length=LONGEST_NOTE, max_lines=4, elem_id="note"
            )
            self.save = gr.Button("Save note", elem_id="save-note", size="sm")
        self.outputs = [
            *(self.pause, self.resume, self.cancel, self.see, self.download, self.delete, self.question),
            *(self.priority, self.noting, self.note, self.asking),
        ]

    @staticmethod
    def _button(words: str, name: str) -> gr.Button:
        return gr.Button(words, visible=False, elem_id=name, size="sm", min_width=72)

    def show(self, run: QueuedRun | None, before: str | None, asking: str | None) -> list:
        """The values of `outputs` for a run. What is being written stays while the run is that of `before`."""
        hidden = gr.update(visible=False)
        if run is None:
            return [hidden, hidden, hidden, hidden, "", hidden, hidden, hidden, hidden, gr.update(), None]
        state, anew = run.state, run.run_id != before
        stopping = run.cancelling or run.pausing
        ended = state in ENDED
        asked = ended and asking == run.run_id
        priority = next((name for name, number in PRIORITIES.items() if number == run.priority), None)
        return [
            gr.update(visible=state in ("queued", "running") and not stopping),
            gr.update(visible=ended and state != "done", value="Resume" if state == "paused" else "Retry"),
            gr.update(visible=state in ("queued", "running", "paused") and not run.cancelling),
            gr.update(visible=state == "done"),
            download_html(run.run_id) if run_folder.exists(run.run_id) else "",
            gr.update(visible=ended and not asked),
            gr.update(visible=asked),
            gr.update(visible=state in ("queued", "paused"), **({"value": priority} if anew else {})),
            gr.update(visible=True),
            gr.update(value=run.note) if anew else gr.update(),
            run.run_id if asked else None,
        ]


def download_html(run_id: str) -> str:
    """A button that saves the run's folder."""
    return f'<button type="button" data-folder="{run_id}">Download</button>'
