"""The button that reads a list again."""

import gradio as gr


def create_refresh_button(component, method, arguments, elem_id):
    button = gr.Button("refresh", elem_id=elem_id)

    def refresh():
        method()
        return gr.update(**arguments())

    button.click(refresh, inputs=[], outputs=[component])
    return button
