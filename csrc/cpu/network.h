// A network with its weights packed, and its runs over images.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "downsample.h"
#include "edges.h"
#include "extract.h"
#include "fuse.h"
#include "segment.h"
#include "team.h"

namespace dssnet::cpu {

enum class Stage { all, downsample, extract, fuse, segment, edges };

// What a run reads and writes; what its stage does not need is null. All maps are contiguous, channels last, float.
struct Run {
    Stage stage = Stage::all;
    int batch = 0, height = 0, width = 0;  // of the images; both sides multiples of 8
    // The cells whose answer is wanted, where the stage is `all`; else all of them.
    bool has_core = false;
    Range core_rows = {}, core_columns = {};
    const uint8_t* bytes = nullptr;        // [batch][height][width][channels]
    const float* floats = nullptr;         // or normalised [batch][channels][height][width]
    const float *x0_in = nullptr, *shallow_in = nullptr, *deep_in = nullptr, *y_in = nullptr;
    double* seconds = nullptr;             // [3], added to: downsample, extract, and the two others together
    float *x0 = nullptr, *shallow = nullptr, *deep = nullptr, *y = nullptr;
    // What all stages are run for.
    bool wants_answer = true, wants_edges = false;
    AnswerKind kind = AnswerKind::labels;
    uint8_t* labels = nullptr;
    float *values = nullptr, *edges = nullptr;

    bool makes_answer() const { return stage == Stage::segment || (stage == Stage::all && wants_answer); }
    bool makes_edges() const { return stage == Stage::edges || (stage == Stage::all && wants_edges); }
    Range rows() const { return has_core ? core_rows : Range{0, height / PHASES}; }
    Columns columns() const { return has_core ? Columns(width / PHASES, core_columns) : Columns(width / PHASES); }
};

// Safe from several threads: runs share nothing but the weights.
class Network {
  public:
    Network(const Kernels& kernels, const Operands& operands);

    // On up to `threads` threads. Throws std::bad_alloc.
    void run(const Run& run, int threads) const;

    const Sizes& sizes() const { return sizes_; }
    // Multiply-accumulates for an image, padding included: as `Run::seconds`.
    std::array<Macs, 3> macs(int height, int width) const;
    // What a run needs beyond inputs and results, in bytes. Of `run` only sizes, stage, core and what is wanted count.
    size_t workspace_bytes(const Run& run, int threads) const;

  private:
    // Words of the parts of one team's memory.
    struct Layout {
        size_t zeros, shared, scratch;
        size_t words(int members) const { return 2 * zeros + shared + members * scratch; }
    };
    Layout layout(const Run& run, const Extract::Plan& plan) const;
    // What a share of the rows wants of the stages before.
    bool in_whole_cells() const { return fuse_.in_whole_cells() || segment_.in_whole_cells(); }
    Segment::Plan segment_plan(const Run& run, Range rows) const;
    Edges::Plan edge_plan(const Run& run, Range rows) const;
    Fuse::Plan fuse_plan(const Run& run, Range rows) const;
    Extract::Plan extract_plan(const Run& run) const;
    void run_image(const Run& run, const Extract::Plan& plan, int image, const Member& member, const Layout& layout,
                   uint32_t* memory) const;
    void run_stages(const Run& run, const Extract::Plan& plan, int image, const Member& member,
                    const uint32_t* const* zeros, Arena shared, Arena scratch, size_t* most) const;

    // Memory kept for the next run: getting it anew from the system costs more than many an image.
    std::unique_ptr<Memory> borrow() const;
    void give_back(std::unique_ptr<Memory> memory) const;

    const Kernels& kernels_;
    Sizes sizes_;
    Downsample downsample_;
    Extract extract_;
    Fuse fuse_;
    Segment segment_;
    std::optional<Edges> edges_;
    mutable std::vector<std::unique_ptr<Memory>> kept_;
};

}  // namespace dssnet::cpu
