"""Attention that reads other frames by itself, against hooks that move keys and values."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.layers.attention import Attention

from zeroi2v import VideoClassifier, create_model
from zeroi2v.measure.cost import plain_tower
from zeroi2v.measure.count import count_kernels
from zeroi2v.measure.pretended import pretended
from zeroi2v.models import exchange
from zeroi2v.models.exchange import FrameAttention

pytest.importorskip("triton")

SMALL = {"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 4, "patch_size": 16}


def small_model(**settings: object) -> VideoClassifier:
    """A small model with random weights, in eval mode, whose temporal embedding is not zero."""
    torch.manual_seed(0)
    options = {"heads": [-1, 1], "frames": 4, "tower_options": SMALL, **settings}
    tower = options.pop("tower", "vit_base_patch16_224")
    model = create_model(str(tower), num_classes=5, **options)  # type: ignore[arg-type]
    torch.nn.init.normal_(model.temporal_embedding)
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def clip_of(model: VideoClassifier, count: int = 2) -> torch.Tensor:
    """Random clips for a model."""
    size = model.image_size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, model.frames, 3, size, size, generator=generator)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each call of the attention kernel."""
    from zeroi2v.method.kernels import attention

    rows, attend = [], attention.attend

    def spy(q: torch.Tensor, *arguments: object, **settings: object) -> torch.Tensor:
        rows.append(len(q))
        return attend(q, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "attend", spy)
    return rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel is compiled in this process")
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("tower", ["vit_base_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_the_kernel_gives_what_moved_keys_and_values_give(
    merged: bool, tower: str, attended: list[int]
) -> None:
    options = {**SMALL, "img_size": 28, "patch_size": 14} if "dinov2" in tower else SMALL
    model = small_model(tower=tower, tower_options=options)
    model = model.merge() if merged else model
    with torch.no_grad():
        moved = model(clip_of(model))
        model.attention_reads = True
        assert torch.allclose(model(clip_of(model)), moved, atol=1e-5, rtol=1e-5)
    assert attended == [8, 8]  # two clips of four frames, in two blocks


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel is compiled in this process")
def test_a_tower_that_cuts_a_frame_into_several_rows_keeps_the_hooks(attended: list[int]) -> None:
    model = create_model(
        "mobilevit_xxs", num_classes=5, frames=4, heads=[-1, 1], tower_options={"img_size": 64}
    ).eval()
    clips = torch.randn(1, 4, 3, 64, 64)
    with torch.no_grad():
        moved: torch.Tensor = model(clips)
        model.attention_reads = True
        assert torch.equal(model(clips), moved)
    assert attended == []


def test_the_offsets_come_back_where_no_storage_kept_them() -> None:
    model = small_model()
    emptied = pickle.loads(pickle.dumps(model)).to("meta").to_empty(device="cpu")
    exchanged = [m for m in emptied.tower.modules() if isinstance(m, FrameAttention)]
    assert len(exchanged) == 2
    for module in exchanged:
        assert module.offsets.tolist() == [-1, 1, 0, 0]


def test_a_copy_or_a_pickle_chooses_its_form_anew() -> None:
    model = small_model()
    model.attention_reads = True  # as on a GPU
    assert not pickle.loads(pickle.dumps(model)).attention_reads
    assert not copy.deepcopy(model).attention_reads


def test_an_exported_graph_holds_no_kernel() -> None:
    model = small_model().merge()
    model.attention_reads = True
    with torch.no_grad():
        program = torch.export.export(model, (clip_of(model),))
    assert not any("zeroi2v" in str(node.target) for node in program.graph.nodes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel is compiled in this process")
def test_normalised_queries_and_keys_are_read_from_other_frames_too() -> None:
    model = small_model(tower_options={**SMALL, "qk_norm": True})
    for name, parameter in model.tower.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        moved = model(clip_of(model))
        model.attention_reads = True
        assert torch.allclose(model(clip_of(model)), moved, atol=1e-5, rtol=1e-5)


def test_a_gradient_takes_the_form_that_has_one() -> None:
    model = small_model()
    with torch.no_grad():
        expected = model(clip_of(model))
    model.attention_reads = True
    logits = model(clip_of(model))
    assert torch.equal(logits, expected)
    logits.sum().backward()
    assert any(parameter.grad is not None for parameter in model.adapters.parameters())


def test_split_heads_queries_shifts_and_spatial_blocks_keep_the_hook() -> None:
    hooked = (
        small_model(heads="-1*1/2, 1*1/2"),
        small_model(operator="hr_qkv"),
        small_model(operator="hr_v"),
        small_model(operator="shift_kv", heads=None, ratio=0.25),
        small_model(heads=[]),
    )
    for model in hooked:
        kinds = {type(module) for module in model.tower.modules()}
        assert Attention in kinds
        assert FrameAttention not in kinds


def test_outside_of_a_call_an_exchanged_attention_is_the_attention_of_timm() -> None:
    model = small_model()
    plain = small_model(heads=[])
    plain.tower.load_state_dict(model.tower.state_dict())
    pictures = clip_of(model)[0]
    with torch.no_grad():
        model.attention_reads = True
        assert torch.equal(model.tower(pictures), plain.tower(pictures))


def test_on_a_cpu_keys_and_values_are_moved() -> None:
    model = small_model().double().float()
    assert not model.attention_reads


def features_matter(model: VideoClassifier) -> VideoClassifier:
    """The model with large attention weights, so that every offset changes the features a lot."""
    torch.manual_seed(5)
    for name, parameter in model.tower.named_parameters():
        if name.endswith(("qkv.weight", "proj.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_other_offsets_give_other_features() -> None:
    """Otherwise the test on a GPU, with its tolerances, would prove nothing."""
    right, wrong = (
        features_matter(small_model(heads=heads)).merge() for heads in ([-1, 1], [1, -1])
    )
    expected = right.features(clip_of(right))
    assert (wrong.features(clip_of(right)) - expected).abs().max() > 0.5 * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("merged", [False, True])
@torch.no_grad()
def test_on_a_gpu_both_forms_agree(merged: bool, dtype: torch.dtype) -> None:
    model = features_matter(small_model())
    model = model.merge() if merged else model
    expected = copy.deepcopy(model).double().features(clip_of(model).double())
    model.to("cuda", dtype)
    assert model.attention_reads
    clips = clip_of(model).to("cuda", dtype)
    reads = model.features(clips).cpu().double()
    model.attention_reads = False
    moved = model.features(clips).cpu().double()
    scale = expected.abs().max()
    rounding = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.2}[dtype]
    assert (reads - expected).abs().max() <= rounding * scale
    assert (moved - expected).abs().max() <= rounding * scale


@pytest.mark.gpu
def test_a_kernel_that_fails_or_differs_is_left_out_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from zeroi2v.method.kernels import attention

    for attend in (lambda q, *_, **__: q + 1, lambda *_, **__: 1 / 0):
        exchange._agrees.cache_clear()
        monkeypatch.setattr(attention, "attend", attend)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = small_model().cuda()
            small_model().cuda()
        assert not model.attention_reads
        assert len(caplog.records) == 1
    exchange._agrees.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_captured_model_gives_what_the_model_gives(dtype: str) -> None:
    model = small_model().merge().cuda()
    call = model.compiled(batch=6, dtype=dtype)
    cast = small_model().merge().to("cuda", torch.float32 if dtype == "fp32" else torch.bfloat16)
    clips = clip_of(model, 9).cuda()
    with torch.no_grad():
        for count in (1, 2, 3, 5, 6, 9):
            expected = cast(clips[:count].to(cast.classifier.weight.dtype))
            atol = 2e-2 if dtype == "bf16" else 1e-4
            assert torch.allclose(call(clips[:count]), expected, atol=atol)
    first = call(clips[:1])
    kept = first.clone()
    call(clips[1:2])
    assert torch.equal(first, kept)  # the result is a copy


@pytest.mark.gpu
def test_threads_share_a_captured_model() -> None:
    call = small_model().merge().cuda().compiled(batch=4, dtype="fp32")
    clips = clip_of(small_model(), 4).cuda()
    expected = [call(clips[: count + 1]).cpu() for count in range(4)]

    def work(number: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            count = number % 4
            return torch.equal(call(clips[: count + 1]).cpu(), expected[count])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_torch_compile_takes_the_kernel_without_a_graph_break() -> None:
    model = small_model().merge().cuda()
    clips = clip_of(model).cuda()
    with torch.no_grad():
        expected = model(clips)
        result = torch.compile(model, fullgraph=True)(clips)
    assert model.attention_reads
    assert torch.allclose(result, expected, atol=1e-4)


def test_attention_that_reads_other_frames_adds_no_kernel_and_no_byte() -> None:
    """Beside the plain tower: the temporal embedding, the mean over frames and the classifier."""
    model = small_model().merge().bfloat16()
    with pretended(model, "cuda") as merged, torch.no_grad():
        assert merged.attention_reads
        clips = torch.empty(3, 4, 3, 32, 32, device="cuda", dtype=torch.bfloat16)
        count = count_kernels(lambda: merged(clips))
    with pretended(plain_tower(model), "cuda") as tower, torch.no_grad():
        pictures = torch.empty(12, 3, 32, 32, device="cuda", dtype=torch.bfloat16)
        plain = count_kernels(lambda: tower(pictures))
    assert len(count.kernels) == len(plain.kernels) + 3
    read = [kernel for kernel in count.kernels if kernel.name == "zeroi2v.attend"]
    attended = [kernel for kernel in plain.kernels if "attention" in kernel.name]
    heads = 4
    assert [kernel.moved for kernel in read] == [kernel.moved + 4 * heads for kernel in attended]
    assert [kernel.macs for kernel in read] == [kernel.macs for kernel in attended]
