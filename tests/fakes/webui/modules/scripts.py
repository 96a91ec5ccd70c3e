"""Scripts and their runner. Errors in lifecycle calls are swallowed; `errors` remembers them."""

from __future__ import annotations

import re
from collections import namedtuple
from types import SimpleNamespace

import gradio as gr

AlwaysVisible = object()
ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
scripts_data = []
errors = []


class Script:
    infotext_fields = None
    alwayson = True

    def elem_id(self, item):
        title = re.sub("[^a-z_0-9]", "", self.title().lower().replace(" ", "_"))
        return f"script_{'img2img' if self.is_img2img else 'txt2img'}_{title}_{item}"

    def run(self, p, *args):
        """Of one of the list: makes the images in the host's place."""

    def process(self, p, *args):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def post_sample(self, p, ps, *args):
        pass

    def postprocess_image(self, p, pp, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass


class ScriptRunner:
    def __init__(self, classes, is_img2img):
        self.inputs, self.scripts, self.infotext_fields = [None], [], []
        for made in classes:
            script = made()
            script.is_img2img = is_img2img
            script.is_alwayson = script.show(is_img2img) is AlwaysVisible
            with gr.Blocks():
                controls = script.ui(is_img2img)
            script.args_from = len(self.inputs)
            self.inputs += controls
            self.infotext_fields += script.infotext_fields or []
            script.args_to = len(self.inputs)
            self.scripts.append(script)

    @property
    def alwayson_scripts(self):
        return [script for script in self.scripts if script.is_alwayson]

    @property
    def selectable_scripts(self):
        return [script for script in self.scripts if not script.is_alwayson]

    def run(self, p, *args):
        """What the script of the list makes; None where none is chosen."""
        script_index = args[0]
        if script_index == 0 or script_index is None:
            return None
        script = self.selectable_scripts[script_index - 1]
        return script.run(p, *args[script.args_from : script.args_to])

    def default_args(self):
        """As the API does it: with components made anew."""
        args = [None] * len(self.inputs)
        with gr.Blocks():
            for script in self.scripts:
                values = [control.value for control in script.ui(script.is_img2img)]
                args[script.args_from : script.args_to] = values
        return args

    def call(self, name, p, *args, **kwargs):
        for script in self.alwayson_scripts:
            own = p.script_args[script.args_from : script.args_to]
            try:
                getattr(script, name)(p, *args, *own, **kwargs)
            except Exception as error:
                errors.append(error)


def PostSampleArgs(samples):
    return SimpleNamespace(samples=samples)
