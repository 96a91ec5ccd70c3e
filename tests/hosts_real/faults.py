"""An extension for the tests: it makes a chosen evaluation of the model go wrong.

Arguments: what happens ("raise", "raise small", "interrupt", "skip" or ""), and at which
evaluation (counted from 1 in each run). "raise small" looks at small images only. Its route
/hires-test/state gives what the last run left on the objects that outlive it; after a run with
"record", /hires-test/evaluations gives the model's evaluations, after one with "trace" also the
states and the predictions.
"""

import sys

import gradio as gr
import torch
from modules import script_callbacks, scripts, sd_samplers_common, shared


class Fault(RuntimeError):
    """The failure that was asked for."""


evaluations = []  # of the last run: latent size, the image's size that the model received, ...


def evaluated_by(sd_model):
    """What the host's samplers evaluate: the model, or on Forge the one inside its patcher."""
    objects = getattr(sd_model, "forge_objects", None)
    return sd_model if objects is None else objects.unet.model


def received_size(model, x, cond=None, y=None, **_):
    """[height, width] if SDXL received the size of x, else None. y: how Forge names the vector."""
    vector = y if cond is None else cond.get("vector")
    if vector is None or not getattr(model, "is_sdxl", False):
        return None
    size = [8 * x.shape[-2], 8 * x.shape[-1]]
    expected = embedded(model, (size, [0, 0], size))
    return size if torch.allclose(vector[:1, -expected.shape[1] :], expected, atol=1e-4) else None


def embedded(model, pairs):
    """Pairs of numbers as SDXL receives them, (1, n). Forge's has one function for all of them."""
    if hasattr(model, "embedder"):
        return model.embedder(torch.tensor(pairs).flatten().float()).flatten()[None]
    parts = zip(list(model.conditioner.embedders)[-3:], pairs, strict=True)
    return torch.cat([embed(torch.tensor([pair])) for embed, pair in parts], dim=1)


def fail(what):
    if what.startswith("raise"):
        raise Fault("as asked")
    {"interrupt": shared.state.interrupt, "skip": shared.state.skip}[what]()


def is_of_a_fault(function):
    return getattr(function, "is_of_a_fault", False)


class Faults(scripts.Script):
    def title(self):
        return "HiRes test faults"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox("", label="Fault"), gr.Number(0, label="Fault at")]

    def process(self, p, what, at):  # the request's own model is loaded by now
        model = evaluated_by(p.sd_model)
        if is_of_a_fault(vars(model).get("apply_model")):
            del model.apply_model
        if not what:
            return
        plain, counted, sizes = model.apply_model, [0], []
        evaluations.clear()

        def apply_model(x, t, *conds, **named):
            sizes.append(x.shape[-2:])
            evaluations.append(
                {
                    "size": list(x.shape[-2:]),
                    "rows": len(x),
                    "received": received_size(p.sd_model, x, *conds, **named),
                }
            )
            counts = what != "raise small" or x.shape[-2] < sizes[0][0]
            counted[0] += counts
            if what not in ("record", "trace") and counts and counted[0] == at:
                fail(what)
            denoised = plain(x, t, *conds, **named)
            if what == "trace":
                evaluations[-1] |= {
                    "t": t.tolist(),
                    "x": x.tolist(),
                    "prediction": denoised.tolist(),
                }
            return denoised

        apply_model.is_of_a_fault = True
        model.apply_model = apply_model


def hooks(module):
    """What hangs on a module and all in it."""
    parts = list(module.modules())
    return {
        "forwards": sum("forward" in vars(part) for part in parts),
        "hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts),
    }


def is_replaced(model):
    """Whether anybody but a fault has put a function in the place of the model's own."""
    function = vars(model).get("apply_model")
    return function is not None and not is_of_a_fault(function)


def options_of(sd_model):
    """How much hangs on each of Forge's patchers, by the option's name."""
    objects = getattr(sd_model, "forge_objects", None)
    found = {} if objects is None else objects.unet.model_options
    return {name: len(value) for name, value in found.items() if isinstance(value, (list, dict))}


def add_route(_demo, app):
    guess = sys.modules.get("scripts.controlnet_model_guess")
    if guess is not None:  # ControlNet knows models of SD1's width only
        guess.controlnet_default_config.update(
            model_channels=32, channel_mult=[1, 1, 1, 1], num_heads=1
        )

    motion = sys.modules.get("motion_module")
    if motion is not None:  # AnimateDiff knows modules of SD1's widths only
        plain = motion.MotionModule
        motion.MotionModule = lambda width, **more: plain(width // 10, **more)

    @app.get("/hires-test/evaluations")
    def what_was_evaluated():
        return evaluations

    @app.get("/hires-test/state")
    def state():
        methods = vars(sd_samplers_common.Sampler)
        callbacks = script_callbacks.callback_map
        return {
            **hooks(evaluated_by(shared.sd_model)),
            "replaced": is_replaced(evaluated_by(shared.sd_model)),
            "options": options_of(shared.sd_model),
            "sampler_methods": sorted(name for name in methods if not name.startswith("__")),
            "callbacks": {name: len(found) for name, found in callbacks.items()},
        }


script_callbacks.on_app_started(add_route)
