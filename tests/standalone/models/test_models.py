"""Every kind of model loads the same way, offline, and denoises by the formulas of its kind."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from safetensors.torch import load_file

from lib_hires.standalone.bundled import MODEL
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.configs import Original
from lib_hires.standalone.models.k_diffusion import import_k_diffusion
from lib_hires.standalone.models.latent import LatentModel, ModelError

k_diffusion = import_k_diffusion()
KINDS = [("sd1", "eps"), ("sd2", "v"), ("sdxl", "eps")]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fail the test where anything asks for the network, even if the asker catches the error."""
    asked: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {kind: tiny_models.write_folder(root / kind, kind, p) for kind, p in KINDS}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, LatentModel]:
    return {kind: load_model(folder) for kind, folder in folders.items()}


@pytest.fixture(params=[kind for kind, _ in KINDS])
def model(request: pytest.FixtureRequest, loaded: dict[str, LatentModel]) -> LatentModel:
    return loaded[request.param]


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(model: LatentModel, x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> torch.Tensor:
    said = model.encode_prompts(["a red house"] * len(x), [""] * len(x))
    return model.denoiser()(x, sigma, context=said.cond, pooled=said.pooled_cond, **extra)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


# ---- what is loaded ----------------------------------------------------------------------------


def test_facts(model: LatentModel) -> None:
    assert model.name == model.family
    assert model.prediction == dict(KINDS)[model.family]
    assert model.native == (16, 16)
    assert (model.latent_channels, model.factor, model.multiple) == (4, 2, 4)
    assert not model.unet.training and not any(p.requires_grad for p in model.vae.parameters())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(model.alphas_cumprod, torch.cumprod(1 - betas, 0))


@pytest.mark.parametrize(
    ("kind", "half"), [("sd1", False), ("sd1", True), ("sd2", False), ("sdxl", False)]
)
def test_ldm_file_is_the_folder(
    kind: str, half: bool, loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    folder = loaded[kind]
    file = load_model(tiny_models.write_ldm(tmp_path / "tiny.safetensors", folder, half=half))
    tolerance = 3e-2 if half else 1e-4
    assert (file.family, file.prediction, file.native) == (kind, folder.prediction, (16, 16))
    assert {p.dtype for p in file.unet.parameters()} == {torch.float32}

    prompts, negatives = ["a red house", "x"], ["", "blur"]
    a, b = (m.encode_prompts(prompts, negatives) for m in (folder, file))
    for name in ("cond", "uncond", "pooled_cond", "pooled_uncond"):
        assert_close(getattr(a, name), getattr(b, name), tolerance)

    x, sigma = noise(2, 4, 8, 8, scale=3), torch.tensor([4.0, 0.5])
    assert_close(call(folder, x, sigma), call(file, x, sigma), tolerance)
    image = noise(1, 3, 16, 16).clamp(-1, 1)
    assert_close(folder.encode(image), file.encode(image), tolerance)
    assert_close(folder.decode(x), file.decode(x), tolerance)


def assert_close(a: torch.Tensor | None, b: torch.Tensor | None, tolerance: float) -> None:
    assert (a is None) == (b is None)
    assert a is None or b is None or (a - b).abs().max() < tolerance


@pytest.mark.skipif(not MODEL.is_file(), reason="the bundled model is not there")
def test_bundled_model() -> None:
    model = load_model()
    assert (model.family, model.native, model.factor) == ("sd1", (256, 256), 8)
    assert model.latent_channels == 4
    settings = yaml.safe_load(MODEL.with_suffix(".yaml").read_text())["model"]["params"]
    assert model.prediction == settings["parameterization"]
    x0 = call(model, noise(1, 4, 32, 32, scale=14), torch.tensor([14.0]))
    assert x0.shape == (1, 4, 32, 32) and x0.isfinite().all()
    # A trained autoencoder gives back a flat image, nearly.
    image = torch.full((1, 3, 64, 64), 0.3)
    assert (model.decode(model.encode(image)) - image).abs().mean() < 0.3


def test_v_prediction_on_the_sd1_layout(loaded: dict[str, LatentModel], tmp_path: Path) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    edit_yaml(file, parameterization="v", scale_factor=0.5, image_size=16)
    model = load_model(file)
    assert (model.family, model.prediction, model.native) == ("sd1", "v", (32, 32))
    assert isinstance(model.denoiser(), k_diffusion.external.DiscreteVDDPMDenoiser)
    image = noise(1, 3, 16, 16)
    ratio = model.encode(image) / loaded["sd1"].encode(image)
    assert torch.allclose(ratio, torch.tensor(0.5 / 0.18215))


def edit_yaml(file: Path, **params: Any) -> None:
    config = yaml.safe_load(file.with_suffix(".yaml").read_text())
    config["model"]["params"] |= params
    file.with_suffix(".yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("family", "millions"), [("sd1", 859.520964), ("sd2", 865.910724), ("sdxl", 2567.463684)]
)
def test_standard_shapes(family: Any, millions: float) -> None:
    """Without a yaml: the published parameter counts of the U-Nets and their common VAE."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    original = Original.standard(family)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(original.unet_config())
        vae = AutoencoderKL.from_config(original.vae_config())
    assert sum(p.numel() for p in unet.parameters()) == round(millions * 1e6)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    side = 128 if family == "sdxl" else 64
    assert original.sample_size("eps") == (side, side)
    assert Original.standard("sd2").sample_size("v") == (96, 96)


# ---- denoising ---------------------------------------------------------------------------------


def test_denoiser_is_the_formula(model: LatentModel) -> None:
    """x0 = x - sigma·eps, or x/(1+sigma²) - sigma/sqrt(1+sigma²)·v, at the interpolated time."""
    x, sigma = noise(3, 4, 8, 8, scale=3), torch.tensor([9.0, 1.234, 0.05])
    said = model.encode_prompts(["a red house"] * 3, [""] * 3)
    table = ((1 - model.alphas_cumprod) / model.alphas_cumprod).sqrt().log().double().numpy()
    t = torch.tensor([interpolated(table, s) for s in sigma.log().tolist()])
    added = None
    if model.family == "sdxl":
        ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 3)
        added = {"text_embeds": said.pooled_cond, "time_ids": ids}

    s = sigma[:, None, None, None]
    root = (1 + s**2).sqrt()
    out = model.unet(x / root, t, said.cond, added_cond_kwargs=added).sample
    expected = x - s * out if model.prediction == "eps" else x / root**2 - s / root * out
    x0 = model.denoiser()(x, sigma, context=said.cond, pooled=said.pooled_cond)
    assert (x0 - expected).abs().max() < 1e-3
    assert (x0 - x).abs().max() > 0.01  # the U-Net was heard


def interpolated(table: Any, value: float) -> float:
    low = max(i for i in range(len(table) - 1) if table[i] <= value)
    return float(low + (value - table[low]) / (table[low + 1] - table[low]))


def test_sigma_and_time(model: LatentModel) -> None:
    denoiser = model.denoiser()
    assert denoiser.sigmas.shape == (1000,)
    low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
    assert (low, high) == pytest.approx((0.0292, 14.61), rel=1e-2)
    # Not quantized; outside the table its ends.
    t = denoiser.sigma_to_t(torch.tensor([0.0, low / 2, low, 1.0, high, 4 * high]))
    assert t[[0, 1, 2]].tolist() == [0, 0, 0] and t[[4, 5]].tolist() == [999, 999]
    assert t[3] % 1 != 0
    times = torch.tensor([0.0, 0.5, 345.6, 999.0])
    assert torch.allclose(denoiser.sigma_to_t(denoiser.t_to_sigma(times)), times, atol=1e-2)


def test_sigma_beyond_the_table(model: LatentModel) -> None:
    """The U-Net is told the last timestep, the formula keeps the sigma it was given."""
    told: list[torch.Tensor] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    with handle:
        x0 = call(model, noise(1, 4, 8, 8, scale=60), torch.tensor([60.0]))
    assert told[0].tolist() == [999] and x0.isfinite().all()


def test_low_precision_model(folders: dict[str, Path]) -> None:
    """The model computes in its own dtype; x0 comes back in x's."""
    x, sigma = noise(1, 4, 8, 8, scale=3), torch.tensor([2.0])
    exact = call(load_model(folders["sd1"]), x, sigma)
    for dtype in (torch.bfloat16, torch.float16):
        model = load_model(folders["sd1"], dtype=dtype)
        assert {p.dtype for p in model.unet.parameters()} == {dtype}
        assert model.encode_prompts(["a"], [""]).cond.dtype == dtype
        x0 = call(model, x, sigma)
        assert x0.dtype == torch.float32 and (x0 - exact).abs().max() < 0.1
        assert model.decode(x).dtype == torch.float32


def test_sdxl_vae_keeps_float32_where_it_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(folders["sdxl"], dtype=torch.float16)
    assert (model.vae.dtype, model.unet.dtype) == (torch.float32, torch.float16)
    folder = copy(folders["sdxl"], tmp_path / "fixed")
    edit_json(folder / "vae" / "config.json", force_upcast=False)
    assert load_model(folder, dtype=torch.float16).vae.dtype == torch.float16


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_sdxl_time_ids(loaded: dict[str, LatentModel]) -> None:
    """The size of the call where it is given, else that of x; cropped nowhere."""
    model = loaded["sdxl"]
    told: list[dict[str, torch.Tensor]] = []

    def record(_: Any, args: Any, kwargs: Any) -> None:
        told.append(kwargs["added_cond_kwargs"])

    with model.unet.register_forward_pre_hook(record, with_kwargs=True):
        x, sigma = noise(2, 4, 8, 12), torch.ones(2)
        call(model, x, sigma)
        call(model, x, sigma, size=(1024, 768))
    assert told[0]["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    assert told[1]["time_ids"].tolist() == [[1024, 768, 0, 0, 1024, 768]] * 2
    assert told[0]["text_embeds"].shape == (2, tiny_models.WIDTH)
    with pytest.raises(ValueError, match="pooled: expected"):
        model.denoiser()(x, sigma, context=model.encode_prompts(["a"], [""]).cond)


# ---- prompts -----------------------------------------------------------------------------------


def test_prompts(model: LatentModel) -> None:
    said = model.encode_prompts(["a red house", "x"], ["", "blur"])
    width = model.unet.config.cross_attention_dim
    assert said.cond.shape == said.uncond.shape == (2, tiny_models.TOKENS, width)
    assert (said.pooled_cond is None) == (model.family != "sdxl")
    alone = model.encode_prompts(["x"], ["blur"])
    assert torch.allclose(said.cond[1:], alone.cond, atol=1e-5)
    assert torch.allclose(said.uncond[1:], alone.uncond, atol=1e-5)
    with pytest.raises(ValueError, match="negatives: expected one for each of 2 prompts, got 1"):
        model.encode_prompts(["a", "b"], [""])


def test_sdxl_empty_negative_is_zero(loaded: dict[str, LatentModel]) -> None:
    said = loaded["sdxl"].encode_prompts(["", ""], ["", "blur"])
    assert said.pooled_uncond is not None
    assert said.uncond[0].abs().max() == 0 and said.pooled_uncond[0].abs().max() == 0
    assert said.uncond[1].abs().max() > 0 and said.cond[0].abs().max() > 0


def test_prompts_equal_the_pipelines(folders: dict[str, Path]) -> None:
    """diffusers' own pipelines, with the same parts, make the same embeddings."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    model = load_model(folders["sd2"])
    encoder = model.encoders[0]
    pipe = StableDiffusionPipeline(
        model.vae, encoder.model, encoder.tokenizer, model.unet,
        scheduler, None, None, requires_safety_checker=False,
    )  # fmt: skip
    said = model.encode_prompts(["a red house"], ["blur"])
    theirs = pipe.encode_prompt("a red house", "cpu", 1, True, "blur")
    assert torch.equal(said.cond, theirs[0]) and torch.equal(said.uncond, theirs[1])

    model = load_model(folders["sdxl"])
    one, two = model.encoders
    xl = StableDiffusionXLPipeline(
        model.vae, one.model, two.model, one.tokenizer, two.tokenizer, model.unet,
        scheduler, add_watermarker=False,
    )  # fmt: skip
    said = model.encode_prompts(["a red house"], ["blur"])
    theirs = xl.encode_prompt("a red house", device="cpu", negative_prompt="blur")
    ours = (said.cond, said.uncond, said.pooled_cond, said.pooled_uncond)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_long_prompt_is_cut_with_a_warning(
    model: LatentModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="hires_guidance"):
        tokens = model.encoders[0].tokens(["a b c d e f g h i j k l m n o p q r s t"])
    assert tokens.shape == (1, tiny_models.TOKENS)
    assert tokens[0, -1] == len(tiny_models.VOCABULARY) - 1
    assert "prompt of 22 tokens: the text encoder takes 16" in caplog.text


# ---- latents and images ------------------------------------------------------------------------


def test_decode_and_encode(model: LatentModel) -> None:
    latent, image = noise(2, 4, 6, 8), noise(2, 3, 12, 16).clamp(-1, 1)
    decoded, encoded = model.decode(latent), model.encode(image)
    assert decoded.shape == (2, 3, 12, 16)
    assert encoded.shape == (2, 4, 6, 8)
    # The mode, not a sample: the same whatever the random state, and the mean of the posterior.
    assert torch.equal(encoded, model.encode(image))
    mean = model.vae.encode(image).latent_dist.mean
    assert torch.allclose(encoded, mean * tiny_models.SCALE[model.family])
    raw = model.vae.decode(latent / tiny_models.SCALE[model.family]).sample
    assert torch.allclose(decoded, raw)


def test_shift_mean_and_deviation_of_latents(folders: dict[str, Path], tmp_path: Path) -> None:
    image = noise(1, 3, 16, 16)
    plain = load_model(folders["sd1"]).encode(image)
    folder = copy(folders["sd1"], tmp_path / "shifted")
    edit_json(folder / "vae" / "config.json", shift_factor=0.5)
    shifted = load_model(folder)
    assert torch.allclose(shifted.encode(image), plain - 0.5 * 0.18215, atol=1e-6)
    edit_json(folder / "vae" / "config.json", latents_mean=[0.5] * 4, latents_std=[2.0] * 4)
    wide = load_model(folder)
    assert torch.allclose(wide.encode(image), (plain - 0.5 * 0.18215) / 2, atol=1e-6)
    assert torch.allclose(wide.decode(plain / 2), shifted.decode(plain), atol=1e-5)


def test_zero_snr_schedule_stays_finite(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["sd2"], tmp_path / "zero-snr")
    edit_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    denoiser = load_model(folder).denoiser()
    assert denoiser.sigmas.isfinite().all() and denoiser.sigma_max == pytest.approx(4096, rel=1e-3)


# ---- errors ------------------------------------------------------------------------------------


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert options or path.name.split(".")[0] in message
    return message


def test_refuses_what_is_not_a_model(tmp_path: Path) -> None:
    assert "no such model" in refusal(tmp_path / "missing.safetensors")
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"\x80\x02")
    assert "convert it to .safetensors" in refusal(pickle)
    for content in (b"", b"not a checkpoint at all", b"\xff" * 64):
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(content)
        assert "download or copy it again" in refusal(damaged)
    assert "has no model_index.json" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    assert "damaged, not JSON" in refusal(tmp_path)


def test_refuses_a_device_that_is_not_there(folders: dict[str, Path]) -> None:
    assert "device 'teapot': cannot be used here" in refusal(folders["sd1"], device="teapot")


def test_refuses_truncated_and_foreign_files(
    loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    short = tmp_path / "short.safetensors"
    short.write_bytes(file.read_bytes()[:-100])
    assert "damaged" in refusal(short)

    def without(prefix: str) -> Path:
        state = {k: v for k, v in load_file(file).items() if not k.startswith(prefix)}
        tiny_models.save_file(state, tmp_path / "part.safetensors")
        return tmp_path / "part.safetensors"

    assert "unknown architecture" in refusal(without("model.diffusion_model."))
    assert "has no VAE" in refusal(without("first_stage_model."))
    assert "has no CLIP text encoder" in refusal(without("cond_stage_model."))
    assert "put its part.yaml beside it" in refusal(without("nothing"))


def test_refuses_inpainting(loaded: dict[str, LatentModel], tmp_path: Path) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    state = load_file(file)
    state["model.diffusion_model.input_blocks.0.0.weight"] = noise(32, 9, 3, 3)
    tiny_models.save_file(state, file)
    assert "give a text-to-image model" in refusal(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "not readable as yaml"),
        ("hello", "not an LDM configuration"),
        ("model: {params: {unet_config: {params: {}}}}", "not an LDM configuration"),
    ],
)
def test_refuses_a_wrong_yaml(
    content: str, said: str, loaded: dict[str, LatentModel], tmp_path: Path
) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    file.with_suffix(".yaml").write_text(content)
    assert said in refusal(file)


def test_refuses_a_yaml_that_does_not_fit(loaded: dict[str, LatentModel], tmp_path: Path) -> None:
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    edit_yaml(file, parameterization="x0")
    assert "parameterization: expected eps or v, got 'x0'" in refusal(file)
    edit_yaml(file, parameterization="eps", beta_schedule="cosine")
    assert "beta_schedule: expected linear, got 'cosine'" in refusal(file)
    unet = tiny_models.ldm_config(loaded["sd1"], "tiny-clip")["model"]["params"]["unet_config"]
    unet["params"]["channel_mult"] = [1, 4]
    edit_yaml(file, beta_schedule="linear", unet_config=unet)
    assert "the U-Net does not fit its configuration" in refusal(file)
    del unet["params"]["channel_mult"], unet["params"]["num_heads"]
    edit_yaml(file, unet_config=unet)
    assert "lacks channel_mult, num_heads;" in refusal(file)


def test_tokenizer_is_looked_for(
    loaded: dict[str, LatentModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the file, as written, in the hub's cache; else one sentence, and no download."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "e"))
    file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
    away = Path(shutil.move(tmp_path / "tiny-clip", tmp_path / "elsewhere"))
    said = refusal(file)
    assert "put a folder tiny-clip with vocab.json and merges.txt beside the file" in said

    edit_yaml(file, cond_stage_config={"params": {"version": str(away)}})
    assert load_model(file).encoders[0].length == tiny_models.TOKENS
    (away / "config.json").unlink()  # then the text encoder's shape is read off its weights
    assert load_model(file).encoders[0].model.config.num_hidden_layers == 2
    (away / "merges.txt").unlink()
    with pytest.raises(ModelError, match="elsewhere: the tokenizer has no"):
        load_model(file)


def test_refuses_incomplete_and_foreign_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["sd1"], tmp_path / "model")
    index = (folder / "model_index.json").read_text()
    edit_json(folder / "model_index.json", unet=["diffusers", "SD3Transformer2DModel"])
    assert "give an SD1, SD2 or SDXL text-to-image model" in refusal(folder)
    (folder / "model_index.json").write_text(index)

    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "give a model that predicts epsilon or v" in refusal(folder)
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    assert "unet: could not be read" in refusal(folder)
    weights.rename(weights.with_suffix(".bin"))
    assert "has no .safetensors weights" in refusal(folder)
    weights.with_suffix(".fp16.safetensors").write_bytes(whole)
    assert load_model(folder).unet.dtype == torch.float32

    (folder / "tokenizer" / "merges.txt").unlink()
    assert "the tokenizer has no merges.txt; copy it there" in refusal(folder)
