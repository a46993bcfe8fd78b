"""Modules on a GPU: nothing waits; graphs, threads and streams take them."""

import threading

import numpy as np
import pytest
import torch
from layout_examples import EXAMPLES

from survey_code import FrozenEmbedding, FrozenEmbeddingBag
from survey_code.kernels.cuda import load_cupy

try:
    load_cupy()
except RuntimeError:
    pytest.skip("no GPU, or no CuPy", allow_module_level=True)

OFFSETS = [0, 0, 5, 5, 6, 40, 60]

# Of torch's own compilers and exporters, on what they do not do better yet.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(params=EXAMPLES)
def modules(request):
    """A look-up and a bag on the GPU, and their layout on the processor."""
    host = EXAMPLES[request.param]()
    device = host.to_gpu()
    return host, FrozenEmbedding(device), FrozenEmbeddingBag(device)


def draw(host, seed=1):
    ids = np.random.default_rng(seed).integers(host.num_embeddings, size=60)
    return ids, torch.tensor(ids, device="cuda")


def close(found, wanted):
    size = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(
        found.cpu().numpy() / size, wanted / size, rtol=1e-4, atol=1e-5
    )


def test_calls_wait_for_nothing_and_are_recorded_into_graphs(modules):
    host, rows, bags = modules
    ids, given = draw(host)
    offsets = torch.tensor(OFFSETS, device="cuda")
    wide = torch.tensor([*OFFSETS, 60], device="cuda")
    ending = FrozenEmbeddingBag(
        rows.layout, "mean", include_last_offset=True, padding_idx=int(ids[0])
    )
    largest = FrozenEmbeddingBag(rows.layout, "max", padding_idx=int(ids[0]))

    def work():
        return (
            rows(given), bags(given, offsets), ending(given, wide),
            largest(given, offsets),
        )  # fmt: skip

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()  # compiled, and what is kept is made
        if rows.layout.device is not None:
            expect_no_wait(work)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    if rows.layout.device is None:
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            with torch.cuda.graph(graph):
                work()
        return
    with torch.cuda.graph(graph):
        found = work()
    for seed in (2, 3):
        ids, again = draw(host, seed)
        ids[0] = int(ending.padding_idx)
        again[0] = int(ids[0])
        given.copy_(again)
        graph.replay()
        torch.cuda.synchronize()
        close(found[0], host.lookup(ids))
        close(found[1], host.bag(ids, OFFSETS))
        how = {"padding_idx": int(ids[0])}
        close(found[2], host.bag(ids, OFFSETS, mode="mean", **how))
        close(found[3], host.bag(ids, OFFSETS, mode="max", **how))


def expect_no_wait(work):
    """Fail where a call waits for the GPU."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_bad_id_in_a_graph_is_raised_by_the_next_call(modules):
    host, rows, _ = modules
    if rows.layout.device is None:
        pytest.skip("no kernel reads it, so that it cannot be recorded")
    _, given = draw(host)
    rows(given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows(given)
    given[3] = -1
    graph.replay()
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match="an earlier call"):
        rows(given)
    rows(draw(host)[1])
    rows.raise_late()


def test_types_threads_and_streams(modules):
    host, rows, _ = modules
    ids, given = draw(host)
    offsets = torch.tensor(OFFSETS, device="cuda")
    wanted = host.bag(ids, OFFSETS)
    outcomes = []

    def work(kind):
        bag = FrozenEmbeddingBag(rows.layout, out_dtype=kind)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                found = bag(given, offsets)
            torch.cuda.current_stream().synchronize()
        outcomes.append((kind, found))

    torch.cuda.synchronize()
    kinds = [torch.float32, torch.bfloat16] * 2
    if np.abs(wanted).max() < 6e4:
        kinds += [torch.float16] * 2
    threads = [threading.Thread(target=work, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == len(kinds)
    size = max(1.0, float(np.abs(wanted).max()))
    for kind, found in outcomes:
        assert found.dtype == kind
        rounding = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}
        gap = np.abs(found.float().cpu().numpy() - wanted).max() / size
        assert gap < rounding[kind]


COMPILED = ["8 bits", "codes", "codes, turned", "generator", "nesting 100"]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("how", ["default", "reduce-overhead"])
def test_compilers_take_a_module_whole(name, how):
    host = EXAMPLES[name]()
    bag = FrozenEmbeddingBag(host.to_gpu())
    net = torch.nn.Sequential(torch.nn.Linear(host.embedding_dim, 3)).cuda()
    torch.compiler.reset()  # code of the other parameters is no recompilation of this

    def model(ids, offsets):
        return net(bag(ids, offsets))

    compiled = torch.compile(model, fullgraph=True, mode=how)
    offsets = torch.tensor(OFFSETS, device="cuda")
    for seed in range(4):
        _, given = draw(host, seed)
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            found, wanted = compiled(given, offsets), model(given, offsets)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMPILED)
def test_programs_are_exported_on_a_gpu(name, tmp_path):
    host = EXAMPLES[name]()
    rows = FrozenEmbedding(host.to_gpu())
    _, given = draw(host)
    size = torch.export.Dim("size", min=2)
    program = torch.export.export(rows, (given,), dynamic_shapes=({0: size},))
    torch.export.save(program, tmp_path / "rows.pt2")
    loaded = torch.export.load(tmp_path / "rows.pt2").module()
    torch.testing.assert_close(loaded(given[:7]), rows(given[:7]))


def test_modules_move_there_and_back():
    host = EXAMPLES["codes"]()
    ids, given = draw(host)
    module = FrozenEmbedding(host)
    before = module(torch.tensor(ids))
    there = module.to("cuda")
    torch.testing.assert_close(there(given).cpu(), before)
    assert there.half()(given).dtype == torch.float16
    back = there.float().cpu()
    torch.testing.assert_close(back(torch.tensor(ids)), before)
    with torch.autocast("cuda", torch.bfloat16):
        assert module.to("cuda")(given).dtype == torch.bfloat16
