"""Reading compiled programs: known programs have known costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax.errors import UsageError
from smoljax.plan.chips import CHIPS, read_topology
from smoljax.plan.cost import cost_of
from smoljax.plan.hlo import parse, trip_count
from smoljax.plan.network import Network, groups_of
from smoljax.plan.schedule import Player, Rates


def network(topology="v5e:4x4", **mesh):
    place = read_topology(topology)
    coords = np.stack(np.unravel_index(np.arange(place.chips), place.shape), -1)
    return Network(place, mesh or {"data": place.chips}, coords)


def module_of(*lines, entry="ENTRY %main (p: f32[]) -> f32[] {"):
    return parse("\n".join(["HloModule m", "", entry, *(f"  {line}" for line in lines), "}"]))


def test_a_compiled_scan_counts_every_turn():
    def run(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    x, stack = jnp.ones((48, 32)), jnp.ones((7, 32, 32))
    module = parse(jax.jit(run).lower(x, stack).compile().as_text())
    loops = [
        trip_count(module, part, item)
        for part in module.computations.values()
        for item in part.instructions
        if item.opcode == "while"
    ]
    assert loops == [7]
    play = Player(module, network()).play()
    assert play.cost.flops == 7 * 2 * 48 * 32 * 32
    assert not play.unknown


# Lines of programs compiled for a TPU: there a product is a convolution, and windowed collectives give it extra
# dimensions in which only some places count.
PRODUCTS = {
    "plain": (
        "bf16[4096,768]",
        "bf16[768,3072]",
        "bf16[4096,3072]",
        "dim_labels=bf_io->bf",
        2 * 4096 * 768 * 3072,
    ),
    "batched": (
        "bf16[4,1024,768]",
        "bf16[768,3072,1]",
        "bf16[4,1024,3072]",
        "window={size=1}, dim_labels=0bf_io0->0bf",
        2 * 4 * 1024 * 768 * 3072,
    ),
    "spatial depth": (
        "bf16[4,1024,2,96]",
        "bf16[4,1024,3072,1]",
        "bf16[2,96,3072,1]",
        "window={size=1x4}, dim_labels=1f0b_1io0->0bf1",
        2 * 4 * 1024 * 2 * 96 * 3072,
    ),
    "padded": (
        "bf16[4,1024,768,1]",
        "bf16[768,2,96,1]",
        "bf16[4,1024,2,96]",
        "window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
        2 * 4 * 1024 * 768 * 2 * 96,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_cost_what_they_compute(name):
    left, right, out, rest, flops = PRODUCTS[name]
    module = module_of(
        f"%a = {left} parameter(0)",
        f"%b = {right} parameter(1)",
        f"ROOT %c = {out} convolution(%a, %b), {rest}",
    )
    within = module.computations["main"]
    cost = cost_of(module, within, within.root, mxu=128)
    assert cost.flops == flops
    assert cost.padded >= flops


def test_sides_that_do_not_fill_the_unit_cost_as_if_they_did():
    module = module_of(
        "%a = bf16[4096,64] parameter(0)",
        "%b = bf16[64,200] parameter(1)",
        "ROOT %c = bf16[4096,200] convolution(%a, %b), dim_labels=bf_io->bf",
    )
    within = module.computations["main"]
    cost = cost_of(module, within, within.root, mxu=128)
    assert (
        cost.padded == 2 * 4096 * 128 * 200
    )  # a depth of 64 takes a unit's 128; the 200 columns stream through


def test_traffic_is_of_main_memory_alone_and_of_slices_only():
    text = """HloModule m

%fused (p0: bf16[30,512,512], p1: s32[]) -> bf16[512,512] {
  %p0 = bf16[30,512,512]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,512,512]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,512,512}
  ROOT %b = bf16[512,512]{1,0} bitcast(%one)
}

ENTRY %main (p: bf16[30,512,512], i: s32[]) -> bf16[512,512] {
  %p = bf16[30,512,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[] parameter(1)
  %chip = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} fusion(%p, %i), kind=kLoop, calls=%fused
  ROOT %back = bf16[512,512]{1,0:T(8,128)(2,1)} copy(%chip)
}
"""
    module = parse(text)
    main = module.computations["main"]
    assert cost_of(module, main, main.by_name["chip"], 128).bytes == 512 * 512 * 2  # one layer is read
    assert cost_of(module, main, main.root, 128).bytes == 512 * 512 * 2  # and written


def test_slices_taken_in_fusions_within_fusions_count_as_slices():
    text = """HloModule m

%deep (p0: bf16[30,512,512], p1: s32[]) -> bf16[512,512] {
  %p0 = bf16[30,512,512]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,512,512]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,512,512}
  ROOT %b = bf16[512,512]{1,0} bitcast(%one)
}

%fused (q0: bf16[30,512,512], q1: s32[]) -> bf16[512,512] {
  %q0 = bf16[30,512,512]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  ROOT %f = bf16[512,512]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%deep
}

ENTRY %main (p: bf16[30,512,512], i: s32[]) -> bf16[512,512] {
  %p = bf16[30,512,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %chip = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} fusion(%p, %i), kind=kLoop, calls=%fused
}
"""
    module = parse(text)
    main = module.computations["main"]
    assert cost_of(module, main, main.root, 128).bytes == 512 * 512 * 2


@pytest.mark.parametrize(
    "text",
    [
        "replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}",
        "replica_groups=[4,4]<=[16]",
        "replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={1}",
    ],
)
def test_groups_are_read_in_every_spelling(text):
    module = module_of(f"ROOT %g = f32[8] all-reduce(%x), channel_id=1, {text}, use_global_device_ids=true")
    assert groups_of(module.computations["main"].root, 16) == [list(range(k, k + 4)) for k in (0, 4, 8, 12)]


def test_transposed_groups_are_another_axis():
    links = network(data=4, fsdp=4)
    module = module_of(
        "%x = f32[1000] parameter(0)",
        "%y = f32[1000] all-reduce(%x), replica_groups=[4,4]<=[4,4]T(1,0)",
        "ROOT %z = f32[1000] all-reduce(%x), replica_groups=[1,16]<=[16]",
    )
    main = module.computations["main"]
    assert links.exchange(main, main.by_name["y"]).axes == "data"
    assert links.exchange(main, main.root).axes == "data+fsdp"


def test_a_collective_takes_its_bytes_over_its_links():
    module = module_of(
        "%x = f32[1000000] parameter(0)",
        "ROOT %y = f32[1000000] all-reduce(%x), replica_groups=[1,256]<=[256]",
    )
    main = module.computations["main"]
    ring = network("v5e:16x16").exchange(main, main.root)
    # Two rings of two directions each; an all-reduce passes nearly twice the array.
    assert ring.seconds == pytest.approx(2 * 4e6 * 255 / 256 / (4 * CHIPS["v5e"].link_rate))
    module = module_of(
        "%x = f32[1000000] parameter(0)",
        "ROOT %y = f32[1000000] all-reduce(%x), replica_groups=[1,16]<=[16]",
    )
    main = module.computations["main"]
    line = network("v5e:4x4").exchange(main, main.root)  # no side of 16, so no ring: half the links
    assert line.seconds == pytest.approx(2 * 4e6 * 15 / 16 / (2 * CHIPS["v5e"].link_rate))


OVERLAP = """HloModule m

ENTRY %main (x: f32[1000000], a: bf16[8192,8192]) -> bf16[8192,8192] {
  %x = f32[1000000]{0} parameter(0)
  %a = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %s = (f32[1000000]{0}, f32[16000000]{0}) all-gather-start(%x), replica_groups=[1,16]<=[16], dimensions={0}
  FIRST
  %d = f32[16000000]{0} all-gather-done(%s)
  LAST
}
"""
PRODUCT = "%c = bf16[8192,8192]{1,0:T(8,128)(2,1)} convolution(%a, %a), dim_labels=bf_io->bf"


def test_what_stands_between_start_and_done_overlaps():
    links, wait = network("v5e:4x4"), 16e6 * 4 * 15 / 16 / (2 * 45e9)
    busy = 2 * 8192**3 / 197e12
    beside = Player(parse(OVERLAP.replace("FIRST", PRODUCT).replace("  LAST\n", "")), links).play()
    behind = Player(parse(OVERLAP.replace("  FIRST\n", "").replace("LAST", PRODUCT)), links).play()
    assert beside.seconds == pytest.approx(max(busy, wait), rel=1e-6)
    assert behind.seconds == pytest.approx(busy + wait, rel=1e-6)
    half = Player(
        parse(OVERLAP.replace("FIRST", PRODUCT).replace("  LAST\n", "")), links, Rates(matrix=0.5)
    ).play()
    assert half.busy == pytest.approx(2 * busy)


def test_topologies_are_read_or_refused():
    assert read_topology("v5p:4x4x4").chips == 64
    for text in ("v5e", "v9:2x2", "v5e:4xx", "v5e:0x2"):
        with pytest.raises(UsageError, match="CHIP:AxB"):
            read_topology(text)


@pytest.mark.parametrize("layout", ["52,16,768,72", "52,16,72,768"])
def test_the_attention_kernel_costs_the_same_in_both_layouts(layout):
    module = module_of(
        "%blocks = s8[1,3,3] parameter(0)",
        *(f"%{name} = bf16[{layout}] parameter({place})" for place, name in enumerate("qkv", 1)),
        "%splash_mha_fwd.1 = (f32[52,256,128], bf16[52,16,768,72], f32[52,16,768,128]) custom-call("
        '%blocks, %q, %k, %v), custom_call_target="tpu_custom_call"',
        "ROOT %out = bf16[52,16,768,72] get-tuple-element(%splash_mha_fwd.1), index=1",
    )
    entry = module.computations[module.entry]
    cost = cost_of(module, entry, entry.by_name["splash_mha_fwd.1"], 128)
    assert cost.flops == 2 * 2 * 52 * 16 * 768 * 768 * 72
    assert cost.padded == pytest.approx(cost.flops * 128 / 72)
    assert cost.elements == 16 * 52 * 16 * 768 * 768


def test_rings_and_narrowest_cuts():
    def spread(topology, chips):
        found = network(topology)
        return found._seconds("all-to-all", [list(range(chips))], 1.0, chips) * found.topology.chip.link_rate

    assert read_topology("v5e:16x16").is_ring(0)
    assert not read_topology("v5e:8x8").is_ring(0)
    assert read_topology("v5p:4x4x8").is_ring(2)
    assert not read_topology("v5p:2x4x4").is_ring(2)
    # Each of 128 chips sends half of its array over 16 rings, two links each; without rings over 8 links.
    assert spread("v5e:16x16", 256) == 128 * 0.5 / (16 * 2)
    assert spread("v5e:8x8", 64) == 32 * 0.5 / 8
