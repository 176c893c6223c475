// The sizes of a network, and those that its kernels work with.
#pragma once

#include <string>

#include "../cuda/params.h"

namespace dssnet {

// As DSSNetConfig in Python, without what only training needs. Blocks are W-NECK blocks.
struct Network {
    int in_channels = 3;
    int classes = 2;
    int width = 30;
    int features = 42;
    int blocks = 10;
    bool learned_upsampling = false;  // pixel shuffle in place of nearest neighbour

    int branch() const { return 3 * features; }          // channels of each expanding convolution
    int low_rank() const { return features * 3 / 4; }    // channels of the squeezing one
    int fused() const { return 2 * features; }
};

// Channels as the kernels store them, and which kernels are compiled for just these.
struct Sizes {
    explicit Sizes(const Network& network);

    int width, features, expanded, squeezed;
    int fused;        // of the map between the FFM's two convolutions
    int values;       // of it held at a time, nearest-neighbour FFM
    int mix_tiles;    // tiles of 8 outputs in a group of the FFM's 1x1 convolution
    int outputs;      // of the segmentation head's composed convolution
    bool released_stem, released_down, released_wneck, released_fuse;
};

}  // namespace dssnet
