"""A remembered call is answered for the same inputs, as long as nobody wrote to what it is made of."""

import pytest
from twisted import Layer, agree, measured, net


def called_twice(model, x):
    """One module with two inputs, then again with the first."""
    first, *others = model.layers
    y = first(x) + first(2 * x) + first(x)
    for layer in others:
        y = layer(y)
    return y


def scaled(layer, x, factor=1, *rest):
    return x * factor


def with_arguments(model, x):
    for factor, layer in zip((True, 1, 1.5), model.layers, strict=True):
        x = layer(x, factor) + layer(x, factor=2) + layer(x, (factor, 3)[1]) + layer(x, 1, (x, None))
    return x


def by_layout(layer, x):
    return x * x.stride(-1)


def with_layouts(model, x):
    for layer in model.layers:
        x = layer(x) + layer(x.transpose(1, 2).contiguous().transpose(1, 2))
    return x


def types_apart(layer, x, factor=0):
    return x + isinstance(factor, bool)


def with_types(model, x):
    return model.layers[2](model.layers[1](model.layers[0](x, 1)) + model.layers[0](x, True), 1.0)


@pytest.mark.parametrize(
    "twists",
    [
        dict(flow=called_twice),
        dict(flow=with_arguments, twist=scaled),
        dict(flow=with_layouts, twist=by_layout),
        dict(flow=with_types, twist=types_apart),
    ],
    ids=lambda twists: twists["flow"].__name__,
)
def test_other_inputs(twists):
    agree(net(**twists), measured())


def in_place_outside(model, x):
    for layer in model.layers:
        x = layer(x)
        x += 1
    return x


def in_place_on_a_view(model, x):
    for layer in model.layers:
        x = layer(x)
        x[:, 0].mul_(2)
    return x


class Residual(Layer):
    """Adds to the tensor that it was given."""

    def forward(self, x, *args):
        x += self.attention(self.norm(x))[0]
        return x


def residual_in_place(model, x):
    x = x.clone()
    for layer in model.layers:
        x = layer(x)
    return x


def test_what_is_written_in_place():
    agree(net(flow=in_place_outside), measured())
    agree(net(flow=in_place_on_a_view), measured())
    model = net(flow=residual_in_place)
    for layer in model.layers:
        layer.__class__ = Residual
    agree(model, measured())


class Spoiling(Layer):
    """Adds 1 to what it was given."""

    def forward(self, x):
        y = super().forward(x)
        x += 1
        return y


def test_inputs_that_become_those_of_another_call():
    def flow(model, x):
        return sum(layer(x.clone()) + layer(x + 1) for layer in model.layers)

    model = net(flow=flow)
    for layer in model.layers:
        layer.__class__ = Spoiling
    agree(model, measured())


def test_what_a_score_writes_in_place():
    def spoiling(model, x):
        y = model(x)
        first = model.layers[0](x)
        first.mul_(3)
        return y + first + model.layers[0](x)

    agree(net(), measured(spoiling))


def test_weights_changed_between_passes():
    def changing(model, x):
        y = model(x)
        model.layers[0].up.weight.mul_(2)
        z = model(x)
        model.layers[0].up.weight.div_(2)
        return y + z

    agree(net(), measured(changing))
