import torch
from comfy.conds import CONDNoiseShape, CONDRegular
from comfy.model_base import SDXL

from lib_hires.comfy.conditioning import Controls, scaled, scaled_conditioning, shrunk_conds
from lib_hires.resample import area_means


def test_areas_and_sizes_follow_the_image():
    cond = {"area": (8, 4, 8, 12), "width": 512, "crop_h": 64, "target_height": 1024, "strength": 2}
    made = scaled(cond, (8, 8), (16, 16))
    assert made["area"] == (4, 2, 4, 6)
    assert (made["width"], made["crop_h"], made["target_height"]) == (256, 32, 512)
    assert made["strength"] == 2
    assert cond["width"] == 512


def test_a_small_area_stays_inside_and_is_not_empty():
    assert scaled({"area": (1, 1, 15, 15)}, (4, 4), (16, 16))["area"] == (1, 1, 3, 3)


def test_shares_of_the_image_need_no_scaling():
    area = ("percentage", 0.5, 0.5, 0.0, 0.25)
    assert scaled({"area": area}, (4, 4), (16, 16))["area"] == area


def test_a_nodes_conditioning_keeps_its_text():
    text = torch.ones(1, 2, 3)
    ((features, cond),) = scaled_conditioning([[text, {"height": 64}]], (2, 2), (1, 1))
    assert features is text and cond == {"height": 128}


def test_masks_and_what_lies_beside_the_latent_shrink_by_area():
    mask, beside = torch.rand(1, 8, 8), torch.rand(1, 5, 8, 8)
    other = CONDRegular(torch.rand(1, 77, 8))
    cond = {"mask": mask, "model_conds": {"c_concat": CONDNoiseShape(beside), "c": other}}
    positive, negative = shrunk_conds([[cond], None], (4, 4), (8, 8), None, Controls())
    assert negative is None
    torch.testing.assert_close(positive[0]["mask"], area_means(mask, (4, 4)))
    parts = positive[0]["model_conds"]
    made = parts["c_concat"].cond
    assert torch.equal(made[:, :1], beside[:, :1, 1::2, 1::2])  # an inpainting mask stays hard
    torch.testing.assert_close(made[:, 1:], area_means(beside[:, 1:], (4, 4)))
    assert parts["c"] is other
    assert cond["model_conds"]["c_concat"].cond is beside


def test_sdxl_receives_the_users_sizes_in_proportion():
    model = SDXL(None, None)
    vector = CONDRegular(torch.zeros(1, 4))
    cond = {"width": 2048, "height": 1024, "crop_w": 128, "model_conds": {"y": vector}}
    (((made,),)) = shrunk_conds([[cond]], (8, 8), (16, 16), model, Controls())
    assert made["model_conds"]["y"].cond.tolist() == [[512, 1024, 0, 64]]


class Control:
    """As the host's: it keeps the hint that it has fitted to the latent's size."""

    def __init__(self, weights, previous=None):
        self.weights, self.previous_controlnet, self.hint = weights, previous, None


def test_a_control_has_a_hint_for_either_size_and_its_weights_once():
    weights = torch.ones(3)
    chained = Control(weights)
    control, controls = Control(weights, chained), Controls()
    cond = {"control": control, "model_conds": {}}
    (positive, negative) = shrunk_conds([[cond], [cond]], (4, 4), (8, 8), None, controls)
    made = positive[0]["control"]
    assert made is negative[0]["control"], "the host evaluates both branches in one call"
    made.hint, made.previous_controlnet.hint = "small", "small"
    assert control.hint is None and chained.hint is None
    assert made.weights is weights
    again = shrunk_conds([[cond]], (4, 4), (8, 8), None, controls)
    assert again[0][0]["control"] is made
