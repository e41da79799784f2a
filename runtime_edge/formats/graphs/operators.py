"""The operators a compiled block may use: what the compiler writes and what a device hands to its runtime.

No operator here calls or repeats another graph, reads a file or a variable, or makes a result whose size depends on
the values of the audio. Compiler and device share these lists, so nothing is compiled that no device would run.
"""

from __future__ import annotations

from collections.abc import Mapping

ONNX_DOMAINS = frozenset({"", "ai.onnx"})
"""Domains of operators: ONNX itself."""

_ONNX_KINDS = {
    "each value by itself": (
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp "
        "Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual "
        "Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin "
        "Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
    ),
    "layers": (
        "BatchNormalization Conv ConvTranspose Einsum GRU Gemm GroupNormalization InstanceNormalization LRN LSTM "
        "LayerNormalization LogSoftmax LpNormalization MatMul MeanVarianceNormalization RNN Softmax"
    ),
    "signals": "DFT STFT ",
    "pooling and reductions": (
        "ArgMax ArgMin AveragePool CumSum GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool ReduceL1 "
        "ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare TopK"
    ),
    "shapes and places": (
        "Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND "
        "OneHot Pad Range Reshape Resize ReverseSequence ScatterElements ScatterND Shape Size Slice SpaceToDepth "
        "Split Squeeze Tile Transpose Trilu Unsqueeze"
    ),
    "int8": "DequantizeLinear QuantizeLinear",
}
ONNX_OPERATORS = frozenset(" ".join(_ONNX_KINDS.values()).split())

ONNX_SIZES: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "STFT": (1, 3),
    "Tile": (1,),
    "TopK": (1,),
}
"""Inputs that determine the result's size. They must be in the file, so the size is the same for all audio."""

TFLITE_OPERATORS: Mapping[int, str] = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE", 8: "FLOOR", 9: "FULLY_CONNECTED", 11: "L2_NORMALIZATION", 12: "L2_POOL_2D",
    13: "LOCAL_RESPONSE_NORMALIZATION", 14: "LOGISTIC", 16: "LSTM", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU",
    20: "RELU_N1_TO_1", 21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH",
    28: "TANH", 34: "PAD", 36: "GATHER", 37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 39: "TRANSPOSE",
    40: "MEAN", 41: "SUB", 42: "DIV", 43: "SQUEEZE", 44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 45: "STRIDED_SLICE",
    47: "EXP", 48: "TOPK_V2", 49: "SPLIT", 50: "LOG_SOFTMAX", 53: "CAST", 54: "PRELU", 55: "MAXIMUM", 56: "ARG_MAX",
    57: "MINIMUM", 58: "LESS", 59: "NEG", 60: "PADV2", 61: "GREATER", 62: "GREATER_EQUAL", 63: "LESS_EQUAL",
    64: "SELECT", 65: "SLICE", 66: "SIN", 67: "TRANSPOSE_CONV", 69: "TILE", 70: "EXPAND_DIMS", 71: "EQUAL",
    72: "NOT_EQUAL", 73: "LOG", 74: "SUM", 75: "SQRT", 76: "RSQRT", 77: "SHAPE", 78: "POW", 79: "ARG_MIN",
    81: "REDUCE_PROD", 82: "REDUCE_MAX", 83: "PACK", 84: "LOGICAL_OR", 85: "ONE_HOT", 86: "LOGICAL_AND",
    87: "LOGICAL_NOT", 88: "UNPACK", 89: "REDUCE_MIN", 90: "FLOOR_DIV", 91: "REDUCE_ANY", 92: "SQUARE",
    93: "ZEROS_LIKE", 94: "FILL", 95: "FLOOR_MOD", 96: "RANGE", 97: "RESIZE_NEAREST_NEIGHBOR", 98: "LEAKY_RELU",
    99: "SQUARED_DIFFERENCE", 100: "MIRROR_PAD", 101: "ABS", 102: "SPLIT_V", 104: "CEIL", 105: "REVERSE_V2",
    106: "ADD_N", 107: "GATHER_ND", 108: "COS", 111: "ELU", 114: "QUANTIZE", 116: "ROUND", 117: "HARD_SWISH",
    122: "SCATTER_ND", 123: "SELECT_V2", 126: "BATCH_MATMUL", 128: "CUMSUM", 130: "BROADCAST_TO", 132: "CONV_3D",
    140: "REDUCE_ALL", 150: "GELU", 151: "DYNAMIC_UPDATE_SLICE", 152: "RELU_0_TO_1", 156: "ATAN2", 158: "SIGN",
}  # fmt: skip
"""Operators by their number in a file."""

TFLITE_SIZES: Mapping[str, tuple[int, ...]] = {
    "BATCH_TO_SPACE_ND": (1, 2),
    "BROADCAST_TO": (1,),
    "FILL": (0,),
    "MIRROR_PAD": (1,),
    "ONE_HOT": (1,),
    "PAD": (1,),
    "PADV2": (1,),
    "RANGE": (0, 1, 2),
    "RESHAPE": (1,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "SCATTER_ND": (2,),
    "SLICE": (2,),
    "SPACE_TO_BATCH_ND": (1, 2),
    "TILE": (1,),
    "TOPK_V2": (1,),
    "TRANSPOSE_CONV": (0,),
}
"""The same as ONNX_SIZES, for TFLite."""
