"""The fields of Caffe's files that are read, as protobuf messages (driver side).

A field is ``name:number:type``, with ``*`` after the type where it is repeated and ``=value`` for its default. Numbers
are Caffe's own; those from 9000 on stand for fields of CaffeOnSpark, which occur in text alone.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["V1_TYPES", "enum_name", "message"]

# The layer types that the format of 2013 numbers, as today's format spells them.
V1_TYPES = {
    1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 7: "EuclideanLoss", 8: "Flatten",
    9: "HDF5Data", 10: "HDF5Output", 11: "Im2col", 12: "ImageData", 13: "InfogainLoss", 14: "InnerProduct", 15: "LRN",
    16: "MultinomialLogisticLoss", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax", 21: "SoftmaxWithLoss",
    22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 26: "Power", 27: "SigmoidCrossEntropyLoss",
    28: "HingeLoss", 29: "MemoryData", 30: "ArgMax", 31: "Threshold", 32: "DummyData", 33: "Slice", 34: "MVN",
    35: "AbsVal", 36: "Silence", 37: "ContrastiveLoss", 38: "Exp", 39: "Deconvolution",
}  # fmt: skip

ENUMS = {
    "Phase": "TRAIN=0 TEST=1",
    "FillerParameter.VarianceNorm": "FAN_IN=0 FAN_OUT=1 AVERAGE=2",
    "LossParameter.NormalizationMode": "FULL=0 VALID=1 BATCH_SIZE=2 NONE=3",
    "DataParameter.DB": "LEVELDB=0 LMDB=1",
    "CoSDataParameter.DataType": "STRING=0 INT=1 FLOAT=2 INT_ARRAY=3 FLOAT_ARRAY=4 RAW_IMAGE=5 ENCODED_IMAGE=6 "
    "ENCODED_IMAGE_WITH_DIM=7",
    "EltwiseParameter.EltwiseOp": "PROD=0 SUM=1 MAX=2",
    "HingeLossParameter.Norm": "L1=1 L2=2",
    "LRNParameter.NormRegion": "ACROSS_CHANNELS=0 WITHIN_CHANNEL=1",
    "PoolingParameter.PoolMethod": "MAX=0 AVE=1 STOCHASTIC=2",
    "PoolingParameter.RoundMode": "CEIL=0 FLOOR=1",
    "ReductionParameter.ReductionOp": "SUM=1 ASUM=2 SUMSQ=3 MEAN=4",
    "ParamSpec.DimCheckMode": "STRICT=0 PERMISSIVE=1",
    "SolverParameter.SnapshotFormat": "HDF5=0 BINARYPROTO=1",
    "SolverParameter.SolverMode": "CPU=0 GPU=1",
    "SolverParameter.SolverType": "SGD=0 NESTEROV=1 ADAGRAD=2 RMSPROP=3 ADADELTA=4 ADAM=5",
    "V1LayerParameter.LayerType": "NONE=0 ACCURACY=1 BNLL=2 CONCAT=3 CONVOLUTION=4 DATA=5 DROPOUT=6 EUCLIDEAN_LOSS=7 "
    "FLATTEN=8 HDF5_DATA=9 HDF5_OUTPUT=10 IM2COL=11 IMAGE_DATA=12 INFOGAIN_LOSS=13 INNER_PRODUCT=14 LRN=15 "
    "MULTINOMIAL_LOGISTIC_LOSS=16 POOLING=17 RELU=18 SIGMOID=19 SOFTMAX=20 SOFTMAX_LOSS=21 SPLIT=22 TANH=23 "
    "WINDOW_DATA=24 ELTWISE=25 POWER=26 SIGMOID_CROSS_ENTROPY_LOSS=27 HINGE_LOSS=28 MEMORY_DATA=29 ARGMAX=30 "
    "THRESHOLD=31 DUMMY_DATA=32 SLICE=33 MVN=34 ABSVAL=35 SILENCE=36 CONTRASTIVE_LOSS=37 EXP=38 DECONVOLUTION=39",
}

FILLERS = "weight_filler:{}:FillerParameter bias_filler:{}:FillerParameter"
AFFINE = "base:1:float=-1 scale:2:float=1 shift:3:float"
# Old data layers had the transformation among their own fields.
OLD_TRANSFORM = "scale:2:float=1 mean_file:3:string crop_size:5:uint32 mirror:6:bool"

MESSAGES = {
    "BlobShape": "dim:1:int64*",
    "BlobProto": "shape:7:BlobShape data:5:float* double_data:8:double* num:1:int32 channels:2:int32 height:3:int32 "
    "width:4:int32",
    "FillerParameter": "type:1:string=constant value:2:float min:3:float max:4:float=1 mean:5:float std:6:float=1 "
    "sparse:7:int32=-1 variance_norm:8:FillerParameter.VarianceNorm=FAN_IN",
    "NetParameter": "name:1:string input:3:string* input_shape:8:BlobShape* input_dim:4:int32* force_backward:5:bool "
    "state:6:NetState debug_info:7:bool layer:100:LayerParameter* layers:2:V1LayerParameter*",
    "NetState": "phase:1:Phase=TEST level:2:int32 stage:3:string*",
    "NetStateRule": "phase:1:Phase min_level:2:int32 max_level:3:int32 stage:4:string* not_stage:5:string*",
    "ParamSpec": "name:1:string share_mode:2:ParamSpec.DimCheckMode lr_mult:3:float=1 decay_mult:4:float=1",
    "SolverParameter": "net:24:string net_param:25:NetParameter train_net:1:string test_net:2:string* "
    "train_net_param:21:NetParameter test_net_param:22:NetParameter* train_state:26:NetState test_state:27:NetState* "
    "test_iter:3:int32* test_interval:4:int32 test_compute_loss:19:bool test_initialization:32:bool=true "
    "base_lr:5:float display:6:int32 average_loss:33:int32=1 max_iter:7:int32 iter_size:36:int32=1 lr_policy:8:string "
    "gamma:9:float power:10:float momentum:11:float weight_decay:12:float regularization_type:29:string=L2 "
    "stepsize:13:int32 stepvalue:34:int32* clip_gradients:35:float=-1 snapshot:14:int32 snapshot_prefix:15:string "
    "snapshot_diff:16:bool snapshot_format:37:SolverParameter.SnapshotFormat=BINARYPROTO "
    "solver_mode:17:SolverParameter.SolverMode=GPU device_id:18:int32 random_seed:20:int64=-1 type:40:string=SGD "
    "delta:31:float=1e-8 momentum2:39:float=0.999 rms_decay:38:float=0.99 debug_info:23:bool "
    "snapshot_after_train:28:bool=true solver_type:30:SolverParameter.SolverType=SGD layer_wise_reduce:41:bool=true "
    "weights:42:string*",
    # Layers, in the format of today and in that of 2013.
    "LayerParameter": "name:1:string type:2:string bottom:3:string* top:4:string* phase:10:Phase "
    "loss_weight:5:float* param:6:ParamSpec* blobs:7:BlobProto* propagate_down:11:bool* include:8:NetStateRule* "
    "exclude:9:NetStateRule* transform_param:100:TransformationParameter loss_param:101:LossParameter "
    "accuracy_param:102:AccuracyParameter argmax_param:103:ArgMaxParameter batch_norm_param:139:BatchNormParameter "
    "bias_param:141:BiasParameter clip_param:148:ClipParameter concat_param:104:ConcatParameter "
    "contrastive_loss_param:105:ContrastiveLossParameter convolution_param:106:ConvolutionParameter "
    "crop_param:144:CropParameter data_param:107:DataParameter dropout_param:108:DropoutParameter "
    "dummy_data_param:109:DummyDataParameter eltwise_param:110:EltwiseParameter elu_param:140:ELUParameter "
    "embed_param:137:EmbedParameter exp_param:111:ExpParameter flatten_param:135:FlattenParameter "
    "hdf5_data_param:112:HDF5DataParameter hinge_loss_param:114:HingeLossParameter "
    "image_data_param:115:ImageDataParameter inner_product_param:117:InnerProductParameter "
    "input_param:143:InputParameter log_param:134:LogParameter lrn_param:118:LRNParameter "
    "memory_data_param:119:MemoryDataParameter mvn_param:120:MVNParameter permute_param:202:PermuteParameter "
    "pooling_param:121:PoolingParameter power_param:122:PowerParameter prelu_param:131:PReLUParameter "
    "recurrent_param:146:RecurrentParameter reduction_param:136:ReductionParameter relu_param:123:ReLUParameter "
    "reshape_param:133:ReshapeParameter scale_param:142:ScaleParameter softmax_param:125:SoftmaxParameter "
    "slice_param:126:SliceParameter swish_param:147:SwishParameter threshold_param:128:ThresholdParameter "
    "tile_param:138:TileParameter cos_data_param:9001:CoSDataParameter source_class:9002:string",
    "V1LayerParameter": "layer:1:V0LayerParameter bottom:2:string* top:3:string* name:4:string "
    "include:32:NetStateRule* exclude:33:NetStateRule* type:5:V1LayerParameter.LayerType blobs:6:BlobProto* "
    "param:1001:string* blob_share_mode:1002:ParamSpec.DimCheckMode* blobs_lr:7:float* weight_decay:8:float* "
    "loss_weight:35:float* accuracy_param:27:AccuracyParameter argmax_param:23:ArgMaxParameter "
    "concat_param:9:ConcatParameter contrastive_loss_param:40:ContrastiveLossParameter "
    "convolution_param:10:ConvolutionParameter data_param:11:DataParameter dropout_param:12:DropoutParameter "
    "dummy_data_param:26:DummyDataParameter eltwise_param:24:EltwiseParameter exp_param:41:ExpParameter "
    "hdf5_data_param:13:HDF5DataParameter "
    "hinge_loss_param:29:HingeLossParameter image_data_param:15:ImageDataParameter "
    "inner_product_param:17:InnerProductParameter lrn_param:18:LRNParameter memory_data_param:22:MemoryDataParameter "
    "mvn_param:34:MVNParameter pooling_param:19:PoolingParameter power_param:21:PowerParameter "
    "relu_param:30:ReLUParameter softmax_param:39:SoftmaxParameter slice_param:31:SliceParameter "
    "threshold_param:25:ThresholdParameter transform_param:36:TransformationParameter loss_param:42:LossParameter",
    "V0LayerParameter": "name:1:string type:2:string",
    # Data layers.
    "TransformationParameter": "scale:1:float=1 mirror:2:bool crop_size:3:uint32 mean_file:4:string "
    "mean_value:5:float* force_color:6:bool force_gray:7:bool",
    "DataParameter": "source:1:string batch_size:4:uint32 rand_skip:7:uint32 backend:8:DataParameter.DB "
    f"{OLD_TRANSFORM}",
    "ImageDataParameter": "source:1:string batch_size:4:uint32=1 rand_skip:7:uint32 shuffle:8:bool new_height:9:uint32 "
    f"new_width:10:uint32 is_color:11:bool=true root_folder:12:string {OLD_TRANSFORM}",
    "HDF5DataParameter": "source:1:string batch_size:2:uint32 shuffle:3:bool",
    "MemoryDataParameter": "batch_size:1:uint32 channels:2:uint32 height:3:uint32 width:4:uint32 source:9001:string "
    "dataframe_format:9002:string dataframe_column_select:9003:string* image_encoded:9004:bool",
    "CoSDataParameter": "batch_size:9001:uint32 source:9002:string dataframe_format:9003:string top:9004:TopBlob*",
    "TopBlob": "name:9001:string type:9002:CoSDataParameter.DataType channels:9003:uint32 height:9004:uint32 "
    "width:9005:uint32 out_channels:9006:uint32 out_height:9007:uint32 out_width:9008:uint32 "
    "sample_num_axes:9009:uint32=3 transpose:9010:bool transform_param:9011:TransformationParameter",
    "DummyDataParameter": "data_filler:1:FillerParameter* shape:6:BlobShape* num:2:uint32* channels:3:uint32* "
    "height:4:uint32* width:5:uint32*",
    "InputParameter": "shape:1:BlobShape*",
    # Losses and metrics.
    "LossParameter": "ignore_label:1:int32 normalization:3:LossParameter.NormalizationMode=VALID normalize:2:bool",
    "AccuracyParameter": "top_k:1:uint32=1 axis:2:int32=1 ignore_label:3:int32",
    "ContrastiveLossParameter": "margin:1:float=1 legacy_version:2:bool",
    "HingeLossParameter": "norm:1:HingeLossParameter.Norm=L1",
    # All other layers.
    "ArgMaxParameter": "out_max_val:1:bool top_k:2:uint32=1 axis:3:int32",
    "BatchNormParameter": "use_global_stats:1:bool moving_average_fraction:2:float=0.999 eps:3:float=1e-5",
    "BiasParameter": "axis:1:int32=1 num_axes:2:int32=1 filler:3:FillerParameter",
    "ClipParameter": "min:1:float max:2:float",
    "ConcatParameter": "axis:2:int32=1 concat_dim:1:uint32=1",
    "ConvolutionParameter": "num_output:1:uint32 bias_term:2:bool=true pad:3:uint32* kernel_size:4:uint32* "
    "stride:6:uint32* dilation:18:uint32* pad_h:9:uint32 pad_w:10:uint32 kernel_h:11:uint32 kernel_w:12:uint32 "
    f"stride_h:13:uint32 stride_w:14:uint32 group:5:uint32=1 {FILLERS.format(7, 8)} axis:16:int32=1 "
    "force_nd_im2col:17:bool",
    "CropParameter": "axis:1:int32=2 offset:2:uint32*",
    "DropoutParameter": "dropout_ratio:1:float=0.5",
    "EltwiseParameter": "operation:1:EltwiseParameter.EltwiseOp=SUM coeff:2:float* stable_prod_grad:3:bool=true",
    "ELUParameter": "alpha:1:float=1",
    "EmbedParameter": f"num_output:1:uint32 input_dim:2:uint32 bias_term:3:bool=true {FILLERS.format(4, 5)}",
    "ExpParameter": AFFINE,
    "FlattenParameter": "axis:1:int32=1 end_axis:2:int32=-1",
    "InnerProductParameter": f"num_output:1:uint32 bias_term:2:bool=true {FILLERS.format(3, 4)} axis:5:int32=1 "
    "transpose:6:bool",
    "LogParameter": AFFINE,
    "LRNParameter": "local_size:1:uint32=5 alpha:2:float=1 beta:3:float=0.75 "
    "norm_region:4:LRNParameter.NormRegion=ACROSS_CHANNELS k:5:float=1",
    "MVNParameter": "normalize_variance:1:bool=true across_channels:2:bool eps:3:float=1e-9",
    "PermuteParameter": "order:1:uint32*",
    "PoolingParameter": "pool:1:PoolingParameter.PoolMethod=MAX pad:4:uint32 pad_h:9:uint32 pad_w:10:uint32 "
    "kernel_size:2:uint32 kernel_h:5:uint32 kernel_w:6:uint32 stride:3:uint32=1 stride_h:7:uint32 stride_w:8:uint32 "
    "global_pooling:12:bool round_mode:13:PoolingParameter.RoundMode=CEIL",
    "PowerParameter": "power:1:float=1 scale:2:float=1 shift:3:float",
    "PReLUParameter": "filler:1:FillerParameter channel_shared:2:bool",
    "RecurrentParameter": f"num_output:1:uint32 {FILLERS.format(2, 3)} expose_hidden:5:bool",
    "ReductionParameter": "operation:1:ReductionParameter.ReductionOp=SUM axis:2:int32 coeff:3:float=1",
    "ReLUParameter": "negative_slope:1:float",
    "ReshapeParameter": "shape:1:BlobShape axis:2:int32 num_axes:3:int32=-1",
    "ScaleParameter": "axis:1:int32=1 num_axes:2:int32=1 filler:3:FillerParameter bias_term:4:bool "
    "bias_filler:5:FillerParameter",
    "SoftmaxParameter": "axis:2:int32=1",
    "SliceParameter": "axis:3:int32=1 slice_point:2:uint32* slice_dim:1:uint32=1",
    "SwishParameter": "beta:1:float=1",
    "ThresholdParameter": "threshold:1:float",
    "TileParameter": "axis:1:int32=1 tiles:2:int32",
}

PACKAGE = "cos_ml.caffe"
Field = descriptor_pb2.FieldDescriptorProto


def _field(text: str) -> Any:
    """The descriptor of a field from its line in the table."""
    name, number, kind = text.split(":")
    kind, _, default = kind.partition("=")
    many, kind = kind.endswith("*"), kind.removesuffix("*")
    label = Field.LABEL_REPEATED if many else Field.LABEL_OPTIONAL
    field = Field(name=name, number=int(number), label=label)
    if kind in ENUMS or kind in MESSAGES:
        field.type = Field.TYPE_ENUM if kind in ENUMS else Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(Field, f"TYPE_{kind.upper()}")
    if default:
        field.default_value = default
    return field


def _pool() -> Any:
    """The messages and enums of the tables."""
    file = descriptor_pb2.FileDescriptorProto(name="cos_ml/caffe.proto", package=PACKAGE, syntax="proto2")
    messages = {name: file.message_type.add(name=name) for name in MESSAGES}
    for name, fields in MESSAGES.items():
        messages[name].field.extend(_field(field) for field in fields.split())
    for name, values in ENUMS.items():
        scope, _, own = name.rpartition(".")
        enum = (messages[scope] if scope else file).enum_type.add(name=own)
        for value in values.split():
            label, _, number = value.partition("=")
            enum.value.add(name=label, number=int(number))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


POOL = _pool()


def message(name: str) -> Any:
    """A new message of a kind that the tables have, such as "NetParameter"."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))()


def enum_name(owner: Any, field: str) -> str:
    """The name of an enum field's value, such as "MAX"."""
    kind = owner.DESCRIPTOR.fields_by_name[field].enum_type
    return str(kind.values_by_number[getattr(owner, field)].name)
