"""Homomorphic linear layers: the client's share goes in encrypted, its share of the output comes back.

The parts: `layer` (shapes), `packing` (convolution as products of polynomials), `tiling` (which cut is cheapest),
`noise` (why the answer hides the weights), `parameters`, `scheme` (the edge to SEAL), `draws` (random numbers),
`residues` and `arithmetic`, `encryption`, `wire` (messages), `client`, `server`, `weights`, `products` and `taps`
(sums), `pool` with `workers` and `processes`, `steps` (the steps of a program as layers). Rings have 2 to 59 bits.

    plan = plan_layer(Layer(64, 64, 32, 32, (3, 3), (1, 1), (1, 1)))
    parameters = choose_parameters([plan], ring_bits=27, weight_bits=8)
    keys = generate_keys(parameters)                                              # client
    prepared = prepare_weights(parameters, plan, weights, weight_bits=8)          # server, once per model
    share = draw_share(parameters, plan.layer.in_shape)
    message = request(keys, plan, share)
    response = respond(prepared, PublicKey.of(keys), message)
    receive(keys, response.answer) + response.share                               # = W * share mod 2^27
"""

from ._backends import default_backend
from .client import generate_keys, receive, request
from .draws import draw_share
from .errors import (
    HomomorphicError,
    LayerError,
    MessageError,
    ParameterError,
    PoolError,
    WeightsError,
)
from .layer import Layer
from .noise import check_total
from .packing import Plan
from .parameters import Parameters, check_budget, choose_parameters
from .pool import Pool
from .processes import ProcessPool
from .scheme import Keys
from .server import Response, respond
from .steps import StepPlan, plan_step, plan_steps
from .tiling import plan_images, plan_layer
from .weights import PlainWeights, PreparedWeights, prepare_weights
from .wire import Answer, PublicKey, Request, answer_size, key_size, request_size
from .workers import open_pool

__all__ = [
    "Answer",
    "HomomorphicError",
    "Keys",
    "Layer",
    "LayerError",
    "MessageError",
    "ParameterError",
    "Parameters",
    "PlainWeights",
    "Plan",
    "Pool",
    "PoolError",
    "PreparedWeights",
    "ProcessPool",
    "PublicKey",
    "Request",
    "Response",
    "StepPlan",
    "WeightsError",
    "answer_size",
    "check_budget",
    "check_total",
    "choose_parameters",
    "default_backend",
    "draw_share",
    "generate_keys",
    "key_size",
    "open_pool",
    "plan_images",
    "plan_layer",
    "plan_step",
    "plan_steps",
    "prepare_weights",
    "receive",
    "request",
    "request_size",
    "respond",
]
