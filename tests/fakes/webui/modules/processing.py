"""The life of one generation."""

from __future__ import annotations

import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from modules import prompt_parser, rng, scripts, sd_models, sd_samplers, shared
from modules.sd_samplers_common import images_tensor_to_samples


class DecodedSamples(list):
    already_decoded = True


def decode_latent_batch(model, batch, target_device=None, check_for_nans=False):
    decoded = DecodedSamples()
    for latent in batch:
        if check_for_nans and not torch.isfinite(latent).all():
            raise ArithmeticError("NaN")
        decoded.append(model.decode_first_stage(latent[None])[0])
    return decoded


def create_infotext(p, prompts, seeds, subseeds, index=0, all_negative_prompts=None):
    values = {"Seed": seeds[index], **p.extra_generation_params}
    values = {k: value[index] if isinstance(value, list) else value for k, value in values.items()}
    text = ", ".join(f"{key}: {value}" for key, value in values.items())
    return f"{prompts[index]}\nNegative prompt: {all_negative_prompts[index]}\n{text}"


class StableDiffusionProcessing:
    outpath_samples = ""
    is_hr_pass = enable_hr = False
    hr_prompts = hr_negative_prompts = hr_sampler_name = None
    hr_second_pass_steps = 0
    refiner_checkpoint_info = "a refiner"
    mask = nmask = image_mask = refiner_at = None
    subseed_strength = 0.0
    denoising_strength = 0.75
    sampler = rng = None
    iteration = 0

    def __init__(self, **request):
        self.prompt, self.negative_prompt, self.seed = "a circle", "blue", 1
        self.width = self.height = 128
        self.steps, self.cfg_scale, self.sampler_name = 5, 3.0, "Euler"
        self.batch_size = self.n_iter = 1
        vars(self).update(request)
        self.comments, self.extra_generation_params = {}, {}

    @property
    def sd_model(self):
        return shared.loaded.sd_model

    def comment(self, text):
        self.comments[text] = 1

    def save_samples(self):
        return shared.opts.samples_save

    def txt2img_image_conditioning(self, x, width=None, height=None):
        return x.new_zeros(len(x), 5, 1, 1)

    def take_prompts(self):
        """Those of the batch that is under way, with their extra networks."""
        part = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
        self.prompts, self.negative_prompts = (
            self.all_prompts[part],
            self.all_negative_prompts[part],
        )

    def parse_extra_network_prompts(self):
        self.prompts = [re.sub("<lora:.*?>", "", prompt) for prompt in self.prompts]

    def setup_conds(self):
        steps = self.steps * (2 if self.config.options.get("second_order") else 1)
        self.firstpass_steps = steps
        conds = prompt_parser.SdConditioning(self.prompts, width=self.width, height=self.height)
        size = {"width": self.width, "height": self.height}
        unconds = prompt_parser.SdConditioning(self.negative_prompts, **size)
        model, parse = self.sd_model, prompt_parser
        self.c = parse.get_multicond_learned_conditioning(model, conds, steps)
        self.uc = parse.get_learned_conditioning(model, unconds, steps)

    @property
    def config(self):
        return next(c for c in sd_samplers.CONFIGS if c.name == self.sampler_name)

    def init(self):
        pass


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    hr_scale = 2.0
    firstpass_image = None
    truncate_x = truncate_y = 0

    def calculate_target_resolution(self):
        self.hr_upscale_to_x = int(self.width * self.hr_scale)
        self.hr_upscale_to_y = int(self.height * self.hr_scale)

    def init(self):
        if self.enable_hr:
            self.calculate_target_resolution()

    def sample(self, c, uc):
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        x = self.rng.next()
        if self.firstpass_image is not None and self.enable_hr:
            samples = images_tensor_to_samples(self.firstpass_image[None])
        else:
            self.scripts.call("process_before_every_sampling", self, x=x, noise=x, c=c, uc=uc)
            image_cond = self.txt2img_image_conditioning(x)
            samples = self.sampler.sample(self, x, c, uc, image_conditioning=image_cond)
        if not self.enable_hr or shared.state.interrupted:
            return samples
        self.is_hr_pass = True
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        size = self.hr_upscale_to_y // 8, self.hr_upscale_to_x // 8
        samples = F.interpolate(samples, size=size, mode="bilinear")
        self.rng = rng.ImageRNG(samples.shape[1:], self.seeds)
        noise = self.rng.next()
        received = {"x": samples, "noise": noise, "c": c, "uc": uc}
        self.scripts.call("process_before_every_sampling", self, **received)
        image_cond = self.txt2img_image_conditioning(samples)
        samples = self.sampler.sample_img2img(
            self, samples, noise, c, uc, steps=self.steps, image_conditioning=image_cond
        )
        self.is_hr_pass, self.sampler = False, None
        return decode_latent_batch(self.sd_model, samples, check_for_nans=True)


class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    def init(self):
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        images = torch.stack([self.init_image] * self.batch_size)
        self.init_latent = images_tensor_to_samples(images)

    def sample(self, c, uc):
        noise, latent = self.rng.next(), self.init_latent
        received = {"x": latent, "noise": noise, "c": c, "uc": uc}
        self.scripts.call("process_before_every_sampling", self, **received)
        image_cond = self.txt2img_image_conditioning(latent)
        return self.sampler.sample_img2img(
            self, latent, noise, c, uc, image_conditioning=image_cond
        )


def process_images(p):
    """Images (3, H, W) in [0, 1], the PNG info's parameters and the comments."""
    return process_images_inner(p)


@torch.no_grad()
def process_images_inner(p):
    state = shared.state
    count = p.batch_size * p.n_iter
    p.all_seeds = p.all_subseeds = [p.seed + k for k in range(count)]
    p.all_prompts, p.all_negative_prompts = [p.prompt] * count, [p.negative_prompt] * count
    sd_models.apply_alpha_schedule_override(p.sd_model, p)
    p.scripts.call("process", p)
    p.init()
    if state.job_count == -1:
        state.job_count = p.n_iter * (2 if p.enable_hr else 1)
    images, infotexts = [], []
    for n in range(p.n_iter):
        if state.interrupted:
            break
        state.skipped = False
        p.iteration = n
        p.take_prompts()
        p.parse_extra_network_prompts()
        p.hr_prompts, p.hr_negative_prompts = p.prompts, p.negative_prompts
        p.seeds = p.subseeds = p.all_seeds[n * p.batch_size : (n + 1) * p.batch_size]
        p.rng = rng.ImageRNG((4, p.height // 8, p.width // 8), p.seeds)
        p.setup_conds()
        ps = scripts.PostSampleArgs(p.sample(p.c, p.uc))
        p.scripts.call("post_sample", p, ps)
        decoded = ps.samples
        if not getattr(decoded, "already_decoded", False):
            decoded = decode_latent_batch(p.sd_model, decoded, check_for_nans=True)
        state.nextjob()
        p.take_prompts()
        for place, image in enumerate(decoded):
            pp = SimpleNamespace(image=(image.float() + 1).div(2).clamp(0, 1))
            p.scripts.call("postprocess_image", p, pp)
            images.append(pp.image)
            lists = p.prompts, p.seeds, p.subseeds
            infotext = create_infotext(p, *lists, place, all_negative_prompts=p.negative_prompts)
            infotexts.append(infotext)
    processed = SimpleNamespace(
        images=images,
        infotexts=infotexts,
        parameters=dict(p.extra_generation_params),
        comments="".join(f"{comment}\n" for comment in p.comments),
    )
    p.scripts.call("postprocess", p, processed)
    return processed
