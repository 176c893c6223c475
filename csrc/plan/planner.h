// From network, shape and device to the launches of a run.
#pragma once

#include <stdexcept>

#include "network.h"
#include "plan.h"
#include "weights.h"

namespace dssnet {

enum class Stage { all, downsample, extract, fuse, segment };
enum class Input { uint8, float32 };
enum class Answer { labels, probabilities, logits };

// The network or the shape cannot run on the device; says why.
struct PlanError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Request {
    Stage stage = Stage::all;
    int batch = 1;
    int height = 0, width = 0;  // of the image, multiples of 8
    Precision precision = Precision::fp16;
    Input input = Input::uint8;
    Answer answer = Answer::labels;
};

// The launches of a stage or of all. Buffers with the roles input and output come in the order in
// which the stage takes and returns them; one buffer has the role weights.
//
// Throws PlanError.
Plan make_plan(const Network& network, const Request& request, const DeviceProperties& device);

}  // namespace dssnet
