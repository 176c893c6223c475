// What a network is made of, as Python gives it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "convolution.h"

namespace dssnet::cpu {

// The channels of a network's maps.
struct Sizes {
    int in_channels = 3, classes = 2;
    int width = 30;     // of the down-sampled maps
    int features = 42;  // of shallow and deep features, each
    int fused = 84;     // of the FFM
    int y = 32, narrow = 20;
    bool learned_upsampling = false;
    bool edges = false;  // whether there is an edge head
};

// Convolutions side by side that read one map and whose outputs follow each other, and their PReLU.
struct LayerNames {
    std::vector<std::string> parts;
    float slope = 1;
};

// What a composed convolution misses at the image's border: terms to add there.
struct Border {
    Convolution top, bottom, left, right;
    Convolution top_left, top_right, bottom_left, bottom_right;
};

// A residual block: layers in a row, the last of which has one part and adds the block's input.
using BlockNames = std::vector<LayerNames>;

struct Operands {
    Sizes sizes;
    std::vector<BlockNames> blocks;
    std::map<std::string, Operand> convolutions;
    std::map<std::string, Format> inputs;  // of the convolutions
    std::map<std::string, float> slopes;
    bool winograd = true;                  // where it gains something

    const Operand& operand(const std::string& name) const { return convolutions.at(name); }
    const Format& input(const std::string& name) const { return inputs.at(name); }

    // Of shallow and deep features.
    const Format& fuse_input() const { return input(sizes.learned_upsampling ? "fuse.mix.0" : "fuse.mix"); }

    Convolution convolution(const Kernels& kernels, const std::string& name, int panel = WIDEST_PANEL) const {
        return Convolution(kernels, operand(name), input(name), Form::direct, {}, panel);
    }
    // The border of a composed convolution, in float32.
    Border border(const Kernels& kernels, const std::string& name) const {
        const auto at = [&](const char* where) { return convolution(kernels, name + where); };
        return {at(".top"),      at(".bottom"),    at(".left"),        at(".right"),
                at(".top_left"), at(".top_right"), at(".bottom_left"), at(".bottom_right")};
    }
    // Whether a 3x3 convolution of stride 1 is best in this one of Winograd's forms.
    bool has_form(const Kernels& kernels, const std::string& name, Form form) const {
        return winograd && Convolution::fits(kernels, operand(name), input(name), form);
    }
    // A convolution for `convolve_rows`, in the form that is best: `form` or direct.
    Convolution fastest(const Kernels& kernels, const std::string& name, Form form, std::vector<int> segments = {}) const {
        return Convolution(kernels, operand(name), input(name), has_form(kernels, name, form) ? form : Form::direct,
                           std::move(segments));
    }
};

}  // namespace dssnet::cpu
