"""An extension for the tests: it makes a chosen evaluation of the model go wrong.

Arguments: what happens ("raise", "raise small", "interrupt", "skip" or ""), and at which
evaluation (counted from 1 in each run). "raise small" looks at small pictures only. Its route
/hires-test/state tells what the last run left on the objects that outlive it.
"""

import gradio as gr
from modules import script_callbacks, scripts, sd_samplers_common, shared


class Fault(RuntimeError):
    """The failure that was asked for."""


def fail(what):
    if what.startswith("raise"):
        raise Fault("as asked")
    {"interrupt": shared.state.interrupt, "skip": shared.state.skip}[what]()


class Faults(scripts.Script):
    def title(self):
        return "HiRes test faults"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox("", label="Fault"), gr.Number(0, label="Fault at")]

    def before_process(self, p, what, at):
        vars(p.sd_model).pop("apply_model", None)
        if not what:
            return
        plain, counted, sizes = p.sd_model.apply_model, [0], []

        def apply_model(x, *args, **kwargs):
            sizes.append(x.shape[-2:])
            counts = what != "raise small" or x.shape[-2] < sizes[0][0]
            counted[0] += counts
            if counts and counted[0] == at:
                fail(what)
            return plain(x, *args, **kwargs)

        p.sd_model.apply_model = apply_model


def hooks(module):
    """What hangs on a module and all in it."""
    parts = list(module.modules())
    return {
        "forwards": sum("forward" in vars(part) for part in parts),
        "hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts),
    }


def add_route(_demo, app):
    @app.get("/hires-test/state")
    def state():
        methods = vars(sd_samplers_common.Sampler)
        callbacks = script_callbacks.callback_map
        return {
            **hooks(shared.sd_model),
            "sampler_methods": sorted(name for name in methods if not name.startswith("__")),
            "callbacks": {name: len(found) for name, found in callbacks.items()},
        }


script_callbacks.on_app_started(add_route)
