"""Feature upsampler: the small image's U-Net features carried into the large one (Self-Cascade).

    h_n(t, stage r) <- h_n(t, stage r) + phi_n(h_n(0, stage r-1), t)        n = 1..4 skip features
    phi_n(h, t) = sum_j v_nj(t)·psi_nj(h),     psi_n(h) = rms·conv(silu(conv(bilinear(h)/rms)))

The convolutions see one channel at a time, so one phi_n serves all channels of all models of a
family: 480 weights each. rms is that of the image's feature, so that a feature twice as large gives
twice the addition. The slides do not specify the block. In this one t only mixes the four maps
psi_nj, which are the same in every step: a stage computes them once, and a step costs one small
product. v_n starts at zero, and with it phi_n.

The h_n(0, stage r-1) come from one pass of the U-Net over the small image's clean latent at
t = 0 (`captured`); inside `Upsampled` they are added in every call at the large size. Both are
scopes of forward pre-hooks: nothing outlives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_hires.sizes import Size

FEATURES = 4  # N
HELD = 1 << 26  # numbers between the two convolutions, 128 MiB in half precision
LAYERS = 64  # more skip features than any U-Net has
MIXED = 4  # maps psi_nj that v_n(t) mixes
TIME = 8  # cosines of t, and the width of the layer behind them
KIND = "hires-guidance feature upsampler"
SCALE_TOLERANCE = 1.25  # between a stage's ratio of sides and the one trained for


class UpsamplerError(ValueError):
    """A feature upsampler that cannot be used. The message is for the user, on one line."""


# --- what it is -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class UpsamplerInfo:
    """What a feature upsampler was made for; the metadata of its file."""

    family: str  # sd1, sd2 or sdxl
    base: str  # the name of the model that it was trained on ...
    base_hash: str  # ... and the SHA-256 of that model's weights
    layers: tuple[int, ...]  # which skip features, in the decoder's order, the coarsest is 0
    channels: tuple[int, ...]  # of these features
    pivot: int = 700  # K, the largest training timestep (of 1000) seen in training
    scale: float = 2.0  # the large image's sides over the small one's
    width: int = 8  # channels between the two convolutions
    steps: int = 0  # trained
    version: str = ""  # of this software

    def __post_init__(self) -> None:
        rising = list(self.layers) == sorted(set(self.layers))
        if not self.layers or not rising or min(self.layers) < 0 or max(self.layers) >= LAYERS:
            raise UpsamplerError(f"layers: expected rising whole numbers, got {self.layers}")
        if len(self.channels) != len(self.layers):
            raise UpsamplerError(f"channels: expected {len(self.layers)}, got {self.channels}")
        if not 1 <= self.pivot <= 999 or not 1 <= self.width <= 256 or not 1 < self.scale <= 16:
            raise UpsamplerError(
                "expected K from 1 to 999, a width from 1 to 256 and a scale above 1 up to 16, "
                f"got {self.pivot}, {self.width} and {self.scale:g}"
            )

    def metadata(self) -> dict[str, str]:
        """Plain text for a file's header, as `from_metadata` reads it."""
        texts = {
            name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in asdict(self).items()
        }
        return {"kind": KIND, **texts}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> UpsamplerInfo:
        """Raises UpsamplerError for the metadata of something else, or damaged ones."""
        if metadata.get("kind") != KIND:
            raise UpsamplerError("is not a feature upsampler; choose one of hires train-upsampler")
        kinds = get_type_hints(cls)
        try:
            values = {
                field.name: _read(metadata[field.name], kinds[field.name]) for field in fields(cls)
            }
        except (KeyError, ValueError) as error:
            raise UpsamplerError(f"has damaged metadata ({error}); copy it again") from None
        return cls(**values)

    def fits(self, before: Size, after: Size) -> bool:
        """Whether a stage from one size (height, width) to another is near the trained scale."""
        ratio = math.sqrt(math.prod(after) / math.prod(before)) / self.scale
        return 1 / SCALE_TOLERANCE <= ratio <= SCALE_TOLERANCE

    def check(self, family: str, unet: Any) -> None:
        """Raises UpsamplerError where it was trained for models of another kind than this one."""
        skips = layout_of(unet).skips
        there = tuple(skips[layer].channels for layer in self.layers if layer < len(skips))
        if (family, there) != (self.family, self.channels):
            raise UpsamplerError(
                f"was trained on {self.base} ({self.family}, features of {_listed(self.channels)} "
                f"channels); this model differs ({family}, {_listed(there)})"
            )


def _read(text: str, kind: type) -> Any:
    """A field of UpsamplerInfo, whose tuples are of whole numbers. Raises ValueError."""
    if get_origin(kind) is tuple:
        return tuple(int(part) for part in text.split(","))
    return kind(text)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "no"


class Phi(nn.Module):
    """phi_n: from one skip feature of the small image to the addition to the large one's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Conv2d(1, width, 3, padding=1)
        self.pictures = nn.Conv2d(width, MIXED, 3, padding=1)  # the name stands in weights files
        self.time = nn.Linear(TIME, TIME)
        self.mix = nn.Linear(TIME, MIXED)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def psi(self, h: Tensor, size: Size) -> Tensor:
        """The maps that t mixes, (b, MIXED, c·H·W), for h (b, c, h, w) and size (H, W)."""
        b, c = h.shape[:2]
        rms = h.float().square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6).to(h.dtype)
        large = F.interpolate(h / rms, size=size, mode="bilinear", align_corners=False)
        some = max(1, HELD // (self.into.out_channels * math.prod(size)))  # channels at once
        one_by_one = large.reshape(b * c, 1, *size)
        parts = one_by_one.split(some)  # type: ignore[no-untyped-call]
        maps = torch.cat([self.pictures(F.silu(self.into(part))) for part in parts])
        by_image = maps.reshape(b, c, MIXED, -1).transpose(1, 2)
        return by_image.flatten(2) * rms.view(b, 1, 1)

    def mixed(self, psi: Tensor, t: Tensor) -> Tensor:
        """sum_j v_j(t)·psi_j: (b, c·H·W) for psi (b, MIXED, c·H·W)."""
        waves = torch.arange(1, TIME + 1, device=t.device) * (math.pi / 1000)
        v = self.mix(F.silu(self.time(torch.cos(waves * t[:, None]).to(self.time.weight.dtype))))
        return torch.bmm(v[:, None].to(psi.dtype), psi)[:, 0]


class FeatureUpsampler(nn.Module):
    """All phi_n. Its device and dtype must be those of the U-Net's features, or autocast be on."""

    def __init__(self, info: UpsamplerInfo) -> None:
        super().__init__()
        self.info = info
        self.phi = nn.ModuleList(Phi(info.width) for _ in info.layers)
        # Four times faster on a CPU. Stubs of an older torch lack the argument.
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self.to(**layout)

    @classmethod
    def from_tensors(cls, info: UpsamplerInfo, tensors: Mapping[str, Tensor]) -> FeatureUpsampler:
        """Raises UpsamplerError for missing, extra, misshapen or infinite weights."""
        upsampler = cls(info)
        wanted = upsampler.state_dict()
        for name in sorted(wanted.keys() ^ tensors.keys()):
            which = "lacks the weight" if name in wanted else "has a weight too many,"
            raise UpsamplerError(f"{which} {name}; train it again or copy it again")
        for name, value in wanted.items():
            if tensors[name].shape != value.shape or not torch.isfinite(tensors[name]).all():
                raise UpsamplerError(f"has a damaged weight {name}; copy it again")
        upsampler.load_state_dict(dict(tensors))
        return upsampler.requires_grad_(False)

    def part(self, n: int) -> Phi:
        """phi_n, n counting from 0."""
        phi = self.phi[n]
        assert isinstance(phi, Phi)
        return phi


# --- where it acts --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Skip:
    """A skip feature, at the block that takes it: the last `channels` channels of its input."""

    block: nn.Module
    channels: int


@dataclass(frozen=True, eq=False)
class UNetLayout:
    """A U-Net's argument names and its skip features."""

    sample: str
    timestep: str
    skips: tuple[Skip, ...]  # in the decoder's order, the coarsest first

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """x (b, c, h, w) and t (b,) of a call of the U-Net."""
        x = args[0] if args else kwargs[self.sample]
        t = args[1] if len(args) > 1 else kwargs[self.timestep]
        return x, torch.as_tensor(t, device=x.device).expand(x.shape[0])


def layout_of(unet: Any) -> UNetLayout:
    """The adapter for diffusers' UNet2DConditionModel and LDM's UNetModel.

    Raises UpsamplerError for any other.
    """
    if hasattr(unet, "up_blocks") and hasattr(unet, "mid_block"):
        blocks = [block for level in unet.up_blocks for block in level.resnets]
        middle = unet.mid_block.resnets[-1].out_channels
        inputs = [block.in_channels for block in blocks]
        return UNetLayout("sample", "timestep", _skips(blocks, inputs, middle))
    if hasattr(unet, "output_blocks") and hasattr(unet, "middle_block"):
        blocks = [level[0] for level in unet.output_blocks]
        middle = unet.middle_block[-1].out_channels
        inputs = [block.channels for block in blocks]
        return UNetLayout("x", "timesteps", _skips(blocks, inputs, middle))
    raise UpsamplerError(f"a {type(unet).__name__} is not a U-Net that feature upsamplers support")


def _skips(blocks: Sequence[Any], inputs: Sequence[int], middle: int) -> tuple[Skip, ...]:
    """The channels of each block's input behind the outputs of the block before it."""
    before = [middle, *(block.out_channels for block in blocks)]
    triples = zip(blocks, inputs, before, strict=False)
    return tuple(Skip(block, channels - own) for block, channels, own in triples)


def default_layers(unet: Any) -> tuple[int, ...]:
    """Four skip features spread evenly; in SD1 and SD2 the outermost of each of four levels."""
    count = len(layout_of(unet).skips)
    if count < FEATURES:
        raise UpsamplerError(f"expected a U-Net of at least {FEATURES} skip features, got {count}")
    return tuple(count * n // FEATURES - 1 for n in range(1, FEATURES + 1))


@contextmanager
def captured(unet: Any, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """A list that a call of the U-Net inside the scope fills with its skip features of `layers`.

    Each is (b, c_n, h_n, w_n), in the order of the layers, which must rise.
    """
    skips = layout_of(unet).skips
    features: list[Tensor] = []

    def keep(channels: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        features.append(args[0][:, -channels:].detach().clone())

    with ExitStack() as scope:
        for layer in layers:
            hook = partial(keep, skips[layer].channels)
            scope.enter_context(skips[layer].block.register_forward_pre_hook(hook))
        yield features


class Upsampled:
    """A scope that adds phi_n(features_n, t) in every call of the U-Net at one latent size.

    Calls of any other size, such as native evaluations, pass unchanged. Timesteps above K count as
    K. It may be entered again; the maps psi_n are then there already.
    """

    def __init__(
        self, unet: Any, upsampler: FeatureUpsampler, features: Sequence[Tensor], size: Size
    ) -> None:
        """features: as `captured` gave them, their rows those of the calls inside."""
        self._unet, self._layout = unet, layout_of(unet)
        self._upsampler = upsampler
        self._features = features
        self._size = tuple(size)
        self._psi: dict[int, Tensor] = {}
        self._t: Tensor | None = None  # of the U-Net's current call; None adds nothing
        self._scope = ExitStack()

    def __enter__(self) -> None:
        self._scope.enter_context(
            self._unet.register_forward_pre_hook(self._begin, with_kwargs=True)
        )
        for n, layer in enumerate(self._upsampler.info.layers):
            block = self._layout.skips[layer].block
            self._scope.enter_context(block.register_forward_pre_hook(partial(self._add, n)))

    def __exit__(self, *_: object) -> None:
        self._scope.close()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, t = self._layout.call(args, kwargs)
        self._t = t if tuple(x.shape[-2:]) == self._size else None

    def _add(self, n: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A decoder block's arguments with phi_n added to the skip channels of the first.

        Raises ValueError in a call with another number of rows than the features have.
        """
        if self._t is None:
            return None
        x, feature = args[0], self._features[n]
        if x.shape[0] != feature.shape[0]:
            raise ValueError(f"features of {feature.shape[0]} rows in a call of {x.shape[0]}")
        phi = self._upsampler.part(n)
        t = self._t.clamp(max=self._upsampler.info.pivot)
        addition = phi.mixed(self._psi_of(n, (x.shape[-2], x.shape[-1])), t)
        changed = x.clone()
        changed[:, -feature.shape[1] :] += addition.view(-1, feature.shape[1], *x.shape[-2:])
        return (changed, *args[1:])

    def _psi_of(self, n: int, size: Size) -> Tensor:
        """psi_n, kept from call to call, but not in training, where each call has its own graph."""
        if torch.is_grad_enabled():
            return self._upsampler.part(n).psi(self._features[n], size)
        if n not in self._psi:
            self._psi[n] = self._upsampler.part(n).psi(self._features[n], size)
        return self._psi[n]
