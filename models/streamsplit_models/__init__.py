"""Audio encoders as plain torch modules: waveform in, unit-norm embedding out, front end included.

`ssc encoder new` makes the encoders by name; these are the parts for building your own.
"""

from streamsplit_models.encoder import Encoder, GlobalAveragePool, GlobalMaxPool, Normalize, input_norm
from streamsplit_models.front_end import PRESETS, FrontEnd, Waveform
from streamsplit_models.log_mel import LogMel

__all__ = [
    "PRESETS",
    "Encoder",
    "FrontEnd",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "LogMel",
    "Normalize",
    "Waveform",
    "input_norm",
]
