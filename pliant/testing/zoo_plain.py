"""The networks of `pliant.nets` and of `zoo_nets`: between them they tie axes in every way the graph must know."""

from pliant import nets
from pliant.testing import zoo_nets
from pliant.testing.entry import Entry, entry, floats, tokens

ENTRIES: list[Entry] = [
    # two hidden layers
    entry("mlp", lambda: nets.mlp((12,), 5, hidden=(16, 12)), floats(12), "core linear", groups={"width": [12, 16]}),
    # first stage: its stream and one inner width a block; second stage: its stream and one inner width; only the
    # identity shortcuts of the first stage can stand alone
    entry("resnet", lambda: nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=8), floats(3, 8, 8),
          "core conv batchnorm inplace depth", groups={"width": [8, 8, 8, 16, 16], "depth": [2]}),
    # a depthwise convolution carries its input's channels on
    entry("dwsep", lambda: nets.dwsep((3, 8, 8), 5, stem=8, channels=(16, 24), strides=(1, 2)), floats(3, 8, 8),
          "core conv depthwise batchnorm inplace", groups={"width": [8, 16, 24]}),
    entry("vit", lambda: nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=2, heads=4), floats(3, 8, 8),
          "core conv attention layernorm cat depth", groups={"heads": [4, 4], "width": [16, 64, 64], "depth": [4]}),
    entry("gpt", lambda: nets.gpt((10,), 20, dim=16, depth=2, heads=4), tokens(10, 20),
          "core attention layernorm tokens tied depth",
          groups={"heads": [4, 4], "width": [16, 64, 64], "depth": [4]}),
    # features are the input's
    entry("lstm", lambda: nets.lstm((7, 6), 5, hidden=10), floats(7, 6), "core rnn", groups={"width": [10]}),
    # stem = first stream 8, three hidden widths, three squeezes (4, 6, 6), second stream 12, classifier 20
    entry("mbnet", zoo_nets.MobileNet, floats(3, 8, 8), "core conv depthwise batchnorm inplace squeeze depth",
          groups={"width": [4, 6, 6, 8, 12, 16, 20, 24, 24], "depth": [2]}),
    # four convolution groups in either block; the stream is normalised in four groups
    entry("resnext", zoo_nets.ResNeXt, floats(3, 8, 8), "core conv grouped groupnorm depth",
          groups={"width": [8, 8, 8], "depth": [2]}),
    # stem 8, growths 4 and 4, transition 8, growth 4
    entry("densenet", zoo_nets.DenseNet, floats(3, 8, 8), "core conv batchnorm cat",
          groups={"width": [4, 4, 4, 8, 8]}),
    # every convolution but the head has channels of its own: 6 6 8 8 10 10, up 8, merge 8 8, up 6, merge 6 6
    entry("unet", zoo_nets.UNet, floats(3, 8, 8), "core conv transposed upsample cat inplace dense",
          groups={"width": [6, 6, 6, 6, 6, 8, 8, 8, 8, 8, 10, 10]}),
    # the input layer; one hidden width over layers and directions
    entry("bilstm", zoo_nets.BiLSTM, floats(7, 6), "core rnn bidirectional", groups={"width": [8, 10]}),
    entry("gru", zoo_nets.GRU, tokens(7, 20), "core rnn tokens", groups={"width": [10, 12, 16]}),
    entry("encoder", zoo_nets.Encoder, floats(7, 6), "core attention layernorm depth",
          groups={"heads": [4, 4], "width": [16, 32, 32], "depth": [4]}),
    # gated 9, stream 12 with the tied embedding, shared hidden 16; both uses of the shared module and the gated branch
    # can be left out
    entry("shared", zoo_nets.Shared, tokens(7, 20), "core shared tied tokens weightnorm einsum glu",
          groups={"width": [9, 12, 16], "depth": [3]}),
    entry("convnext", zoo_nets.ConvNeXt, floats(3, 8, 8), "core conv depthwise layernorm depth",
          groups={"width": [8, 12, 32, 48], "depth": [2]}),
    # tokens are image positions, so that they stay; both hidden widths of both blocks bend
    entry("mixer", zoo_nets.Mixer, floats(3, 8, 8), "core conv layernorm depth",
          groups={"width": [16, 24, 24, 32, 32], "depth": [4]}),
    # the stem's second half feeds the first branch alone (8); its first half is shuffled with the first branch's
    # output, so they are paired, and split once more by the second block (4 passed, 4 worked); branches 8 and 8; last
    # 24
    entry("shufflenet", zoo_nets.ShuffleNet, floats(3, 8, 8), "core conv depthwise batchnorm cat shuffle inplace",
          groups={"width": [4, 4, 8, 8, 8, 24]}),
    # filter and gate are multiplied, so they are one width
    entry("tcn", zoo_nets.TCN, floats(4, 9), "core conv gated depth", groups={"width": [8, 12, 12], "depth": [2]}),
]  # fmt: skip
