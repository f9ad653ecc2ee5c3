"""A function whose stack of equal layers is compiled as one layer and run a layer at a time, over weights as they lie.

`lax.scan` compiles one layer too, but copies every layer's weights out of the stack before it reads them; layers
unrolled in one program are read in place, and take long to compile. On a CPU a call of a compiled program costs some
tens of microseconds, so a prompt or a tile is read soonest by calling one layer's program for each layer.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from smoljax.nn.packed import reading_weights

#: What runs a stack in place of `smoljax.nn.stacking.apply_layers`, while a function is traced.
Stand = Callable[[type[nn.Module], Mapping[str, Any], int, jax.Array, Any, Any], tuple[jax.Array, Any]]
_STAND: ContextVar[Stand | None] = ContextVar("_STAND", default=None)


def stand_in() -> Stand | None:
    """What runs a stack here, if not the stack itself."""
    return _STAND.get()


@contextmanager
def _standing_in(stand: Stand) -> Iterator[None]:
    token = _STAND.set(stand)
    try:
        yield
    finally:
        _STAND.reset(token)


@dataclass(frozen=True, eq=False)
class LayerByLayer:
    """Three compiled programs in place of one.

    Attributes:
      part: whose layers run, a key of the parameters.
      begin: (other parameters, *args) → what goes into the first layer, what each layer gets, what all get.
      own: *args → what each layer gets, where the caller has it.
      layer: (a layer's parameters, activations, its own, what all get) → activations and the layer's result.
      end: (other parameters, activations, the layers' results, *args) → the function's result.
      result: the shapes and dtypes of that.
    """

    part: str
    begin: Any
    layer: Any
    end: Any
    result: Any
    own: Callable[..., Any] | None = None

    @property
    def programs(self) -> tuple[Any, Any, Any]:
        """What was compiled."""
        return self.begin, self.layer, self.end

    def __call__(self, params: Mapping[str, Any], *args: Any) -> Any:
        """The function's result."""
        layers, rest = _apart(params, self.part)
        x, owns, shared = self.begin(rest, *args)
        if self.own is not None:
            owns = self.own(*args)
        outs: list[Any] = []
        for weights, own in zip(layers, owns, strict=True):
            x, out = self.layer(weights, x, own, shared)
            outs.append(out)
        return self.end(rest, x, tuple(outs), *args)


def compile_by_layer(
    function: Callable[..., Any],
    part: str,
    params: Mapping[str, Any],
    *args: Any,
    own: Callable[..., Any] | None = None,
) -> LayerByLayer:
    """Compiles `function(params, *args)`, in which the layers of `part` run once and unrolled.

    Args:
      function: to be traced, of a model's parameters in the layout with layers apart, and arrays.
      part: "vision" or "decoder".
      params, args: as the function takes them, or their `jax.ShapeDtypeStruct`s.
      own: *args → what each layer gets, as the function hands it to the layers: arrays of the arguments, which are
        donated. None: `begin` makes it.

    Raises:
      ValueError: another number of stacks run than one.
    """
    layers, rest = _apart(params, part)
    found: list[Any] = []

    def begin(rest: Any, *args: Any) -> Any:
        entered: list[Any] = []

        def stand(
            layer: type[nn.Module], fields: Mapping[str, Any], count: int, x: Any, each: Any, shared: Any
        ) -> tuple[jax.Array, Any]:
            if entered or count != len(layers):
                raise ValueError(f"the function runs another stack than the {len(layers)} layers of {part}")
            module, owns = layer(**fields), (None,) * count if each is None else tuple(each)

            def one(weights: Any, x: Any, own: Any, shared: Any) -> Any:
                with reading_weights():
                    return module.apply({"params": weights}, x, own, shared)

            # The rest of the function is traced with zeros for what layers give; nothing of it is kept.
            shapes = jax.eval_shape(one, layers[0], x, owns[0], shared)
            out = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[1])
            entered.extend((x, owns if own is None else None, shared))
            found.append(one)
            return x, (out,) * count

        with _standing_in(stand):
            function(rest, *args)
        if not entered:
            raise ValueError(f"the function does not run the layers of {part}")
        return tuple(entered)

    def end(rest: Any, x: Any, outs: Any, *args: Any) -> Any:
        with _standing_in(lambda *_: (x, outs)):
            return function(rest, *args)

    first = jax.jit(begin).lower(rest, *args)
    x, owns, shared = first.out_info
    owns = owns if own is None else own(*args)
    one = jax.jit(found[0], donate_argnums=(1, 2)).lower(layers[0], x, owns[0], shared)
    x, out = one.out_info
    last = jax.jit(end, donate_argnums=2).lower(rest, x, (out,) * len(layers), *args)
    return LayerByLayer(part, first.compile(), one.compile(), last.compile(), last.out_info, own)


def has_layers(params: Mapping[str, Any], part: str) -> bool:
    """Whether a part has layers, and these are apart."""
    return bool(_apart(params, part)[0])


def _apart(params: Mapping[str, Any], part: str) -> tuple[list[Any], dict[str, Any]]:
    """The layers of a part, and all parameters without them."""
    own = params[part]
    count = sum(key.startswith("layers_") for key in own)
    layers = [own[f"layers_{i}"] for i in range(count)]
    rest = {key: value for key, value in own.items() if not key.startswith("layers_")}
    return layers, {**params, part: rest}
