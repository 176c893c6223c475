#include "network.h"

namespace dssnet {

// The limits of `released_*` are the constants that the kernels are compiled with (csrc/cuda).
Sizes::Sizes(const Network& network)
    : width(round_up(network.width, 16)),
      features(round_up(network.features, 16)),
      expanded(round_up(network.branch(), 32)),
      squeezed(round_up(network.low_rank(), 16)),
      outputs(network.classes == 2 ? 8 : round_up(4 * network.classes, 16)),
      released_stem(network.in_channels == 3 && width == 32),
      released_down(width == 32),
      released_wneck(width == 32 && features == 48 && expanded == 128 && squeezed == 32) {
    const int multiple_of_8 = round_up(network.fused(), 8);
    released_fuse = !network.learned_upsampling && features == 48 && multiple_of_8 == 88;
    values = released_fuse ? 88 : 32;
    mix_tiles = released_fuse ? 6 : 2;
    fused = released_fuse ? 88 : round_up(network.fused(), network.learned_upsampling ? 16 : values);
}

}  // namespace dssnet
