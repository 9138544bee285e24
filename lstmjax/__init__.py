"""LSTMs in JAX as pure functions over pytrees of parameters."""

from lstmjax import bidirectional as bidirectional
from lstmjax import conv1d as conv1d
from lstmjax import crf as crf
from lstmjax import dense as dense
from lstmjax import embedding as embedding
from lstmjax import export as export
from lstmjax import files as files
from lstmjax import hierarchy as hierarchy
from lstmjax import interop as interop
from lstmjax import lstm as lstm
from lstmjax import pooling as pooling
from lstmjax import ragged as ragged
from lstmjax import recurrent as recurrent
from lstmjax import residual as residual
from lstmjax import sharding as sharding
from lstmjax import stack as stack
from lstmjax import windows as windows
from lstmjax._src.dropout_masks import Dropout as Dropout
from lstmjax._src.lstm.options import LSTMOptions as LSTMOptions
from lstmjax._src.validation import checked as checked
from lstmjax.bidirectional import BidirectionalParams as BidirectionalParams
from lstmjax.crf import CRFParams as CRFParams
from lstmjax.hierarchy import HierarchyParams as HierarchyParams
from lstmjax.hierarchy import LevelParams as LevelParams
from lstmjax.inspect import summary as summary
from lstmjax.lstm import LSTMParams as LSTMParams
from lstmjax.lstm import LSTMState as LSTMState
from lstmjax.stack import StackParams as StackParams
from lstmjax.time_distributed import time_distributed as time_distributed

__version__ = "0.1.0"
