"""Well-known networks in Caffe's format, written out with fewer channels, and random weights for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cos_ml.caffe import read
from cos_ml.caffe.convert import blob_shapes, takes_blobs
from cos_ml.caffe.prototxt import network, spelled
from cos_ml.caffe.schema import message


class Net:
    """Writes layers one after the other; each method returns its layer's top."""

    def __init__(self, name: str, sides: tuple[int, ...]) -> None:
        dims = " ".join(f"dim: {side}" for side in (1, *sides))
        self.text = (
            f'name: "{name}"\nlayer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}\n'
        )
        self.sides = sides

    def add(self, kind: str, name: str, bottoms: str | list[str], params: str = "", top: str = "") -> str:
        read = " ".join(f'bottom: "{bottom}"' for bottom in ([bottoms] if isinstance(bottoms, str) else bottoms))
        self.text += f'layer {{ name: "{name}" type: "{kind}" {read} top: "{top or name}" {params} }}\n'
        return top or name

    def conv(self, name: str, bottom: str, outputs: int, kernel: int, **options: object) -> str:
        more = " ".join(f"{key}: {value}" for key, value in options.items())
        given = f'num_output: {outputs} kernel_size: {kernel} weight_filler {{ type: "xavier" }} {more}'
        return self.add("Convolution", name, bottom, f"convolution_param {{ {given} }}")

    def pool(self, name: str, bottom: str, kernel: int, stride: int, method: str = "MAX", pad: int = 0) -> str:
        given = f"pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad}"
        return self.add("Pooling", name, bottom, f"pooling_param {{ {given} }}")

    def relu(self, name: str, blob: str) -> str:
        return self.add("ReLU", name, blob, top=blob)

    def dense(self, name: str, bottom: str, outputs: int) -> str:
        return self.add("InnerProduct", name, bottom, f"inner_product_param {{ num_output: {outputs} }}")

    def lrn(self, name: str, bottom: str) -> str:
        return self.add("LRN", name, bottom, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def drop(self, name: str, blob: str) -> str:
        return self.add("Dropout", name, blob, "dropout_param { dropout_ratio: 0.4 }", top=blob)


def lenet() -> Net:
    net = Net("LeNet", (1, 28, 28))
    net.pool("pool1", net.conv("conv1", "data", 20, 5), 2, 2)
    net.pool("pool2", net.conv("conv2", "pool1", 50, 5), 2, 2)
    net.relu("relu1", net.dense("ip1", "pool2", 500))
    net.add("Softmax", "prob", net.dense("ip2", "ip1", 10))
    return net


def cifar10_quick() -> Net:
    net = Net("CIFAR10_quick", (3, 32, 32))
    net.relu("relu1", net.pool("pool1", net.conv("conv1", "data", 32, 5, pad=2), 3, 2))
    net.pool("pool2", net.relu("relu2", net.conv("conv2", "pool1", 32, 5, pad=2)), 3, 2, "AVE")
    net.pool("pool3", net.relu("relu3", net.conv("conv3", "pool2", 64, 5, pad=2)), 3, 2, "AVE")
    net.add("Softmax", "prob", net.dense("ip2", net.dense("ip1", "pool3", 64), 10))
    return net


def alexnet() -> Net:
    net = Net("AlexNet", (3, 227, 227))
    net.lrn("norm1", net.relu("relu1", net.conv("conv1", "data", 24, 11, stride=4)))
    net.conv("conv2", net.pool("pool1", "norm1", 3, 2), 32, 5, pad=2, group=2)
    net.pool("pool2", net.lrn("norm2", net.relu("relu2", "conv2")), 3, 2)
    net.relu("relu3", net.conv("conv3", "pool2", 48, 3, pad=1))
    net.relu("relu4", net.conv("conv4", "conv3", 48, 3, pad=1, group=2))
    net.relu("relu5", net.conv("conv5", "conv4", 32, 3, pad=1, group=2))
    net.dense("fc6", net.pool("pool5", "conv5", 3, 2), 96)
    net.dense("fc7", net.drop("drop6", net.relu("relu6", "fc6")), 96)
    net.add("Softmax", "prob", net.dense("fc8", net.drop("drop7", net.relu("relu7", "fc7")), 100))
    return net


def googlenet() -> Net:
    net = Net("GoogLeNet", (3, 224, 224))

    def unit(name: str, bottom: str, outputs: int, kernel: int, **options: object) -> str:
        return net.relu(f"{name.replace('/', '/relu_', 1)}", net.conv(name, bottom, outputs, kernel, **options))

    def inception(name: str, bottom: str, sizes: list[int]) -> str:
        one, three_in, three, five_in, five, pooled = (max(2, size // 8) for size in sizes)
        name = f"inception_{name}"
        parts = [
            unit(f"{name}/1x1", bottom, one, 1),
            unit(f"{name}/3x3", unit(f"{name}/3x3_reduce", bottom, three_in, 1), three, 3, pad=1),
            unit(f"{name}/5x5", unit(f"{name}/5x5_reduce", bottom, five_in, 1), five, 5, pad=2),
            unit(f"{name}/pool_proj", net.pool(f"{name}/pool", bottom, 3, 1, pad=1), pooled, 1),
        ]
        return net.add("Concat", f"{name}/output", parts)

    net.pool("pool1/3x3_s2", unit("conv1/7x7_s2", "data", 8, 7, pad=3, stride=2), 3, 2)
    unit("conv2/3x3_reduce", net.lrn("pool1/norm1", "pool1/3x3_s2"), 8, 1)
    net.lrn("conv2/norm2", unit("conv2/3x3", "conv2/3x3_reduce", 24, 3, pad=1))
    top = inception("3a", net.pool("pool2/3x3_s2", "conv2/norm2", 3, 2), [64, 96, 128, 16, 32, 32])
    top = net.pool("pool3/3x3_s2", inception("3b", top, [128, 128, 192, 32, 96, 64]), 3, 2)
    top = inception("4a", top, [192, 96, 208, 16, 48, 64])
    top = inception("4b", top, [160, 112, 224, 24, 64, 64])
    top = inception("4c", top, [128, 128, 256, 24, 64, 64])
    top = inception("4d", top, [112, 144, 288, 32, 64, 64])
    top = net.pool("pool4/3x3_s2", inception("4e", top, [256, 160, 320, 32, 128, 128]), 3, 2)
    top = inception("5a", top, [256, 160, 320, 32, 128, 128])
    top = net.pool("pool5/7x7_s1", inception("5b", top, [384, 192, 384, 48, 128, 128]), 7, 1, "AVE")
    net.add("Softmax", "prob", net.dense("loss3/classifier", net.drop("pool5/drop_7x7_s1", top), 100))
    return net


def resnet() -> Net:
    net = Net("ResNet", (3, 97, 97))

    def unit(name: str, bottom: str, outputs: int, kernel: int, relu: bool = True, **options: object) -> str:
        top = net.conv(f"res{name}", bottom, outputs, kernel, bias_term="false", **options)
        net.add("BatchNorm", f"bn{name}", top, "batch_norm_param { use_global_stats: true }", top=top)
        net.add("Scale", f"scale{name}", top, "scale_param { bias_term: true }", top=top)
        return net.relu(f"res{name}_relu", top) if relu else top

    def block(name: str, bottom: str, inner: int, stride: int, project: bool) -> str:
        side = unit(f"{name}_branch1", bottom, 4 * inner, 1, relu=False, stride=stride) if project else bottom
        first = unit(f"{name}_branch2a", bottom, inner, 1, stride=stride)
        last = unit(f"{name}_branch2c", unit(f"{name}_branch2b", first, inner, 3, pad=1), 4 * inner, 1, relu=False)
        return net.relu(f"res{name}_relu", net.add("Eltwise", f"res{name}", [side, last]))

    top = net.pool("pool1", unit("1", "data", 8, 7, pad=3, stride=2), 3, 2)
    for stage, inner in enumerate((8, 12, 16, 20), 2):
        top = block(f"{stage}a", top, inner, 1 if stage == 2 else 2, project=True)
        top = block(f"{stage}b", top, inner, 1, project=False)
    net.add("Pooling", "pool5", top, "pooling_param { pool: AVE global_pooling: true }")
    net.add("Softmax", "prob", net.dense("fc1000", "pool5", 50))
    return net


def vgg() -> Net:
    net = Net("VGG", (3, 96, 96))
    top = "data"
    for stage, (outputs, count) in enumerate(((8, 2), (12, 2), (16, 3), (24, 3), (24, 3)), 1):
        for at in range(1, count + 1):
            top = net.relu(f"relu{stage}_{at}", net.conv(f"conv{stage}_{at}", top, outputs, 3, pad=1))
        top = net.pool(f"pool{stage}", top, 2, 2)
    top = net.drop("drop6", net.relu("relu6", net.dense("fc6", top, 128)))
    top = net.drop("drop7", net.relu("relu7", net.dense("fc7", top, 128)))
    net.add("Softmax", "prob", net.dense("fc8", top, 100))
    return net


NETS = {"lenet": lenet, "cifar10_quick": cifar10_quick, "alexnet": alexnet, "googlenet": googlenet, "resnet": resnet,
        "vgg": vgg}  # fmt: skip


def blob(values: np.ndarray, form: str = "packed") -> object:
    """An array as a BlobProto: "packed", "double" or "legacy", with four sides, ones in front."""
    found = message("BlobProto")
    if form == "legacy":
        sides = (*[1] * (4 - values.ndim), *values.shape)
        found.num, found.channels, found.height, found.width = sides
    else:
        found.shape.dim.extend(values.shape)
    (found.double_data if form == "double" else found.data).extend(values.ravel().tolist())
    return found


def random_blobs(prototxt: str, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Random weights for a network's layers, of a size that keeps values of one magnitude through it."""
    model, rng = read(prototxt), np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {}
    for layer in network(prototxt).layer:
        own = next((one for one in model.layers if one.name == spelled(layer.name) and takes_blobs(one)), None)
        if own is None:
            continue
        shapes = blob_shapes(own)
        if layer.type == "BatchNorm":
            found[layer.name] = [rng.normal(0, 1, shapes[0]), rng.uniform(1, 3, shapes[1]), np.full(shapes[2], 2.0)]
        elif layer.type == "Scale":
            found[layer.name] = [rng.uniform(0.5, 1.5, shapes[0]), rng.normal(0, 0.3, shapes[1])]
        else:
            scale = np.sqrt(2 / max(1, int(np.prod(shapes[0][1:]))))
            found[layer.name] = [rng.normal(0, scale, shapes[0]), *(rng.normal(0, 0.1, shape) for shape in shapes[1:])]
    return {name: [array.astype(np.float32) for array in arrays] for name, arrays in found.items()}


def write_caffemodel(path: Path, blobs: dict[str, list[np.ndarray]], form: str = "packed") -> Path:
    """A caffemodel of layers' blobs; the form "v1" is that of 2013."""
    net = message("NetParameter")
    net.name = "written"
    for name, arrays in blobs.items():
        layer = net.layers.add() if form == "v1" else net.layer.add()
        layer.name = name
        layer.blobs.extend(blob(array, "legacy" if form == "v1" else form) for array in arrays)
    path.write_bytes(net.SerializeToString())
    return path
