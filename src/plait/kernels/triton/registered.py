"""Gives our ops their bodies for CUDA devices; importing this is enough, and what imports it keeps them."""

from plait.kernels import attention, pointwise
from plait.kernels.registration import register_on
from plait.kernels.triton.attention import Triton as Attention
from plait.kernels.triton.pointwise import Triton as Pointwise

BODIES = {
    schema.partition("(")[0]: getattr(ops, schema.partition("(")[0])
    for schemas, ops in ((attention.SCHEMAS, Attention()), (pointwise.SCHEMAS, Pointwise()))
    for schema in schemas
}
"""Name of each op -> the function that carries it out."""
LIBRARY = register_on("CUDA", BODIES)
"""Keeps the registration alive."""
