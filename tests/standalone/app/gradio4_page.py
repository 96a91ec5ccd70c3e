"""A page of the controls and the drawing alone, for a gradio that the whole page is too new for.

Run by a Python with that gradio: gradio4_page.py PORT ELEMENT, a file with the drawing's element.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gradio as gr

from lib_hires.standalone.app.controls import Controls, element_id
from lib_hires.standalone.app.page import head


def main(port: int, element: str) -> None:
    with gr.Blocks(head=head(), analytics_enabled=False) as page:
        controls = Controls.made()
        gr.HTML(element)
        generate = gr.Button("Generate", elem_id=element_id("generate"))
        gr.Button("Stop", elem_id=element_id("stop"))
        status = gr.HTML("", elem_id=element_id("status"))
        # What no event reads could not be moved.
        generate.click(lambda *values: str(len(values)), controls.components, status)
    sys.stdout.write(f"gradio {gr.__version__}\n")
    page.launch(server_name="127.0.0.1", server_port=port, share=False, prevent_thread_lock=True)
    sys.stdout.write(f"the page is at http://127.0.0.1:{port}/\n")
    sys.stdout.flush()
    page.block_thread()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8"))
