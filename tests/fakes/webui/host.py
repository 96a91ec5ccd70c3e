"""Loads the extension into the stand-in and drives it as the real one's API does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

from modules import images, img2img, processing, script_callbacks, scripts, sd_unet, shared, txt2img
from modules.api import api
from modules.toy_model import ToyModel

ROOT = Path(__file__).parents[3]


def load_extension():
    """The entry file's module, executed as the host does, and its callbacks called."""
    spec = importlib.util.spec_from_file_location(
        "hires_guidance_entry", ROOT / "scripts" / "hires_guidance.py"
    )
    module = importlib.util.module_from_spec(spec)
    script_callbacks.before_ui.clear()
    script_callbacks.ui_settings.clear()
    spec.loader.exec_module(module)
    for callback in [*script_callbacks.before_ui, *script_callbacks.ui_settings]:
        callback()
    return module


class Host:
    """A fresh process: a model, options, a state, and scripts of both tabs."""

    def __init__(self, *more_scripts, model=ToyModel):
        scripts.errors.clear()
        scripts.scripts_data.clear()
        images.saved.clear()
        sd_unet.current_unet = None
        shared.loaded.sd_model = model()
        vars(shared.opts).clear()
        shared.opts.__init__()
        xyz = SimpleNamespace(AxisOption=lambda *a, **k: SimpleNamespace(a=a, label=a[0], **k))
        xyz.axis_options = []
        self.axes = xyz.axis_options
        plot = type("Script", (), {"__module__": "xyz_grid.py"})
        scripts.scripts_data.append(scripts.ScriptClassData(plot, "", "", xyz))
        classes = [load_extension().HiResGuidance, *more_scripts]
        self.runners = [scripts.ScriptRunner(classes, tab) for tab in (False, True)]
        self.axes = xyz.axis_options

    def generate(self, settings=None, *, args=None, infotext=None, p=None, **request):
        """Make images; settings by names. Raises what the generation itself raises.

        `messages`: what the user was received on the way.
        """
        tab = "init_image" in request
        runner = self.runners[tab]
        if p is None:
            kind = "StableDiffusionProcessing" + ("Img2Img" if tab else "Txt2Img")
            p = getattr(processing, kind)(**request)
        values = runner.default_args()
        if infotext is not None:
            _read_infotext(runner, infotext, values)
        given = args if args is not None else [settings] if settings is not None else []
        values[1 : 1 + len(given)] = given
        values[0] = self.chosen_script(runner, getattr(p, "script", None))
        p.scripts, p.script_args = runner, tuple(values)
        shared.state.begin()
        shared.loaded.sd_model.evaluated.clear()
        if infotext is not None:
            made = api.text2imgapi(p)
        else:
            made = img2img.img2img(p) if tab else txt2img.txt2img(p)
        made.messages = list(p.comments)
        return made

    def chosen_script(self, runner, title):
        """The place in the host's list of the script of that title; 0 for none. A request through
        `infotext` has a text there that chooses nothing."""
        titles = [script.title() for script in runner.selectable_scripts]
        return titles.index(title) + 1 if title in titles else title if title == "None" else 0


def _read_infotext(runner, parameters, values):
    """Values come as text; those of switches are read by bool, which takes "False" for true."""
    parameters = {key: str(value) for key, value in parameters.items()}
    for component, read in runner.infotext_fields:
        value = read(parameters)
        if value is not None and not isinstance(value, type(component.value)):
            value = type(component.value)(value)
        if value is not None:
            values[runner.inputs.index(component)] = value
