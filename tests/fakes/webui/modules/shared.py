"""Options, the command line, and the state of the job."""

from types import SimpleNamespace


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, **kwargs):
        self.default, self.label = default, label
        self.component, self.component_args = component, component_args
        self.infotext = kwargs.get("infotext")


class Options:
    def __init__(self):
        self.batch_cond_uncond = True
        self.samples_save = self.enable_pnginfo = True
        self.samples_format = "png"
        self.sd_noise_schedule = "Default"
        self.sd_vae_encode_method = "Full"
        self.uni_pc_order = 3
        self.use_old_scheduling = False

    def add_option(self, name, info):
        vars(self).setdefault(name, info.default)


class State:
    def __init__(self):
        self.begin()

    def begin(self):
        self.interrupted = self.skipped = False
        self.job, self.textinfo = "", None
        self.job_no, self.job_count = 0, -1

    def nextjob(self):
        self.job_no += 1

    def interrupt(self):
        self.interrupted = True


opts = Options()
cmd_opts = SimpleNamespace(api_auth=None)
state = State()
device = "cpu"
loaded = SimpleNamespace(sd_model=None)
sd_upscalers = [SimpleNamespace(name=name) for name in ("None", "Lanczos", "Nearest")]
