"""Weights from other libraries and into them: `from_NAME(source)` gives params, `to_NAME(params)` what NAME loads.

No library is imported before a function that needs it is called. What goes there and back is the same to the bit.
"""

from lstmjax.interop.cudnn import from_cudnn as from_cudnn
from lstmjax.interop.cudnn import to_cudnn as to_cudnn
from lstmjax.interop.equinox import from_equinox as from_equinox
from lstmjax.interop.equinox import to_equinox as to_equinox
from lstmjax.interop.flax import from_flax as from_flax
from lstmjax.interop.flax import to_flax as to_flax
from lstmjax.interop.haiku import from_haiku as from_haiku
from lstmjax.interop.haiku import to_haiku as to_haiku
from lstmjax.interop.haste import from_haste as from_haste
from lstmjax.interop.keras import from_keras as from_keras
from lstmjax.interop.keras import to_keras as to_keras
from lstmjax.interop.onnx import from_onnx as from_onnx
from lstmjax.interop.onnx import to_onnx as to_onnx
from lstmjax.interop.sonnet import from_sonnet as from_sonnet
from lstmjax.interop.tensorflow import from_tensorflow as from_tensorflow
from lstmjax.interop.tensorflow import to_tensorflow as to_tensorflow
from lstmjax.interop.torch import from_torch as from_torch
from lstmjax.interop.torch import to_torch as to_torch
