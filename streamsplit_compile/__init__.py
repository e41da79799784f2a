"""The compiler: an encoder cut wherever one tensor crosses, lowered, proved and packed into a bundle.

from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
"""
