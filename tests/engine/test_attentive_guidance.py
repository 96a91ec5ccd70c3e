import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_hires.attentive_guidance import gamma_at, mix_into_state_, pfsa
from lib_hires.settings import AttentiveGuidance


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def explicit(z, temperature):
    """Eq. 1 with the whole matrix of similarities, float64."""
    b, c, h, w = z.shape
    out = torch.empty(b, c, h, w, dtype=torch.float64)
    for image in range(b):
        positions = z[image].double().reshape(c, h * w).T
        weights = torch.softmax(positions @ positions.T / temperature, dim=1)
        out[image] = (weights @ positions).T.reshape(c, h, w)
    return out.float()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*(st.integers(1, top) for top in (3, 17, 9, 9))),
    st.sampled_from([0, 0.3, 1, 2.5, 40]),
    st.sampled_from([0.1, 1, 14]),
)
def test_pfsa_is_the_explicit_softmax(shape, temperature, deviation):
    z = deviation * noise(*shape)
    expected = explicit(z, temperature or math.sqrt(shape[1]))
    torch.testing.assert_close(pfsa(z, temperature), expected, atol=1e-4 * deviation, rtol=1e-4)


def test_pfsa_calls_attention_as_torch_2_0_allows(monkeypatch):
    attention, queried = torch.nn.functional.scaled_dot_product_attention, []

    def of_2_0(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
        queried.append(query.shape)
        return attention(query, key, value, attn_mask, dropout_p, is_causal)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", of_2_0)
    torch.testing.assert_close(pfsa(noise(1, 4, 6, 5)), explicit(noise(1, 4, 6, 5), 2))
    assert queried


def test_pfsa_of_one_position_and_of_a_constant_is_itself():
    torch.testing.assert_close(pfsa(noise(2, 4, 1, 1)), noise(2, 4, 1, 1))
    flat = torch.full((1, 4, 6, 5), 0.3)
    torch.testing.assert_close(pfsa(flat), flat)


def test_pfsa_commutes_with_moving_the_positions():
    z = noise(1, 4, 6, 8)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    moved = z.flatten(2)[..., order].reshape(z.shape)
    expected = pfsa(z).flatten(2)[..., order].reshape(z.shape)
    torch.testing.assert_close(pfsa(moved), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = noise(2, 4, 8, 6).to(dtype)
    got = pfsa(z)
    assert got.dtype == dtype
    assert torch.equal(got, pfsa(z.float()).to(dtype))


@pytest.mark.parametrize("total", [1, 4, 20, 50])
@pytest.mark.parametrize("eta1", [0, 0.06, 0.5, 1])
@pytest.mark.parametrize("beta", [0, 1, 3])
def test_gamma_is_eq_3(total, eta1, beta):
    chosen = AttentiveGuidance(gamma=0.004, beta=beta, eta1=eta1)
    k = round(eta1 * total)
    for t in range(1, total + 1):
        expected = 0.0
        if t <= total - k and total > k:
            wave = (math.cos((total - k - t) / (total - k) * math.pi) + 1) / 2
            expected = 0.004 * wave**beta
        done = total - t + 1
        assert gamma_at(done, total, chosen) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_gamma_falls_from_gamma_to_next_to_nothing_after_the_delay():
    table = [gamma_at(done, 50, AttentiveGuidance()) for done in range(1, 51)]
    assert table[:3] == [0, 0, 0] and table[3] == 0.004  # k = 3: three steps are left alone
    assert table[3:] == sorted(table[3:], reverse=True) and 0 < table[-1] < 1e-9
    assert gamma_at(51, 50, AttentiveGuidance()) == 0  # a host's second evaluation of the last step


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("space", ["VE", "VP"])
def test_gamma_0_touches_nothing(space, dtype):
    state = noise(2, 4, 6, 5).to(dtype)
    kept, pointer, version = state.clone(), state.data_ptr(), state._version
    mix_into_state_(state, 0.0, AttentiveGuidance(space=space), 3.0)
    assert torch.equal(state, kept)
    assert (state.data_ptr(), state._version) == (pointer, version)


@pytest.mark.parametrize("sigma", [0.1, 1, 14.6])
def test_mixing_is_eq_2_in_place(sigma):
    state = sigma * noise(2, 4, 6, 5)
    kept, pointer = state.clone(), state.data_ptr()
    mix_into_state_(state, 0.3, AttentiveGuidance(), sigma)
    assert state.data_ptr() == pointer
    expected = 0.3 * explicit(kept, 2) + 0.7 * kept
    torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 1, 14.6])
def test_vp_space_mixes_the_state_of_a_timestep_sampler(sigma):
    """z_vp = z/sqrt(1 + sigma²) is mixed and brought back."""
    state = sigma * noise(2, 4, 6, 5)
    a = 1 / math.sqrt(1 + sigma**2)
    vp = a * state
    expected = (0.3 * explicit(vp, 1.7) + 0.7 * vp) / a
    mix_into_state_(state, 0.3, AttentiveGuidance(space="VP", lambda_=1.7), sigma)
    torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("space", ["VE", "VP"])
def test_sigma_may_be_a_tensor(space):
    given, read = noise(2, 4, 6, 5), noise(2, 4, 6, 5)
    mix_into_state_(given, 0.3, AttentiveGuidance(space=space), torch.tensor([1.7]))
    mix_into_state_(read, 0.3, AttentiveGuidance(space=space), 1.7)
    torch.testing.assert_close(given, read)


def test_a_half_precision_state_stays_one():
    state = noise(1, 4, 6, 5).half()
    expected = 0.3 * pfsa(state.float()) + 0.7 * state.float()
    mix_into_state_(state, 0.3, AttentiveGuidance(), 1.0)
    assert torch.equal(state, expected.half())


def test_a_strided_state_is_mixed_where_it_lies():
    whole = noise(2, 4, 6, 10)
    part, expected = whole[..., ::2], noise(2, 4, 6, 10)[..., ::2].contiguous()
    mix_into_state_(part, 0.3, AttentiveGuidance(), 1.0)
    mix_into_state_(expected, 0.3, AttentiveGuidance(), 1.0)
    torch.testing.assert_close(whole[..., ::2], expected)
    assert torch.equal(whole[..., 1::2], noise(2, 4, 6, 10)[..., 1::2])


def test_images_of_a_batch_do_not_see_each_other():
    z = noise(3, 4, 6, 5)
    for image in range(3):
        torch.testing.assert_close(pfsa(z)[image], pfsa(z[image : image + 1])[0])


def test_memory_is_linear_in_the_positions():
    """All that a mix at 128x128x4 allocates, freed or not, against the N x N matrix."""
    from torch.profiler import ProfilerActivity, profile

    state = noise(1, 4, 128, 128)
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as measured:
        mix_into_state_(state, 0.004, AttentiveGuidance(), 1.0)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in measured.events())
    explicit_form = 4 * (128 * 128) ** 2
    assert state.nbytes < allocated < 0.05 * explicit_form


def test_a_host_s_autocast_does_not_lower_the_precision():
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = pfsa(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pfsa(z), plain)
